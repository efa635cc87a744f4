//! `x-request-id`: a random UUID whose fourteenth digit says whether the request is traced, as Envoy's UUID extension packs
//! it (`4` not, `9` sampled, `a` forced by a service, `b` forced by the client).

use std::cell::RefCell;
use std::io::Read;

use http::{HeaderName, HeaderValue};

use crate::codec::Headers;

/// The field.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Makes sure that the request has an id; `force` replaces the one it came with.
pub fn ensure(headers: &mut Headers, force: bool) {
    if force || !headers.contains(&REQUEST_ID) {
        headers.set(REQUEST_ID, new());
    }
}

/// Where the digit stands that tells whether the request is traced.
const TELLS: usize = 14;
const LENGTH: usize = 36;

/// The digit that tells whether the request is traced; none where the id has not the form of ours.
pub fn told(id: &[u8]) -> Option<u8> {
    (id.len() == LENGTH).then(|| id[TELLS])
}

/// Sets that digit; says whether it was another.
pub fn tell(headers: &mut Headers, digit: u8) -> bool {
    let Some(id) = headers.get(&REQUEST_ID).map(HeaderValue::as_bytes) else { return false };
    if told(id).is_none_or(|before| before == digit) {
        return false;
    }
    let Ok(mut id) = <[u8; LENGTH]>::try_from(id) else { return false };
    id[TELLS] = digit;
    let Ok(id) = HeaderValue::from_bytes(&id) else { return false };
    headers.set(REQUEST_ID, id);
    true
}

thread_local! {
    static RANDOM: RefCell<fastrand::Rng> = RefCell::new(seeded());
}

/// A generator that nobody outside can guess the state of at start; ids need to be unique, not secret.
fn seeded() -> fastrand::Rng {
    let mut seed = [0u8; 8];
    match std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut seed)) {
        Ok(()) => fastrand::Rng::with_seed(u64::from_ne_bytes(seed)),
        Err(_) => fastrand::Rng::new(),
    }
}

/// A new id (RFC 9562, version 4).
fn new() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    /// Where the two digits of each byte stand, between the dashes.
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let bits = RANDOM.with_borrow_mut(|r| r.u128(..));
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let mut text = [b'-'; 36];
    for (byte, place) in bits.to_be_bytes().into_iter().zip(PLACES) {
        text[place] = DIGITS[usize::from(byte >> 4)];
        text[place + 1] = DIGITS[usize::from(byte & 0xf)];
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_4_uuids_and_an_id_is_kept_unless_forced() {
        let id = new();
        let id = id.to_str().unwrap();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"));
        let mut headers = Headers::new();
        headers.set(REQUEST_ID, HeaderValue::from_static("mine"));
        ensure(&mut headers, false);
        assert_eq!(headers.get(&REQUEST_ID).unwrap(), "mine");
        ensure(&mut headers, true);
        assert_ne!(headers.get(&REQUEST_ID).unwrap(), "mine");
    }
}
