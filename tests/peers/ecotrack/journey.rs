//! A customer's way through all of it, and what is left of it everywhere.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::{API, CARD, EcoTrack, WORKLOADS, identity, service};
use crate::netns::databases::{psql, redis_cli};
use crate::netns::hosts::Host;
use crate::netns::wire::Capture;
use crate::programs::until_or;

impl EcoTrack {
    /// Login, browse, order, pay, and the notification that follows, as one transaction.
    pub fn journey(&self, transaction: &str) -> Result<(), String> {
        let header = format!("x-transaction-id: {transaction}");
        let steps = [
            ("/api/users/login", "ada@ecotrack.dev", "\"user\": 1"),
            ("/api/products", "", "bottle"),
            ("/api/orders", &format!("2 {CARD}"), "api.stripe.com charged, for 10.88.1.2"),
        ];
        for (path, body, wanted) in steps {
            let mut more = vec!["-H", &header];
            if !body.is_empty() {
                more.extend(["-d", body]);
            }
            let (status, said) = self.curl(&format!("https://{API}{path}"), &more);
            if status != "200" || !said.contains(wanted) {
                return Err(format!("{path}: {status} {said}"));
            }
        }
        Ok(())
    }

    /// The lines of a proxy's access log that are of a transaction.
    fn lines(&self, proxy: &str, transaction: &str) -> Vec<Value> {
        let lines = self.pods.log_of(proxy);
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["transaction"] == transaction).collect()
    }
}

#[test]
fn a_customer_logs_in_browses_orders_pays_and_is_notified() {
    let mesh = EcoTrack::start();
    let wire = Capture::start(&mesh.switch.host);
    let transaction = "tx-7d1f";
    mesh.journey(transaction).unwrap_or_else(|e| panic!("{e}\n{}", mesh.story()));

    // In every place where it should be.
    let own = |name: &str, query: &str| psql(&mesh.hosts[name], "127.0.0.1", "disable", query).unwrap();
    let by = format!("where transaction = '{transaction}'");
    assert_eq!(own("postgres-primary", &format!("select product from orders {by}")), "2");
    assert_eq!(own("postgres-primary", &format!("select card from payments {by}")), CARD);
    let key = format!("notified:{transaction}");
    let stored = || redis_cli(&mesh.hosts["redis"], "127.0.0.1", &["get", &key]);
    until_or(
        "the message went by Kafka to Redis",
        || mesh.story(),
        || stored().is_ok_and(|said| said == format!("{transaction} {CARD}")),
    );
    let written = mesh.written.lock().unwrap().clone();
    for name in
        ["user-service", "product-service", "order-service", "payment-service", "notification-service"]
    {
        let of = format!("{name} transaction=");
        assert!(written.iter().any(|line| line.starts_with(&of)), "{name}: {written:#?}");
    }
    let strangers: Vec<_> =
        written.iter().filter(|l| !l.contains(&format!("transaction={transaction} "))).collect();
    assert!(strangers.is_empty(), "{strangers:#?}");

    // Each hop is in the logs of both its proxies, with the identity of the other.
    let hops = [
        ("istio-ingressgateway", "user-service", "/api/users/login"),
        ("user-service", "product-service", "/api/products/popular"),
        ("product-service", "order-service", "/api/orders/popular"),
        ("istio-ingressgateway", "product-service", "/api/products"),
        ("istio-ingressgateway", "order-service", "/api/orders"),
        ("order-service", "payment-service", "/charge"),
        ("payment-service", "notification-service", "/expect"),
    ];
    for (caller, callee, path) in hops {
        let logged = |proxy: &str, key: &str, other: &str| {
            mesh.lines(proxy, transaction)
                .iter()
                .any(|l| l["path"] == path && l[key] == identity(other).as_str())
        };
        until_or(
            &format!("{caller} -> {callee} {path} is logged at both ends"),
            || mesh.story(),
            || logged(caller, "callee", callee) && logged(callee, "caller", caller),
        );
    }
    // The databases' connections, too, though nobody knows a transaction there.
    let tcp = |proxy: &str, key: &str, other: &str, way: &str| {
        let log = mesh.pods.log_of(proxy);
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.any(|l| {
            l[key] == identity(other).as_str() && l["cluster"].as_str().is_some_and(|c| c.starts_with(way))
        })
    };
    for (caller, callee) in [
        ("user-service", "postgres-primary"),
        ("product-service", "postgres-primary"),
        ("order-service", "postgres-primary"),
        ("payment-service", "postgres-primary"),
        ("notification-service", "redis"),
    ] {
        until_or(
            &format!("{caller} -> {callee} is logged at both ends"),
            || mesh.story(),
            || tcp(caller, "callee", callee, "outbound|") && tcp(callee, "caller", caller, "inbound|"),
        );
    }

    // Who may not, does not; who has no identity even less.
    let postgres = service("postgres-primary").ip().to_string();
    for (name, ..) in WORKLOADS.iter().map(|w| (w.1, w.0)) {
        let may = ["user-service", "product-service", "order-service", "payment-service"].contains(&name);
        if name == "postgres-primary" {
            continue;
        }
        let said = psql(&mesh.hosts[name], &postgres, "disable", "select 1");
        assert_eq!(said.is_ok(), may, "{name}: {said:?}");
    }
    assert!(psql(&mesh.client, "10.88.3.1", "disable", "select 1").is_err());
    let redis = service("redis").ip().to_string();
    let said = redis_cli(&mesh.hosts["order-service"], &redis, &["get", &key]);
    assert!(!said.as_ref().is_ok_and(|s| s.contains(CARD)), "{said:?}");
    let headers = "host: payment-service.ecotrack:8080\r\n";
    let payment = |from: &str| {
        super::http::ask(&mesh.hosts[from], service("payment-service"), "POST /charge", headers, CARD)
    };
    assert_eq!(payment("user-service").status(), 403, "{:?}", payment("user-service"));

    // Where no policy is, everybody of the mesh may come; and nobody else.
    let versions = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff];
    let kafka = |from: &Host| {
        from.inside(|| -> std::io::Result<[u8; 8]> {
            let mut stream =
                TcpStream::connect_timeout(&super::KAFKA.parse().unwrap(), Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(&versions)?;
            let mut answer = [0; 8];
            stream.read_exact(&mut answer).map(|()| answer)
        })
    };
    assert_eq!(kafka(&mesh.hosts["product-service"]).unwrap()[4..], [0, 0, 0, 1], "{}", mesh.story());
    assert!(kafka(&mesh.client).is_err());
    let pod = "10.88.2.1:8080".parse().unwrap();
    let plain = super::http::ask(&mesh.client, pod, "GET /api/users", "host: user-service\r\n", "");
    assert_eq!(plain.status(), 0, "{plain:?}");

    let seen = wire.bytes();
    for marker in [CARD, transaction, "ada@ecotrack.dev", "select ", "notified:"] {
        assert!(!seen.windows(marker.len()).any(|w| w == marker.as_bytes()), "{marker:?} is on the wire");
    }
}

