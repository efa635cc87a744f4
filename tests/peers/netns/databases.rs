//! PostgreSQL and Redis in captured pods where only mutual TLS is taken, with clients that know nothing of it.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::hosts::{Host, Net, SERVER};
use super::pods::{MESH, Pod, Pods, Program, service};
use super::switch::{SWITCH, Switch};
use super::wire::Capture;
use crate::postgres::{as_postgres, cluster};
use crate::programs::{Process, peer, run, until};

const POSTGRES: &str = "10.96.1.1";
const REDIS: &str = "10.96.1.2";
/// What is stored, which may not be read on the way.
const MARKER: &str = "not for strangers";

fn mesh(more: &str) -> String {
    [
        service("postgres", POSTGRES, "server", "{name: tcp-postgres, port: 5432}"),
        service("redis", REDIS, "server", "{name: redis, port: 6379}"),
        MESH.to_owned(),
        more.to_owned(),
    ]
    .concat()
}

/// PostgreSQL on a host, with TLS of its own for those who ask for it.
fn postgres(host: &Host, directory: &Path) -> Process {
    postgres_with(host, directory).1
}

/// The same, and what starts it again.
pub(crate) fn postgres_with(host: &Host, directory: &Path) -> (Command, Process) {
    let data = cluster(directory);
    let own = rcgen::generate_simple_self_signed(["postgres".to_owned()]).unwrap();
    for (name, text) in [("server.crt", own.cert.pem()), ("server.key", own.signing_key.serialize_pem())] {
        let path = data.join(name);
        std::fs::write(&path, text).unwrap();
        run(Command::new("chown").arg("postgres:postgres").arg(&path)).unwrap();
        run(Command::new("chmod").arg("600").arg(&path)).unwrap();
    }
    std::fs::write(data.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\n").unwrap();
    let mut postgres = as_postgres(&peer("WEFT_POSTGRES"));
    postgres.arg("-D").arg(&data).args(["-h", "0.0.0.0", "-p", "5432"]);
    for setting in ["unix_socket_directories=", "fsync=off", "max_connections=50", "ssl=on"] {
        postgres.args(["-c", setting]);
    }
    let mut command = host.command(&postgres);
    let mut postgres = Process::start("postgres", &mut command, directory);
    postgres.wait("accepting", || psql(host, "127.0.0.1", "disable", "select 1").is_ok());
    (command, postgres)
}

/// What psql says, without ornaments.
pub(crate) fn psql(from: &Host, to: &str, ssl: &str, query: &str) -> Result<String, String> {
    let mut psql = Command::new(peer("WEFT_PSQL"));
    psql.arg(format!("host={to} port=5432 user=postgres sslmode={ssl} connect_timeout=10"));
    psql.args(["-X", "-A", "-t", "-q", "-c", query]);
    run(&mut from.command(&psql)).map(|text| text.trim_end().to_owned())
}

fn pgbench(from: &Host, to: &str, arguments: &[&str]) -> String {
    let mut pgbench = Command::new(peer("WEFT_PGBENCH"));
    pgbench.args(["-h", to, "-p", "5432", "-U", "postgres"]).args(arguments).arg("postgres");
    run(&mut from.command(&pgbench)).unwrap()
}

pub(super) fn redis(host: &Host, directory: &Path) -> Process {
    redis_with(host, directory).1
}

/// Redis on a host, and what starts it again.
pub(crate) fn redis_with(host: &Host, directory: &Path) -> (Command, Process) {
    redis_node(host, directory, &[])
}

fn redis_node(host: &Host, directory: &Path, more: &[&str]) -> (Command, Process) {
    let mut redis = Command::new(peer("WEFT_REDIS"));
    redis.args(["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no"]);
    redis.arg("--dir").arg(directory).args(more);
    let mut command = host.command(&redis);
    let mut redis = Process::start("redis", &mut command, directory);
    redis.wait("accepting", || redis_cli(host, "127.0.0.1", &["ping"]).is_ok_and(|a| a == "PONG"));
    (command, redis)
}

/// What redis-cli says.
pub(crate) fn redis_cli(from: &Host, to: &str, arguments: &[&str]) -> Result<String, String> {
    let mut cli = Command::new(peer("WEFT_REDIS_CLI"));
    cli.args(["-h", to]).args(arguments);
    run(&mut from.command(&cli)).map(|text| text.trim_end().to_owned())
}

#[test]
fn postgresql_serves_clients_that_know_nothing() {
    let net = Net::new();
    let directory = tempfile::tempdir().unwrap();
    let _postgres = postgres(&net.server, directory.path());
    let pods = Pods::new(&net, &mesh(""), [Program::Weft, Program::Weft]);
    let capture = Capture::start(&net.gateway);
    let ask = |ssl: &str, query: &str| psql(&net.client, POSTGRES, ssl, query);
    // Without TLS of its own, and with it: the client asks for it first, and the server says yes in plain words.
    for ssl in ["disable", "prefer", "require"] {
        let says = ask(ssl, "select ssl from pg_stat_ssl where pid = pg_backend_pid()");
        assert_eq!(says.as_deref(), Ok(if ssl == "disable" { "f" } else { "t" }), "{}", pods.logs());
        assert_eq!(ask(ssl, "select sum(n) from generate_series(1, 1000) n").unwrap(), "500500");
        assert_eq!(ask(ssl, &format!("select '{MARKER}'")).unwrap(), MARKER);
        assert_eq!(ask(ssl, "select repeat('x', 5000000)").unwrap(), "x".repeat(5_000_000));
    }
    assert!(ask("disable", "select 1/0").unwrap_err().contains("division by zero"));
    // The sidecar comes from an address by which it is known.
    assert_eq!(ask("disable", "select host(inet_client_addr())").unwrap(), "127.0.0.6");
    let wire = capture.bytes();
    assert!(!wire.windows(MARKER.len()).any(|w| w == MARKER.as_bytes()), "{MARKER:?} is on the wire");

    pgbench(&net.client, POSTGRES, &["-i", "-s", "1", "-q"]);
    let report = pgbench(&net.client, POSTGRES, &["-c", "8", "-j", "2", "-t", "100", "-M", "prepared"]);
    assert!(report.contains("number of transactions actually processed: 800/800"), "{report}");
    assert!(report.contains("number of failed transactions: 0 "), "{report}");

    // The client's sidecar goes by the identity that its server has to have, not by its address.
    let other = mesh("").replace("serviceAccount: server", "serviceAccount: other");
    std::fs::write(pods.file("config/mesh.yaml"), other).unwrap();
    until("a server of another name is refused", || ask("disable", "select 1").is_err());
    std::fs::write(pods.file("config/mesh.yaml"), mesh("")).unwrap();
    until("its own name is taken again", || ask("disable", "select 1").is_ok());

    // Nobody without an identity; and then not even one with it, when a policy says so.
    let stranger = psql(&net.gateway, &SERVER.to_string(), "disable", "select 1");
    assert!(stranger.is_err(), "{stranger:?}");
    std::fs::write(
        pods.file("config/policy.yaml"),
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: postgres, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/orders]}}]
      to: [{operation: {ports: ['5432']}}]
