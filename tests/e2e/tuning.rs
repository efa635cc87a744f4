//! Settings of a proxy that are seen in what it does: how many workers it has, and that its numbers wait for no interval.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::http::{exchange, get};
use crate::support::{WEFT, eventually};

/// A proxy by itself, which answers at port 8080; it ends with its test.
struct Proxy {
    child: Child,
    ip: &'static str,
    _directory: tempfile::TempDir,
}

impl Proxy {
    /// Started by `before`, and told `more`.
    fn start(ip: &'static str, before: &[&str], more: &[&str], bootstrap: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let words: Vec<&str> = before.iter().copied().chain([WEFT, "proxy", "-c"]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&file).args(more);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let proxy = Self { child, ip, _directory: directory };
        eventually("the proxy serves", || proxy.ask().is_ok_and(|head| head.starts_with("HTTP/1.1 204")));
        proxy
    }

    fn ask(&self) -> std::io::Result<String> {
        let at: SocketAddr = format!("{}:8080", self.ip).parse().unwrap();
        Ok(exchange(at, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?.0)
    }

    /// Threads that carry requests.
    fn workers(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("worker-")).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bootstrap(ip: &str) -> Value {
    let address = |port: u16| json!({"socket_address": {"address": ip, "port_value": port}});
    json!({
        "node": {"id": "alone", "cluster": "alone"},
        "admin": {"address": address(15000)},
        "static_resources": {"listeners": [{
            "name": "http",
            "address": address(8080),
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "alone",
                    "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                        {"match": {"prefix": "/"}, "direct_response": {"status": 204}}]}]},
                    "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
                },
            }]}],
        }]},
    })
}

#[test]
fn there_are_as_many_workers_as_processors_that_may_be_used_or_as_was_said() {
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let one = list.split([',', '-']).next().unwrap();
    let proxy = Proxy::start("127.51.90.1", &["taskset", "-c", one], &[], bootstrap("127.51.90.1"));
    assert_eq!(proxy.workers(), 1, "of one processor");
    drop(proxy);
    let two = ["--concurrency", "2"];
    let proxy = Proxy::start("127.51.90.1", &["taskset", "-c", one], &two, bootstrap("127.51.90.1"));
    assert_eq!(proxy.workers(), 2, "as was said");
}

#[test]
fn numbers_are_current_whatever_the_interval_of_their_flushing() {
    let mut rare = bootstrap("127.51.90.2");
    rare["stats_flush_interval"] = "299s".into();
    let proxy = Proxy::start("127.51.90.2", &[], &["--concurrency", "1"], rare);
    let counted = || {
        let at = "127.51.90.2:15000".parse().unwrap();
        let page = get(at, "/stats?filter=http.alone.downstream_rq_2xx").map(|(_, page)| page).unwrap();
        let count = page.trim().rsplit_once(": ").map(|(_, count)| count.parse::<u64>());
        count.unwrap_or_else(|| panic!("{page}")).unwrap()
    };
    let before = counted();
    for _ in 0..3 {
        proxy.ask().unwrap();
    }
    // What a connection does last is counted when it ends, a moment later than its answer.
    eventually("all are counted", || counted() == before + 3);
}
