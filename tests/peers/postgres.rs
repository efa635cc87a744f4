//! PostgreSQL behind a pair of sidecars: the client's protocol and load over TCP and mutual TLS, between explicit listeners.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::meshes;
use crate::programs::{Process, peer, run};

const MESH: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: data}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: postgres, namespace: data}
spec:
  selector: {app: postgres}
  ports: [{name: tcp-postgres, port: 5432, targetPort: 5432}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: postgres-1, namespace: data}
spec:
  address: 127.0.20.1
  ports: {tcp-postgres: 5432}
  labels: {app: postgres}
  serviceAccount: postgres
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: postgres, namespace: data}
spec:
  workloadSelector: {labels: {app: postgres}}
  ingress:
    - port: {number: 5432, protocol: TCP, name: tcp-postgres}
      captureMode: NONE
      defaultEndpoint: 0.0.0.0:15432
  egress:
    - captureMode: NONE
      hosts: ['data/*']
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client-1, namespace: data}
spec:
  address: 127.0.21.1
  labels: {app: client}
  serviceAccount: client
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: client, namespace: data}
spec:
  workloadSelector: {labels: {app: client}}
  egress:
    - port: {number: 5432, protocol: TCP, name: tcp-postgres}
      captureMode: NONE
      hosts: ['data/postgres.data.svc.cluster.local']
";

/// A command that PostgreSQL is willing to run as: it refuses to be root.
pub fn as_postgres(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// An empty database cluster in the directory.
pub fn cluster(directory: &Path) -> std::path::PathBuf {
    let data = directory.join("data");
    std::fs::create_dir(&data).unwrap();
    if rustix::process::geteuid().is_root() {
        // The directory above belongs to root; whoever becomes postgres has to get through it.
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        run(Command::new("chown").arg("postgres:postgres").arg(&data)).unwrap();
    }
    let mut initdb = as_postgres(&peer("WEFT_INITDB"));
    initdb.current_dir("/").arg("-D").arg(&data).args([
        "-A",
        "trust",
        "-U",
        "postgres",
        "-E",
        "UTF8",
        "--no-sync",
    ]);
    run(&mut initdb).unwrap();
    data
}

fn server(directory: &Path) -> Process {
    let data = cluster(directory);
    let mut postgres = as_postgres(&peer("WEFT_POSTGRES"));
    postgres.current_dir("/").arg("-D").arg(&data).args(["-h", "127.33.20.1", "-p", "15432"]);
    postgres.args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=50"]);
    let mut postgres = Process::start("postgres", &mut postgres, directory);
    postgres.wait("accepting", || psql("127.33.20.1", "15432", "select 1").is_ok());
    postgres
}

fn psql(host: &str, port: &str, query: &str) -> Result<String, String> {
    let mut psql = Command::new(peer("WEFT_PSQL"));
    psql.args(["-h", host, "-p", port, "-U", "postgres", "-X", "-A", "-t", "-q", "-c", query]);
    run(&mut psql).map(|text| text.trim_end().to_owned())
}

fn pgbench(arguments: &[&str]) -> String {
    let mut pgbench = Command::new(peer("WEFT_PGBENCH"));
    pgbench.args(["-h", "127.33.21.1", "-p", "5432", "-U", "postgres"]).args(arguments).arg("postgres");
    run(&mut pgbench).unwrap()
}

#[test]
fn postgres_answers_and_bears_load_behind_a_pair_of_sidecars() {
    let temporary = tempfile::tempdir().unwrap();
    let configuration = temporary.path().join("mesh");
    std::fs::create_dir(&configuration).unwrap();
    std::fs::write(configuration.join("mesh.yaml"), MESH).unwrap();
    let _postgres = server(temporary.path());
    let runtime = meshes::runtime();
    let mesh = runtime.block_on(meshes::start(&configuration, 33));
    let ask = |query: &str| psql("127.33.21.1", "5432", query);

    // Small, large in both directions, and an error, which is an answer as well.
    assert_eq!(ask("select sum(n) from generate_series(1, 1000) n").unwrap(), "500500");
    assert_eq!(ask("select repeat('x', 5000000)").unwrap(), "x".repeat(5_000_000));
    let long = "y".repeat(100_000);
    assert_eq!(ask(&format!("select length('{long}')")).unwrap(), "100000");
    assert!(ask("select 1/0").unwrap_err().contains("division by zero"));
    // The server's peer is its own sidecar.
    assert_eq!(ask("select host(inet_client_addr())").unwrap().split('.').next(), Some("127"));

    // Its port takes mutual TLS only: who comes without a sidecar is sent away.
    let without = psql("127.33.20.1", "5432", "select 1");
    assert!(without.is_err(), "plaintext was answered: {without:?}");

    // Load: no transaction fails, and the books balance.
    pgbench(&["-i", "-s", "1", "-q"]);
    let report = pgbench(&["-c", "8", "-j", "2", "-t", "250", "-M", "prepared"]);
    assert!(report.contains("number of transactions actually processed: 2000/2000"), "{report}");
    assert!(report.contains("number of failed transactions: 0 "), "{report}");
    let balances = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), \
                (select count(*) from pgbench_history)";
    assert_eq!(ask(balances).unwrap(), "t|2000");
    // A new connection for each transaction.
    let report = pgbench(&["-c", "4", "-j", "2", "-t", "50", "-C", "-S"]);
    assert!(report.contains("number of failed transactions: 0 "), "{report}");

    // Connections end on both sides when their client goes.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let others = "select count(*) from pg_stat_activity where backend_type = 'client backend'";
    while psql("127.33.20.1", "15432", others).unwrap() != "1" {
        assert!(std::time::Instant::now() < deadline, "connections are left behind");
        std::thread::sleep(Duration::from_millis(50));
    }
    runtime.block_on(mesh.shutdown()).unwrap();
}
