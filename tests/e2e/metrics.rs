//! Istio's metrics on both sides of a hop: exact counts, and the labels that dashboards group by.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use weft::client::Connection;

use crate::support::http::get;
use crate::support::mesh::{alone, runtime};
use crate::support::pair::{Pair, workload};
use crate::support::{stderr, stdout, weft};

type Labels = BTreeMap<String, String>;

/// The series of a metric at a proxy, with their values.
fn series(admin: SocketAddr, metric: &str) -> Vec<(Labels, f64)> {
    let (status, text) = get(admin, "/stats/prometheus").unwrap();
    assert_eq!(status, 200);
    text.lines().filter_map(|line| parse(line.strip_prefix(metric)?)).collect()
}

/// `{name="value",...} number`; no label of the test has a quote or a brace in it.
fn parse(text: &str) -> Option<(Labels, f64)> {
    let (labels, value) = text.strip_prefix('{')?.rsplit_once("} ")?;
    let labels = labels
        .split("\",")
        .filter_map(|pair| pair.split_once("=\""))
        .map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned()))
        .collect();
    Some((labels, value.trim().parse().ok()?))
}

fn expected(reporter: &str, code: &str) -> Labels {
    let front = "spiffe://cluster.local/ns/pair/sa/front";
    let back = "spiffe://cluster.local/ns/pair/sa/back";
    let policy = if reporter == "destination" { "mutual_tls" } else { "unknown" };
    [
        ("reporter", reporter),
        ("source_workload", "front"),
        ("source_workload_namespace", "pair"),
        ("source_principal", front),
        ("source_app", "front"),
        ("source_version", "v1"),
        ("source_cluster", "Kubernetes"),
        ("source_canonical_service", "front"),
        ("source_canonical_revision", "v1"),
        ("destination_workload", "back"),
        ("destination_workload_namespace", "pair"),
        ("destination_principal", back),
        ("destination_app", "back"),
        ("destination_version", "v1"),
        ("destination_cluster", "Kubernetes"),
        ("destination_canonical_service", "back"),
        ("destination_canonical_revision", "v1"),
        ("destination_service", "back.pair.svc.cluster.local"),
        ("destination_service_name", "back"),
        ("destination_service_namespace", "pair"),
        ("request_protocol", "http"),
        ("response_code", code),
        ("response_flags", "-"),
        ("grpc_response_status", ""),
        ("connection_security_policy", policy),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

#[test]
fn both_sides_of_a_hop_count_each_request_once_with_istios_labels() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(64);
        pair.write("back.yaml", &workload("back", 11, "weft app --fail-status 418 --fail-every 4"));
        let mesh = pair.start().await;
        let (front, back) = (mesh.workload("front-1").unwrap(), mesh.workload("back-1").unwrap());
        let mut client: BTreeMap<String, f64> = BTreeMap::new();
        for _ in 0..23 {
            let request = Request::get("http://back:8080/").header("host", "back:8080");
            let mut connection = Connection::open(front.http_proxy.unwrap()).await.unwrap();
            let answer = connection.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
            *client.entry(answer.status.as_u16().to_string()).or_default() += 1.0;
        }
        assert_eq!(client.len(), 2, "{client:?}");

        for (admin, reporter) in [(front.admin(), "source"), (back.admin(), "destination")] {
            // A stream is counted when it has ended, which its client may know a moment earlier.
            let count = |metric: &str| -> BTreeMap<String, (Labels, f64)> {
                let of_side = series(admin, metric).into_iter().filter(|(l, _)| l["reporter"] == reporter);
                of_side.map(|(labels, n)| (labels["response_code"].clone(), (labels, n))).collect()
            };
            let numbers = |metric: &str| -> BTreeMap<String, f64> {
                count(metric).into_iter().map(|(code, (_, n))| (code, n)).collect()
            };
            crate::support::eventually("the last one is counted", || {
                numbers("istio_requests_total") == client
            });
            assert_eq!(numbers("istio_request_duration_milliseconds_count"), client, "{reporter}");
            for (code, (labels, _)) in count("istio_requests_total") {
                assert_eq!(labels, expected(reporter, &code));
            }
        }

        // The same as a graph, of both proxies and of the called one alone, who knows its caller by its certificate.
        let [asked, called] = [front, back].map(|w| w.prometheus().to_string());
        let edges = |arguments: &[&str]| -> serde_json::Value {
            let output = weft(arguments);
            assert!(output.status.success(), "{}", stderr(&output));
            serde_json::from_str(&stdout(&output)).unwrap()
        };
        for proxies in [&["--proxy", &asked, "--proxy", &called][..], &["--proxy", &called]] {
            let page = edges(&[&["graph", "--output", "json"], proxies].concat());
            let edge = &page["edges"][0];
            assert_eq!(page["edges"].as_array().unwrap().len(), 1, "{page}");
            assert_eq!((&edge["from"]["name"], &edge["to"]["name"]), (&"front".into(), &"back".into()));
            assert_eq!(
                (edge["requests"].as_f64(), edge["mutualTls"].as_f64()),
                (Some(23.0), Some(1.0)),
                "{page}"
            );
        }
        // And as a table of what is sent just now, until it has been printed.
        let mut top = tokio::task::spawn_blocking(move || {
            weft(&["top", "--output", "json", "--interval", "500ms", "--proxy", &asked, "--proxy", &called])
        });
        let output = loop {
            let request = Request::get("http://back:8080/").header("host", "back:8080");
            let mut connection = Connection::open(front.http_proxy.unwrap()).await.unwrap();
            connection.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
            if let Ok(ended) = tokio::time::timeout(std::time::Duration::from_millis(5), &mut top).await {
                break ended.unwrap();
            }
        };
        let page: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        let edge = &page["edges"][0];
        assert!(
            edge["requestsPerSecond"].as_f64().unwrap() > 0.0 && edge["p99"].as_f64().unwrap() > 0.0,
            "{page}"
        );
        assert_eq!(edge["mutualTls"].as_f64(), Some(1.0), "{page}");
        let nobody = weft(&["graph", "--proxy", "127.0.64.250"]);
        assert!(
            stderr(&nobody).contains("1 of 1 proxies did not answer; 127.0.64.250:15090"),
            "{}",
            stderr(&nobody)
        );
        mesh.shutdown().await.unwrap();
    });
}