",
    )
    .unwrap();
    until("the policy holds", || ask("disable", "select 1").is_err());
}

#[test]
fn redis_serves_clients_that_know_nothing() {
    let net = Net::new();
    let directory = tempfile::tempdir().unwrap();
    let _redis = redis(&net.server, directory.path());
    let pods = Pods::new(&net, &mesh(""), [Program::Weft, Program::Weft]);
    let capture = Capture::start(&net.gateway);
    let ask = |arguments: &[&str]| redis_cli(&net.client, REDIS, arguments);
    // Someone who listens for a long time before anything is said.
    let mut listen = Command::new(peer("WEFT_REDIS_CLI"));
    listen.args(["-h", REDIS, "--csv", "subscribe", "news"]);
    let mut listen = net.client.command(&listen).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(listen.stdout.take().unwrap()).lines();
    let mut heard = lines.filter(|line| !line.as_ref().is_ok_and(|l| l.starts_with("Reading messages")));
    assert_eq!(heard.next().unwrap().unwrap(), "\"subscribe\",\"news\",1", "{}", pods.logs());
    let subscribed = Instant::now();

    assert_eq!(ask(&["set", "key", MARKER]).as_deref(), Ok("OK"), "{}", pods.logs());
    assert_eq!(ask(&["get", "key"]).unwrap(), MARKER);
    assert_eq!(ask(&["strlen", "key"]).unwrap(), MARKER.len().to_string());
    let mut benchmark = Command::new(peer("WEFT_REDIS_BENCHMARK"));
    benchmark.args(["-h", REDIS, "-t", "set,get,lpush", "-n", "3000", "-c", "20", "-P", "8", "--csv"]);
    let report = run(&mut net.client.command(&benchmark)).unwrap();
    assert_eq!(report.lines().count(), 4, "{report}");

    // Nothing was said on it for a while, and it is still there.
    while subscribed.elapsed() < Duration::from_secs(4) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(ask(&["publish", "news", "at last"]).unwrap(), "1");
    assert_eq!(heard.next().unwrap().unwrap(), "\"message\",\"news\",\"at last\"");
    listen.kill().unwrap();
    listen.wait().unwrap();
    let wire = capture.bytes();
    assert!(!wire.windows(MARKER.len()).any(|w| w == MARKER.as_bytes()), "{MARKER:?} is on the wire");
    let stranger = redis_cli(&net.gateway, &SERVER.to_string(), &["get", "key"]);
    assert!(!stranger.as_ref().is_ok_and(|said| said.contains(MARKER)), "{stranger:?}");
}

