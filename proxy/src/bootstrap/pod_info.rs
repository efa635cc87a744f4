//! What Kubernetes tells a container of its pod: labels and annotations, as files of a downward API volume.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, bail};

/// Reads such a file (`labels`, `annotations`): a line `KEY="VALUE"` for each. There may be none: outside of pods there is no such volume.
pub(super) fn read(directory: &Path, name: &str) -> anyhow::Result<Vec<(String, String)>> {
    let path = directory.join(name);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("--pod-info: {}", path.display())),
    };
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (key, value) = line.split_once('=').context("write KEY=\"VALUE\"")?;
            Ok((key.to_owned(), unquote(value)?))
        })
        .collect::<anyhow::Result<_>>()
        .with_context(|| format!("--pod-info: {} is not what Kubernetes writes there", path.display()))
}

/// A text as Go quotes it.
fn unquote(text: &str) -> anyhow::Result<String> {
    let inner =
        text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).context("a value stands in quotes")?;
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let plain = match rest.next() {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('a') => '\u{7}',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('v') => '\u{b}',
            Some(c @ ('"' | '\\' | '\'')) => c,
            // A single byte, of a text that is not UTF-8.
            Some('x') => {
                out.push(u8::try_from(number(&mut rest, 2)?)?);
                continue;
            }
            Some(c @ ('u' | 'U')) => {
                let code = number(&mut rest, if c == 'u' { 4 } else { 8 })?;
                char::from_u32(code).with_context(|| format!("{code:x} is no character"))?
            }
            other => bail!("\\{} is no way to write a character", other.unwrap_or(' ')),
        };
        out.extend_from_slice(plain.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn number(rest: &mut std::str::Chars<'_>, digits: usize) -> anyhow::Result<u32> {
    let text: String = rest.take(digits).collect();
    anyhow::ensure!(text.len() == digits, "{text:?} has not {digits} digits");
    u32::from_str_radix(&text, 16).with_context(|| format!("{text:?} is no number to the base of 16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_annotations_are_read_as_kubelet_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read(directory.path(), "labels").unwrap().is_empty(), "no pod, no labels");
        let text = "app=\"web\"\na.b/c=\"\"\nnote=\"two\\nlines = \\\"\\u00fc\\\" \\\\ \\x41\"\n";
        std::fs::write(directory.path().join("labels"), text).unwrap();
        let found = read(directory.path(), "labels").unwrap();
        let expected = [("app", "web"), ("a.b/c", ""), ("note", "two\nlines = \"ü\" \\ A")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        for wrong in ["app", "app=web", "app=\"\\q\"", "app=\"\\u12\""] {
            std::fs::write(directory.path().join("labels"), wrong).unwrap();
            let error = format!("{:#}", read(directory.path(), "labels").unwrap_err());
            assert!(error.contains("--pod-info") && error.contains("labels"), "{error}");
        }
    }
}
