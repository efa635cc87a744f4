//! What kubelet and Prometheus ask a sidecar for on behalf of its application.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use crate::support::eventually;
use crate::support::http::exchange;
use crate::support::logged::Logged;

/// An application: answers of its own by path, and the requests that it got.
struct Application {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Application {
    /// At a port of this address; `answer` gives the whole answer to a path.
    fn start(ip: &str, answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let (kept, answer) = (heads.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, answer) = (kept.clone(), answer.clone());
                std::thread::spawn(move || {
                    let from = stream.peer_addr().unwrap().ip();
                    let mut writer = stream.try_clone().unwrap();
                    let mut head = format!("from: {from}\n");
                    for line in BufReader::new(stream).lines().map_while(Result::ok) {
                        if line.is_empty() {
                            break;
                        }
                        head += &(line + "\n");
                    }
                    let path =
                        head.lines().nth(1).and_then(|l| l.split(' ').nth(1)).unwrap_or_default().to_owned();
                    kept.lock().unwrap().push(head);
                    let _ = writer.write_all(answer(&path).as_bytes());
                });
            }
        });
        Self { port, heads }
    }

    fn last(&self) -> String {
        self.heads.lock().unwrap().last().cloned().unwrap_or_default().to_lowercase()
    }
}

fn response(status: &str, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{fields}\r\n{body}", body.len())
}

/// A sidecar at `ip` with this environment. Its control plane is away: probes do not wait for it.
fn sidecar(ip: &str, environment: &[(&str, &str)]) -> Logged {
    let admin = format!("{ip}:15000");
    let arguments = [
        "proxy",
        "--xds-address",
        "127.0.0.1:1",
        "--xds-plaintext",
        "--concurrency",
        "1",
        "--ip",
        ip,
        "--admin-address",
    ];
    let process = Logged::weft_with(&[&arguments[..], &[&admin]].concat(), environment);
    eventually("the agent's port", || ask(ip, "/healthz/ready", "").is_ok());
    process
}

/// Status, head in small letters, and body of a GET at the agent's port.
fn ask(ip: &str, path: &str, fields: &str) -> std::io::Result<(u16, String, String)> {
    let address: SocketAddr = format!("{ip}:15020").parse().unwrap();
    let host = if fields.contains("host:") { String::new() } else { format!("host: {ip}:15020\r\n") };
    let request = format!("GET {path} HTTP/1.1\r\n{host}connection: close\r\n{fields}\r\n");
    let (head, body) = exchange(address, &request)?;
    Ok((head[9..12].parse().unwrap(), head.to_lowercase(), body))
}