#[test]
fn what_is_not_declared_does_not_get_out() {
    let mesh = EcoTrack::start();
    let dial = |from: &str, url: &str| {
        let mut curl = std::process::Command::new(crate::programs::peer("WEFT_CURL"));
        curl.args(["-s", "-S", "-k", "--max-time", "10", "--resolve", "api.stripe.com:443:10.99.0.2"]);
        curl.args(["--resolve", "evil.example:443:10.99.0.2", url]);
        crate::programs::run(&mut mesh.hosts[from].command(&curl))
    };
    let allowed = dial("order-service", "https://api.stripe.com/");
    assert!(allowed.as_ref().is_ok_and(|said| said.contains("charged")), "{allowed:?}\n{}", mesh.story());
    let refused = dial("order-service", "https://evil.example/");
    assert!(refused.is_err(), "{refused:?}");
    let explained = || {
        let log = mesh.pods.log_of("order-service");
        log.lines().any(|l| l.contains("BlackHoleCluster") && l.contains("evil.example"))
    };
    until_or("the sidecar says what it refused", || mesh.story(), explained);
    // Nor by way of the gateway, under a name that it does not pass on, or none. What is asked for inside is not its matter.
    let gateway = |name: &str, url: &str, more: &[&str]| {
        let mut curl = std::process::Command::new(crate::programs::peer("WEFT_CURL"));
        curl.args(["-s", "-S", "-k", "--max-time", "10"]);
        curl.args(["--resolve", &format!("{name}:443:10.96.1.2")]).args(more).arg(url);
        crate::programs::run(&mut mesh.hosts["order-service"].command(&curl))
    };
    let by = |name: &str, more: &[&str]| gateway(name, &format!("https://{name}/"), more);
    let passed = by("api.stripe.com", &["-H", "host: evil.example"]);
    assert!(passed.as_ref().is_ok_and(|said| said.contains("for 10.88.1.2")), "{passed:?}\n{}", mesh.story());
    for refused in [by("evil.example", &[]), gateway("none", "https://10.96.1.2/", &[])] {
        assert!(refused.is_err(), "{refused:?}");
    }
}

#[test]
fn the_gateway_redirects_and_terminates_tls_as_its_server_says() {
    let mesh = EcoTrack::start();
    let (status, body) = mesh.curl(&format!("http://{API}/api/products?a=b%20c"), &["-D", "-"]);
    assert_eq!(status, "301", "{body}");
    assert!(body.contains(&format!("location: https://{API}/api/products?a=b%20c\r\n")), "{body}");
    let (status, said) = mesh.curl(&format!("http://{API}/api/products"), &["-L"]);
    assert_eq!((status.as_str(), said.contains("bottle")), ("200", true), "{said}");
    let (status, said) = mesh.curl(&format!("https://{API}/nothing"), &[]);
    assert_eq!(status, "404", "{said}");
    let (status, said) = mesh.curl(&format!("https://{API}/api/products"), &["--tls-max", "1.1"]);
    assert_eq!(status, "000", "{said}");
}
