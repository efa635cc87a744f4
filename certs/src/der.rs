//! As much of ASN.1's encodings as the messages of enrolment take: elements read, of DER and of BER alike, for servers send either; and
//! written, in DER.

/// Elements in elements, at most.
const DEEPEST: usize = 16;

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTETS: u8 = 0x04;
pub(crate) const OBJECT_ID: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
/// `[0]`, of elements.
pub(crate) const CONTEXT_0: u8 = 0xa0;

/// One element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    /// What is in it.
    pub(crate) content: &'a [u8],
    /// With its head, and its end where it has one.
    pub(crate) whole: &'a [u8],
}

/// The first element, and what follows it; nothing where there is none.
pub(crate) fn element(input: &[u8]) -> Option<(Element<'_>, &[u8])> {
    within(input, DEEPEST)
}

fn within(input: &[u8], deep: usize) -> Option<(Element<'_>, &[u8])> {
    let (&tag, after) = input.split_first()?;
    let (&first, body) = after.split_first()?;
    // Tags of several bytes are in none of these messages.
    if tag & 0x1f == 0x1f || deep == 0 {
        return None;
    }
    let (content, rest) = match first {
        0..0x80 => body.split_at_checked(usize::from(first))?,
        // The end is marked: what holds elements alone may do so.
        0x80 if tag & 0x20 != 0 => {
            let mut rest = body;
            while !rest.starts_with(&[0, 0]) {
                rest = within(rest, deep - 1)?.1;
            }
            (&body[..body.len() - rest.len()], &rest[2..])
        }
        0x81..=0x84 => {
            let (length, body) = body.split_at_checked(usize::from(first & 0x7f))?;
            let length = length.iter().fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte));
            body.split_at_checked(length)?
        }
        _ => return None,
    };
    Some((Element { tag, content, whole: &input[..input.len() - rest.len()] }, rest))
}

/// The first element, which must be of this kind.
pub(crate) fn expect(input: &[u8], tag: u8) -> Option<(Element<'_>, &[u8])> {
    element(input).filter(|(found, _)| found.tag == tag)
}

/// An element of these parts, in DER.
pub(crate) fn write(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short @ 0..0x80) => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let bytes = &bytes[(length.leading_zeros() / 8) as usize..];
            out.push(0x80 | bytes.len() as u8);
            out.extend_from_slice(bytes);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_at_every_length() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; length];
            let written = write(SEQUENCE, &[&write(OCTETS, &[&content])]);
            let (outer, rest) = expect(&written, SEQUENCE).unwrap();
            let (inner, after) = expect(outer.content, OCTETS).unwrap();
            assert_eq!((inner.content, rest.len(), after.len()), (&content[..], 0, 0));
            assert!(expect(&written, SET).is_none() && element(&written[..written.len() - 1]).is_none());
        }
    }

    #[test]
    fn marked_ends_are_found_and_nothing_is_read_too_deep() {
        let (found, rest) = element(&[0x30, 0x80, 0x30, 0x80, 2, 1, 5, 0, 0, 4, 0, 0, 0, 9]).unwrap();
        assert_eq!((found.content, rest), (&[0x30, 0x80, 2, 1, 5, 0, 0, 4, 0][..], &[9][..]));
        assert!(element(&[0x30, 0x80, 2, 1, 5]).is_none());
        // Not of what holds bytes, and not more than can be.
        assert!(element(&[0x04, 0x80, 0, 0]).is_none());
        assert!(element(&[0x30, 0x84, 255, 255, 255, 255, 0]).is_none());
        assert!(element(&[0x30, 0x80].repeat(100_000)).is_none());
    }
}
