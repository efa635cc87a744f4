//! What happens and somebody should know: the security event log of a small mesh at work, line by line.

mod falco;

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use weft::demo::check::observe::credentials::Authority;
use weft::demo::check::observe::http::{Request, fetch};
use weft::demo::check::observe::tls::dial;
use xds_protos::ResourceType;

use crate::support::http::{exchange, get};
use crate::support::mesh::{alone, runtime};
use crate::support::pair::Pair;
use crate::support::world::{World, all, cluster, listener, routes};
use crate::support::{eventually, free_address, stderr, stdout, weft};

/// The lines of a log so far.
fn lines(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Waits for a line for which this holds.
fn line(log: &Path, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    eventually(what, || {
        found = lines(log).into_iter().find(&holds);
        found.is_some()
    });
    found.unwrap()
}

/// Has the proxies of both workloads write a log of their own.
fn with_logs(pair: &Pair) -> impl Fn(&str) -> PathBuf {
    let directory = pair.path().to_owned();
    let log = move |name: &str| directory.join(format!("{name}.jsonl"));
    let config = |name: &str| {
        format!(
            "
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {{name: {name}, namespace: pair}}
spec: {{selector: {{matchLabels: {{app: {name}}}}}, environmentVariables: {{WEFT_SECURITY_LOG: {}}}}}
",
            log(name).display()
        )
    };
    pair.write("logs.yaml", &[config("front"), config("back")].join("---"));
    log
}

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secrets, namespace: pair}
spec:
  selector: {matchLabels: {app: back}}
  action: DENY
  rules: [{to: [{operation: {paths: ['/secret*']}}]}]
";

#[test]
fn denials_handshakes_certificates_configuration_and_administration_are_told() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(82);
        let log = with_logs(&pair);
        pair.write("policy.yaml", POLICY);
        let mesh = pair.start().await;
        let (front, back) = (mesh.workload("front-1").unwrap(), mesh.workload("back-1").unwrap());

        // A request that a policy denies: who, what, by which rule, of which trace; and nothing that is nobody's business.
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let request = Request::get("back:8080", "http://back:8080/secret/7?key=hidden")
            .with("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
            .with("authorization", "Bearer hidden");
        assert_eq!(fetch(front.http_proxy.unwrap(), &request).await.unwrap().status(), 403);
        let allowed = Request::get("back:8080", "http://back:8080/open");
        assert_eq!(fetch(front.http_proxy.unwrap(), &allowed).await.unwrap().status(), 200);
        let denied = line(&log("back"), "the denial", |l| l["event"] == "denied");
        for (name, expected) in [
            ("by", "rbac"),
            ("outcome", "denied"),
            ("component", "proxy"),
            ("namespace", "pair"),
            ("workload", "back-1"),
            ("policy", "ns[pair]-policy[secrets]-rule[0]"),
            ("source_principal", "spiffe://cluster.local/ns/pair/sa/front"),
            ("destination_principal", "spiffe://cluster.local/ns/pair/sa/back"),
            ("method", "GET"),
            ("path", "/secret/7"),
            ("authority", "back:8080"),
            ("trace_id", trace),
        ] {
            assert_eq!(denied[name], expected, "{name} of {denied:#}");
        }
        assert_eq!(denied["status"], 403);
        assert!(denied["request_id"].as_str().is_some_and(|id| id.len() == 36), "{denied:#}");

        // Handshakes: no certificate, and one of somebody else's roots.
        let at = std::net::SocketAddr::new(back.address, 8080);
        let stranger =
            Authority::unknown().unwrap().issue("spiffe://cluster.local/ns/pair/sa/front").unwrap();
        for shown in [None, Some(&stranger)] {
            dial(at, shown, &Request::get("back", "/")).await.unwrap();
        }
        for (reason, severity) in [("no_certificate", "medium"), ("unknown_issuer", "high")] {
            let told =
                line(&log("back"), reason, |l| l["event"] == "handshake-failed" && l["reason"] == reason);
            assert_eq!(
                (&told["by"], &told["severity"]),
                (&"tls-downstream".into(), &severity.into()),
                "{told:#}"
            );
            assert!(told["source_address"].as_str().unwrap().starts_with("127."), "{told:#}");
        }

        // The workload's certificate, and who issued it.
        let own = line(&log("front"), "a certificate", |l| l["event"] == "certificate");
        assert_eq!(
            (&own["outcome"], &own["subject"]),
            (&"ok".into(), &"spiffe://cluster.local/ns/pair/sa/front".into())
        );
        let control = mesh.control().debug;
        let events = || -> Vec<Value> {
            let page: Value = serde_json::from_str(&get(control, "/debug/events").unwrap().1).unwrap();
            page["events"].as_array().unwrap().clone()
        };
        let issued =
            events().into_iter().find(|e| e["event"] == "certificate" && e["serial"] == own["serial"]);
        let issued = issued.unwrap_or_else(|| panic!("who issued {own:#}: {:#?}", events()));
        assert_eq!((&issued["component"], &issued["by"]), (&"control-plane".into(), &"authority".into()));
        assert_eq!(own["expires"], issued["expires"]);

        // Configuration that is refused.
        let wrong = POLICY.replace("action: DENY", "action: REFUSE");
        std::fs::write(mesh.config_dir().join("policy.yaml"), wrong).unwrap();
        eventually("the refusal", || events().iter().any(|e| e["event"] == "config-rejected"));
        let refused = events().into_iter().find(|e| e["event"] == "config-rejected").unwrap();
        assert!(refused["source"].as_str().unwrap().contains("policy.yaml:"), "{refused:#}");

        // Administration: done, and refused.
        let post =
            "POST /healthcheck/ok HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        exchange(back.admin(), post).unwrap();
        assert_eq!(get(back.admin(), "/quitquitquit").unwrap().0, 405);
        for (outcome, operation) in [("ok", "POST /healthcheck/ok"), ("denied", "GET /quitquitquit")] {
            let told =
                line(&log("back"), operation, |l| l["event"] == "admin" && l["operation"] == operation);
            assert_eq!(told["outcome"], outcome, "{told:#}");
        }
        assert_eq!(
            exchange(control, &post.replace("/healthcheck/ok", "/debug/syncz")).unwrap().0.get(9..12),
            Some("405")
        );
        // An event is in the list once the thread that writes events has seen it, and that may be after the answer.
        eventually("the refusal of the control plane", || {
            events().iter().any(|e| e["event"] == "admin" && e["outcome"] == "denied")
        });

        let whole = std::fs::read_to_string(log("back")).unwrap();
        assert!(!whole.contains("hidden"), "a secret is in the log:\n{whole}");
        let stats =
            weft::client::get(back.prometheus(), "/stats/prometheus", Duration::from_secs(5)).await.unwrap();
        let counted = |line: &str| stats.text().lines().any(|l| l == line);
        assert!(counted("weft_events_total{event=\"denied\"} 1"), "{}", stats.text());
        assert!(
            counted("weft_events_dropped_total 0") || counted("weft_events_dropped_total{} 0"),
            "{}",
            stats.text()
        );
        mesh.shutdown().await.unwrap();
    });
}