#[test]
fn probes_by_http_reach_the_application_as_kubelet_would() {
    let ip = "127.63.1.1";
    let application = Application::start(ip, |path| match path {
        "/live?deep=1" => response("200 OK", "", "alive"),
        "/moved" => response("302 Found", "location: /live?deep=1\r\n", ""),
        "/away" => response("302 Found", "location: http://elsewhere.example/\r\n", ""),
        "/round" => response("302 Found", "location: /round\r\n", ""),
        "/long" => response("200 OK", "", &"x".repeat(20_000)),
        "/sick" => response("503 Service Unavailable", "", "no database"),
        // Never answers.
        "/slow" => {
            std::thread::sleep(std::time::Duration::from_secs(30));
            String::new()
        }
        _ => response("404 Not Found", "", ""),
    });
    let port = application.port;
    let get = |name: &str, path: &str| {
        format!(
            r#""/app-health/{name}/livez": {{"httpGet": {{"path": "{path}", "port": {port}}}, "timeoutSeconds": 1}}"#
        )
    };
    let mut probes: Vec<_> =
        ["moved", "away", "round", "long", "sick", "slow"].map(|n| get(n, &format!("/{n}"))).into();
    probes.push(get("live", "live?deep=1"));
    probes.push(format!(
        r#""/app-lifecycle/live/prestopz": {{"httpGet": {{"path": "/sick", "port": {port}, "httpHeaders":
            [{{"name": "Host", "value": "shop"}}, {{"name": "X-Probe", "value": "two"}}]}}}}"#
    ));
    probes.push(r#""/app-health/nobody/readyz": {"httpGet": {"port": 1}}"#.to_owned());
    let json = format!("{{{}}}", probes.join(", "));
    let proxy = sidecar(ip, &[("ISTIO_KUBE_APP_PROBERS", &json)]);

    let (status, _, body) =
        ask(ip, "/app-health/live/livez", "user-agent: kube-probe/1.34\r\nx-probe: one\r\n").unwrap();
    assert_eq!((status, body.as_str()), (200, "alive"));
    let head = application.last();
    for line in [
        "from: 127.0.0.6".to_owned(),
        "get /live?deep=1 http/1.1".to_owned(),
        format!("host: {ip}:{port}"),
        "user-agent: kube-probe/1.34".to_owned(),
        "x-probe: one".to_owned(),
    ] {
        assert!(head.lines().any(|l| l == line), "no {line:?} in {head}");
    }
    ask(ip, "/app-health/live/livez", "host: named\r\n").unwrap();
    assert!(application.last().contains("host: named\n"), "{}", application.last());
    let (status, _, body) = ask(ip, "/app-lifecycle/live/prestopz", "x-probe: one\r\n").unwrap();
    assert_eq!((status, body.as_str()), (503, "no database"), "its own status and words");
    let head = application.last();
    assert!(
        head.contains("host: shop\n") && head.contains("x-probe: two\n") && !head.contains("x-probe: one"),
        "{head}"
    );

    let seen = |name: &str| ask(ip, &format!("/app-health/{name}/livez"), "").unwrap();
    assert_eq!(
        (seen("moved").0, seen("moved").2.as_str()),
        (200, "alive"),
        "within the host a redirect is followed"
    );
    let (status, head, _) = seen("away");
    assert!(
        status == 200 && !head.contains("location"),
        "to another host it is not, and the application is well: {head}"
    );
    let (status, _, body) = seen("round");
    assert!(status == 500 && body.contains("10 redirects"), "{status} {body}");
    assert_eq!(seen("long").2.len(), 10 * 1024);
    let (status, _, body) = seen("slow");
    assert!(status == 500 && body.contains("timeoutSeconds"), "{status} {body}");
    assert_eq!(seen("sick").0, 503);
    proxy.says(&["WARN", "/app-health/sick/livez", "503", "no database", "fails its probe"]);
    let (status, _, body) = ask(ip, "/app-health/nobody/readyz", "").unwrap();
    assert!(status == 500 && body.contains(&format!("no connection to {ip}:1")), "{status} {body}");
    let (status, _, body) = ask(ip, "/app-health/other/livez", "").unwrap();
    assert!(status == 400 && body.contains("/app-health/other/livez"), "{status} {body}");
    assert_eq!(ask(ip, "/app-healthy", "").unwrap().0, 404);
}

#[test]
fn probes_by_https_take_any_certificate_and_those_by_tcp_and_grpc_ask_what_kubelet_asks() {
    let ip = "127.63.2.1";
    let closed = { TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port() };
    let open = TcpListener::bind((ip, 0)).unwrap();
    let (secure, health) = (tls_server(ip), health_server(ip));
    let json = format!(
        r#"{{"/app-health/secure/livez": {{"httpGet": {{"path": "/", "port": {secure}, "scheme": "HTTPS"}}}},
            "/app-health/tcp/livez": {{"tcpSocket": {{"port": {}}}}}, "/app-health/tcp/readyz": {{"tcpSocket": {{"port": {closed}}}}},
            "/app-health/grpc/livez": {{"grpc": {{"port": {health}}}}},
            "/app-health/grpc/readyz": {{"grpc": {{"port": {health}, "service": "sick"}}}},
            "/app-health/grpc/startupz": {{"grpc": {{"port": {health}, "service": "unknown"}}}},
            "/app-health/notgrpc/startupz": {{"grpc": {{"port": {closed}}}}}}}"#,
        open.local_addr().unwrap().port()
    );
    let _proxy = sidecar(ip, &[("ISTIO_KUBE_APP_PROBERS", &json)]);
    let seen = |path: &str| {
        let (status, _, body) = ask(ip, &format!("/app-health/{path}"), "").unwrap();
        (status, body)
    };
    assert_eq!(seen("secure/livez"), (200, "over TLS".to_owned()));
    assert_eq!(seen("tcp/livez").0, 200);
    let (status, why) = seen("tcp/readyz");
    assert!(status == 500 && why.contains("no connection"), "{status} {why}");
    assert_eq!(seen("grpc/livez"), (200, String::new()));
    let (status, why) = seen("grpc/readyz");
    assert!(status == 500 && why.contains("\"sick\" is NOT_SERVING"), "{status} {why}");
    let (status, why) = seen("grpc/startupz");
    assert!(status == 500 && why.contains("NotFound"), "{status} {why}");
    assert_eq!(seen("notgrpc/startupz").0, 500);
}

