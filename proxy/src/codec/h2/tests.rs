//! Client and server of the codec against each other, in memory.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::task::LocalSet;

use super::client::Connection;
use super::server::serve;
use super::*;
use crate::codec::headers::{HeaderName, HeaderValue};
use crate::codec::{
    Body, Downstream, Drain, DrainPhase, Frame, Headers, HttpService, InformationalSink, Meter, Protocol,
    Reply, Request, RequestHead, ResetReason, ResponseHead, WireBytes,
};
use crate::io::Io;

fn field(name: &'static str, value: &'static str) -> Headers {
    [(HeaderName::from_static(name), HeaderValue::from_static(value))].into_iter().collect()
}

fn head(status: u16, headers: Headers) -> ResponseHead {
    ResponseHead { status: StatusCode::from_u16(status).unwrap(), protocol: Protocol::Http2, headers }
}

struct Echo;

impl HttpService for Echo {
    async fn call(self: Rc<Self>, mut request: Request, downstream: Downstream) -> Reply {
        let reset = (request.head.path == "/refuse").then_some(ResetReason::LocalRefused);
        downstream.informational.send(head(103, field("link", "x")));
        let mut frames = std::collections::VecDeque::new();
        let (mut bytes, mut trailers) = (0, None);
        while let Some(Ok(frame)) = request.body.frame().await {
            match frame {
                Frame::Data(data) => bytes += data.len(),
                Frame::Trailers(fields) => trailers = Some(fields),
            }
        }
        let text = format!(
            "{} {} {} {} {bytes}",
            request.head.method,
            String::from_utf8_lossy(&request.head.scheme),
            String::from_utf8_lossy(&request.head.authority),
            String::from_utf8_lossy(&request.head.path)
        );
        frames.push_back(Frame::Data(text.into()));
        frames.extend(trailers.map(Frame::Trailers));
        Reply {
            head: head(200, field("connection", "close")),
            body: Body::Frames(frames),
            close: false,
            reset,
        }
    }

    fn bad_request(&self, _: StatusCode, _: &'static str, _: Protocol, _: Option<Rc<Meter>>) -> Reply {
        unreachable!("the h2 crate answers protocol errors itself")
    }
}

#[derive(Default)]
struct Hints(RefCell<Vec<u16>>);

impl InformationalSink for Hints {
    fn send(&self, head: ResponseHead) {
        self.0.borrow_mut().push(head.status.as_u16());
    }
}

fn request(path: &'static str, body: Body) -> Request {
    let head = RequestHead {
        method: Method::POST,
        scheme: Bytes::from_static(b"https"),
        authority: Bytes::from_static(b"host:1"),
        path: Bytes::from_static(path.as_bytes()),
        protocol: Protocol::Http2,
        upgrade: None,
        headers: field("te", "trailers"),
    };
    Request { head, body }
}

async fn pair() -> (Connection, tokio::sync::watch::Sender<DrainPhase>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (sender, drain) = Drain::new();
    tokio::task::spawn_local(serve(Io::memory(far), Rc::new(Echo), H2Options::default(), drain));
    (Connection::new(Io::memory(near), H2Options::default()).await.unwrap(), sender)
}

async fn read(mut body: Body) -> (String, Option<Headers>) {
    let (mut text, mut trailers) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.unwrap() {
            Frame::Data(data) => text.extend_from_slice(&data),
            Frame::Trailers(fields) => trailers = Some(fields),
        }
    }
    (String::from_utf8(text).unwrap(), trailers)
}

fn run<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async { test().await })
}

#[test]
fn heads_bodies_trailers_and_hints_pass_both_ways() {
    run(|| async {
        let (connection, _drain) = pair().await;
        let large = vec![b'x'; 3_000_000];
        let frames = [Frame::Data(large.into()), Frame::Trailers(field("x-t", "1"))];
        let (hints, over) = (Rc::new(Hints::default()), Rc::new(RefCell::new(0)));
        let count = over.clone();
        let done = Box::new(move || *count.borrow_mut() += 1);
        let sent = request("/a?b", Body::Frames(frames.into()));
        let reply = connection.send(sent, Some(hints.clone()), done).await.unwrap();
        assert_eq!(reply.head.status, StatusCode::OK);
        assert!(!reply.head.headers.contains(&http::header::CONNECTION));
        let (text, trailers) = read(reply.body).await;
        assert_eq!(text, "POST https host:1 /a?b 3000000");
        assert_eq!(trailers, Some(field("x-t", "1")));
        assert_eq!(
            (hints.0.borrow().as_slice(), *over.borrow(), connection.active()),
            ([103].as_slice(), 1, 0)
        );
    });
}

/// Echoes, and keeps what each stream took in the end.
struct Measured(Rc<RefCell<Vec<Option<WireBytes>>>>);

impl HttpService for Measured {
    async fn call(self: Rc<Self>, request: Request, downstream: Downstream) -> Reply {
        let took = self.0.clone();
        downstream.meter.clone().unwrap().then(Box::new(move |bytes| took.borrow_mut().push(bytes)));
        Rc::new(Echo).call(request, downstream).await
    }

    fn bad_request(&self, _: StatusCode, _: &'static str, _: Protocol, _: Option<Rc<Meter>>) -> Reply {
        unreachable!("the h2 crate answers protocol errors itself")
    }