#[test]
fn what_a_proxy_refuses_and_cannot_shake_hands_with_is_told_in_ocsf() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("ocsf.jsonl");
    let path = log.to_str().unwrap();
    let world = World::start_with("127.83.1.1", &["--security-log", path, "--security-log-format", "ocsf"]);
    let filters = "      - name: envoy.filters.http.oauth2
        typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.oauth2.v3.OAuth2, value: ''}
";
    world.refused(ResourceType::Listener, &listener("main", world.ip, 8080, filters));
    let told = line(&log, "the refused listener", |l| l["metadata"]["event_code"] == "config-rejected");
    assert_eq!(
        (&told["class_uid"], &told["type_uid"], &told["status_id"]),
        (&6003.into(), &600_303.into(), &2.into())
    );
    assert_eq!(
        (&told["metadata"]["version"], &told["resources"][0]["name"]),
        (&"1.5.0".into(), &"main".into())
    );

    // An upstream that speaks no TLS where it should.
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        plain.incoming().flatten().for_each(|mut stream| drop(stream.write_all(b"220 ready\r\n")));
    });
    let tls = "transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}\n";
    world.server.push(&all(&[
        cluster("backend", world.backend, ""),
        cluster("secure", upstream, tls),
        listener("main", world.ip, 8080, ""),
        routes("  - {match: {prefix: /tls}, route: {cluster: secure}}\n  - {match: {prefix: /}, route: {cluster: backend}}\n"),
    ]));
    eventually("the route to it", || world.get("/tls").is_ok_and(|(status, _)| status == 503));
    let told = line(&log, "the handshake", |l| l["metadata"]["event_code"] == "handshake-failed");
    assert_eq!((&told["class_uid"], &told["activity_id"]), (&4001.into(), &4.into()));
    assert_eq!(
        (&told["unmapped"]["by"], &told["unmapped"]["cluster"]),
        (&"tls-upstream".into(), &"secure".into())
    );
    assert_eq!(told["dst_endpoint"]["port"], upstream.port(), "{told:#}");

    // A file that is moved away is made anew.
    std::fs::rename(&log, directory.path().join("moved")).unwrap();
    eventually("another file", || {
        world.get("/tls").is_ok()
            && lines(&log).iter().any(|l| l["metadata"]["event_code"] == "handshake-failed")
    });
    world.goes_on();
}

