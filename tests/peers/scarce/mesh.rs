//! A mesh of many services in little memory: a sidecar that knows them all, and the control plane that many proxies ask for them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use super::cgroup::Cgroup;
use super::server;
use crate::programs::{Process, get, weft};
use crate::streams::Streams;

/// Services with two endpoints each, of which the last one's answer. The sidecar is told of those of the hosts of its egress, and they are
/// in the namespaces that `place` says.
fn services(
    count: u32,
    server: SocketAddr,
    ip: &str,
    egress: &str,
    place: fn(u32) -> &'static str,
) -> String {
    let mut text = format!(
        "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: shop}}
spec:
  egress:
    - {{port: {{number: 8080, protocol: HTTP, name: http}}, bind: {ip}, captureMode: NONE, hosts: ['{egress}']}}
---
"
    );
    for number in 0..count {
        let endpoints = match number + 1 == count {
            true => format!("{{address: 127.0.0.1, ports: {{http: {}}}}}", server.port()),
            false => format!(
                "{{address: 10.{0}.{1}.1, ports: {{http: 80}}}}, {{address: 10.{0}.{1}.2, ports: {{http: 80}}}}",
                number / 250,
                number % 250
            ),
        };
        write!(
            text,
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: s{number}, namespace: {}}}
spec:
  hosts: [s{number}.example]
  ports: [{{number: 8080, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{endpoints}]
---
",
            place(number)
        )
        .unwrap();
    }
    text
}

fn ready(process: &mut Process, at: SocketAddr, path: &str) {
    process.wait_within(std::time::Duration::from_secs(240), "is ready", || {
        get(at, path).is_ok_and(|a| a.0 == 200)
    });
}

fn control(directory: &Path, ip: &str, configuration: &str, memory: Option<&Cgroup>) -> Process {
    let config = directory.join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("mesh.yaml"), configuration).unwrap();
    let mut command = weft();
    command.args(["control", "--address", ip, "--config-dir"]).arg(config);
    if let Some(memory) = memory {
        command = memory.command(&command);
    }
    let mut control = Process::start("control", &mut command, directory);
    ready(&mut control, format!("{ip}:8080").parse().unwrap(), "/ready");
    control
}

/// A sidecar in 128 MiB.
fn sidecar(directory: &Path, plane: &str, ip: &str) -> (Cgroup, Process) {
    let memory = Cgroup::memory(128 << 20);
    let mut command = weft();
    command.args([
        "proxy",
        "--xds-address",
        &format!("{plane}:15010"),
        "--xds-plaintext",
        "--namespace",
        "shop",
    ]);
    command.args(["--ip", ip, "--admin-address", &format!("{ip}:15000"), "--interception-mode", "NONE"]);
    command.args(["--concurrency", "2"]);
    let mut proxy = Process::start("proxy", &mut memory.command(&command), directory);
    ready(&mut proxy, format!("{ip}:15021").parse().unwrap(), "/healthz/ready");
    (memory, proxy)
}