/// What a pair of sidecars costs, direct connections and pairs of Envoys beside it. Takes minutes; says, and shows that nothing
/// fails. `WEFT_PROXY_UNDER_TEST` names an optimised build.
#[test]
#[ignore = "takes minutes, and its figures want a quiet machine"]
fn what_a_pair_of_sidecars_costs() {
    let net = Net::new();
    let directory = tempfile::tempdir().unwrap();
    let _postgres = postgres(&net.server, directory.path());
    let _redis = redis(&net.server, directory.path());
    let direct: IpAddr = SERVER;
    pgbench(&net.server, "127.0.0.1", &["-i", "-s", "5", "-q"]);
    let measure = |postgres: &str, redis: &str| -> [f64; 3] {
        let report =
            pgbench(&net.client, postgres, &["-c", "8", "-j", "2", "-T", "8", "-S", "-M", "prepared"]);
        assert!(report.contains("number of failed transactions: 0 "), "{report}");
        let of = |name: &str| {
            let line =
                report.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{report}"));
            line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
        };
        let mut benchmark = Command::new(peer("WEFT_REDIS_BENCHMARK"));
        benchmark.args(["-h", redis, "-t", "get", "-n", "200000", "-c", "32", "--csv"]);
        let csv = run(&mut net.client.command(&benchmark)).unwrap();
        let rate = csv.lines().nth(1).and_then(|l| l.split(',').nth(1)).unwrap().trim_matches('"').parse();
        [of("tps = "), of("latency average = "), rate.unwrap()]
    };
    let mut rows = vec![("direct", measure(&direct.to_string(), &direct.to_string()))];
    for (name, program) in [("weft", Program::Weft), ("envoy", Program::Envoy), ("weft again", Program::Weft)]
    {
        let _pods = Pods::new(&net, &mesh(""), [program, program]);
        rows.push((name, measure(POSTGRES, REDIS)));
    }
    for (name, [tps, latency, rate]) in rows {
        println!("{name:>11}: {tps:9.0} transactions/s, {latency:.3} ms each; Redis {rate:9.0} requests/s");
    }
}

/// Nodes of a cluster tell each other, and their clients, their pods' addresses.
#[test]
fn a_redis_cluster_goes_by_the_addresses_of_its_pods() {
    let switch = Switch::new();
    let directory = tempfile::tempdir().unwrap();
    let nodes = [("redis-0", "10.88.6.1"), ("redis-1", "10.88.6.2"), ("redis-2", "10.88.6.3")];
    let mut mesh = MESH.to_owned()
        + "
apiVersion: v1
kind: Service
metadata: {name: redis-nodes, namespace: shop}
spec: {clusterIP: None, selector: {part: redis}, ports: [{name: tcp-redis, port: 6379}, {name: tcp-bus, port: 16379}]}
---";
    for (name, ip) in nodes {
        mesh += &format!(
            "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: shop}}
spec: {{address: {ip}, labels: {{part: redis}}, serviceAccount: {name}}}
---"
        );
    }
    let mut pods = Pods::control(&switch.host, SWITCH, &mesh, &[]);
    let mut start = |name: &'static str, ip: &str| {
        let host = switch.attach(name, ip);
        let ip = ip.parse().unwrap();
        let (namespace, program) = ("shop", Program::Weft);
        pods.add(&Pod { host: &host, namespace, name, ip, captured: true, labels: &[], program });
        host
    };
    let hosts = nodes.map(|(name, ip)| start(name, ip));
    let client = start("web", "10.88.6.9");
    let _servers = [0, 1, 2].map(|n| {
        let own = directory.path().join(nodes[n].0);
        std::fs::create_dir(&own).unwrap();
        let more = ["--cluster-enabled", "yes", "--cluster-announce-ip", nodes[n].1];
        redis_node(&hosts[n], &own, &more).1
    });
    let capture = Capture::start(&switch.host);
    let ask = |arguments: &[&str]| redis_cli(&client, nodes[0].1, &[&["-c"], arguments].concat());
    for (n, (from, to)) in [("0", "5460"), ("5461", "10922"), ("10923", "16383")].into_iter().enumerate() {
        let own = |arguments: &[&str]| redis_cli(&hosts[n], "127.0.0.1", arguments);
        assert_eq!(own(&["cluster", "addslotsrange", from, to]).as_deref(), Ok("OK"));
        assert_eq!(own(&["cluster", "meet", nodes[0].1, "6379"]).as_deref(), Ok("OK"));
    }
    until("the nodes have found each other", || {
        (0..3).all(|n| {
            let info = redis_cli(&hosts[n], "127.0.0.1", &["cluster", "info"]);
            info.is_ok_and(|i| i.contains("cluster_state:ok") && i.contains("cluster_known_nodes:3"))
        })
    });
    for key in 0..30 {
        let key = format!("key-{key}");
        assert_eq!(ask(&["set", &key, MARKER]).as_deref(), Ok("OK"), "{}", pods.logs());
        assert_eq!(ask(&["get", &key]).as_deref(), Ok(MARKER));
    }
    let sizes = nodes.map(|(_, ip)| redis_cli(&client, ip, &["dbsize"]).unwrap().parse::<u32>().unwrap());
    assert!(sizes.iter().sum::<u32>() == 30 && sizes.iter().all(|s| *s > 0), "{sizes:?}");
    let wire = capture.bytes();
    for marker in [MARKER, "cluster_state"] {
        assert!(!wire.windows(marker.len()).any(|w| w == marker.as_bytes()), "{marker:?} is on the wire");
    }
}
