//! Istio's metrics on both sides of a hop: exact counts, and the labels that dashboards group by.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use weft::client::Connection;

use crate::collectors::Collector;
use crate::support::control::Control;
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

/// Bodies of known sizes, at both ends.
#[test]
fn bytes_of_requests_and_answers_are_those_of_their_bodies() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(99);
        let mesh = pair.start().await;
        let (front, back) = (mesh.workload("front-1").unwrap(), mesh.workload("back-1").unwrap());
        let (mut sent, mut received) = (0.0, 0.0);
        for length in [0, 1, 1000, 70_000] {
            let request = Request::post("http://back:8080/").header("host", "back:8080");
            let body = Full::new(Bytes::from(vec![b'x'; length]));
            let mut connection = Connection::open(front.http_proxy.unwrap()).await.unwrap();
            let answer = connection.send(request.body(body).unwrap()).await.unwrap();
            assert_eq!(answer.status.as_u16(), 200);
            sent += length as f64;
            received += answer.body.len() as f64;
        }
        assert!(received > 0.0);
        for (admin, reporter) in [(front.admin(), "source"), (back.admin(), "destination")] {
            let sum = |metric: &str| -> f64 {
                let of_side = series(admin, metric).into_iter().filter(|(l, _)| l["reporter"] == reporter);
                of_side.map(|(_, n)| n).sum()
            };
            crate::support::eventually("the last one is counted", || sum("istio_requests_total") == 4.0);
            assert_eq!(sum("istio_request_bytes_sum"), sent, "{reporter}");
            assert_eq!(sum("istio_request_bytes_count"), 4.0, "{reporter}");
            assert_eq!(sum("istio_response_bytes_sum"), received, "{reporter}");
        }
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

/// The number of a line that begins with this, name and labels together; none if there is no such line.
fn number(address: SocketAddr, path: &str, head: &str) -> Option<f64> {
    let text = get(address, path).unwrap().1;
    let found = text.lines().find_map(|line| line.strip_prefix(head)?.strip_prefix(' '));
    found.map(|value| value.trim().parse().unwrap())
}

/// Series that are idle go, and come back without a count lost; aliases and labels are those that were asked for.
#[test]
fn idle_series_go_and_come_back_and_names_are_as_asked_for() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(96);
        let flags = ["--metric-expiry", "4s", "--stat-tags", "envoy", "--tcp-metric-aliases"];
        let options = weft::up::Options { proxy_flags: flags.map(str::to_owned).to_vec(), ..pair.options() };
        let mesh = weft::up::Mesh::start(options).await.unwrap();
        mesh.wait_ready(std::time::Duration::from_secs(60)).await.unwrap();
        let (front, back) = (mesh.workload("front-1").unwrap(), mesh.workload("back-1").unwrap());
        let send = async |times: usize| {
            for _ in 0..times {
                let request = Request::get("http://back:8080/").header("host", "back:8080");
                let mut connection = Connection::open(front.http_proxy.unwrap()).await.unwrap();
                let answer = connection.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
                assert_eq!(answer.status.as_u16(), 200);
            }
        };
        let counted = || -> f64 { series(back.admin(), "istio_requests_total").iter().map(|(_, n)| n).sum() };
        let own = |name: &str| number(back.admin(), "/stats/prometheus", name).unwrap_or_default();
        send(3).await;
        crate::support::eventually("three are counted", || counted() == 3.0);
        assert!(own("weft_metric_series") >= 1.0);
        assert_eq!(own("weft_metric_series_budget"), 10_000.0);
        crate::support::eventually("the series is idle", || {
            series(back.admin(), "istio_requests_total").is_empty()
        });
        assert!(own("weft_metric_series_expired_total") >= 1.0);
        assert_eq!(own("weft_metric_series_folded_total"), 0.0);
        send(2).await;
        crate::support::eventually("two are counted anew", || counted() == 2.0);
        let text = get(back.admin(), "/stats/prometheus").unwrap().1;
        assert!(text.contains("envoy_cluster_name="), "Envoy's own labels were asked for");
        assert!(!text.contains("{cluster_name="));
        let version = env!("CARGO_PKG_VERSION");
        assert!(text.contains(&format!("istio_build{{component=\"proxy\",tag=\"{version}\"}} 1\n")));
        assert_eq!(own("certificate_rotation_failures{secret=\"default\"}"), 0.0);
        mesh.shutdown().await.unwrap();
    });
}

/// Beyond the budget requests are counted under `overflow`, and how many those are.
#[test]
fn beyond_its_budget_a_proxy_counts_together() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(97);
        let flags = ["--metric-series", "0"].map(str::to_owned).to_vec();
        let options = weft::up::Options { proxy_flags: flags, ..pair.options() };
        let mesh = weft::up::Mesh::start(options).await.unwrap();
        mesh.wait_ready(std::time::Duration::from_secs(60)).await.unwrap();
        let (front, back) = (mesh.workload("front-1").unwrap(), mesh.workload("back-1").unwrap());
        for _ in 0..5 {
            let request = Request::get("http://back:8080/").header("host", "back:8080");
            let mut connection = Connection::open(front.http_proxy.unwrap()).await.unwrap();
            let answer = connection.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
            assert_eq!(answer.status.as_u16(), 200);
        }
        crate::support::eventually("five are counted together", || {
            let all = series(back.admin(), "istio_requests_total");
            all.iter().all(|(labels, _)| labels["source_workload"] == "overflow")
                && all.iter().map(|(_, n)| n).sum::<f64>() == 5.0
        });
        let folded = number(back.admin(), "/stats/prometheus", "weft_metric_series_folded_total");
        assert_eq!(folded, Some(5.0));
        mesh.shutdown().await.unwrap();
    });
}

