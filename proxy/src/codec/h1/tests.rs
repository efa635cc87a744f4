//! The codec over in-memory streams: raw bytes in, raw bytes out.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::LocalSet;

use super::client::Connection;
use super::server::{ServerOptions, serve};
use super::*;
use crate::codec::headers::{HeaderName, HeaderValue};
use crate::codec::{
    Body, Downstream, Drain, DrainPhase, Frame, Headers, HttpService, Meter, Protocol, Reply, Request,
    ResetReason, ResponseHead,
};
use crate::io::Io;

fn head(status: u16, fields: &[(&'static str, &'static str)]) -> ResponseHead {
    ResponseHead {
        status: StatusCode::from_u16(status).unwrap(),
        protocol: Protocol::Http11,
        headers: fields
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect(),
    }
}

fn reply(status: u16, body: Body) -> Reply {
    Reply { head: head(status, &[]), body, close: false, reset: None }
}

/// Answers with what it saw: `METHOD authority path body-length`, and remembers requests.
#[derive(Default)]
struct Echo {
    seen: RefCell<Vec<String>>,
}

impl HttpService for Echo {
    async fn call(self: Rc<Self>, mut request: Request, downstream: Downstream) -> Reply {
        let path = String::from_utf8_lossy(&request.head.path).into_owned();
        match path.as_str() {
            "/hints" => downstream.informational.send(head(103, &[("link", "x")])),
            "/never" => std::future::pending().await,
            "/early" => return reply(200, Body::full("early")),
            "/upgrade" => {
                return Reply {
                    head: head(101, &[("upgrade", "x")]),
                    body: request.body,
                    close: false,
                    reset: None,
                };
            }
            "/reset" => return Reply { reset: Some(ResetReason::Local), ..reply(200, Body::Empty) },
            "/close" => return Reply { close: true, ..reply(200, Body::full("bye")) },
            "/empty" => return reply(204, Body::Empty),
            "/large" => return reply(200, Body::full(vec![b'x'; 100_000])),
            "/trailers" => {
                let mut trailers = Headers::new();
                trailers.append(HeaderName::from_static("x-t"), HeaderValue::from_static("1"));
                let frames = [Frame::Data(Bytes::from_static(b"ok")), Frame::Trailers(trailers)];
                return reply(200, Body::Frames(frames.into()));
            }
            _ => {}
        }
        let (mut bytes, mut ended) = (0, "");
        while let Some(frame) = request.body.frame().await {
            match frame {
                Ok(Frame::Data(data)) => bytes += data.len(),
                Ok(Frame::Trailers(_)) => ended = " trailers",
                Err(error) => {
                    self.seen.borrow_mut().push(format!("broken {}", error.details));
                    return reply(400, Body::Empty);
                }
            }
        }
        let text = format!(
            "{} {} {path} {bytes}{ended}",
            request.head.method,
            String::from_utf8_lossy(&request.head.authority)
        );
        self.seen.borrow_mut().push(text.clone());
        reply(200, Body::full(text))
    }

    fn bad_request(
        &self,
        status: StatusCode,
        details: &'static str,
        _: Protocol,
        _: Option<Rc<Meter>>,
    ) -> Reply {
        reply(status.as_u16(), Body::full(details))
    }
}

struct Server {
    client: DuplexStream,
    service: Rc<Echo>,
    drain: tokio::sync::watch::Sender<DrainPhase>,
    task: tokio::task::JoinHandle<()>,
}

fn start(options: ServerOptions) -> Server {
    let (client, near) = tokio::io::duplex(16 * 1024);
    let (service, (sender, drain)) = (Rc::new(Echo::default()), Drain::new());
    let task = tokio::task::spawn_local(serve(Io::memory(near), service.clone(), options, drain));
    Server { client, service, drain: sender, task }
}

fn run<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async { test().await })
}

