//! What requests and answers take on the wire, by what their peer wrote and read.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

use super::client::Connection;
use super::server::{ServerOptions, serve};
use super::*;
use crate::codec::headers::{HeaderName, HeaderValue};
use crate::codec::{
    Body, Downstream, Drain, Frame, Headers, HttpService, Meter, Protocol, Reply, Request, RequestHead,
    ResponseHead, WireBytes,
};
use crate::io::Io;

fn fields(list: &[(&'static str, &'static str)]) -> Headers {
    list.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

/// A path, and what a request for it took.
type Took = (String, Option<WireBytes>);

/// Answers what the path asks for, and keeps what each request took in the end.
#[derive(Default)]
struct Measured {
    took: Rc<RefCell<Vec<Took>>>,
}

impl Measured {
    fn keep(&self, path: &str, meter: Option<&Rc<Meter>>) {
        let (took, path) = (self.took.clone(), path.to_owned());
        meter.unwrap().then(Box::new(move |bytes| took.borrow_mut().push((path, bytes))));
    }
}

impl HttpService for Measured {
    async fn call(self: Rc<Self>, mut request: Request, downstream: Downstream) -> Reply {
        let path = String::from_utf8_lossy(&request.head.path).into_owned();
        self.keep(&path, downstream.meter.as_ref());
        let head = |status, list| ResponseHead { status, protocol: Protocol::Http11, headers: fields(list) };
        let reply =
            |body| Reply { head: head(StatusCode::OK, &[("x-a", "b")]), body, close: false, reset: None };
        match path.as_str() {
            "/early" => return reply(Body::full("early")),
            "/hint" => downstream.informational.send(head(StatusCode::EARLY_HINTS, &[("link", "x")])),
            _ => {}
        }
        while let Some(Ok(_)) = request.body.frame().await {}
        reply(match path.as_str() {
            "/large" => Body::full(vec![b'x'; 100_000]),
            "/empty" => Body::Empty,
            _ => Body::Frames(
                [Frame::Data(Bytes::from_static(b"ok")), Frame::Trailers(fields(&[("x-t", "1")]))].into(),
            ),
        })
    }

    fn bad_request(
        &self,
        status: StatusCode,
        details: &'static str,
        _: Protocol,
        meter: Option<Rc<Meter>>,
    ) -> Reply {
        self.keep(details, meter.as_ref());
        let head = ResponseHead { status, protocol: Protocol::Http11, headers: fields(&[]) };
        Reply { head, body: Body::full(details), close: true, reset: None }
    }

    fn wants_bytes(&self) -> bool {
        true
    }
}

fn run<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async { test().await })
}

/// Sends the requests cut into pieces, ends, and reads everything.
async fn talk(requests: &[u8], step: usize) -> (String, Vec<(String, WireBytes)>) {
    let (mut client, near) = tokio::io::duplex(16 * 1024);
    let (service, (_signal, drain)) = (Rc::new(Measured::default()), Drain::new());
    let mut options = ServerOptions::default();
    options.h1.enable_trailers = true;
    let took = service.took.clone();
    let task = tokio::task::spawn_local(serve(Io::memory(near), service, options, drain));
    for piece in requests.chunks(step) {
        client.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(Duration::from_secs(1), client.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..n]);
    }
    drop(client);
    task.await.unwrap();
    let took = took.borrow().iter().map(|(path, bytes)| (path.clone(), bytes.unwrap())).collect();
    (String::from_utf8(answer).unwrap(), took)
}

/// The lines of fields in a head.
fn lines(head: &str) -> u64 {
    head.split_inclusive("\r\n")
        .skip(1)
        .take_while(|line| *line != "\r\n")
        .map(|line| line.len() as u64)
        .sum()
}

#[test]
fn each_request_is_told_what_it_and_its_answer_took() {
    // Values with blanks around them, an empty line before a request, requests that come together.
    let requests = [
        ("/plain", "GET /plain HTTP/1.1\r\nhost: h\r\n\r\n"),
        ("/large", "\r\nPOST /large HTTP/1.1\r\nhost:  h \r\ncontent-length: 5\r\n\r\nhello"),
        (
            "/hint",
            "POST /hint HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx: yz\r\n\r\n",
        ),
        ("/empty", "GET /empty HTTP/1.1\r\nhost: h\r\n\r\n"),
    ];
    let all: String = requests.iter().map(|(_, text)| *text).collect();
    for step in [1, 7, 50, all.len()] {
        let (answer, took) = run(|| talk(all.as_bytes(), step));
        let took: Vec<_> = took.iter().map(|(path, bytes)| (path.as_str(), *bytes)).collect();
        assert_eq!(took.iter().map(|(_, bytes)| bytes.sent).sum::<u64>(), answer.len() as u64, "{step}");
        let mut rest = &answer[..];
        for ((path, text), (of, bytes)) in requests.iter().zip(&took) {
            assert_eq!((path, bytes.received), (of, text.len() as u64), "{step}");
            let (own, after) = rest.split_at(bytes.sent as usize);
            assert!(
                own.starts_with("HTTP/1.1 ") && (after.is_empty() || after.starts_with("HTTP/1.1 ")),
                "{own}"
            );
            let heads: u64 = match own.strip_prefix("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n") {
                Some(second) => "link: x\r\n".len() as u64 + lines(second),
                None => lines(own),
            };
            let trailers = if own.ends_with("x-t: 1\r\n\r\n") { "x-t: 1\r\n".len() as u64 } else { 0 };
            assert_eq!(
                (bytes.headers_sent, bytes.plain_headers_sent),
                (heads + trailers, heads + trailers),
                "{own}"
            );
            rest = after;
        }
        // As Envoy counts what comes: a name, a value and three bytes for each field; trailers among what is on the wire alone.
        let host = 4 + 1 + 3;
        let came = |at: usize| (took[at].1.headers_received, took[at].1.plain_headers_received);
        assert_eq!(came(0), (host, host));
        assert_eq!(came(1), (host + 14 + 1 + 3, host + 14 + 1 + 3));
        assert_eq!(came(2), (host + 17 + 7 + 3 + 1 + 2 + 3, host + 17 + 7 + 3));
    }
}

