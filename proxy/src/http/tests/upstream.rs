//! Requests to upstreams that speak HTTP/1 on loopback sockets.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use tokio::net::TcpListener;

use super::*;
use crate::cluster::{Cluster, ClusterConfig};
use crate::codec::h1::server::{ServerOptions, serve};
use crate::codec::{Drain, Meter};
use crate::io::Io;
use crate::state::{NodeInfo, Tables};

/// What an upstream does with a request.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Answers with this status, and with what it saw.
    Answer(u16),
    /// Answers never.
    Silence,
    /// Resets before it answers.
    Reset,
    /// Answers the head, part of the body, and breaks off.
    Torn,
}

struct Fake {
    manner: Manner,
    seen: Rc<RefCell<Vec<(RequestHead, String)>>>,
}

impl HttpService for Fake {
    async fn call(self: Rc<Self>, request: Request, _: Downstream) -> Reply {
        let Request { head, body } = request;
        let protocol = head.protocol;
        let body = text(body).await;
        self.seen.borrow_mut().push((head, body));
        let reply = |status: u16, body: Body, reset| Reply {
            head: ResponseHead {
                status: http::StatusCode::from_u16(status).unwrap(),
                protocol,
                headers: Headers::new(),
            },
            body,
            close: false,
            reset,
        };
        match self.manner {
            Manner::Answer(status) => reply(status, Body::full("hello"), None),
            Manner::Silence => std::future::pending().await,
            Manner::Reset => reply(200, Body::Empty, Some(crate::codec::ResetReason::Local)),
            Manner::Torn => reply(200, Body::stream(Torn(false)), None),
        }
    }

    fn bad_request(
        &self,
        _: http::StatusCode,
        details: &'static str,
        _: Protocol,
        _: Option<Rc<Meter>>,
    ) -> Reply {
        panic!("the proxy sent a bad request: {details}")
    }
}

struct Torn(bool);

impl crate::codec::BodyStream for Torn {
    fn poll_frame(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame, crate::codec::BodyError>>> {
        let first = !std::mem::replace(&mut self.0, true);
        std::task::Poll::Ready(Some(if first {
            Ok(Frame::Data(Bytes::from_static(b"half")))
        } else {
            Err(crate::codec::BodyError { reason: crate::codec::ResetReason::Local, details: "torn" })
        }))
    }
}

/// An upstream, and the requests it saw.
async fn upstream(manner: Manner) -> (u16, Rc<RefCell<Vec<(RequestHead, String)>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = Rc::new(Fake { manner, seen: seen.clone() });
    tokio::task::spawn_local(async move {
        let (_signal, drain) = Drain::new();
        while let Ok((socket, _)) = listener.accept().await {
            tokio::task::spawn_local(serve(
                Io::tcp(socket),
                service.clone(),
                ServerOptions::default(),
                drain.clone(),
            ));
        }
    });
    (port, seen)
}

/// A port that nobody listens on.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

struct Mesh {
    tables: Tables,
}

impl Mesh {
    fn new() -> Self {
        Self { tables: Tables::default() }
    }

    fn context(&self) -> CompileContext {
        CompileContext::new(&self.tables, Arc::new(NodeInfo::default()), std::time::SystemTime::now())
    }

    fn cluster(&self, name: &str, ports: &[u16]) -> Arc<Cluster> {
        self.cluster_with(name, ports, json!({}))
    }

    fn cluster_with(&self, name: &str, ports: &[u16], more: Value) -> Arc<Cluster> {
        let endpoints: Vec<_> = ports
            .iter()
            .map(|port| {
                json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}})
            })
            .collect();
        let mut config = json!({"name": name, "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let proto = xds_protos::json::from_value(config).unwrap();
        let cluster = Cluster::new(ClusterConfig::compile(&proto, &self.context()).unwrap());
        self.tables.clusters.slot(name).publish(cluster.clone());
        cluster
    }

    fn manager(&self, route: Value) -> (Rc<ConnectionManager>, Arc<HcmConfig>) {
        let routes = json!([{"name": "route", "match": {"prefix": "/"}, "route": route}]);
        let config = Arc::new(compile_with(&self.context(), json!({}), routes, json!([])).unwrap());
        (ConnectionManager::new(config.clone(), Arc::new(connection()), None), config)
    }
}

