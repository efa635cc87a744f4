//! Whole pods, application and sidecar, that stand still, and go on: their kernel still answers for them, so nobody is told that
//! they are gone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::databases::{postgres_with, psql};
use super::pods::{Pod, Pods, Program, service};
use super::switch::{SWITCH, Switch};
use crate::ecotrack::http::ask;
use crate::programs::{Process, until, weft};

const API: &str = "10.96.7.1";
const DATABASE: &str = "10.96.7.2";

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---";

fn mesh() -> String {
    let mut mesh = STRICT.to_owned()
        + &service("database", DATABASE, "database", "{name: tcp-postgres, port: 5432}")
        + &format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: api, namespace: shop}}
spec: {{clusterIP: {API}, selector: {{part: api}}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: api, namespace: shop}}
spec:
  host: api
  trafficPolicy:
    loadBalancer: {{simple: ROUND_ROBIN}}
    connectionPool: {{tcp: {{connectTimeout: 1s}}}}
    outlierDetection: {{consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 5s, maxEjectionPercent: 100}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: database, namespace: shop}}
spec: {{host: database, trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: 1s}}}}}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: api, namespace: shop}}
spec:
  hosts: [api]
  http: [{{timeout: 1s, retries: {{attempts: 0}}, route: [{{destination: {{host: api}}}}]}}]
---"
        );
    for (name, ip) in
        [("api-1", "10.88.7.1"), ("api-2", "10.88.7.2"), ("database", "10.88.7.3"), ("web", "10.88.7.9")]
    {
        let part = name.split('-').next().unwrap();
        mesh += &format!(
            "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: shop}}
spec: {{address: {ip}, labels: {{app: {name}, part: {part}}}, serviceAccount: {name}}}
---"
        );
    }
    mesh
}

#[test]
fn callers_of_frozen_pods_are_answered_in_time_by_others_and_again_when_they_thaw() {
    let switch = Switch::new();
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut pods = Pods::control(&switch.host, SWITCH, &mesh(), &[]);
    let mut start = |name: &'static str, ip: &str| {
        let host = switch.attach(name, ip);
        let (ip, part) = (ip.parse().unwrap(), format!("part={}", name.split('-').next().unwrap()));
        let (namespace, program) = ("shop", Program::Weft);
        pods.add(&Pod { host: &host, namespace, name, ip, captured: true, labels: &[&part], program });
        host
    };
    let apis = [start("api-1", "10.88.7.1"), start("api-2", "10.88.7.2")];
    let database = start("database", "10.88.7.3");
    let web = start("web", "10.88.7.9");
    let _applications = ["api-1", "api-2"].map(|name| {
        let host = &apis[usize::from(name == "api-2")];
        let mut app = weft();
        app.args(["app", "--listen", "0.0.0.0:8080", "--service", name]);
        Process::start(name, &mut host.command(&app), directory.path())
    });
    let (_, _postgres) = postgres_with(&database, directory.path());

    let api: SocketAddr = format!("{API}:8080").parse().unwrap();
    let browse = || {
        let began = Instant::now();
        let said = ask(&web, api, "GET /whoami", "host: api.shop:8080\r\n", "");
        // The timeout is a second, and a machine may be busy.
        assert!(began.elapsed() < Duration::from_secs(5), "after {:?}: {said:?}", began.elapsed());
        let who = ["api-1", "api-2"].into_iter().find(|name| said.body.contains(&format!("\"{name}\"")));
        (said.status(), who)
    };
    let both = |what: &str| {
        let mut seen = BTreeSet::new();
        until(what, || {
            let (status, who) = browse();
            if status == 200 {
                seen.insert(who.unwrap());
            }
            seen.len() == 2
        });
    };
    let send = |number: usize, signal: Signal| apis[number].signal(signal);
    both("both serve");

    // One of two: its callers are told in time, until it is left out; then nobody notices any more.
    send(0, Signal::STOP);
    let (mut in_a_row, mut failed) = (0, Vec::new());
    until("it is left out", || {
        match browse() {
            (200, who) => {
                assert_eq!(who, Some("api-2"), "it stands still");
                in_a_row += 1;
            }
            (status, _) => {
                failed.push(status);
                in_a_row = 0;
            }
        }
        in_a_row == 10
    });
    // Of a request on a connection that is there nothing comes; a new connection does not come about.
    let in_time = |failed: &[u16]| failed.iter().all(|status| [503, 504].contains(status));
    assert!(in_time(&failed), "{failed:?}");
    assert!((1..=4).contains(&failed.len()), "two in a row are enough, {failed:?}");

    // Both: there is no one, which is said in time.
    send(1, Signal::STOP);
    let failed: Vec<_> = (0..6).map(|_| browse().0).collect();
    assert!(in_time(&failed), "{failed:?}");

    // They thaw, and are taken again when their time is over.
    send(0, Signal::CONT);
    send(1, Signal::CONT);
    both("both serve again");

    // A database and its sidecar: who comes meanwhile is told in time, whoever waits is served when it thaws.
    let query = |query: &str| psql(&web, DATABASE, "disable", query);
    assert_eq!(query("select 1").as_deref(), Ok("1"), "{}", pods.logs());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| query("select pg_sleep(2), 'served'"));
        until("it asks", || {
            let asked = psql(
                &database,
                "127.0.0.1",
                "disable",
                "select count(*) from pg_stat_activity where query like '%served%' and pid <> pg_backend_pid()",
            );
            asked.is_ok_and(|n| n == "1")
        });
        database.signal(Signal::STOP);
        let began = Instant::now();
        let new = query("select 1");
        assert!(
            new.is_err() && began.elapsed() < Duration::from_secs(8),
            "{new:?} after {:?}",
            began.elapsed()
        );
        database.signal(Signal::CONT);
        assert_eq!(waiting.join().unwrap().as_deref(), Ok("|served"));
    });
    assert_eq!(query("select 1").as_deref(), Ok("1"));
}