/// `WEFT_SCARCE_SERVICES` says how many.
#[test]
fn a_sidecar_that_knows_a_thousand_services_lives_in_128_mebibytes() {
    let count = std::env::var("WEFT_SCARCE_SERVICES").map_or(1000, |n| n.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let (plane, ip) = ("127.37.5.1", "127.37.5.2");
    let control = control(directory.path(), plane, &services(count, server(), ip, "*/*", |_| "shop"), None);
    let (memory, mut proxy) = sidecar(directory.path(), plane, ip);
    let at = format!("{ip}:8080").parse().unwrap();
    let ask = |number: u32| {
        let request = format!("GET / HTTP/1.1\r\nhost: s{number}.example\r\nconnection: close\r\n\r\n");
        super::ask(at, &request)
    };
    assert_eq!(ask(count - 1), Some(200), "{}", proxy.log());
    let clusters = get(format!("{ip}:15000").parse().unwrap(), "/stats?filter=active_clusters").unwrap().1;
    let known: u32 = clusters.trim().rsplit_once(": ").unwrap().1.parse().unwrap();
    assert!(known >= count, "{clusters}");
    println!(
        "{count} services: {} MiB, {} MiB at most with files' pages",
        memory.used() >> 20,
        memory.peak() >> 20
    );
    // All of them change, and come once more beside the old ones.
    let config = directory.path().join("config/mesh.yaml");
    let text = std::fs::read_to_string(&config).unwrap().replace("http: 80}", "http: 81}");
    std::fs::write(&config, text).unwrap();
    let admin = format!("{ip}:15000").parse().unwrap();
    proxy.wait_within(std::time::Duration::from_secs(120), "hears of the change", || {
        get(admin, "/clusters").is_ok_and(|a| a.1.contains("10.0.0.1:81::") && !a.1.contains(":80::"))
    });
    assert_eq!(ask(count - 1), Some(200), "{}", proxy.log());
    assert_eq!(memory.kills(), 0);
    drop(control);
}

/// A Sidecar says whom its namespace calls.
#[test]
fn of_ten_thousand_services_a_sidecar_that_calls_a_hundred_is_told_of_these_and_needs_little() {
    let (count, called) = (10_000, 100);
    let directory = tempfile::tempdir().unwrap();
    let (plane, ip) = ("127.37.5.3", "127.37.5.4");
    let place = |number: u32| if number >= 9_900 { "shop" } else { "elsewhere" };
    let control = control(directory.path(), plane, &services(count, server(), ip, "./*", place), None);
    let (memory, proxy) = sidecar(directory.path(), plane, ip);
    let at = format!("{ip}:8080").parse().unwrap();
    let ask = |number: u32| {
        let request = format!("GET / HTTP/1.1\r\nhost: s{number}.example\r\nconnection: close\r\n\r\n");
        super::ask(at, &request)
    };
    assert_eq!(ask(count - 1), Some(200), "{}", proxy.log());
    assert_ne!(ask(0), Some(200), "nobody has told it of that one");
    let clusters = get(format!("{ip}:15000").parse().unwrap(), "/stats?filter=active_clusters").unwrap().1;
    let known: u32 = clusters.trim().rsplit_once(": ").unwrap().1.parse().unwrap();
    assert!((called..called + 10).contains(&known), "{clusters}");
    println!("{known} clusters of {count} services: {} MiB at most with files' pages", memory.peak() >> 20);
    assert!(memory.peak() < 64 << 20, "{}", memory.peak());
    assert_eq!(memory.kills(), 0);
    drop(control);
}

/// The design gives it 2048 MiB, and at most 4096.
#[test]
fn a_control_plane_of_hundreds_of_proxies_needs_a_part_of_its_memory() {
    const PROXIES: usize = 200;
    let (count, ip) = (250, "127.37.6.1");
    let directory = tempfile::tempdir().unwrap();
    let text = services(count, "127.0.0.1:9".parse().unwrap(), "127.37.6.2", "*/*", |_| "shop");
    let memory = Cgroup::memory(512 << 20);
    let mut control = control(directory.path(), ip, &text, Some(&memory));
    let before = memory.used();
    let streams = Streams::start(format!("{ip}:15010").parse().unwrap(), PROXIES);
    let of = |host: u32| vec![format!("10.{}.{}.{host}", 0, 7), format!("10.{}.{}.{}", 0, 7, host + 1)];
    let mut all_have = |what: &str, wanted: &[String]| {
        let cluster = "outbound|8080||s7.example";
        control.wait_within(std::time::Duration::from_secs(60), what, || {
            streams.with(count as usize, cluster, wanted) == PROXIES
        });
    };
    all_have("all proxies have everything", &of(1));
    let connected = memory.used();
    // All services change, and all proxies get all of them anew while they still hold what was.
    let text = text.replace(".1, ports", ".3, ports").replace(".2, ports", ".4, ports");
    std::fs::write(directory.path().join("config/mesh.yaml"), text).unwrap();
    all_have("all proxies have what changed", &of(3));
    println!(
        "{PROXIES} proxies, {count} services: {} MiB, {} MiB with all proxies, {} MiB at most with files' pages",
        before >> 20,
        connected >> 20,
        memory.peak() >> 20
    );
    assert_eq!(streams.connected(), PROXIES, "none had to come again");
    assert!(memory.peak() <= 512 << 20 && memory.kills() == 0, "{} MiB", memory.peak() >> 20);
}