fn downstream() -> Downstream {
    Downstream { informational: Rc::new(Sink::default()), stream: 0, meter: None }
}

async fn local(work: impl Future<Output = ()>) {
    tokio::task::LocalSet::new()
        .run_until(async { tokio::time::timeout(Duration::from_secs(20), work).await.unwrap() })
        .await;
}

#[tokio::test]
async fn a_request_reaches_the_upstream_and_its_answer_the_client() {
    local(async {
        let mesh = Mesh::new();
        let (port, seen) = upstream(Manner::Answer(200)).await;
        let cluster = mesh.cluster("c", &[port]);
        let (manager, config) = mesh.manager(json!({"cluster": "c", "prefix_rewrite": "/new/",
            "host_rewrite_literal": "other"}));
        let mut sent = request("POST", "/path?q", &[]);
        sent.body = Body::full("ping");
        let reply = manager.clone().call(sent, downstream()).await;
        assert_eq!(reply.head.status, 200);
        assert!(reply.head.headers.contains(&HeaderName::from_static("x-envoy-upstream-service-time")));
        assert_eq!(reply.head.headers.get(&http::header::SERVER).unwrap(), "envoy");
        assert_eq!(config.stats.downstream_rq_active.value(), 1, "the body is still to come");
        assert_eq!(text(reply.body).await, "hello");
        assert_eq!(config.stats.downstream_rq_active.value(), 0);
        let (head, body) = seen.borrow().first().cloned().unwrap();
        assert_eq!(
            (&head.path[..], &head.authority[..], body.as_str()),
            (&b"/new/path?q"[..], &b"other"[..], "ping")
        );
        let field = |name: &'static str| head.headers.get_str(&HeaderName::from_static(name)).unwrap_or("-");
        assert_eq!(field("x-envoy-original-path"), "/path?q");
        assert_eq!(field("x-envoy-original-host"), "a.com");
        assert_eq!(field("x-forwarded-proto"), "http");
        assert_eq!(field("x-envoy-expected-rq-timeout-ms"), "15000");
        assert_eq!(field("x-request-id").len(), 36);
        assert_eq!(cluster.hosts().hosts().next().unwrap().active_requests(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_dead_host_costs_a_retry_and_no_error() {
    local(async {
        let mesh = Mesh::new();
        let (port, _) = upstream(Manner::Answer(200)).await;
        mesh.cluster("c", &[port, closed_port().await]);
        let (manager, _) = mesh.manager(json!({"cluster": "c", "retry_policy": {"retry_on": "connect-failure",
            "retry_back_off": {"base_interval": "0.001s"}, "host_selection_retry_max_attempts": 5,
            "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}}));
        for _ in 0..20 {
            let mut sent = request("POST", "/", &[]);
            sent.body = Body::full("ping");
            let reply = manager.clone().call(sent, downstream()).await;
            assert_eq!(reply.head.status, 200);
            assert_eq!(text(reply.body).await, "hello");
        }
    })
    .await;
}

#[tokio::test]
async fn what_goes_wrong_upstream_is_told_in_envoys_words() {
    local(async {
        let mesh = Mesh::new();
        let (silent, _) = upstream(Manner::Silence).await;
        let (resetting, _) = upstream(Manner::Reset).await;
        mesh.cluster("silent", &[silent]);
        mesh.cluster("resetting", &[resetting]);
        mesh.cluster("dead", &[closed_port().await]);
        mesh.cluster("empty", &[]);
        let cases = [
            ("silent", 504, "upstream request timeout"),
            (
                "resetting",
                503,
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            ),
            (
                "dead",
                503,
                "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
            ),
            ("empty", 503, "no healthy upstream"),
            ("gone", 503, ""),
        ];
        for (cluster, status, body) in cases {
            let (manager, config) = mesh.manager(json!({"cluster": cluster, "timeout": "0.1s"}));
            let reply = manager.call(request("GET", "/", &[]), downstream()).await;
            assert_eq!(reply.head.status, status, "{cluster}");
            assert_eq!(text(reply.body).await, body, "{cluster}");
            assert_eq!(config.stats.downstream_rq_5xx.value(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_breaks_off_upstream_breaks_off_downstream() {
    local(async {
        let mesh = Mesh::new();
        let (port, _) = upstream(Manner::Torn).await;
        mesh.cluster("c", &[port]);
        let (manager, config) = mesh.manager(json!({"cluster": "c"}));
        let mut reply = manager.call(request("GET", "/", &[]), downstream()).await;
        assert_eq!(reply.head.status, 200);
        let mut broken = false;
        while let Some(frame) = reply.body.frame().await {
            broken |= frame.is_err();
        }
        assert!(broken);
        assert_eq!(config.stats.rq_reset_after_downstream_response_started.value(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_stream_once_and_frees_what_it_held() {
    local(async {
        let mesh = Mesh::new();
        let (port, seen) = upstream(Manner::Silence).await;
        let cluster = mesh.cluster("c", &[port]);
        let (manager, config) = mesh.manager(json!({"cluster": "c"}));
        let went = Cell::new(false);
        {
            let call = manager.call(request("GET", "/", &[]), downstream());
            let arrived = async {
                while seen.borrow().is_empty() {
                    tokio::task::yield_now().await;
                }
                went.set(true);
            };
            tokio::select! { _ = call => panic!("nobody answers"), () = arrived => {} }
        }
        assert!(went.get());
        assert_eq!(config.stats.downstream_rq_rx_reset.value(), 1);
        assert_eq!(config.stats.downstream_rq_active.value(), 0);
        assert_eq!(cluster.hosts().hosts().next().unwrap().active_requests(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_mirror_sees_a_copy_and_its_answer_does_not_matter() {
    local(async {
        let mesh = Mesh::new();
        let (port, _) = upstream(Manner::Answer(200)).await;
        let (shadow, seen) = upstream(Manner::Answer(500)).await;
        mesh.cluster("c", &[port]);
        mesh.cluster("shadow", &[shadow]);
        let (manager, _) =
            mesh.manager(json!({"cluster": "c", "request_mirror_policies": [{"cluster": "shadow"}]}));
        let mut sent = request("POST", "/x", &[]);
        sent.body = Body::Frames([Frame::Data("pi".into()), Frame::Data("ng".into())].into());
        let reply = manager.call(sent, downstream()).await;
        assert_eq!((reply.head.status.as_u16(), text(reply.body).await.as_str()), (200, "hello"));
        while seen.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        let (head, body) = seen.borrow()[0].clone();
        assert_eq!((&head.authority[..], body.as_str()), (&b"a.com-shadow"[..], "ping"));
    })
    .await;
}

/// Sends raw bytes over a connection of the real codec and reads until the proxy ends it.
async fn raw(config: Arc<HcmConfig>, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let (_signal, drain) = Drain::new();
    let served = crate::http::serve(Io::memory(far), config, Arc::new(connection()), drain, None);
    let talk = async {
        near.write_all(bytes).await.unwrap();
        let mut all = Vec::new();
        near.read_to_end(&mut all).await.unwrap();
        String::from_utf8(all).unwrap()
    };
    tokio::join!(served, talk).1
}

#[tokio::test]
async fn bytes_in_and_bytes_out_through_both_codecs() {
    local(async {
        let mesh = Mesh::new();
        let (port, seen) = upstream(Manner::Answer(200)).await;
        mesh.cluster("c", &[port]);
        let (_, config) = mesh.manager(json!({"cluster": "c"}));
        let request =
            b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
            GET /b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = raw(config.clone(), request).await;
        assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answer}");
        assert_eq!(answer.matches("hello").count(), 2, "{answer}");
        assert_eq!(answer.matches("connection: close\r\n").count(), 1, "{answer}");
        assert_eq!(seen.borrow()[0].1, "abc");
        let answer = raw(config.clone(), b"GET / HTTP/1.1\r\nbad header\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\ncontent-length: 11\r\n"), "{answer}");
        assert!(answer.ends_with("connection: close\r\n\r\nBad Request"), "{answer}");

        // HTTP/2 by its preface.
        let (near, far) = tokio::io::duplex(1 << 16);
        let (_signal, drain) = Drain::new();
        let serving = crate::http::serve(Io::memory(far), config, Arc::new(connection()), drain, None);
        tokio::task::spawn_local(serving);
        let client =
            crate::codec::h2::client::Connection::new(Io::memory(near), Default::default()).await.unwrap();
        let mut sent = super::request("POST", "/c", &[]);
        sent.head.protocol = Protocol::Http2;
        sent.body = Body::full("over h2");
        let reply = client.send(sent, None, Box::new(|| {})).await.unwrap();
        assert_eq!((reply.head.status.as_u16(), text(reply.body).await.as_str()), (200, "hello"));
        assert_eq!(seen.borrow().last().unwrap().1, "over h2");
    })
    .await;
}

#[tokio::test]
async fn a_websocket_is_a_pipe_once_the_upstream_accepts_it() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    local(async {
        let mesh = Mesh::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        mesh.cluster("c", &[listener.local_addr().unwrap().port()]);
        let upstream = tokio::task::spawn_local(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            let answer =
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
            socket.write_all(answer).await.unwrap();
            let mut word = [0; 4];
            socket.read_exact(&mut word).await.unwrap();
            socket.write_all(&word).await.unwrap();
            String::from_utf8(head).unwrap()
        });
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "c", "timeout": "0s"}}]);
        let settings = json!({"upgrade_configs": [{"upgrade_type": "websocket"}]});
        let config = Arc::new(compile_with(&mesh.context(), settings, routes, json!([])).unwrap());
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let (_signal, drain) = Drain::new();
        tokio::task::spawn_local(crate::http::serve(
            Io::memory(far),
            config.clone(),
            Arc::new(connection()),
            drain,
            None,
        ));
        near.write_all(
            b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(near.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
        assert!(
            head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"),
            "{head}"
        );
        near.write_all(b"ping").await.unwrap();
        let mut word = [0; 4];
        near.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"ping");
        let sent = upstream.await.unwrap();
        assert!(
            sent.contains("upgrade: websocket\r\n") && sent.contains("connection: keep-alive, Upgrade\r\n"),
            "{sent}"
        );
        drop(near);
        while config.stats.downstream_rq_active.value() != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn grpc_passes_over_http2_with_its_trailers_and_is_retried_by_its_status() {
    local(async {
        struct Grpc(Cell<u32>);
        impl HttpService for Grpc {
            async fn call(self: Rc<Self>, mut request: Request, _: Downstream) -> Reply {
                while let Some(Ok(_)) = request.body.frame().await {}
                self.0.set(self.0.get() + 1);
                let status = |code| -> Headers {
                    [(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))]
                        .into_iter()
                        .collect()
                };
                let mut head = ResponseHead {
                    status: http::StatusCode::OK,
                    protocol: Protocol::Http2,
                    headers: Headers::new(),
                };
                let body = if self.0.get() == 1 {
                    head.headers = status("14");
                    Body::Empty
                } else {
                    Body::Frames([Frame::Data("answer".into()), Frame::Trailers(status("0"))].into())
                };
                Reply { head, body, close: false, reset: None }
            }

            fn bad_request(
                &self,
                _: http::StatusCode,
                details: &'static str,
                _: Protocol,
                _: Option<Rc<Meter>>,
            ) -> Reply {
                panic!("{details}")
            }
        }
        let mesh = Mesh::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (_signal, drain) = Drain::new();
        tokio::task::spawn_local(async move {
            let service = Rc::new(Grpc(Cell::new(0)));
            while let Ok((socket, _)) = listener.accept().await {
                let served = crate::codec::h2::server::serve(
                    Io::tcp(socket),
                    service.clone(),
                    Default::default(),
                    drain.clone(),
                );
                tokio::task::spawn_local(served);
            }
        });
        mesh.cluster_with(
            "c",
            &[port],
            json!({"typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}}}),
        );
        let (manager, _) = mesh.manager(json!({"cluster": "c", "max_grpc_timeout": "0s", "timeout": "0s",
            "retry_policy": {"retry_on": "unavailable", "retry_back_off": {"base_interval": "0.001s"}}}));
        let mut sent = request(
            "POST",
            "/pkg.Service/Method",
            &[("content-type", "application/grpc"), ("te", "trailers")],
        );
        sent.body = Body::full("question");
        let mut reply = manager.call(sent, downstream()).await;
        assert_eq!(reply.head.status, 200);
        let mut seen = Vec::new();
        while let Some(frame) = reply.body.frame().await {
            seen.push(match frame.unwrap() {
                Frame::Data(data) => String::from_utf8(data.to_vec()).unwrap(),
                Frame::Trailers(trailers) => format!("{trailers:?}"),
            });
        }
        assert_eq!(seen[0], "answer");
        assert!(seen[1].contains("grpc-status") && seen[1].contains('0'), "{seen:?}");
    })
    .await;
}

#[tokio::test]
async fn each_stream_writes_one_line_of_access_log() {
    local(async {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        let mesh = Mesh::new();
        let (port, _) = upstream(Manner::Answer(200)).await;
        mesh.cluster("c", &[port]);
        mesh.cluster("dead", &[closed_port().await]);
        let format = "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% \
            %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER% %ROUTE_NAME% \
            %UPSTREAM_TRANSPORT_FAILURE_REASON% %RESP(SERVER)%\n";
        let settings = json!({"access_log": [{"name": "f", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": file.to_str().unwrap(), "log_format": {"text_format_source": {"inline_string": format}}}}]});
        let routes = json!([
            {"name": "a", "match": {"prefix": "/a"}, "route": {"cluster": "c", "prefix_rewrite": "/b"}},
            {"name": "d", "match": {"prefix": "/d"}, "route": {"cluster": "dead", "retry_policy": {
                "retry_on": "connect-failure", "retry_back_off": {"base_interval": "0.001s"}}}}]);
        let config = Arc::new(compile_with(&mesh.context(), settings, routes, json!([])).unwrap());
        config.open_logs().unwrap();
        let manager = ConnectionManager::new(config, Arc::new(connection()), None);
        let mut sent = request("POST", "/a", &[]);
        sent.body = Body::full("ping");
        for sent in [sent, request("GET", "/d", &[]), request("GET", "/none", &[])] {
            let reply = manager.clone().call(sent, downstream()).await;
            text(reply.body).await;
        }
        let expected = "/a /b 200 - via_upstream 4 5 c a - envoy\n\
            /d /d 503 URX,UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused} 0 121 dead d \
            delayed_connect_error:_Connection_refused envoy\n\
            /none /none 404 NR route_not_found 0 0 - - - envoy\n";
        let (mut seen, deadline) = (String::new(), std::time::Instant::now() + Duration::from_secs(10));
        while seen.len() < expected.len() {
            assert!(std::time::Instant::now() < deadline, "the log has {seen}");
            tokio::time::sleep(Duration::from_millis(5)).await;
            seen = std::fs::read_to_string(&file).unwrap_or_default();
        }
        assert_eq!(seen, expected);
    })
    .await;
}