/// The control plane's numbers move with what they count.
#[test]
fn the_control_plane_counts_what_it_does() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(98);
        let mesh = pair.start().await;
        let control = mesh.control();
        let number = |head: &str| number(control.metrics, "/metrics", head);
        let version = env!("CARGO_PKG_VERSION");
        crate::support::eventually("both proxies are connected", || {
            number(&format!("pilot_xds{{version=\"{version}\"}}")) == Some(2.0)
        });
        assert_eq!(number(&format!("pilot_info{{version=\"{version}\"}}")), Some(1.0));
        assert_eq!(number(&format!("istio_build{{component=\"pilot\",tag=\"{version}\"}}")), Some(1.0));
        assert_eq!(number("pilot_services"), Some(2.0));
        assert_eq!(number("pilot_virt_services"), Some(0.0));
        assert_eq!(number("pilot_push_triggers{type=\"proxy\"}"), Some(2.0));
        assert_eq!(number("citadel_server_csr_count"), Some(2.0));
        assert_eq!(number("citadel_server_success_cert_issuance_count"), Some(2.0));
        assert!(number("process_resident_memory_bytes").unwrap() > 1e6);
        assert!(number("process_cpu_seconds_total").unwrap() > 0.0);
        assert!(number("process_start_time_seconds").unwrap() > 1e9);
        assert!(number("xds_cache_size").unwrap() > 0.0);
        assert!(number("istiod_uptime_seconds").unwrap() > 0.0);
        // What counts only what has not happened is there, so that an alert sees the first time.
        for name in [
            "citadel_server_authentication_failure_count",
            "citadel_server_csr_sign_err_count",
            "citadel_server_csr_parsing_err_count",
            "pilot_total_xds_rejects{type=\"lds\"}",
            "pilot_xds_expired_nonce{type=\"cds\"}",
            "pilot_total_xds_internal_errors",
            "weft_proxies_refusing",
            "weft_proxies_behind",
        ] {
            assert_eq!(number(name), Some(0.0), "{name}");
        }
        const MOVES: [&str; 14] = [
            "pilot_inbound_updates{type=\"config\"}",
            "pilot_push_triggers{type=\"config\"}",
            "pilot_debounce_time_count",
            "pilot_pushcontext_init_seconds_count",
            "pilot_proxy_queue_time_count",
            "pilot_proxy_convergence_time_count",
            "pilot_xds_pushes{type=\"rds\"}",
            "pilot_xds_push_time_count{type=\"rds\"}",
            "pilot_xds_send_time_count",
            "pilot_xds_config_size_bytes_count{type=\"rds\"}",
            "pilot_xds_config_size_bytes_sum{type=\"rds\"}",
            "weft_proxy_render_seconds_count",
            "xds_cache_reads{type=\"hit\"}",
            "xds_cache_reads{type=\"miss\"}",
        ];
        let before = MOVES.map(|name| number(name).unwrap_or_default());
        std::fs::write(
            mesh.config_dir().join("rule.yaml"),
            "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: back, namespace: pair}
spec: {hosts: [back], http: [{timeout: 7s, route: [{destination: {host: back}}]}]}
",
        )
        .unwrap();
        crate::support::eventually("everything has moved", || {
            MOVES.iter().zip(before).all(|(name, before)| number(name).unwrap_or_default() > before)
        });
        assert_eq!(number("pilot_virt_services"), Some(1.0));
        assert_eq!(number("pilot_inbound_updates{type=\"config\"}"), Some(before[0] + 1.0));
        assert_eq!(number("pilot_push_triggers{type=\"config\"}"), Some(before[1] + 1.0));
        // What is refused goes nowhere, and is told.
        let pushed = number("pilot_push_triggers{type=\"config\"}");
        std::fs::write(mesh.config_dir().join("rule.yaml"), "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: back, namespace: pair}\nspec: {hosts: 7}\n").unwrap();
        crate::support::eventually("it is refused", || number("weft_config_refused") == Some(1.0));
        assert_eq!(number("pilot_push_triggers{type=\"config\"}"), pushed);
        mesh.shutdown().await.unwrap();
    });
}

