//! A private copy of a configuration, maybe moved to another part of the loopback network, so that several meshes can run on
//! one machine with their real ports.

use std::path::Path;

use anyhow::{Context, bail};

/// Copies every file of `from` (hidden ones left out) to `to`, with 127.0.X.Y moved to 127.N.X.Y if `loopback` is N.
pub(super) fn copy(from: &Path, to: &Path, loopback: Option<u8>) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let entries = std::fs::read_dir(from)
        .with_context(|| format!("{} cannot be read; give a directory of YAML", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().first() == Some(&b'.') {
            continue;
        }
        let (path, copy) = (entry.path(), to.join(&name));
        if path.is_dir() {
            self::copy(&path, &copy, loopback)?;
            continue;
        }
        let bytes = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        // What is not text is refused later, by the reader of the copy.
        let bytes = match (String::from_utf8(bytes), loopback) {
            (Ok(text), Some(n)) => moved(&text, n).into_bytes(),
            (Ok(text), None) => text.into_bytes(),
            (Err(e), _) => e.into_bytes(),
        };
        std::fs::write(&copy, bytes).with_context(|| format!("{} cannot be written", copy.display()))?;
    }
    Ok(())
}

/// Moves 127.0.X.Y to 127.N.X.Y. 127.0.0.Y stays: it means this machine, wherever it is written.
pub fn moved(text: &str, n: u8) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("127.0.") {
        let (before, found) = rest.split_at(at);
        let after = &found["127.0.".len()..];
        let starts = before.chars().next_back().is_none_or(|c| !c.is_ascii_digit() && c != '.');
        let third: String = after.chars().take_while(char::is_ascii_digit).collect();
        let address = starts && !third.is_empty() && third != "0" && after[third.len()..].starts_with('.');
        out.push_str(before);
        if address {
            out.push_str(&format!("127.{n}."));
        } else {
            out.push_str("127.0.");
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Checks the number of a `--loopback`.
pub(super) fn check(n: u8) -> anyhow::Result<()> {
    if n == 0 {
        bail!(
            "--loopback 0: that is where the configuration's addresses are already; give a number from 1 to 255"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_move_and_this_machine_stays() {
        assert_eq!(
            moved(
                "a: 127.0.10.1\nb: \"127.0.2.1:80\" 127.0.0.1:9 0.0.0.0:1 127.0.x 4127.0.1.1 1.127.0.1.1",
                77
            ),
            "a: 127.77.10.1\nb: \"127.77.2.1:80\" 127.0.0.1:9 0.0.0.0:1 127.0.x 4127.0.1.1 1.127.0.1.1"
        );
    }
}
