//! Who called, as the sidecar verified it: header `x-forwarded-client-cert`.

use serde::Serialize;

/// The caller by its certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Caller {
    /// Its SPIFFE id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spiffe: Option<String>,
    /// SHA-256 of its certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hash: Option<String>,
    /// Our own id, as the caller's certificate was presented to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
}

impl Caller {
    /// Reads the header's last element: that one our own sidecar wrote; those before came along with the request.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let element = split(header, ',').pop()?;
        let mut caller = Self::default();
        for pair in split(element, ';') {
            let Some((key, value)) = pair.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            if value.is_empty() {
                continue;
            }
            let field = match key.trim().to_ascii_lowercase().as_str() {
                "uri" => &mut caller.spiffe,
                "hash" => &mut caller.hash,
                "by" => &mut caller.by,
                _ => continue,
            };
            field.get_or_insert_with(|| value.to_owned());
        }
        (caller != Self::default()).then_some(caller)
    }
}

/// Splits at a character outside of double quotes.
fn split(text: &str, at: char) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c if c == at && !quoted => {
                parts.push(&text[start..i]);
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_element_counts_and_quotes_hide_separators() {
        let header = "By=spiffe://d/a;Hash=00;URI=spiffe://d/forged,\
                      By=spiffe://d/b;Hash=ab12;Subject=\"CN=\\\"x\\\",O=y;z\";URI=spiffe://d/ns/n/sa/caller";
        let caller = Caller::parse(header).unwrap();
        assert_eq!(caller.spiffe.as_deref(), Some("spiffe://d/ns/n/sa/caller"));
        assert_eq!((caller.hash.as_deref(), caller.by.as_deref()), (Some("ab12"), Some("spiffe://d/b")));
        assert_eq!(Caller::parse(""), None);
        assert_eq!(Caller::parse("nonsense"), None);
    }
}