#[test]
fn what_is_refused_or_answered_early_is_told_as_far_as_it_came() {
    let bad = "GET /bad HTTP/1.1\r\nhost: h\r\nx y: z\r\n\r\nmore";
    let (answer, took) = run(|| talk(bad.as_bytes(), bad.len()));
    let told = WireBytes { sent: answer.len() as u64, received: bad.len() as u64, ..WireBytes::default() };
    let fields = lines(&answer);
    assert_eq!(
        took,
        [(
            "http1.codec_error".to_owned(),
            WireBytes { headers_sent: fields, plain_headers_sent: fields, ..told }
        )]
    );
    // The head was well-formed; what it says is not taken.
    let old = "GET /old HTTP/1.0\r\nhost: h\r\n\r\n";
    let (_, took) = run(|| talk(old.as_bytes(), 3));
    assert_eq!((took[0].1.received, took[0].1.headers_received), (old.len() as u64, 8));
    // As much of a body as came, whether somebody reads it or not.
    let early = "POST /early HTTP/1.1\r\nhost: h\r\ncontent-length: 500\r\n\r\nhel";
    let (answer, took) = run(|| talk(early.as_bytes(), early.len()));
    assert_eq!((took[0].1.received, took[0].1.sent), (early.len() as u64, answer.len() as u64));
}

#[test]
fn a_client_that_goes_away_leaves_numbers_behind() {
    run(|| async {
        let (mut client, near) = tokio::io::duplex(1024);
        let (service, (_signal, drain)) = (Rc::new(Measured::default()), Drain::new());
        let took = service.took.clone();
        let task =
            tokio::task::spawn_local(serve(Io::memory(near), service, ServerOptions::default(), drain));
        let request = b"GET /large HTTP/1.1\r\nhost: h\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut some = [0; 100];
        client.read_exact(&mut some).await.unwrap();
        assert!(took.borrow().is_empty(), "the answer is still being written");
        drop(client);
        task.await.unwrap();
        let took = took.borrow();
        assert_eq!((took.len(), took[0].1.unwrap().received), (1, request.len() as u64));
    });
}

#[test]
fn an_upstream_connection_counts_the_exchanges_that_are_measured() {
    run(|| async {
        let (near, mut far) = tokio::io::duplex(1024);
        let answer =
            "HTTP/1.1 103 x\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nx-a:  b \r\ncontent-length: 2\r\n\r\nok";
        let serve = tokio::task::spawn_local(async move {
            let mut sizes = Vec::new();
            let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
            while let Ok(n @ 1..) = far.read(&mut buffer).await {
                request.extend_from_slice(&buffer[..n]);
                if request.ends_with(b"0\r\n\r\n") {
                    let text = String::from_utf8(std::mem::take(&mut request)).unwrap();
                    sizes.push((text.len() as u64, lines(&text)));
                    far.write_all(answer.as_bytes()).await.unwrap();
                }
            }
            sizes
        });
        let mut connection = Some(Connection::new(Io::memory(near), H1Options::upstream()));
        let mut told = Vec::new();
        for measured in [true, false, true] {
            let meter = measured.then(|| Rc::new(Meter::default()));
            let head = RequestHead {
                authority: Bytes::from_static(b"h"),
                path: Bytes::from_static(b"/"),
                method: http::Method::POST,
                ..RequestHead::empty(Protocol::Http11)
            };
            let body = Body::Frames([Frame::Data(Bytes::from_static(b"hello"))].into());
            let back = Rc::new(RefCell::new(None));
            let kept = back.clone();
            let release = Box::new(move |connection| *kept.borrow_mut() = connection);
            let own = connection.take().unwrap().measured(meter.clone());
            let mut reply = own.send(Request { head, body }, None, release, |_| {}).await.unwrap();
            while let Some(frame) = reply.body.frame().await {
                frame.unwrap();
            }
            connection = back.borrow_mut().take();
            told.extend(meter.map(|meter| meter.bytes().unwrap()));
        }
        drop(connection);
        let sizes = serve.await.unwrap();
        let (sent, headers_sent) = sizes[0];
        let came = (4 + 1 + 3) + (3 + 1 + 3) + (14 + 1 + 3);
        let wanted = WireBytes {
            sent,
            headers_sent,
            plain_headers_sent: headers_sent,
            received: answer.len() as u64,
            headers_received: came,
            plain_headers_received: came,
        };
        assert_eq!((sizes.len(), told), (3, vec![wanted, wanted]));
    });
}