/// What `weft report compliance` says of a mesh in which one of two workloads has a policy.
#[test]
fn a_control_plane_pushes_what_its_page_says_and_once_more_at_its_end() {
    let collector = Collector::start();
    let place: &'static str = format!("127.0.0.1:{}", collector.port).leak();
    let more = vec!["--otlp-metrics", place, "--otlp-metrics-interval", "1s"].leak();
    let mesh = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\nspec: {ports: [{name: http, port: 80}]}\n";
    let mut control = Control::start_with("127.57.9.1", mesh, more);
    // The newest points of a metric: attributes and values.
    let pushed = |name: &str| -> Vec<(String, f64)> {
        let came = collector.came();
        let Some((path, request)) = came.metrics.last() else { return Vec::new() };
        assert_eq!(path, "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export");
        let all = xds_protos::json::to_value(&request.resource_metrics[0].scope_metrics[0]);
        let metric = all["metrics"].as_array().unwrap().iter().find(|m| m["name"] == name).cloned();
        let metric = metric.unwrap_or_default();
        let points =
            ["sum", "gauge", "histogram"].iter().find_map(|kind| metric[kind]["data_points"].as_array());
        let number = |value: &serde_json::Value| value.to_string().trim_matches('"').parse::<f64>().ok();
        let value = |point: &serde_json::Value| {
            let found = ["as_int", "as_double", "count"].iter().find_map(|kind| number(&point[kind]));
            (
                point["attributes"][0]["value"]["string_value"].as_str().unwrap_or_default().to_owned(),
                found.unwrap(),
            )
        };
        points.into_iter().flatten().map(value).collect()
    };
    crate::support::eventually("a service is pushed", || pushed("pilot_services") == [(String::new(), 1.0)]);
    let pushes = pushed("pilot_xds_pushes");
    let page = get("127.57.9.1:15014".parse().unwrap(), "/metrics").unwrap().1;
    for kind in ["cds", "eds", "lds", "rds", "sds"] {
        assert!(pushes.contains(&(kind.to_owned(), 0.0)), "{pushes:?}");
        assert!(page.contains(&format!("pilot_xds_pushes{{type=\"{kind}\"}} 0")), "{page}");
    }
    let sent = || page_number("weft_otlp_points_sent_total");
    crate::support::eventually("it is counted", || sent() > 0.0);
    // A collector that refuses is told by its own words.
    collector.refuse(Some((7, "not%20you")));
    control.process.says(&["the collector does not take metrics", "PermissionDenied: not you"]);
    assert!(page_number("weft_otlp_points_dropped_total") > 0.0);
    collector.refuse(None);
    control.process.says(&["the collector takes metrics again"]);
    let before = collector.came().metrics.len();
    control.process.terminate();
    assert!(control.process.wait().success());
    assert!(collector.came().metrics.len() > before, "nothing came at the end");
}

fn page_number(name: &str) -> f64 {
    let page = get("127.57.9.1:15014".parse().unwrap(), "/metrics").unwrap().1;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0.0)
}

#[test]
fn a_report_says_how_the_mesh_stands() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(100);
        pair.write(
            "policy.yaml",
            "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: back, namespace: pair}
spec: {selector: {matchLabels: {app: back}}, rules: [{from: [{source: {principals: ['*/sa/front']}}]}]}
",
        );
        let mesh = pair.start().await;
        let (front, control) = (mesh.workload("front-1").unwrap(), mesh.control().debug.to_string());
        for _ in 0..4 {
            let request = Request::get("http://back:8080/").header("host", "back:8080");
            let mut connection = Connection::open(front.http_proxy.unwrap()).await.unwrap();
            let answer = connection.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
            assert_eq!(answer.status.as_u16(), 200);
        }
        let said = |output: &str| {
            let output =
                crate::support::weft(&["report", "compliance", "--control", &control, "--output", output]);
            assert!(output.status.success(), "{}", crate::support::stderr(&output));
            crate::support::stdout(&output)
        };
        let report = || serde_json::from_str::<serde_json::Value>(&said("json")).unwrap();
        crate::support::eventually("four are counted", || {
            report()["mutualTls"]["requestsAndConnections"] == 4.0
        });
        let report = report();
        assert_eq!(report["proxies"]["answered"], 2, "{report:#}");
        assert_eq!(report["mutualTls"]["share"], 1.0);
        assert_eq!(report["mutualTls"]["plaintextEdges"], serde_json::json!([]));
        let edge = &report["mutualTls"]["edges"][0];
        assert_eq!(edge["from"], "spiffe://cluster.local/ns/pair/sa/front");
        assert_eq!(edge["to"], "back.pair");
        assert_eq!(report["postQuantum"]["share"], 1.0);
        assert_eq!(report["policies"]["without"], serde_json::json!(["front-1.pair"]));
        let kinds: Vec<_> = report["certificates"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["kind"].as_str().unwrap())
            .collect();
        for kind in ["leaf", "intermediate", "root"] {
            assert!(kinds.contains(&kind), "{kinds:?}");
        }
        let text = said("text");
        assert!(text.contains("mutual TLS     100.00 % of 4 requests"), "{text}");
        assert!(text.contains("Workloads without an authorization policy\nPROXY\nfront-1.pair\n"), "{text}");
        mesh.shutdown().await.unwrap();
        let output = crate::support::weft(&["report", "compliance", "--control", &control]);
        assert!(!output.status.success());
        assert!(crate::support::stderr(&output).contains("--control says where"));
    });
}