    fn wants_bytes(&self) -> bool {
        true
    }
}

#[test]
fn both_ends_of_a_stream_tell_the_same_of_it() {
    run(|| async {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (_sender, drain) = Drain::new();
        let took = Rc::new(RefCell::new(Vec::new()));
        let service = Rc::new(Measured(took.clone()));
        tokio::task::spawn_local(serve(Io::memory(far), service, H2Options::default(), drain));
        let connection = Connection::over(Io::memory(near), H2Options::default(), true).await.unwrap();
        for number in 0..2 {
            let frames = [Frame::Data(vec![b'x'; 40_000].into()), Frame::Trailers(field("x-t", "1"))];
            let meter = Rc::new(Meter::default());
            let own = connection.clone().measured(Some(meter.clone()));
            let sent = request("/a?b", Body::Frames(frames.into()));
            let reply = own.send(sent, None, Box::new(|| {})).await.unwrap();
            let (text, trailers) = read(reply.body).await;
            assert_eq!((text.as_str(), trailers.is_some()), ("POST https host:1 /a?b 40000", true));
            let near = meter.bytes().unwrap();
            let far = took.borrow()[number].unwrap();
            assert_eq!((near.sent, near.received), (far.received, far.sent));
            assert_eq!((near.headers_sent, near.headers_received), (far.headers_received, far.headers_sent));
            assert_eq!(near.plain_headers_sent, far.plain_headers_received);
            assert_eq!(near.plain_headers_received, far.plain_headers_sent);
            // A head, a hint and trailers in what comes back, and what they say beside their frames.
            assert!(near.sent > 40_000 + near.headers_sent && near.headers_received > 3 * 9, "{near:?}");
            let plain = ":methodPOST:schemehttps:authorityhost:1:path/a?btetrailersx-t1".len() as u64;
            assert_eq!(near.plain_headers_sent, plain);
        }
        assert_eq!(took.borrow().len(), 2);
        // A connection from before somebody wished for it says that it does not know.
        let (near, _far) = tokio::io::duplex(64 * 1024);
        let old = Connection::over(Io::memory(near), H2Options::default(), false).await.unwrap();
        let meter = Rc::new(Meter::default());
        let _measured = old.measured(Some(meter.clone()));
        assert_eq!(meter.bytes(), None);
    });
}

#[test]
fn a_refused_stream_is_known_to_be_unprocessed() {
    run(|| async {
        let (connection, _drain) = pair().await;
        let error =
            connection.send(request("/refuse", Body::Empty), None, Box::new(|| {})).await.unwrap_err();
        assert_eq!(error.reason, ResetReason::RemoteRefused);
        assert_eq!(error.progress, crate::codec::Progress::Unsent);
        assert_eq!(connection.active(), 0);
    });
}

#[test]
fn a_draining_server_finishes_what_it_has_and_takes_no_more() {
    run(|| async {
        let (mut connection, drain) = pair().await;
        let reply = connection.send(request("/1", Body::Empty), None, Box::new(|| {})).await.unwrap();
        assert!(!connection.is_dead());
        drain.send(DrainPhase::Draining).unwrap();
        assert_eq!(read(reply.body).await.0, "POST https host:1 /1 0");
        let end = tokio::time::Instant::now() + Duration::from_secs(5);
        while !connection.is_dead() {
            assert!(tokio::time::Instant::now() < end, "the connection goes on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(connection.send(request("/2", Body::Empty), None, Box::new(|| {})).await.is_err());
    });
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_a_ping_is_taken_for_gone() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let keepalive = Some(Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(20) });
    let options = H2Options { keepalive, ..H2Options::default() };
    LocalSet::new()
        .run_until(async {
            // As a server: the peer says hello and nothing more.
            let (ours, mut peer) = tokio::io::duplex(64 * 1024);
            let (_, drain) = Drain::new();
            let began = tokio::time::Instant::now();
            tokio::task::spawn_local(serve(Io::memory(ours), Rc::new(Echo), options, drain));
            peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
            let mut all = Vec::new();
            peer.read_to_end(&mut all).await.unwrap();
            assert_eq!(began.elapsed().as_secs(), 30);
            // As a client: nobody is there.
            let (ours, _peer) = tokio::io::duplex(64 * 1024);
            let mut client = Connection::new(Io::memory(ours), options).await.unwrap();
            assert!(!client.is_dead());
            tokio::time::sleep(Duration::from_secs(31)).await;
            assert!(client.is_dead());
            // One that answers stays.
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let (_keep, drain) = Drain::new();
            tokio::task::spawn_local(serve(Io::memory(theirs), Rc::new(Echo), H2Options::default(), drain));
            let mut client = Connection::new(Io::memory(ours), options).await.unwrap();
            tokio::time::sleep(Duration::from_secs(100)).await;
            assert!(!client.is_dead());
        })
        .await;
}

#[test]
fn what_is_another_in_each_message_is_never_indexed() {
    let fields = [("x-request-id", "1"), ("traceparent", "2"), ("user-agent", "3"), ("x-request-ids", "4")];
    let headers: Headers = fields
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
    let map = super::convert::map(headers);
    let never: Vec<_> =
        map.iter().filter(|(_, value)| value.is_sensitive()).map(|(name, _)| name.as_str()).collect();
    assert_eq!(never, ["x-request-id", "traceparent"]);
}
