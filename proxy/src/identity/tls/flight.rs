//! The first messages of a TLS connection, which go in the clear (RFC 8446, sections 4 and 5.1; RFC 5246, sections 6.2.1 and 7.4): what
//! they say that the TLS library keeps to itself.

use std::ops::ControlFlow;

/// The content type of records that carry handshake messages.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const NEW_SESSION_TICKET: u8 = 4;
/// The version, and what is random, which stand in either hello before the session's id.
const BEFORE_SESSION: usize = 2 + 32;
/// A hello that begins with more than this and has no session's id yet is none.
const LONGEST_START: usize = 1024;

/// The handshake messages in a stream's first records, in one piece, up to the first record of another kind. Whether there was such
/// a record is the second.
fn joined(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut all = Vec::with_capacity(bytes.len());
    while let [HANDSHAKE, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        all.extend_from_slice(&rest[..length]);
        bytes = &rest[length..];
    }
    (all, bytes.first().is_some_and(|kind| *kind != HANDSHAKE))
}

/// Whole messages of handshake bytes, each with its type.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [kind, high, middle, low, rest @ ..] = bytes else { return None };
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        let body = rest.get(..length)?;
        bytes = &rest[length..];
        Some((*kind, body))
    })
}

/// The session's id in a hello's body.
fn session(hello: &[u8]) -> Option<&[u8]> {
    let length = usize::from(*hello.get(BEFORE_SESSION)?);
    hello.get(BEFORE_SESSION + 1..)?.get(..length)
}

/// The body of the ClientHello that a stream begins with, once all of it has come.
pub fn client_hello(bytes: &[u8]) -> Option<Vec<u8>> {
    let (joined, _) = joined(bytes);
    messages(&joined).next().filter(|(kind, _)| *kind == CLIENT_HELLO).map(|(_, body)| body.to_vec())
}

/// The session that a client wants to resume, by what its stream begins with; goes on while more has to come to know it.
pub(super) fn offered(bytes: &[u8]) -> ControlFlow<Option<Vec<u8>>> {
    let (joined, ended) = joined(bytes);
    let hello = match &joined[..] {
        [] | [CLIENT_HELLO] | [CLIENT_HELLO, _] | [CLIENT_HELLO, _, _] => &[][..],
        [CLIENT_HELLO, _, _, _, body @ ..] => body,
        _ => return ControlFlow::Break(None),
    };
    match session(hello) {
        Some(id) => ControlFlow::Break(Some(id.to_vec())),
        None if ended || bytes.len() > LONGEST_START => ControlFlow::Break(None),
        None => ControlFlow::Continue(()),
    }
}

/// The id of a session of TLS 1.2, by what its server began with: the one in its hello, or, where it gave a ticket, the ticket's
/// digest, by which BoringSSL's clients, and so Envoy's, know such a session.
/// The hello's counts only where it is `its_own`.
pub(super) fn made(bytes: &[u8], its_own: bool) -> Vec<u8> {
    let (joined, _) = joined(bytes);
    let mut id = Vec::new();
    for (kind, body) in messages(&joined) {
        match (kind, body) {
            (SERVER_HELLO, hello) if its_own => id = session(hello).unwrap_or_default().to_vec(),
            // How long it is good for, its length, the ticket.
            (NEW_SESSION_TICKET, [_, _, _, _, _, _, ticket @ ..]) if !ticket.is_empty() => {
                let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, ticket);
                id = digest.as_ref().to_vec();
            }
            _ => {}
        }
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[kind], &length[1..], body].concat()
    }

    fn records(kind: u8, bytes: &[u8], size: usize) -> Vec<u8> {
        let record = |piece: &[u8]| {
            let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
            [&[kind, 3, 3], &length[..], piece].concat()
        };
        bytes.chunks(size).flat_map(record).collect()
    }

    fn hello(id: &[u8]) -> Vec<u8> {
        [&[3; 34][..], &[u8::try_from(id.len()).unwrap()], id, b"the rest"].concat()
    }

    #[test]
    fn the_session_that_a_client_wants_is_known_as_soon_as_its_id_has_come() {
        for size in [1, 7, 4096] {
            for id in [&b""[..], &[7; 32]] {
                let all = records(HANDSHAKE, &message(CLIENT_HELLO, &hello(id)), size);
                let known = (0..=all.len()).find(|n| offered(&all[..*n]).is_break()).unwrap();
                assert_eq!(offered(&all[..known]), ControlFlow::Break(Some(id.to_vec())), "{size}");
                assert!(known < all.len(), "{size}: without the rest of the hello");
                assert_eq!(client_hello(&all), Some(hello(id)));
                assert_eq!(client_hello(&all[..all.len() - 1]), None);
            }
        }
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            &records(HANDSHAKE, &message(SERVER_HELLO, &hello(b"")), 9),
            // An alert in its middle.
            &[records(HANDSHAKE, &message(CLIENT_HELLO, &hello(b""))[..20], 9), vec![21, 3, 3]].concat(),
            // Records without end, of nothing.
            &[HANDSHAKE, 3, 3, 0, 0].repeat(300),
        ] {
            assert_eq!(offered(other), ControlFlow::Break(None), "{other:?}");
        }
    }

    #[test]
    fn a_session_is_known_by_its_id_or_by_the_digest_of_its_ticket() {
        let ticket = |ticket: &[u8]| {
            let length = u16::try_from(ticket.len()).unwrap().to_be_bytes();
            message(NEW_SESSION_TICKET, &[&[0, 0, 1, 0][..], &length, ticket].concat())
        };
        let flight = |id: &[u8], more: &[u8]| {
            let all =
                [message(SERVER_HELLO, &hello(id)), message(11, b"certificates"), more.to_vec()].concat();
            [
                records(HANDSHAKE, &all, 16),
                vec![20, 3, 3, 0, 1, 1],
                records(HANDSHAKE, &ticket(b"sealed"), 99),
            ]
            .concat()
        };
        assert_eq!(made(&flight(b"an id", b""), true), b"an id");
        assert_eq!(made(&flight(b"", b""), true), b"");
        assert_eq!(made(&flight(b"an id", &ticket(b"")), true), b"an id", "an empty ticket is none");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"a ticket");
        assert_eq!(made(&flight(b"", &ticket(b"a ticket")), true), digest.as_ref());
        assert_eq!(made(b"", true), b"");
        // Of one that is resumed the hello has no id of its own.
        assert_eq!(made(&flight(b"an id", b""), false), b"");
        assert_eq!(made(&flight(b"an id", &ticket(b"a ticket")), false), digest.as_ref());
    }
}
