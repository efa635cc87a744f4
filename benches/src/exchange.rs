//! What goes over the wire: the request, the answer that must come back, and the check that it did.

use std::sync::LazyLock;

use crate::token::ISSUED;

/// The body of every HTTP answer; checked byte by byte.
pub const BODY: &[u8; 119] = b"{\"service\":\"product-service\",\"products\":[{\"id\":1,\"name\":\"solar panel\",\"price\":199},{\"id\":2,\"name\":\"led\",\"price\":19.5}]}";

/// The request: eight fields, as a service's client sends them.
pub const REQUEST: &[u8] = b"GET /api/products?page=1 HTTP/1.1\r\n\
    host: product-service.ecotrack.svc.cluster.local\r\n\
    user-agent: weft-bench/1\r\n\
    accept: application/json\r\n\
    accept-encoding: identity\r\n\
    x-tenant: 4711\r\n\
    x-client: checkout\r\n\
    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
    cache-control: no-cache\r\n\r\n";

/// The same with this run's token.
static AUTHORIZED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    // Without a token the proxies refuse the request, and the run ends with their words.
    let token = ISSUED.as_ref().map_or("", |issued| &issued.token);
    let end = REQUEST.len() - 2;
    [&REQUEST[..end], b"authorization: Bearer ", token.as_bytes(), b"\r\n\r\n"].concat()
});

/// The message of the TCP ping-pong, about the size of a small database query.
pub const PING: [u8; 100] = [b'q'; 100];

/// The answer of the HTTP backend.
pub fn answer() -> Vec<u8> {
    let mut all = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-served-by: backend-1\r\ncontent-length: {}\r\n\r\n",
        BODY.len()
    )
    .into_bytes();
    all.extend_from_slice(BODY);
    all
}

/// One kind of request and answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// HTTP/1.1 with keep-alive.
    Http,
    /// The same with a token.
    Authorized,
    /// The same bytes come back.
    Ping,
}

/// Why what came back is not the answer.
pub type Wrong = String;

impl Exchange {
    /// What the client sends.
    pub fn request(self) -> &'static [u8] {
        match self {
            Self::Http => REQUEST,
            Self::Authorized => &AUTHORIZED,
            Self::Ping => &PING,
        }
    }

    /// The length of the answer at the start of `bytes`; none while it is not whole.
    ///
    /// # Errors
    /// It is not the right answer.
    pub fn complete(self, bytes: &[u8]) -> Result<Option<usize>, Wrong> {
        match self {
            Self::Ping => match bytes.len().cmp(&PING.len()) {
                std::cmp::Ordering::Less => Ok(None),
                std::cmp::Ordering::Equal if bytes == PING => Ok(Some(PING.len())),
                _ => Err("the echo is not what was sent".to_owned()),
            },
            Self::Http | Self::Authorized => http(bytes),
        }
    }
}

fn http(bytes: &[u8]) -> Result<Option<usize>, Wrong> {
    if bytes.len() >= 12 && !bytes.starts_with(b"HTTP/1.1 200") {
        return Err(format!("answer {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)])));
    }
    let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4) else {
        return Ok(None);
    };
    let length = format!("content-length: {}\r\n", BODY.len());
    let has = bytes[..head].windows(length.len()).any(|w| w.eq_ignore_ascii_case(length.as_bytes()));
    if !has {
        return Err(format!("no {:?} in {:?}", length.trim(), String::from_utf8_lossy(&bytes[..head])));
    }
    match bytes.len() - head {
        n if n < BODY.len() => Ok(None),
        n if n == BODY.len() && bytes[head..] == *BODY => Ok(Some(bytes.len())),
        _ => Err("the body is not the backend's".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_when_whole_and_exact() {
        let whole = answer();
        assert_eq!(Exchange::Http.complete(&whole), Ok(Some(whole.len())));
        for cut in [0, 5, 20, whole.len() - 1] {
            assert_eq!(Exchange::Http.complete(&whole[..cut]), Ok(None), "{cut}");
        }
        let mut wrong = whole.clone();
        *wrong.last_mut().unwrap() = b'!';
        assert!(Exchange::Http.complete(&wrong).is_err());
        assert!(Exchange::Http.complete(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
        assert!(Exchange::Http.complete(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(Exchange::Ping.complete(&[b'r'; 100]).is_err());
    }
}