#[test]
fn a_denial_is_told_in_cef_and_a_path_full_of_its_signs_changes_no_field() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("security.cef");
    let path = log.to_str().unwrap();
    let world = World::start_with("127.83.2.1", &["--security-log", path, "--security-log-format", "cef"]);
    let filters = "      - name: rbac
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
          rules: {action: DENY, policies: {secrets: {permissions: [{url_path: {path: {prefix: /secret}}}], principals: [{any: true}]}}}
";
    world.server.push(&all(&[
        cluster("backend", world.backend, ""),
        listener("main", world.ip, 8080, filters),
        routes("  - {match: {prefix: /}, route: {cluster: backend}}\n"),
    ]));
    // Equals signs and pipes; what looks like a field of its own comes without the spaces that would make it one.
    let asked = "/secret/a=b|src=6.6.6.6|act=allow";
    eventually("the denial", || world.get(asked).is_ok_and(|(status, _)| status == 403));
    let mut line = String::new();
    eventually("its line", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        line = text.lines().find(|l| l.contains("|denied|")).unwrap_or_default().to_owned();
        !line.is_empty()
    });
    let head =
        format!("CEF:0|Weft|Weft|{}|denied|Request or connection denied|5|rt=", env!("CARGO_PKG_VERSION"));
    assert!(line.starts_with(&head), "{line}");
    for field in [
        " act=deny ",
        " outcome=failure ",
        " src=127.0.0.1 ",
        " dst=127.83.2.1 ",
        " dpt=8080 ",
        " requestMethod=GET ",
        " request=test/secret/a\\=b|src\\=6.6.6.6|act\\=allow",
        " cs2Label=policy cs2=secrets",
        " cn1Label=status cn1=403",
        " deviceFacility=rbac ",
        " WeftListener=main",
    ] {
        assert!(line.contains(field), "no {field:?} in {line}");
    }
    world.goes_on();
}

#[test]
fn ejections_and_breakers_are_told_by_the_proxy_and_not_in_the_security_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("security.jsonl");
    let world = World::start_with("127.95.1.1", &["--security-log", log.to_str().unwrap()]);
    let nobody = free_address();
    let ejects = "outlier_detection: {consecutive_5xx: 1, enforcing_consecutive_5xx: 100, max_ejection_percent: 100, base_ejection_time: 1s, interval: 0.1s}\n";
    let full = "circuit_breakers: {thresholds: [{max_pending_requests: 0}]}\n";
    world.server.push(&all(&[
        cluster("backend", world.backend, ""),
        cluster("gone", nobody, ejects),
        cluster("full", world.backend, full),
        listener("main", world.ip, 8080, ""),
        routes(
            "  - {match: {prefix: /gone}, route: {cluster: gone}}
  - {match: {prefix: /full}, route: {cluster: full}}
  - {match: {prefix: /}, route: {cluster: backend}}
",
        ),
    ]));
    let of = |kind: &str| -> Vec<Value> {
        let page = get(world.at(15000), &format!("/weft/events?kind={kind}")).unwrap().1;
        serde_json::from_str::<Value>(&page).unwrap()["events"].as_array().unwrap().clone()
    };
    eventually("the ejection, and the return", || {
        assert!(world.get("/gone").is_ok());
        let outcomes: Vec<_> =
            of("ejection").iter().map(|e| e["outcome"].as_str().unwrap().to_owned()).collect();
        outcomes.starts_with(&["failed".to_owned(), "ok".to_owned()])
    });
    let told = &of("ejection")[0];
    assert_eq!((&told["cluster"], &told["host"]), (&"gone".into(), &nobody.to_string().into()), "{told:#}");
    // However many requests it refuses, a breaker says so once in a while.
    for _ in 0..20 {
        assert_eq!(world.get("/full").unwrap().0, 503);
    }
    eventually("the breaker", || !of("breaker").is_empty());
    let told = of("breaker");
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(
        (&told[0]["cluster"], &told[0]["limit"], &told[0]["maximum"]),
        (&"full".into(), &"max_pending_requests".into(), &0.into())
    );
    // The same by the command, of this proxy alone; and by number only what is new.
    let output =
        weft(&["events", "--proxy", &world.at(15000).to_string(), "--kind", "breaker", "--output", "json"]);
    let page: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(page["events"], Value::Array(told.clone()), "{}", stderr(&output));
    let next = told[0]["number"].as_u64().unwrap() + 1;
    let later = get(world.at(15000), &format!("/weft/events?kind=breaker&since={next}")).unwrap().1;
    assert_eq!(serde_json::from_str::<Value>(&later).unwrap()["events"], serde_json::json!([]));
    assert_eq!(get(world.at(15000), "/weft/events?kind=odd").unwrap().0, 400);
    assert!(lines(&log).iter().all(|l| l["event"] != "ejection" && l["event"] != "breaker"));
}
