//! `x-forwarded-for`: who the client is when proxies stand between.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue};

use crate::codec::Headers;
use crate::codec::digits::{self, IpText};

/// The field.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address that stands `skip` places before the last, and whether it is the only one.
pub fn address(headers: &Headers, skip: u32) -> Option<(IpAddr, bool)> {
    // Several fields are one list; the last field has the last hops.
    let name = FORWARDED_FOR;
    let repeats = headers.may_repeat() && headers.get_all(&name).count() > 1;
    let last = if repeats { headers.get_all(&name).last()? } else { headers.get(&name)? };
    // Mostly it is one address.
    if let (0, Some(address)) = (skip, digits::parse_v4(last.as_bytes())) {
        return Some((address.into(), !repeats));
    }
    let list = last.to_str().ok()?;
    let text = list.rsplit(',').nth(skip as usize)?.trim();
    Some((parse(text)?, !repeats && !list.contains(',')))
}

/// An address, possibly in brackets; ports are not expected here, as in Envoy.
fn parse(text: &str) -> Option<IpAddr> {
    text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text).parse().ok()
}

/// Appends an address.
pub fn append(headers: &mut Headers, address: IpAddr) {
    let address = IpText::new(address);
    let value = match headers.get(&FORWARDED_FOR) {
        None => HeaderValue::from_bytes(address.as_bytes()),
        Some(before) => {
            let text = [before.as_bytes(), b",", address.as_bytes()].concat();
            HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
        }
    };
    if let Ok(value) = value {
        headers.set(FORWARDED_FOR, value);
    }
}