/// Sends, ends our side, and reads everything.
async fn talk(options: ServerOptions, request: &[u8], step: usize) -> String {
    let mut server = start(options);
    for piece in request.chunks(step) {
        server.client.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // The paused clock jumps over the idle timeout when nothing more can happen.
    while let Ok(Ok(n @ 1..)) =
        tokio::time::timeout(Duration::from_secs(1), server.client.read(&mut buffer)).await
    {
        answer.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn requests_are_read_the_same_however_they_are_cut() {
    let request = b"POST /a?b HTTP/1.1\r\nHost: h:1\r\nContent-Length: 5\r\n\r\nhelloGET http://o/x HTTP/1.1\r\nhost: h\r\n\r\n\
                    POST /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    for step in 1..request.len() {
        let answer = run(|| talk(ServerOptions::default(), request, step));
        assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{step}: {answer}");
        for expected in ["POST h:1 /a?b 5", "GET o /x 0", "POST h /c 2"] {
            assert!(answer.contains(expected), "{step}: {expected} is not in {answer}");
        }
    }
}

#[test]
fn what_is_malformed_is_refused_and_the_connection_ends() {
    for (request, status) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\nbroken\r\n\r\n"[..], "400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nx : 1\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\nHost: a\n\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n y\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", "400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", "400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"),
        (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", "426"),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "426"),
        (b"GET /\r\n\r\n", "426"),
        (b"GET / SSH/1.1\r\nHost: a\r\n\r\n", "400"),
        (b"FROB / HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400"),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n".as_bytes(), "400"),
        (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    ] {
        let answer = run(|| talk(ServerOptions::default(), request, request.len()));
        let text = String::from_utf8_lossy(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{text:?}: {answer:?}");
        assert!(answer.contains("connection: close\r\n"), "{text:?}: {answer:?}");
    }
}

#[test]
fn a_head_over_the_limit_is_answered_with_431() {
    let mut request = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
    for i in 0..70 {
        request.extend_from_slice(format!("x-{i}: {}\r\n", "v".repeat(1000)).as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    let answer = run(|| talk(ServerOptions::default(), &request, 10_000));
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[test]
fn framing_follows_the_status_the_method_and_the_version() {
    let options = ServerOptions {
        h1: H1Options { accept_http_10: true, ..H1Options::default() },
        ..Default::default()
    };
    for (request, expected) in [
        (&b"GET /empty HTTP/1.1\r\nHost: a\r\n\r\n"[..], "HTTP/1.1 204 No Content\r\n\r\n"),
        (b"HEAD /early HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        (
            b"HEAD /early HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\n",
        ),
        (
            b"GET /early HTTP/1.1\r\nHost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n",
        ),
        (b"GET /early HTTP/1.0\r\nHost: a\r\n\r\n", "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nearly"),
        (
            b"GET /close HTTP/1.1\r\nHost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nbye\r\n0\r\n\r\n",
        ),
        (
            b"GET /hints HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\nf\r\nGET a /hints 0\n\r\n0\r\n\r\n",
        ),
        (b"GET /reset HTTP/1.1\r\nHost: a\r\n\r\n", ""),
    ] {
        let answer = run(|| talk(options, request, request.len()));
        let expected = expected.replace("f\r\nGET a /hints 0\n\r\n", "e\r\nGET a /hints 0\r\n");
        assert_eq!(answer, expected, "{}", String::from_utf8_lossy(request));
    }
    let request = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = run(|| talk(options, request, request.len()));
    assert!(answer.len() > 100_000 && answer.ends_with("\r\n0\r\n\r\n"));
}

#[test]
fn an_answer_before_the_whole_request_ends_the_connection() {
    for request in [
        &b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf"[..],
        b"GET /early HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ] {
        let answer = run(|| talk(ServerOptions::default(), request, request.len()));
        assert!(answer.contains("connection: close\r\n") && answer.contains("early"), "{answer}");
    }
    let request = b"GET /early HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    let answer = run(|| talk(ServerOptions::default(), request, request.len()));
    assert!(!answer.contains("connection: close\r\n"), "{answer}");
}

#[test]
fn more_fields_than_usual_are_taken_where_they_are_allowed() {
    let fields: String = (0..150).map(|i| format!("x-{i}: 1\r\n")).collect();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    for (max_headers, status) in [(100, "431"), (200, "200")] {
        let h1 = H1Options { max_headers, ..H1Options::default() };
        let answer =
            run(|| talk(ServerOptions { h1, ..Default::default() }, request.as_bytes(), request.len()));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{max_headers}: {answer}");
    }
}

#[test]
fn an_idle_connection_takes_one_more_request_while_it_drains() {
    run(|| async {
        let seconds = Duration::from_secs;
        let options = ServerOptions {
            idle_timeout: Some(seconds(10)),
            drain_timeout: seconds(5),
            ..ServerOptions::default()
        };
        let mut server = start(options);
        tokio::time::sleep(seconds(12)).await;
        server.client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        server.client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("connection: close\r\n") && answer.contains("GET a / 0"), "{answer}");
        let mut server = start(options);
        let began = tokio::time::Instant::now();
        assert_eq!(server.client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        assert_eq!(began.elapsed().as_secs(), 15);
    });
}

#[test]
fn trailers_pass_only_where_they_are_enabled() {
    let request =
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-t: 1\r\n\r\n\
                    GET /trailers HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = run(|| talk(ServerOptions::default(), request, 7));
    assert!(answer.contains("POST a / 1\r\n") && !answer.contains("x-t"), "{answer}");
    let h1 = H1Options { enable_trailers: true, ..H1Options::default() };
    let answer = run(|| talk(ServerOptions { h1, ..Default::default() }, request, 7));
    assert!(answer.contains("POST a / 1 trailers") && answer.ends_with("0\r\nx-t: 1\r\n\r\n"), "{answer}");
}

#[test]
fn a_downstream_that_goes_away_ends_the_call() {
    run(|| async {
        let mut server = start(ServerOptions::default());
        server.client.write_all(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        while Rc::strong_count(&server.service) < 3 {
            tokio::task::yield_now().await;
        }
        drop(server.client);
        server.task.await.unwrap();
        assert_eq!(Rc::strong_count(&server.service), 1);
    });
}

#[test]
fn a_body_that_breaks_off_is_reported() {
    run(|| async {
        let mut server = start(ServerOptions::default());
        server
            .client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
            .await
            .unwrap();
        server.client.shutdown().await.unwrap();
        server.task.await.unwrap();
        assert_eq!(*server.service.seen.borrow(), ["broken connection_termination"]);
    });
}

#[test]
fn draining_ends_a_busy_connection_with_its_answer_and_closing_an_idle_one_at_once() {
    run(|| async {
        let mut server = start(ServerOptions::default());
        server.drain.send(DrainPhase::Draining).unwrap();
        server.client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        server.client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("connection: close\r\n") && answer.contains("GET a / 0"), "{answer}");
        let mut server = start(ServerOptions::default());
        tokio::task::yield_now().await;
        server.drain.send(DrainPhase::Closing).unwrap();
        assert_eq!(server.client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    });
}

#[test]
fn an_upgraded_connection_is_a_tunnel() {
    run(|| async {
        let mut server = start(ServerOptions::default());
        let head = b"GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        server.client.write_all(head).await.unwrap();
        server.client.write_all(b"ping").await.unwrap();
        let mut answer = [0; 49];
        let read = server.client.read_exact(&mut answer);
        tokio::time::timeout(Duration::from_secs(1), read).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(text.starts_with("HTTP/1.1 101 ") && text.contains("\r\n\r\np"), "{text}");
    });
}

/// A client connection and the far end of its stream.
fn upstream() -> (Connection, DuplexStream) {
    let (near, far) = tokio::io::duplex(16 * 1024);
    (Connection::new(Io::memory(near), H1Options::default()), far)
}

fn get(body: Body) -> Request {
    let head = crate::codec::RequestHead {
        method: if body.is_empty() { http::Method::GET } else { http::Method::POST },
        scheme: Bytes::from_static(b"http"),
        authority: Bytes::from_static(b"up"),
        path: Bytes::from_static(b"/p"),
        protocol: Protocol::Http11,
        upgrade: None,
        headers: Headers::new(),
    };
    Request { head, body }
}

/// What came of one exchange: the reply's status and body, and whether the connection came back.
async fn exchange(answer: &'static [u8], body: Body) -> (Result<(u16, String), String>, Option<bool>) {
    let (connection, mut far) = upstream();
    let back = Rc::new(RefCell::new(None));
    let note = back.clone();
    let release: crate::codec::Release<Connection> =
        Box::new(move |c| assert!(note.borrow_mut().replace(c.is_some()).is_none()));
    let serve = async {
        let mut request = vec![0; 4096];
        let n = far.read(&mut request).await.unwrap();
        assert!(request[..n].starts_with(b"GET /p HTTP/1.1\r\nhost: up\r\n") || request.starts_with(b"POST"));
        far.write_all(answer).await.unwrap();
        far
    };
    let ask = async {
        let mut reply =
            connection.send(get(body), None, release, drop).await.map_err(|e| format!("{:?}", e))?;
        let mut text = Vec::new();
        while let Some(frame) = reply.body.frame().await {
            if let Frame::Data(data) = frame.map_err(|e| format!("{:?}", e.reason))? {
                text.extend_from_slice(&data);
            }
        }
        Ok((reply.head.status.as_u16(), String::from_utf8(text).unwrap()))
    };
    let closes =
        answer.is_empty() || answer.ends_with(b"<close>") || !answer.windows(4).any(|w| w == b"keep");
    let result = tokio::join!(ask, async {
        let far = serve.await;
        if closes {
            drop(far);
        } else {
            std::mem::forget(far);
        }
    })
    .0;
    let back = *back.borrow();
    (result, back)
}

#[test]
fn a_clean_exchange_gives_the_connection_back_and_an_unclean_one_does_not() {
    let ok = |status: u16, body: &str| Ok((status, body.to_owned()));
    for (answer, expected, back) in [
        (&b"HTTP/1.1 200 OK\r\nx: keep\r\ncontent-length: 2\r\n\r\nok"[..], ok(200, "ok"), true),
        (
            b"HTTP/1.1 200 OK\r\nx: keep\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            ok(200, "ok"),
            true,
        ),
        (b"HTTP/1.1 204 No\r\nx: keep\r\n\r\n", ok(204, ""), true),
        (b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 200 OK\r\nx: keep\r\ncontent-length: 0\r\n\r\n", ok(200, ""), true),
        (
            b"HTTP/1.1 200 OK\r\nx: keep\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
            ok(200, "ok"),
            false,
        ),
        (b"HTTP/1.1 200 OK\r\nx: keep\r\ncontent-length: 2\r\n\r\nok-and-more", ok(200, "ok"), false),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", ok(200, "until the end"), false),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", Err("ProtocolError".to_owned()), false),
    ] {
        let (result, came_back) = run(|| exchange(answer, Body::Empty));
        assert_eq!((result, came_back), (expected, Some(back)), "{}", String::from_utf8_lossy(answer));
    }
}

#[test]
fn a_failed_attempt_says_how_far_it_came() {
    for (answer, words) in [
        (&b""[..], "reason: ConnectionTermination, progress: Sent"),
        (b"HTTP/1.1 200 O", "reason: ProtocolError, progress: Answering"),
        (b"HTTP/1.1 204 No\r\ncontent-length: 2\r\n\r\nhi", "reason: ProtocolError"),
        (b"HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n", "reason: ProtocolError"),
        (b"HTTP/1.1 101 Go\r\nupgrade: x\r\n\r\n", "reason: ProtocolError"),
        (b"nonsense\r\n\r\n", "reason: ProtocolError, progress: Answering"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "reason: ProtocolError"),
    ] {
        let (result, back) = run(|| exchange(answer, Body::Empty));
        let error = result.unwrap_err();
        assert!(error.contains(words) && back == Some(false), "{error}");
    }
}

#[test]
fn an_early_answer_is_taken_and_the_connection_is_not_used_again() {
    let body = Body::stream(Never);
    let (result, back) = run(|| exchange(b"HTTP/1.1 413 No\r\nx: keep\r\ncontent-length: 2\r\n\r\nno", body));
    assert_eq!((result, back), (Ok((413, "no".to_owned())), Some(false)));
}

/// A body that never ends.
struct Never;

impl crate::codec::BodyStream for Never {
    fn poll_frame(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame, crate::codec::BodyError>>> {
        std::task::Poll::Pending
    }
}
