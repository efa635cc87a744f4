//! A sidecar in its pod: asked by kubelet and Prometheus from outside, told to end, and left by its application.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::captured::{Says, start};
use super::hosts::{CLIENT, Host, Net, SERVER};
use super::pods::{MESH, Pods, Program, Settings, service};
use crate::programs::{get, weft_proxy};

const USERS: &str = "10.96.0.10";

fn mesh() -> String {
    service("users", USERS, "server", "{name: http, port: 80, targetPort: 8080}") + MESH
}

fn pods(net: &Net, settings: Settings) -> Pods {
    Pods::with_settings(net, &mesh(), [Program::Weft; 2], [CLIENT, SERVER], settings)
}

/// What comes back of a request to a port of the server's pod, from the host outside: its status, and its body.
fn outside(net: &Net, method: &str, port: u16, path: &str) -> Option<(u16, String)> {
    let to = SocketAddr::new(SERVER, port);
    net.gateway
        .inside(|| -> std::io::Result<_> {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
            Ok((head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0), body.to_owned()))
        })
        .ok()
        .filter(|(status, _)| *status != 0)
}

#[test]
fn where_mutual_tls_is_required_kubelet_and_prometheus_are_answered_all_the_same() {
    let net = Net::new();
    // One application at the pod's own address, one at the loopback's.
    let http = |port: u16, at: IpAddr| {
        net.server.serve(at, port, move |mut stream: TcpStream, peer| {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let body = format!("# asked by {}\napp_requests_total {port}\n", peer.ip());
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        })
    };
    let _applications = [http(8080, SERVER), http(9100, Ipv4Addr::LOCALHOST.into())];
    let settings = Settings {
        flags: &["--probe-address", "0.0.0.0"],
        environment: &[
            r#"ISTIO_KUBE_APP_PROBERS={"/app-health/app/readyz": {"httpGet": {"path": "/ready", "port": 8080}},
                "/app-health/app/livez": {"tcpSocket": {"port": 8080}},
                "/app-health/app/startupz": {"tcpSocket": {"port": 8081}}}"#,
            r#"ISTIO_PROMETHEUS_ANNOTATIONS={"scrape": "true", "path": "/metrics", "port": "9100"}"#,
        ],
        ..Settings::default()
    };
    let pods = pods(&net, settings);

    assert_eq!(outside(&net, "GET", 8080, "/"), None, "in plain text nobody gets in");
    let (status, body) = outside(&net, "GET", 15020, "/app-health/app/readyz").unwrap();
    assert!(status == 200 && body.contains("asked by 127.0.0.6"), "{status} {body}\n{}", pods.logs());
    assert_eq!(outside(&net, "GET", 15020, "/app-health/app/livez").unwrap().0, 200);
    assert_eq!(outside(&net, "GET", 15020, "/app-health/app/startupz").unwrap().0, 500);
    assert_eq!(outside(&net, "GET", 15021, "/healthz/ready"), Some((200, "LIVE\n".to_owned())));
    let (_, merged) = outside(&net, "GET", 15020, "/stats/prometheus").unwrap();
    assert!(
        merged.contains("app_requests_total 9100\n") && merged.contains("envoy_server_live 1\n"),
        "{merged}"
    );
    let (_, own) = outside(&net, "GET", 15090, "/stats/prometheus").unwrap();
    assert!(!own.contains("app_requests_total") && own.contains("envoy_server_live 1\n"), "{own}");
    // Nobody outside ends or drains a pod's proxy.
    for path in ["/quitquitquit", "/drain"] {
        assert_eq!(outside(&net, "POST", 15020, path).unwrap().0, 403, "{path}");
    }
    assert_eq!(outside(&net, "GET", 15020, "/healthz/ready").unwrap().0, 200);
    assert_eq!(outside(&net, "GET", 15000, "/server_info"), None, "the admin interface is the pod's own");
}

/// What the application in a pod gets from `users`.
fn users(from: &Host) -> std::io::Result<u16> {
    from.inside(|| get(SocketAddr::new(USERS.parse().unwrap(), 80), "/")).map(|a| a.0)
}

#[test]
fn a_sidecar_that_is_told_to_end_serves_its_application_until_that_has_ended() {
    let net = Net::new();
    let flags = &["--grace-period", "40s", "--minimum-drain-time", "500ms"];
    let mut pods = pods(&net, Settings { flags, ..Settings::default() });
    let _server = start(&net.server, 8080, Says::Http);
    let application = start(&net.client, 9000, Says::Http);
    assert_eq!(users(&net.client).unwrap(), 200, "{}", pods.logs());

    let told = Instant::now();
    pods.send("web", rustix::process::Signal::TERM);
    let ready = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15021);
    while net.client.inside(|| get(ready, "/healthz/ready")).unwrap().0 == 200 {
        assert!(told.elapsed() < PATIENCE, "{}", pods.logs());
    }
    // The application has its last calls to make, each a new connection by mutual TLS.
    while told.elapsed() < Duration::from_secs(4) {
        assert_eq!(users(&net.client).unwrap(), 200, "after {:?}: {}", told.elapsed(), pods.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!pods.ends("web", Duration::ZERO), "{}", pods.logs());
    let gone = Instant::now();
    drop(application);
    pods.ended("web", Duration::from_secs(15));
    eprintln!("the sidecar ended {:?} after its application", gone.elapsed());
}

#[test]
fn a_job_that_is_done_ends_its_proxy_where_they_share_their_processes() {
    let net = Net::new();
    let mut proxy = weft_proxy();
    proxy.args([
        "--xds-address",
        "127.0.0.1:1",
        "--xds-plaintext",
        "--concurrency",
        "1",
        "--exit-with-application",
    ]);
    let own: Vec<_> = std::iter::once(proxy.get_program()).chain(proxy.get_args()).collect();
    let run = |words: &[&std::ffi::OsStr]| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--"]).args(words);
        let began = Instant::now();
        let output = net.client.command(&command).output().unwrap();
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned(), began.elapsed())
    };
    // The first process stays, as a pod's does; the second is the job, and lives for three seconds.
    let script = r#"sleep 3 & "$@" & proxy=$!; wait $proxy"#;
    let words = ["sh", "-c", script, "sh"].map(std::ffi::OsStr::new);
    let (status, log, took) = run(&[&words[..], &own].concat());
    assert!(status.success() && log.contains("the application has ended"), "{status} {log}");
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(15), "{took:?}");

    let (status, log, _) = run(&own);
    assert!(!status.success() && log.contains("shareProcessNamespace"), "{status} {log}");
}
