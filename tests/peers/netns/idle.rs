//! Connections on which nothing is said for a long time: who may end them, and who does not.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::databases::{redis, redis_cli};
use super::hosts::{Host, Net};
use super::pods::{MESH, Pods, Program, service};
use crate::programs::{peer, until};

/// One server, known by four names whose rules differ.
const USUAL: &str = "10.96.8.1";
const SHORT: &str = "10.96.8.2";
const NEVER: &str = "10.96.8.3";
const KEPT: &str = "10.96.8.4";

fn mesh() -> String {
    let mut mesh = String::new();
    for (name, ip, pool) in [
        ("usual", USUAL, ""),
        ("short", SHORT, "idleTimeout: 3s"),
        ("never", NEVER, "idleTimeout: 0s"),
        ("kept", KEPT, "tcpKeepalive: {time: 1s, interval: 1s, probes: 3}"),
    ] {
        mesh += &service(name, ip, "server", "{name: redis, port: 6379}");
        if !pool.is_empty() {
            mesh += &format!(
                "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: shop}}
spec: {{host: {name}, trafficPolicy: {{connectionPool: {{tcp: {{{pool}}}}}}}}}
---"
            );
        }
    }
    mesh + MESH
}

/// Somebody who listens until something is said.
struct Listener {
    redis_cli: Child,
    heard: Receiver<String>,
}

impl Listener {
    fn new(host: &Host, ip: &str, channel: &str) -> Self {
        let mut listen = Command::new(peer("WEFT_REDIS_CLI"));
        listen.args(["-h", ip, "--csv", "subscribe", channel]);
        let mut listen = host.command(&listen);
        let mut redis_cli = listen.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(redis_cli.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (sender, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ =
                lines.filter(|line| !line.starts_with("Reading messages")).try_for_each(|l| sender.send(l));
        });
        let listener = Self { redis_cli, heard };
        assert_eq!(listener.next().as_deref(), Some(&*format!("\"subscribe\",\"{channel}\",1")));
        listener
    }

    /// What comes next; nothing if the connection ends, or nothing is said.
    fn next(&self) -> Option<String> {
        self.heard.recv_timeout(Duration::from_secs(10)).ok()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.redis_cli.kill();
        let _ = self.redis_cli.wait();
    }
}

/// How many subscribers of a channel the server knows.
fn subscribers(net: &Net, channel: &str) -> u32 {
    let said = redis_cli(&net.server, "127.0.0.1", &["pubsub", "numsub", channel]).unwrap();
    said.split_whitespace().next_back().unwrap().parse().unwrap()
}

fn publish(net: &Net, channel: &str) {
    redis_cli(&net.server, "127.0.0.1", &["publish", channel, "at last"]).unwrap();
}

fn message(channel: &str) -> String {
    format!("\"message\",\"{channel}\",\"at last\"")
}

#[test]
fn silence_ends_a_subscription_where_a_rule_says_so_and_nowhere_else() {
    let net = Net::new();
    let directory = tempfile::tempdir().unwrap();
    let _redis = redis(&net.server, directory.path());
    let _pods = Pods::new(&net, &mesh(), [Program::Weft, Program::Weft]);
    let usual = Listener::new(&net.client, USUAL, "usual");
    let never = Listener::new(&net.client, NEVER, "never");
    let began = Instant::now();
    let _short = Listener::new(&net.client, SHORT, "short");
    until("the short one is ended", || subscribers(&net, "short") == 0);
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
    // They have been silent for longer than that.
    for (listener, channel) in [(&usual, "usual"), (&never, "never")] {
        publish(&net, channel);
        assert_eq!(listener.next(), Some(message(channel)));
    }
}

/// Something between the pods that forgets connections on which nothing was said for four seconds, and lets nothing more of them
/// pass, as NAT and firewalls do.
#[test]
fn keepalive_holds_a_subscription_where_something_between_forgets_silent_ones() {
    let net = Net::new();
    net.gateway.nft(
        "table inet forgetful {
            chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; tcp flags & (syn|ack) == syn accept; udp dport 53 accept; }
        }",
    );
    net.gateway.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0");
    net.gateway.sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", "4");
    let directory = tempfile::tempdir().unwrap();
    let _redis = redis(&net.server, directory.path());
    let _pods = Pods::new(&net, &mesh(), [Program::Weft, Program::Weft]);
    let kept = Listener::new(&net.client, KEPT, "kept");
    let usual = Listener::new(&net.client, USUAL, "usual");
    let began = Instant::now();
    // It is silence that is tested, and it takes its time.
    until("they were silent for long", || began.elapsed() > Duration::from_secs(10));
    publish(&net, "usual");
    publish(&net, "kept");
    assert_eq!(kept.next().as_deref(), Some(&*message("kept")), "keepalive does not hold it");
    assert_eq!(usual.heard.try_recv().ok(), None, "nothing was forgotten, so nothing is shown");
}

/// Ten minutes as they are, with everything as it is by default. `WEFT_IDLE_SECONDS` says how long.
#[test]
#[ignore = "takes ten minutes"]
fn ten_minutes_of_silence_are_nothing_to_a_subscription() {
    let seconds = std::env::var("WEFT_IDLE_SECONDS").map_or(600, |s| s.parse().unwrap());
    let net = Net::new();
    let directory = tempfile::tempdir().unwrap();
    let _redis = redis(&net.server, directory.path());
    let _pods = Pods::new(&net, &mesh(), [Program::Weft, Program::Weft]);
    let usual = Listener::new(&net.client, USUAL, "usual");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        assert_eq!(subscribers(&net, "usual"), 1, "it is cut after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_secs(1));
    }
    publish(&net, "usual");
    assert_eq!(usual.next(), Some(message("usual")));
}
