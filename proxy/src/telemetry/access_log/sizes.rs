//! How many bytes header fields have, as Envoy counts them: names and values, without what a codec adds.

use crate::codec::{Headers, RequestHead};

/// Of a request, with its pseudo-headers.
pub fn of_request(head: &RequestHead) -> usize {
    let pseudo = [
        (":method", head.method.as_str().len()),
        (":scheme", head.scheme.len()),
        (":authority", head.authority.len()),
        (":path", head.path.len()),
    ];
    let pseudo = pseudo.iter().filter(|(_, length)| *length > 0).map(|(name, length)| name.len() + length);
    pseudo.sum::<usize>() + of_fields(&head.headers)
}

/// Of an answer's head, with its status.
pub fn of_response(headers: &Headers) -> usize {
    ":status".len() + 3 + of_fields(headers)
}

/// Of fields.
pub fn of_fields(headers: &Headers) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}
