//! Requests that were sent, explained by what the proxies of both sides have kept of them.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;
use weft::client::{Answer, Connection};
use weft::up::Mesh;

use crate::support::mesh::{alone, runtime};
use crate::support::pair::{Pair, workload};
use crate::support::{eventually, stderr, stdout, weft};

/// What holds beside two good services.
const RULES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: pair}
spec:
  selector: {matchLabels: {app: back}}
  action: DENY
  rules: [{to: [{operation: {paths: [/secret]}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: again, namespace: pair}
spec:
  hosts: [mixed]
  http:
    - name: twice
      retries: {attempts: 2, retryOn: 5xx}
      route: [{destination: {host: mixed}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: strict, namespace: pair}
spec:
  host: broken
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 300s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: once, namespace: pair}
spec:
  hosts: [broken]
  http:
    - retries: {attempts: 0}
      route: [{destination: {host: broken}}]
";

/// A second workload of the service `mixed`, which always fails.
const BAD: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: mixed-2
  namespace: pair
  annotations: {weft.dev/command: weft app --fail-status 503}
spec:
  address: 127.0.14.1
  ports: {http: 8080}
  labels: {app: mixed, version: v1}
  serviceAccount: mixed
";

/// Sends a request by the front's sidecar, with this id.
async fn send(mesh: &Mesh, id: &str, to: &str, path: &str) -> Answer {
    get_with(mesh, to, path, &[("x-request-id", id)]).await
}

/// The same with these fields.
async fn get_with(mesh: &Mesh, to: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    let front = mesh.workload("front-1").unwrap();
    let mut request = Request::get(format!("http://{to}:8080{path}")).header("host", format!("{to}:8080"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default());
    let mut connection = Connection::open(front.http_proxy.unwrap()).await.unwrap();
    connection.send(request.unwrap()).await.unwrap()
}

struct Asked<'a> {
    control: String,
    pair: &'a Pair,
}

impl Asked<'_> {
    fn explain(&self, arguments: &[&str]) -> std::process::Output {
        weft(&[&["explain", "--control", &self.control], arguments].concat())
    }

    fn text(&self, id: &str) -> String {
        let dir = self.pair.dir();
        let output = self.explain(&[id, "--dir", dir.to_str().unwrap()]);
        assert!(output.status.code() != Some(2), "{}", stderr(&output));
        stdout(&output)
    }

    /// The exit code, and the explanation once as many hops are told.
    fn json(&self, id: &str, hops: usize) -> (Option<i32>, Value) {
        let (mut code, mut told) = (None, Value::Null);
        eventually("the request is kept by all proxies that it passed", || {
            let output = self.explain(&[id, "--output", "json"]);
            told = serde_json::from_str(&stdout(&output)).unwrap_or_default();
            code = output.status.code();
            count(&told) == hops
        });
        (code, told)
    }
}

fn count(told: &Value) -> usize {
    let below = told["hops"].as_array().map(Vec::as_slice).unwrap_or_default();
    below.iter().map(|hop| 1 + count(hop)).sum()
}

/// Each of them, in this order.
fn in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for next in parts {
        let at = rest.find(next).unwrap_or_else(|| panic!("no {next:?} in its place in\n{text}"));
        rest = &rest[at + next.len()..];
    }
}

/// A watcher sees what it asked for, and no secrets.
async fn tapped(mesh: &Mesh, asked: &Asked<'_>) {
    let admin = mesh.workload("back-1").unwrap().admin();
    let control = asked.control.clone();
    let watching = tokio::task::spawn_blocking(move || {
        let filters = ["--status", "4xx", "--path", "/secret", "-H", "x-tap: yes", "--max", "2"];
        weft(&[&["tap", "back", "--control", &control, "--output", "json"], &filters[..]].concat())
    });
    let mut number = 0;
    while !watching.is_finished() {
        assert!(number < 400, "nothing was seen");
        for (path, mark) in [("/secret", "yes"), ("/secret", "no"), ("/open", "yes")] {
            number += 1;
            let fields = [("x-tap", mark), ("authorization", "Bearer abc"), ("x-request-id", "tapped")];
            get_with(mesh, "back", path, &fields).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    let output = watching.await.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in &lines {
        let fields = line["requestHeaders"].as_array().unwrap();
        assert!(fields.contains(&serde_json::json!(["x-tap", "yes"])), "{line}");
        assert!(fields.contains(&serde_json::json!(["authorization", "(redacted)"])), "{line}");
        assert!(!line.to_string().contains("abc"), "{line}");
        assert_eq!((&line["proxy"], &line["status"]), (&"back-1.pair".into(), &403.into()), "{line}");
    }
    // What is wrong is said, by the proxy and by who asks it.
    let (status, text) = crate::support::http::get(admin, "/weft/tap?methd=GET").unwrap();
    assert!(status == 400 && text.contains("there are method"), "{status} {text}");
    let nobody = weft(&["tap", "nobody", "--control", &asked.control]);
    assert!(stderr(&nobody).contains("there are back-1.pair, "), "{}", stderr(&nobody));
}

#[test]
fn what_became_of_a_request_is_told_by_both_sides_of_each_hop() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(104);
        pair.write("rules.yaml", RULES);
        pair.write("mixed.yaml", &format!("{}---{BAD}", workload("mixed", 13, "weft app")));
        pair.write("broken.yaml", &workload("broken", 15, "weft app --fail-status 500"));
        pair.write("late.yaml", &workload("late", 16, "weft app --delay 1200ms"));
        let mesh = pair.start().await;
        let asked = Asked { control: mesh.control().debug.to_string(), pair: &pair };

        // Denied by a policy: both have refused it, and the server's side knows by which rule.
        assert_eq!(send(&mesh, "denied-1", "back", "/secret?token=abc").await.status, 403);
        let (code, told) = asked.json("denied-1", 2);
        assert_eq!(code, Some(1), "{told}");
        let front = &told["hops"][0];
        let back = &front["hops"][0];
        assert_eq!(
            (&front["proxy"], &back["proxy"]),
            (&"front-1.pair".into(), &"back-1.pair".into()),
            "{told}"
        );
        assert_eq!(
            (&front["details"], &front["endedBy"]),
            (&"via_upstream".into(), &"the upstream, with its answer".into())
        );
        assert_eq!(back["details"], "rbac_access_denied_matched_policy[ns[pair]-policy[no-secrets]-rule[0]]");
        assert_eq!(back["peer"], "spiffe://cluster.local/ns/pair/sa/front");
        assert_eq!(
            (&back["decisions"][0]["verdict"], &back["path"]),
            (&"denied".into(), &"/secret?...".into())
        );
        let text = asked.text("denied-1");
        assert!(!text.contains("abc"), "{text}");
        in_order(
            &text,
            &[
                "request denied-1, ",
                "front-1.pair (outbound): GET back:8080/secret?...: 403 in ",
                "of virtual host back.pair.svc.cluster.local:8080",
                "cluster outbound|8080||back.pair.svc.cluster.local",
                "answered 403",
                "chosen by least request among 1 hosts, 1 healthy",
                "back-1.pair (inbound): GET back:8080/secret?...: 403 in ",
                "peer spiffe://cluster.local/ns/pair/sa/front",
                "rbac: denied by rule 0 of AuthorizationPolicy pair/no-secrets, ",
                "rules.yaml:2",
                "ended by this proxy, with an answer of its own: 403, flags -",
            ],
        );

        // Over a bad host: the first try that fails is followed by one at the other host.
        let mut number = 0;
        let retried = loop {
            number += 1;
            assert!(number < 60, "no request came to the bad host first");
            let id = format!("retried-{number}");
            assert_eq!(send(&mesh, &id, "mixed", "/a").await.status, 200);
            let output = asked.explain(&[&id, "--output", "json"]);
            if output.status.success() {
                break id;
            }
        };
        let (code, told) = asked.json(&retried, 3);
        let front = &told["hops"][0];
        assert_eq!((code, &front["class"]), (Some(0), &"slow".into()), "{told}");
        let [first, second] = [&front["attempts"][0], &front["attempts"][1]];
        assert_eq!((&first["status"], &second["status"]), (&503.into(), &200.into()), "{told}");
        assert!(first["retriedAfterMs"].is_number() && second["retriedAfterMs"].is_null(), "{told}");
        let address = |workload: &str| mesh.workload(workload).unwrap().address.to_string();
        let at = |one: &Value, workload: &str| one["host"].as_str().unwrap().starts_with(&address(workload));
        assert!(at(first, "mixed-2") && at(second, "mixed-1"), "{told}");
        let proxies: Vec<_> = [0, 1].map(|at| front["hops"][at]["proxy"].clone()).into();
        assert_eq!(proxies, ["mixed-2.pair", "mixed-1.pair"], "{told}");
        in_order(
            &asked.text(&retried),
            &[
                "route twice of virtual host",
                "VirtualService pair/again, ",
                "rules.yaml:10",
                "try 1 at ",
                "answered 503",
                "tried again ",
                "try 2 at ",
                "answered 200",
                "mixed-2.pair",
                "mixed-1.pair",
            ],
        );

        // Nobody is left: what was wrong with each host is told as it was then.
        assert_eq!(send(&mesh, "broken-1", "broken", "/").await.status, 500);
        assert_eq!(send(&mesh, "broken-2", "broken", "/").await.status, 503);
        let (_, told) = asked.json("broken-2", 1);
        let hop = &told["hops"][0];
        assert_eq!(
            (&hop["flags"], &hop["attempts"][0]["outcome"]),
            (&"UH".into(), &"no healthy host".into()),
            "{told}"
        );
        assert_eq!(
            (&hop["attempts"][0]["hosts"], &hop["attempts"][0]["healthy"]),
            (&1.into(), &0.into()),
            "{told}"
        );
        assert_eq!(hop["attempts"][0]["candidates"][0]["health"], "/failed_outlier_check", "{told}");
        assert_eq!(asked.json("broken-1", 2).1["hops"][0]["hops"][0]["status"], 500);

        // Slow: both sides say how long, and where the time went.
        assert_eq!(send(&mesh, "slow-1", "late", "/").await.status, 200);
        let (code, told) = asked.json("slow-1", 2);
        let server = &told["hops"][0]["hops"][0];
        assert_eq!(
            (code, &server["class"], &server["proxy"]),
            (Some(0), &"slow".into(), &"late-1.pair".into()),
            "{told}"
        );
        assert!(server["answerBeganMs"].as_f64().unwrap() >= 1200.0, "{told}");

        tapped(&mesh, &asked).await;

        // The list, the last that failed, and what is said of one that nobody knows.
        let last = asked.explain(&["--last-failed", "--output", "json"]);
        let last: Value = serde_json::from_str(&stdout(&last)).unwrap();
        assert_eq!(last["id"], "broken-2");
        let output = weft(&["requests", "--control", &asked.control, "--class", "refused"]);
        assert!(
            stdout(&output).contains("denied-1") && !stdout(&output).contains("slow-1"),
            "{}",
            stdout(&output)
        );
        let nobody = asked.explain(&["never-sent"]);
        assert_eq!(nobody.status.code(), Some(2));
        let said = stderr(&nobody);
        for part in [
            "no proxy has kept a request \"never-sent\"",
            "longer than 1000 ms, and 1 % of the rest",
            "--request-sample",
        ] {
            assert!(said.contains(part), "{said}");
        }
        mesh.shutdown().await.unwrap();
    });
}
