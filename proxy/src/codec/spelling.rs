//! How the names of fields are spelt on an HTTP/1 connection (`Http1ProtocolOptions.header_key_format`).
//!
//! Within the proxy names are lower-case. Peers that take case for a difference may need more: capitalised words, or the
//! spelling that a message came with. The spelling of a message's names is kept beside its fields, so that whoever writes
//! it out needs to know nothing of where it came from.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// The spelling of names where a message brings none of its own, and whether it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyFormat {
    /// Lower-case.
    #[default]
    Lower,
    /// Words capitalised (`proper_case_words`).
    ProperCase,
    /// Names keep the spelling that they come with (the `preserve_case` formatter).
    Preserve {
        /// Capitalise the words of names that did not come with the message.
        proper_case_others: bool,
        /// Keep the reason phrase of a response as well.
        reason: bool,
    },
}

/// The spelling of a message's names, as it came.
#[derive(Debug, PartialEq, Eq)]
pub struct Spelling {
    names: Vec<Bytes>,
    proper_case_others: bool,
    /// The reason phrase, where it is kept.
    pub reason: Option<Bytes>,
}

impl Spelling {
    /// The names of a message, each as first spelt in it.
    pub fn new(names: Vec<Bytes>, proper_case_others: bool, reason: Option<Bytes>) -> Arc<Self> {
        Arc::new(Self { names, proper_case_others, reason })
    }

    /// Writes a name as it came.
    pub fn put(&self, name: &str, out: &mut BytesMut) {
        match self.names.iter().find(|n| n.eq_ignore_ascii_case(name.as_bytes())) {
            Some(spelt) => out.extend_from_slice(spelt),
            None if self.proper_case_others => proper_case(name, out),
            None => out.extend_from_slice(name.as_bytes()),
        }
    }
}

impl KeyFormat {
    /// Writes a name of a message with this spelling.
    #[inline]
    pub fn put(self, spelling: Option<&Spelling>, name: &str, out: &mut BytesMut) {
        match (spelling, self) {
            (Some(spelling), _) => spelling.put(name, out),
            (None, Self::ProperCase) => proper_case(name, out),
            (None, _) => out.extend_from_slice(name.as_bytes()),
        }
    }
}

/// A letter is capital if neither letter nor digit is before it.
fn proper_case(name: &str, out: &mut BytesMut) {
    let mut first = true;
    for byte in name.bytes() {
        out.extend_from_slice(&[if first { byte.to_ascii_uppercase() } else { byte }]);
        first = !byte.is_ascii_alphanumeric();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelt_as_they_came_or_as_the_format_says() {
        let spelt = |format: KeyFormat, spelling: Option<&Spelling>, name: &str| {
            let mut out = BytesMut::new();
            format.put(spelling, name, &mut out);
            String::from_utf8(out.to_vec()).unwrap()
        };
        let names = || vec![Bytes::from_static(b"X-iD"), Bytes::from_static(b"x-Id")];
        let (lower, proper) = (Spelling::new(names(), false, None), Spelling::new(names(), true, None));
        assert_eq!(spelt(KeyFormat::Lower, None, "x-id"), "x-id");
        assert_eq!(spelt(KeyFormat::ProperCase, None, "x-1st-id_a"), "X-1st-Id_A");
        assert_eq!(spelt(KeyFormat::ProperCase, Some(&lower), "x-id"), "X-iD");
        assert_eq!(spelt(KeyFormat::Lower, Some(&lower), "via-us"), "via-us");
        assert_eq!(spelt(KeyFormat::Lower, Some(&proper), "via-us"), "Via-Us");
    }
}
