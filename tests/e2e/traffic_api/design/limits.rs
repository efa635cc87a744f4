//! What is sent again and what is not, how much at once, what is delayed, and what keeps silent connections alive.

use std::sync::atomic::AtomicUsize;

use tokio::net::{TcpListener as Listener, TcpStream as Stream};

use super::*;

/// Status of a request with a method, and how often the instances were asked for it.
fn tried(mesh: &Mesh, asked: &[&Instance], method: &str, headers: &str) -> (String, usize) {
    let hits = || asked.iter().map(|i| i.hits()).sum::<usize>();
    let before = hits();
    let request = format!(
        "{method} / HTTP/1.1\r\nhost: user-service\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n"
    );
    let (head, _) = exchange(mesh.at, &request).unwrap();
    (head.get(9..12).unwrap_or("none").to_owned(), hits() - before)
}

#[test]
fn what_changes_something_is_sent_again_only_where_nothing_was_done() {
    let failures = Arc::new(AtomicUsize::new(0));
    let left = failures.clone();
    let fails = Instance::start("fails", move |_| {
        let failed = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        Act::Answer(if failed.is_ok() { 500 } else { 200 })
    });
    let alone = service(&[(&fails, "stable")]) + &rules(RETRIES) + &subsets("");
    let mesh = Mesh::start("127.49.30.1", "127.49.30.2", &alone);
    // The first try is answered with 500, the second would be with 200.
    let once_more = |method: &str, headers: &str| {
        failures.store(1, Ordering::Relaxed);
        let seen = tried(&mesh, &[&fails], method, headers);
        failures.store(0, Ordering::Relaxed);
        seen
    };
    let (done_twice, as_it_is) = (("200".to_owned(), 2), ("500".to_owned(), 1));
    for method in ["GET", "PUT", "DELETE"] {
        assert_eq!(once_more(method, ""), done_twice, "{method}");
    }
    for method in ["POST", "PATCH"] {
        assert_eq!(once_more(method, ""), as_it_is, "{method}");
    }
    assert_eq!(once_more("POST", "idempotency-key: 7d1f\r\n"), done_twice);
    // Where nobody can have done anything, everything is sent again.
    let closed = TcpListener::bind((own_address(), 0)).unwrap().local_addr().unwrap();
    let gone = Instance { name: "gone", at: closed, asked: Arc::default() };
    mesh.write(&(service(&[(&fails, "stable"), (&gone, "stable")]) + &rules(RETRIES) + &subsets("")));
    eventually("the closed one was tried", || {
        assert_eq!(tried(&mesh, &[&fails], "POST", ""), ("200".to_owned(), 1));
        stat(&mesh, "stable", "upstream_cx_connect_fail") > 0
    });
    // Who wants it so has everything sent again.
    let any = rules(RETRIES).replace(
        "metadata: {name: user-service, namespace: shop}",
        "metadata: {name: user-service, namespace: shop, annotations: {weft.dev/retry-any-request: 'true'}}",
    );
    mesh.write(&(service(&[(&fails, "stable")]) + &any + &subsets("")));
    eventually("a POST is sent again", || once_more("POST", "") == done_twice);
}

/// A server of HTTP/2 that does this with each request, and how many requests it has had.
fn server(act: fn(usize, h2::server::SendResponse<bytes::Bytes>)) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    let (at, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            listener.set_nonblocking(true).unwrap();
            let listener = Listener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let count = count.clone();
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await?;
                    while let Some(request) = connection.accept().await {
                        act(count.fetch_add(1, Ordering::Relaxed), request?.1);
                    }
                    Ok::<_, h2::Error>(())
                });
            }
        });
    });
    (at, asked)
}

/// The same service, which speaks HTTP/2.
fn service_of_http2(instance: &Instance) -> String {
    service(&[(instance, "stable")])
        .replace("{name: http, port: 8080, targetPort: http}", "{name: http2, port: 8080, targetPort: http}")
}

#[test]
fn a_stream_that_was_refused_is_sent_again_whatever_its_method() {
    let (at, asked) = server(|number, mut answer| {
        if number % 2 == 0 {
            return answer.send_reset(h2::Reason::REFUSED_STREAM);
        }
        let _ = answer.send_response(::http::Response::new(()), true);
    });
    let refuses = Instance { name: "refuses", at, asked: Arc::default() };
    let yaml = service_of_http2(&refuses) + &rules("{attempts: 3, retryOn: refused-stream}") + &subsets("");
    let mesh = Mesh::start("127.49.34.1", "127.49.34.2", &yaml);
    for method in ["GET", "POST"] {
        let before = asked.load(Ordering::Relaxed);
        assert_eq!(tried(&mesh, &[], method, "").0, "200", "{method}");
        assert_eq!(asked.load(Ordering::Relaxed) - before, 2, "{method}");
    }
}

