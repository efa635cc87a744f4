//! The design's rules for user-service, as somebody outside sees them: which instance answers, how often it was asked, when, and
//! what the caller is told.

mod limits;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex};
use std::thread::scope;

use super::*;
use crate::support::http;

/// What an instance does with a request.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Answers with this status.
    Answer(u16),
    /// Says nothing until the test is over.
    Hold,
    /// Resets the connection in the middle of the answer's head.
    Reset,
    /// Resets it in the middle of the answer's body.
    Break,
}

/// An address that no other instance has.
fn own_address() -> Ipv4Addr {
    static NUMBER: AtomicU8 = AtomicU8::new(1);
    Ipv4Addr::new(127, 59, 0, NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// An instance of a service: what it was asked, when, and on which of its connections.
#[derive(Clone)]
struct Instance {
    name: &'static str,
    at: SocketAddr,
    asked: Arc<Mutex<Vec<(Instant, usize)>>>,
}

impl Instance {
    /// One that acts by the number of the request, from 0.
    fn start(name: &'static str, act: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((own_address(), 0)).unwrap();
        let instance = Self { name, at: listener.local_addr().unwrap(), asked: Arc::default() };
        let (own, act) = (instance.clone(), Arc::new(act));
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let (own, act) = (own.clone(), act.clone());
                std::thread::spawn(move || own.serve(stream, number, &*act));
            }
        });
        instance
    }

    fn serve(&self, stream: TcpStream, connection: usize, act: &dyn Fn(usize) -> Act) -> std::io::Result<()> {
        // An answer goes out in pieces, none of which is to wait for the one before.
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let mut lines = BufReader::new(stream).lines();
        loop {
            while !lines.next().transpose()?.ok_or(std::io::ErrorKind::UnexpectedEof)?.is_empty() {}
            let number = {
                let mut asked = self.asked.lock().unwrap();
                asked.push((Instant::now(), connection));
                asked.len() - 1
            };
            let (length, name) = (self.name.len(), self.name);
            match act(number) {
                Act::Answer(status) => {
                    write!(writer, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{name}")?;
                }
                Act::Hold => loop {
                    std::thread::park();
                },
                Act::Reset | Act::Break => {
                    let whole = matches!(act(number), Act::Break);
                    let head = "HTTP/1.1 200 X\r\ncontent-length: 1000\r\n";
                    write!(writer, "{head}{}", if whole { "\r\nbeginning" } else { "" })?;
                    let socket = socket2::SockRef::from(&writer);
                    // What was written is to arrive before the reset.
                    std::thread::sleep(Duration::from_millis(100));
                    socket.set_linger(Some(Duration::ZERO))?;
                    return Ok(());
                }
            }
        }
    }

    fn hits(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// The service with these instances by version, and the access log on the proxy's output.
fn service(instances: &[(&Instance, &str)]) -> String {
    let mut text = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'accessLogFile: /dev/stderr'}
---
apiVersion: v1
kind: Service
metadata: {name: user-service, namespace: shop}
spec: {selector: {app: user-service}, ports: [{name: http, port: 8080, targetPort: http}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ready, namespace: shop}
spec: {hosts: [a.com], ports: [{number: 8080, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 127.0.0.1}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ready, namespace: shop}
spec: {hosts: [a.com], http: [{directResponse: {status: 200}}]}
---
"
    .to_owned();
    for (instance, version) in instances {
        text += &format!(
            "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: shop}}
spec: {{address: {ip}, ports: {{http: {port}}}, labels: {{app: user-service, version: {version}}}}}
---
",
            name = instance.name,
            ip = instance.at.ip(),
            port = instance.at.port()
        );
    }
    text
}

/// The design's VirtualService, with other retries where `retries` says so.
fn rules(retries: &str) -> String {
    let route = |name: &str, matched: &str, subset: &str| {
        format!(
            "
    - name: {name}
      {matched}
      route: [{{destination: {{host: user-service, subset: {subset}}}, weight: 100}}]
      timeout: 30s
      retries: {retries}"
        )
    };
    let canary = route("canary", "match: [{headers: {canary: {exact: 'true'}}}]", "canary");
    format!(
        "
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {{name: user-service, namespace: shop}}
spec:
  hosts: [user-service]
  http:{canary}{}
---
",
        route("stable", "", "stable")
    )
}

const RETRIES: &str =
    "{attempts: 3, perTryTimeout: 10s, retryOn: '5xx,reset,connect-failure,refused-stream'}";

/// A DestinationRule with the design's subsets and this policy.
fn subsets(policy: &str) -> String {
    let policy = if policy.is_empty() { String::new() } else { format!("trafficPolicy: {policy}") };
    format!(
        "
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {{name: user-service, namespace: shop}}
spec:
  host: user-service
  {policy}
  subsets: [{{name: stable, labels: {{version: stable}}}}, {{name: canary, labels: {{version: canary}}}}]
---
"
    )
}

fn ok(name: &'static str) -> Instance {
    Instance::start(name, |_| Act::Answer(200))
}

/// Status line and fields, and body, of a request by the service's short name.
fn ask(mesh: &Mesh, headers: &str) -> (String, String) {
    ask_host(mesh, "user-service", headers)
}

fn ask_host(mesh: &Mesh, host: &str, headers: &str) -> (String, String) {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n");
    let mut stream = TcpStream::connect(mesh.at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = Vec::new();
    // A body that breaks off is an answer, too.
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (head.to_owned(), body.to_owned())
}

fn status(answer: &(String, String)) -> &str {
    answer.0.get(9..12).unwrap_or("none")
}

fn stat(mesh: &Mesh, subset: &str, name: &str) -> u64 {
    let name = format!("cluster.outbound|8080|{subset}|user-service.shop.svc.cluster.local.{name}");
    let page = http::get(SocketAddr::new(mesh.at.ip(), 15000), "/stats").unwrap().1;
    let line = page.lines().find_map(|l| l.strip_prefix(&name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("{name} is not in {page}")).parse().unwrap()
}

#[test]
fn every_name_of_the_service_is_the_service_and_the_canary_is_asked_for_by_exactly_true() {
    let (stable, canary) = (ok("stable"), ok("canary"));
    let yaml = service(&[(&stable, "stable"), (&canary, "canary")]) + &rules(RETRIES) + &subsets("");
    let mesh = Mesh::start("127.49.20.1", "127.49.20.2", &yaml);
    for name in
        ["user-service", "user-service.shop", "user-service.shop.svc", "user-service.shop.svc.cluster.local"]
    {
        for host in [name.to_owned(), format!("{name}:8080")] {
            assert_eq!(ask_host(&mesh, &host, "").1, "stable", "{host}");
            assert_eq!(ask_host(&mesh, &host, "canary: true\r\n").1, "canary", "{host}");
        }
    }
    for headers in ["canary: TRUE\r\n", "canary: true,true\r\n", ""] {
        assert_eq!(ask(&mesh, headers).1, "stable", "{headers:?}");
    }
    // A subset of nobody is nobody, and not the other subset.
    mesh.write(&(service(&[(&stable, "stable")]) + &rules(RETRIES) + &subsets("")));
    eventually("the canary is gone", || status(&ask(&mesh, "canary: true\r\n")) == "503");
    assert_eq!(ask(&mesh, "canary: true\r\n").1, "no healthy upstream");
    mesh.proxy.says(&["\"GET / HTTP/1.1\" 503 UH"]);
    assert_eq!(ask(&mesh, "").1, "stable");
    // Another label, another subset, at once. The quickest of some moves counts: the machine may be busy.
    let took = ["canary", "stable", "canary", "stable"].map(|subset| {
        mesh.write(&(service(&[(&stable, subset)]) + &rules(RETRIES) + &subsets("")));
        let relabelled = Instant::now();
        let headers = if subset == "canary" { "canary: true\r\n" } else { "" };
        eventually("it has moved", || ask(&mesh, headers).1 == "stable");
        relabelled.elapsed()
    });
    assert!(took.iter().min() < Some(&Duration::from_secs(1)), "{took:?}");
}

#[test]
fn three_retries_are_four_tries_at_different_instances() {
    let all = ["a", "b", "c", "d"].map(|name| Instance::start(name, |_| Act::Answer(500)));
    let places: Vec<_> = all.iter().map(|i| (i, "stable")).collect();
    let yaml = service(&places) + &rules(RETRIES) + &subsets("");
    let mesh = Mesh::start("127.49.21.1", "127.49.21.2", &yaml);
    let before: Vec<_> = all.iter().map(Instance::hits).collect();
    let answer = ask(&mesh, "");
    assert_eq!(status(&answer), "500");
    let hits: Vec<_> = all.iter().zip(before).map(|(i, before)| i.hits() - before).collect();
    assert_eq!(hits, [1, 1, 1, 1]);
    mesh.proxy.says(&["\"GET / HTTP/1.1\" 500 URX"]);
}

#[test]
fn a_try_has_ten_seconds_and_the_request_thirty() {
    let silent = Instance::start("silent", |_| Act::Hold);
    let slow = Instance::start("slow", |_| Act::Hold);
    // Both kinds at once: the canary's route tries again, the other does not.
    let once = "{attempts: 0}";
    let text = rules(RETRIES);
    let (first, second) = text.split_at(text.rfind("retries: ").unwrap());
    let yaml = service(&[(&slow, "stable"), (&silent, "canary")])
        + first
        + &second.replace(RETRIES, once)
        + &subsets("");
    let mesh = Mesh::start("127.49.22.1", "127.49.22.2", &yaml);
    scope(|s| {
        let timed = |headers: &'static str| {
            let mesh = &mesh;
            s.spawn(move || {
                let began = Instant::now();
                (ask(mesh, headers), began, began.elapsed())
            })
        };
        let (plain, tried) = (timed(""), timed("canary: true\r\n"));
        let (plain, tried) = (plain.join().unwrap(), tried.join().unwrap());
        for (answer, _, took) in [&plain, &tried] {
            assert_eq!((status(answer), answer.1.as_str()), ("504", "upstream request timeout"));
            let took = took.as_secs_f64();
            assert!((29.9..30.5).contains(&took), "{took}");
        }
        assert_eq!(slow.hits(), 1);
        let starts: Vec<f64> = silent
            .asked
            .lock()
            .unwrap()
            .iter()
            .map(|(at, _)| at.duration_since(tried.1).as_secs_f64())
            .collect();
        assert_eq!(starts.len(), 3, "{starts:?}");
        for (start, wanted) in starts.iter().zip([0.0, 10.0, 20.0]) {
            // Pauses between tries are up to 25 ms, then 75.
            assert!((wanted..wanted + 0.6).contains(start), "{starts:?}");
        }
    });
}

#[test]
fn what_breaks_before_the_answer_is_tried_again_and_what_breaks_after_is_not() {
    let reset = Instance::start("resets", |n| if n == 0 { Act::Reset } else { Act::Answer(200) });
    let broken = Instance::start("breaks", |_| Act::Break);
    let yaml = service(&[(&reset, "stable"), (&broken, "canary")]) + &rules(RETRIES) + &subsets("");
    let mesh = Mesh::start("127.49.23.1", "127.49.23.2", &yaml);
    let answer = ask(&mesh, "");
    assert_eq!((status(&answer), answer.1.as_str(), reset.hits()), ("200", "resets", 2));
    let answer = ask(&mesh, "canary: true\r\n");
    assert_eq!((status(&answer), answer.1.as_str(), broken.hits()), ("200", "beginning", 1));
}

const LIMITS: &str = "{connectionPool: {tcp: {maxConnections: 100}, http: {http1MaxPendingRequests: 50, maxRequestsPerConnection: 10, maxRetries: 3}}}";

#[test]
fn a_hundred_connections_and_fifty_waiting_requests_are_the_most() {
    let silent = Instance::start("silent", |_| Act::Hold);
    let yaml = service(&[(&silent, "stable")]) + &rules("{attempts: 0}") + &subsets(LIMITS);
    let mesh = Mesh::start("127.49.24.1", "127.49.24.2", &yaml);
    let send = || {
        let mut stream = TcpStream::connect(mesh.at).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: user-service\r\n\r\n").unwrap();
        stream
    };
    let mut held = Vec::new();
    // Who waits for a connection that is being made waits as well: not too many at once.
    for served in [25, 50, 75, 100] {
        held.extend((0..25).map(|_| send()));
        eventually("they are served", || silent.hits() == served);
    }
    assert_eq!(stat(&mesh, "stable", "upstream_cx_overflow"), 0);
    let _waiting: Vec<_> = (0..50).map(|_| send()).collect();
    eventually("fifty wait", || stat(&mesh, "stable", "upstream_rq_pending_active") == 50);
    assert!(stat(&mesh, "stable", "upstream_cx_overflow") > 0);
    let answer = ask(&mesh, "");
    assert_eq!(status(&answer), "503");
    assert!(answer.0.contains("x-envoy-overloaded: true"), "{}", answer.0);
    mesh.proxy.says(&["\"GET / HTTP/1.1\" 503 UO"]);
    assert_eq!((silent.hits(), stat(&mesh, "stable", "upstream_rq_pending_overflow")), (100, 1));
}

#[test]
fn a_connection_serves_ten_requests_and_three_retries_are_the_most_at_once() {
    let busy = ok("busy");
    let failing = Instance::start("fails", |n| if n < 4 { Act::Answer(500) } else { Act::Hold });
    let yaml = service(&[(&busy, "stable"), (&failing, "canary")]) + &rules(RETRIES) + &subsets(LIMITS);
    let mesh = Mesh::start("127.49.25.1", "127.49.25.2", &yaml);
    for _ in 0..25 {
        assert_eq!(ask(&mesh, "").1, "busy");
    }
    let connections: Vec<usize> =
        busy.asked.lock().unwrap().iter().map(|(_, connection)| *connection).collect();
    let mut served = std::collections::BTreeMap::<usize, usize>::new();
    connections.into_iter().for_each(|c| *served.entry(c).or_default() += 1);
    assert_eq!(served.into_values().collect::<Vec<_>>(), [10, 10, 5]);
    // Four fail at once; three are tried again, the fourth is answered as it is.
    let mut streams: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(mesh.at).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: user-service\r\ncanary: true\r\n\r\n").unwrap();
            stream
        })
        .collect();
    eventually("one retry is refused", || stat(&mesh, "canary", "upstream_rq_retry_overflow") == 1);
    eventually("three are tried again", || failing.hits() == 7);
    let answered = streams
        .iter_mut()
        .filter_map(|stream| {
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut head = [0; 12];
            stream.read_exact(&mut head).ok().map(|()| String::from_utf8_lossy(&head).into_owned())
        })
        .collect::<Vec<_>>();
    assert_eq!(answered, ["HTTP/1.1 500"]);
}

#[test]
fn five_gateway_errors_eject_and_too_few_healthy_are_as_good_as_all() {
    let status = Arc::new(std::sync::atomic::AtomicU16::new(500));
    let own = status.clone();
    let bad = Instance::start("bad", move |_| Act::Answer(own.load(Ordering::Relaxed)));
    let (good, other) = (ok("good"), ok("other"));
    let rule = subsets(
        "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 5, interval: 100ms, baseEjectionTime: 600s, maxEjectionPercent: 100, minHealthPercent: 70}}",
    );
    let places = [(&bad, "stable"), (&good, "stable"), (&other, "stable")];
    let yaml = service(&places) + &rules("{attempts: 0}") + &rule;
    let mesh = Mesh::start("127.49.26.1", "127.49.26.2", &yaml);
    // An error that is none of a gateway's does not count.
    for _ in 0..30 {
        ask(&mesh, "");
    }
    assert_eq!(stat(&mesh, "stable", "outlier_detection.ejections_active"), 0);
    let before = bad.hits();
    assert!(before >= 10, "{before}");
    status.store(503, Ordering::Relaxed);
    eventually("it is ejected", || {
        ask(&mesh, "");
        stat(&mesh, "stable", "outlier_detection.ejections_active") == 1
    });
    // 66 % are healthy, which is less than 70: all are used, and it is counted.
    let (before, panics) = (bad.hits(), stat(&mesh, "stable", "lb_healthy_panic"));
    for _ in 0..9 {
        ask(&mesh, "");
    }
    assert_eq!(bad.hits() - before, 3);
    assert_eq!(stat(&mesh, "stable", "lb_healthy_panic") - panics, 9);
    // With the design's 30 they are enough.
    let rule = rule.replace("minHealthPercent: 70", "minHealthPercent: 30");
    mesh.write(&(service(&places) + &rules("{attempts: 0}") + &rule));
    eventually("it gets nothing", || {
        let before = bad.hits();
        (0..9).for_each(|_| drop(ask(&mesh, "")));
        bad.hits() == before
    });
}

#[test]
fn instances_get_their_shares() {
    let all = ["a", "b", "c"].map(ok);
    let places: Vec<_> = all.iter().map(|i| (i, "stable")).collect();
    let with = |simple: &str| {
        service(&places)
            + &rules("{attempts: 0}")
            + &subsets(&format!("{{loadBalancer: {{simple: {simple}}}}}"))
    };
    let mesh = Mesh::start("127.49.27.1", "127.49.27.2", &with("ROUND_ROBIN"));
    let shares = |count: usize| -> Vec<usize> {
        let before: Vec<_> = all.iter().map(Instance::hits).collect();
        (0..count).for_each(|_| drop(ask(&mesh, "")));
        all.iter().zip(before).map(|(i, before)| i.hits() - before).collect()
    };
    assert_eq!(shares(60), [20, 20, 20]);
    mesh.write(&with("RANDOM"));
    eventually("they take no turns any more", || shares(12) != [4, 4, 4]);
    let random = shares(600);
    // Two degrees of freedom; a fair choice is over 20.7 once in 30,000 times, and one that takes turns has nearly zero.
    let chi: f64 = random.iter().map(|n| (*n as f64 - 200.0).powi(2) / 200.0).sum();
    assert!(chi < 20.7, "{random:?}");
    assert_ne!(random, [200, 200, 200]);
}

#[test]
fn a_host_that_answers_nothing_is_given_up_after_ten_seconds_and_another_is_tried() {
    // A queue of connections that is full: what comes then is not even refused.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from((own_address(), 0)).into()).unwrap();
    full.listen(0).unwrap();
    let at = full.local_addr().unwrap().as_socket().unwrap();
    let _fill: Vec<_> = (0..4).map(|_| TcpStream::connect_timeout(&at, Duration::from_millis(200))).collect();
    let hole = Instance { name: "hole", at, asked: Arc::default() };
    let good = ok("good");
    let policy = "{connectionPool: {tcp: {connectTimeout: 10s}}}";
    let text = rules("{attempts: 1, retryOn: connect-failure}");
    let (first, second) = text.split_at(text.rfind("retries: ").unwrap());
    let second = second.replace("{attempts: 1, retryOn: connect-failure}", "{attempts: 0}");
    // The hole is in both subsets.
    let yaml = service(&[(&hole, "stable"), (&good, "canary")]) + first + &second + &subsets(policy);
    let yaml = yaml
        .replace("version: stable}}", "version: stable, also: canary}}")
        .replace("{app: user-service, version: canary}", "{app: user-service, version: canary, also: canary}")
        .replace("labels: {version: canary}", "labels: {also: canary}");
    let mesh = Mesh::start("127.49.28.1", "127.49.28.2", &yaml);
    scope(|s| {
        let timed = |headers: &'static str| {
            let mesh = &mesh;
            s.spawn(move || {
                let began = Instant::now();
                (ask(mesh, headers), began.elapsed().as_secs_f64())
            })
        };
        // Of two requests by turns or by chance, one meets the hole; both are answered.
        let (alone, both) =
            (timed(""), [timed("canary: true\r\n"), timed("canary: true\r\n"), timed("canary: true\r\n")]);
        let (answer, took) = alone.join().unwrap();
        assert_eq!(status(&answer), "503", "{answer:?}");
        assert!((9.9..10.6).contains(&took), "{took}");
        mesh.proxy.says(&["\"GET / HTTP/1.1\" 503 UF"]);
        let times: Vec<f64> = both
            .into_iter()
            .map(|each| {
                let (answer, took) = each.join().unwrap();
                assert_eq!((status(&answer), answer.1.as_str()), ("200", "good"));
                took
            })
            .collect();
        assert!(times.iter().any(|took| (9.9..10.6).contains(took)), "{times:?}");
    });
}

#[test]
fn an_injected_failure_has_its_flag_and_is_grpcs_for_grpc() {
    let a = ok("a");
    let rules = "
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: user-service, namespace: shop}
spec:
  hosts: [user-service]
  http:
    - fault: {abort: {percentage: {value: 100}, httpStatus: 500}}
      route: [{destination: {host: user-service}}]
";
    let mesh = Mesh::start("127.49.29.1", "127.49.29.2", &(service(&[(&a, "stable")]) + rules));
    let answer = ask(&mesh, "");
    assert_eq!((status(&answer), answer.1.as_str()), ("500", "fault filter abort"));
    mesh.proxy.says(&["\"GET / HTTP/1.1\" 500 FI"]);
    let answer = ask(&mesh, "content-type: application/grpc\r\n");
    // Envoy's mapping of 500 for a call: unknown.
    assert!(status(&answer) == "200" && answer.0.contains("grpc-status: 2"), "{}", answer.0);
    assert_eq!(a.hits(), 0);
}