/// What this Telemetry says reaches a running proxy, and what is taken away again is as before.
#[test]
fn a_telemetry_drops_metrics_and_makes_labels_of_requests() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(94);
        pair.write(
            "telemetry.yaml",
            "apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: pair, namespace: pair}
spec:
  metrics:
    - overrides:
        - match: {metric: REQUEST_COUNT, mode: SERVER}
          tagOverrides:
            plan: {value: \"'x-plan' in request.headers ? request.headers['x-plan'] : 'none'\"}
            source_version: {operation: REMOVE}
        - {match: {metric: RESPONSE_SIZE}, disabled: true}
---
apiVersion: weft.dev/v1alpha1
kind: MetricDefinition
metadata: {name: pair-transactions, namespace: pair}
spec:
  selector: {matchLabels: {app: back}}
  dimensions:
    service_name: {expression: filter_state.downstream_peer.app}
    plan: {header: x-plan}
    user_id: {header: user-id, default: anonymous, hash: true}
  maxSeries: 1
",
        );
        let mesh = pair.start().await;
        let (front, back) = (mesh.workload("front-1").unwrap(), mesh.workload("back-1").unwrap());
        for plan in [Some("gold"), None, Some("gold")] {
            let mut request = Request::get("http://back:8080/").header("host", "back:8080");
            if let Some(plan) = plan {
                request = request.header("x-plan", plan);
            }
            let mut connection = Connection::open(front.http_proxy.unwrap()).await.unwrap();
            let answer = connection.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
            assert_eq!(answer.status.as_u16(), 200);
        }
        let counts = |admin: SocketAddr| -> Vec<(Option<String>, bool, f64)> {
            let all = series(admin, "istio_requests_total").into_iter();
            let mut all: Vec<_> =
                all.map(|(l, n)| (l.get("plan").cloned(), l.contains_key("source_version"), n)).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        crate::support::eventually("the last one is counted", || {
            counts(back.admin())
                == [(Some("gold".to_owned()), false, 2.0), (Some("none".to_owned()), false, 1.0)]
        });
        assert_eq!(counts(front.admin()), [(None, true, 3.0)]);
        // A metric of one's own: what requests bring, with defaults, and what is too much counted together.
        let own = series(back.admin(), "pair_transactions");
        let label =
            |labels: &BTreeMap<String, String>, name: &str| labels.get(name).cloned().unwrap_or_default();
        let mut own: Vec<_> = own
            .iter()
            .map(|(l, n)| {
                (label(l, "service_name"), label(l, "plan"), label(l, "user_id"), label(l, "overflow"), *n)
            })
            .collect();
        own.sort_by(|a, b| a.1.cmp(&b.1));
        let row = |who: &str, plan: &str, user: &str, overflow: &str, n: f64| {
            (who.to_owned(), plan.to_owned(), user.to_owned(), overflow.to_owned(), n)
        };
        assert_eq!(
            own,
            [
                row("front", "gold", "anonymous", "", 2.0),
                row("overflow", "overflow", "overflow", "true", 1.0)
            ]
        );
        assert!(series(front.admin(), "pair_transactions").is_empty());
        for admin in [front.admin(), back.admin()] {
            assert!(series(admin, "istio_response_bytes_count").is_empty());
            assert!(!series(admin, "istio_request_bytes_count").is_empty());
        }
        mesh.shutdown().await.unwrap();
    });
}