#[test]
fn of_a_hundred_and_one_streams_at_once_one_is_refused() {
    // What is kept is never answered.
    let (at, held) = server(|_, answer| std::mem::forget(answer));
    let holder = Instance { name: "holder", at, asked: Arc::default() };
    let yaml = service_of_http2(&holder)
        + &rules("{attempts: 0}")
        + &subsets("{connectionPool: {http: {http2MaxRequests: 100}}}");
    let mesh = Mesh::start("127.49.31.1", "127.49.31.2", &yaml);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let request = || ::http::Request::get("http://user-service/").body(()).unwrap();
        let mut clients = Vec::new();
        let mut waiting = Vec::new();
        // Two connections, so that what a client may have open at once is not what is measured.
        for _ in 0..2 {
            let (client, connection) =
                h2::client::handshake(Stream::connect(mesh.at).await.unwrap()).await.unwrap();
            tokio::spawn(connection);
            let mut client = client.ready().await.unwrap();
            for _ in 0..50 {
                client = client.ready().await.unwrap();
                waiting.push(client.send_request(request(), true).unwrap().0);
            }
            clients.push(client);
        }
        let began = Instant::now();
        while held.load(Ordering::Relaxed) < 100 {
            assert!(began.elapsed() < Duration::from_secs(30), "{held:?} of 100 arrived");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut client = clients.pop().unwrap().ready().await.unwrap();
        let answer = client.send_request(request(), true).unwrap().0.await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-envoy-overloaded"]),
            (503, &"true".parse().unwrap())
        );
        assert_eq!(held.load(Ordering::Relaxed), 100);
    });
    mesh.proxy.says(&["\"GET / HTTP/2\" 503 UO"]);
    assert_eq!(stat(&mesh, "stable", "upstream_rq_active_overflow"), 1);
}

#[test]
fn a_delay_has_its_flag_and_its_share() {
    let a = ok("a");
    let delayed = |percent: &str, time: &str| {
        let fault = format!(
            "
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {{name: user-service, namespace: shop}}
spec:
  hosts: [user-service]
  http:
    - fault: {{delay: {{percentage: {{value: {percent}}}, fixedDelay: {time}}}}}
      route: [{{destination: {{host: user-service}}}}]
"
        );
        service(&[(&a, "stable")]) + &fault
    };
    let mesh = Mesh::start("127.49.32.1", "127.49.32.2", &delayed("100", "5s"));
    let began = Instant::now();
    assert_eq!(status(&ask(&mesh, "")), "200");
    assert!(began.elapsed() >= Duration::from_secs(5), "{:?}", began.elapsed());
    mesh.proxy.says(&["\"GET / HTTP/1.1\" 200 DI"]);
    // One of a thousand; `WEFT_FAULT_REQUESTS` says of how many.
    mesh.write(&delayed("0.1", "1ms"));
    eventually("requests are quick again", || {
        let began = Instant::now();
        ask(&mesh, "");
        began.elapsed() < Duration::from_secs(4)
    });
    let number = || {
        let page =
            http::get(SocketAddr::new(mesh.at.ip(), 15000), "/stats?filter=fault.delays_injected").unwrap().1;
        page.lines().filter_map(|l| l.rsplit_once(": ")?.1.parse::<u64>().ok()).sum::<u64>()
    };
    let requests: u32 = std::env::var("WEFT_FAULT_REQUESTS").map_or(20_000, |n| n.parse().unwrap());
    let before = number();
    scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let mut writer = TcpStream::connect(mesh.at).unwrap();
                let mut lines = BufReader::new(writer.try_clone().unwrap());
                // Several at once in each direction: it is not the time that is measured.
                for _ in 0..requests / 4 / 50 {
                    writer
                        .write_all("GET / HTTP/1.1\r\nhost: user-service\r\n\r\n".repeat(50).as_bytes())
                        .unwrap();
                    let mut answers = 0;
                    let mut line = Vec::new();
                    while answers < 50 {
                        line.clear();
                        assert_ne!(lines.read_until(b'\n', &mut line).unwrap(), 0, "the connection is over");
                        answers += usize::from(line.windows(9).any(|w| w == b"HTTP/1.1 "));
                    }
                    // The last answer's fields and its body.
                    loop {
                        line.clear();
                        lines.read_until(b'\n', &mut line).unwrap();
                        if line == b"\r\n" {
                            break;
                        }
                    }
                    lines.read_exact(&mut [0]).unwrap();
                }
            });
        }
    });
    let expected = f64::from(requests) / 1000.0;
    let seen = (number() - before) as f64;
    // Five standard deviations.
    assert!((seen - expected).abs() < 5.0 * expected.sqrt(), "{seen} of {requests} were delayed");
    assert!(seen > 0.0);
}

/// When the kernel asks whether the other side of the connections to an address is there still, in seconds from now.
fn keepalive_timers(to: SocketAddr) -> Vec<f64> {
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    let remote = format!("{:08X}:{:04X}", u32::from_le_bytes(to.ip().octets()), to.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let timer = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (kind, when) = fields.get(5)?.split_once(':')?;
        // Established, and the timer is keepalive's.
        let ours = fields[2] == remote && fields[3] == "01" && kind == "02";
        ours.then(|| u64::from_str_radix(when, 16).unwrap() as f64 / 100.0)
    };
    table.lines().filter_map(timer).collect()
}

#[test]
fn the_other_side_of_a_silent_connection_is_asked_after_five_minutes_or_as_was_said() {
    let (usual, design) = (ok("usual"), ok("design"));
    let rule = |policy: &str| {
        subsets("").replace(
            "{name: canary, labels: {version: canary}}",
            &format!("{{name: canary, labels: {{version: canary}}, trafficPolicy: {policy}}}"),
        )
    };
    let as_designed = "{connectionPool: {tcp: {tcpKeepalive: {time: 7200s, interval: 75s, probes: 9}}}}";
    let yaml = service(&[(&usual, "stable"), (&design, "canary")]) + &rules(RETRIES) + &rule(as_designed);
    let mesh = Mesh::start("127.49.33.1", "127.49.33.2", &yaml);
    assert_eq!((ask(&mesh, "").1.as_str(), ask(&mesh, "canary: true\r\n").1.as_str()), ("usual", "design"));
    for (instance, seconds) in [(&usual, 300.0), (&design, 7200.0)] {
        let timers = keepalive_timers(instance.at);
        assert!(
            timers.len() == 1 && (seconds - 60.0..=seconds).contains(&timers[0]),
            "{seconds}: {timers:?}"
        );
    }
}