/// An application that speaks TLS with a certificate that nobody signed.
fn tls_server(ip: &str) -> u16 {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let made = rcgen::generate_simple_self_signed(vec!["nobody.example".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    std::thread::spawn(move || {
        let config = Arc::new(config);
        for stream in listener.incoming().flatten() {
            let tls = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(tls, stream);
            let mut line = String::new();
            let mut reader = BufReader::new(&mut stream);
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let _ = stream.write_all(response("200 OK", "", "over TLS").as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    port
}

/// An application that speaks gRPC's health protocol: it serves, its service `sick` does not, and there is no other.
fn health_server(ip: &str) -> u16 {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        crate::support::mesh::runtime().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(
                        |request: hyper::Request<hyper::body::Incoming>| async move {
                            use http_body_util::BodyExt;
                            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                            let question = request.into_body().collect().await.unwrap().to_bytes();
                            // A message is five bytes and, of the service, two more.
                            let name =
                                String::from_utf8_lossy(question.get(7..).unwrap_or_default()).into_owned();
                            let (status, grpc) = match name.as_str() {
                                "" => (1, "0"),
                                "sick" => (2, "0"),
                                _ => (0, "5"),
                            };
                            let mut frames = Vec::new();
                            if grpc == "0" {
                                frames.push(hyper::body::Frame::data(bytes::Bytes::from(vec![
                                    0, 0, 0, 0, 2, 8, status,
                                ])));
                            }
                            let mut trailers = hyper::HeaderMap::new();
                            trailers.insert("grpc-status", hyper::header::HeaderValue::from_static(grpc));
                            frames.push(hyper::body::Frame::trailers(trailers));
                            let frames = frames.into_iter().map(Ok::<_, std::convert::Infallible>);
                            let body = http_body_util::StreamBody::new(tokio_stream::iter(frames));
                            let answer = hyper::Response::builder()
                                .header("content-type", "application/grpc")
                                .body(body);
                            Ok::<_, std::convert::Infallible>(answer.unwrap())
                        },
                    );
                    let executor = hyper_util::rt::TokioExecutor::new();
                    let _ = hyper::server::conn::http2::Builder::new(executor)
                        .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    port
}

/// A metric's value.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok())
}

const FAILURES: &str = "istio_agent_scrape_failures_total{type=\"application\"}";

#[test]
fn metrics_of_application_and_proxy_come_in_one_answer_in_the_applications_format() {
    let ip = "127.63.3.1";
    let application = Application::start("127.0.0.1", |path| match path {
        "/plain?x=1" => {
            response("200 OK", "content-type: text/plain; version=0.0.4\r\n", "app_requests_total 7")
        }
        "/open" => {
            let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
            response("200 OK", kind, "# TYPE app_requests counter\napp_requests_total 8\n# EOF\n")
        }
        "/clash" => {
            let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
            response(
                "200 OK",
                kind,
                "# TYPE istio_agent_scrapes counter\nistio_agent_scrapes_total 8\n# EOF\n",
            )
        }
        "/proto" => response(
            "200 OK",
            "content-type: application/vnd.google.protobuf; encoding=delimited\r\n",
            "\x01\x02",
        ),
        "/broken" => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\napp_requests_total 9\n".to_owned(),
        _ => response("500 Internal Server Error", "", "no"),
    });
    let annotated = |ip: &str, path: &str| {
        let json = format!(r#"{{"scrape": "true", "path": "{path}", "port": "{}"}}"#, application.port);
        sidecar(ip, &[("ISTIO_PROMETHEUS_ANNOTATIONS", &json)])
    };
    let asked = "accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5,application/vnd.google.protobuf;q=0.1\r\n\
                 user-agent: Prometheus/3.9\r\nx-prometheus-scrape-timeout-seconds: 3.5\r\n";
    {
        let _proxy = annotated(ip, "/plain?x=1");
        let (status, head, body) = ask(ip, "/stats/prometheus", asked).unwrap();
        assert!(
            status == 200 && head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
            "{head}"
        );
        assert_eq!(value(&body, "app_requests_total"), Some(7), "{body}");
        assert_eq!(value(&body, FAILURES), Some(0));
        assert!(value(&body, "envoy_server_live").is_some(), "{body}");
        assert_eq!(value(&body, "istio_agent_scrapes_total"), Some(1));
        assert!(body.ends_with('\n') && !body.contains("EOF"), "{body}");
        let head = application.last();
        assert!(
            head.contains("accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\n"),
            "{head}"
        );
        assert!(
            head.contains("user-agent: prometheus/3.9\n") && head.contains("scrape-timeout-seconds: 3.5\n"),
            "{head}"
        );
        // As Prometheus' own rules call it, and only what is asked for.
        assert_eq!(
            value(&ask(ip, "/metrics?filter=server.live", "").unwrap().2, "envoy_server_uptime"),
            None
        );
        // The ports for the proxy alone do not have the application's.
        let own =
            crate::support::http::get(format!("{ip}:15090").parse().unwrap(), "/stats/prometheus").unwrap();
        assert!(own.0 == 200 && !own.1.contains("app_requests"));
    }
    {
        let _proxy = annotated("127.63.4.1", "/open");
        let (_, head, body) = ask("127.63.4.1", "/stats/prometheus", asked).unwrap();
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
            "{head}"
        );
        assert!(
            body.ends_with("app_requests_total 8\n# EOF\n") && body.matches("# EOF").count() == 1,
            "{body}"
        );
        assert!(value(&body, "envoy_server_live").is_some(), "{body}");
        // Strict all through: counters are called as the format has it, and no line is without its family.
        assert!(body.contains("# TYPE istio_agent_scrapes counter\nistio_agent_scrapes_total 1\n"), "{body}");
        let types: Vec<_> =
            body.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let different: std::collections::BTreeSet<_> = types.iter().collect();
        assert_eq!(types.len(), different.len(), "{body}");
    }
    {
        // A family of ours: that cannot be said in OpenMetrics, and the application speaks nothing else.
        let _proxy = annotated("127.63.6.1", "/clash");
        let (_, head, body) = ask("127.63.6.1", "/stats/prometheus", asked).unwrap();
        assert!(head.contains("content-type: text/plain"), "{head}");
        assert_eq!(
            (value(&body, FAILURES), value(&body, "istio_agent_scrapes_total")),
            (Some(1), Some(1)),
            "{body}"
        );
        assert!(application.last().contains("accept: text/plain;version=0.0.4\n"), "{}", application.last());
    }
    // Whatever is wrong with the application, the proxy's own metrics are there, and it is counted.
    for (n, path) in ["/proto", "/broken", "/failing"].into_iter().enumerate() {
        let ip = format!("127.63.5.{}", n + 1);
        let proxy = annotated(&ip, path);
        for count in 1..=2 {
            let (status, head, body) = ask(&ip, "/stats/prometheus", "").unwrap();
            assert!(status == 200 && head.contains("content-type: text/plain"), "{path}: {head}");
            assert_eq!(value(&body, FAILURES), Some(count), "{path}: {body}");
            assert!(
                value(&body, "envoy_server_live").is_some() && !body.contains("app_requests"),
                "{path}: {body}"
            );
        }
        proxy.says(&["the application's metrics are missing"]);
    }
}

#[test]
fn what_an_injector_left_and_cannot_be_read_is_said_at_the_start() {
    for (variable, text, words) in [
        ("ISTIO_KUBE_APP_PROBERS", "{", "ISTIO_KUBE_APP_PROBERS"),
        (
            "ISTIO_KUBE_APP_PROBERS",
            r#"{"/app-health/a/livez": {"httpGet": {"port": "web"}}}"#,
            "/app-health/a/livez",
        ),
        ("ISTIO_PROMETHEUS_ANNOTATIONS", r#"{"scrape": "true", "port": "15020"}"#, "injected twice"),
    ] {
        let ip = "127.63.6.1";
        let admin = format!("{ip}:15000");
        let arguments =
            ["proxy", "--xds-address", "127.0.0.1:1", "--xds-plaintext", "--admin-address", &admin];
        let mut proxy = Logged::weft_with(&arguments, &[(variable, text)]);
        assert!(!proxy.wait().success());
        assert!(proxy.log().contains(words) && proxy.log().contains(variable), "{}", proxy.log());
    }
}
