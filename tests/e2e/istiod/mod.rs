//! The proxy under istiod: the stream that istiod would send, with its order and its habits, and every behaviour that follows
//! from it seen by requests.

mod client;
mod stream;

use std::io::Read;
use std::net::SocketAddr;

use xds_protos::ResourceType;

use crate::support::eventually;
use crate::support::http::{exchange, get};
use crate::support::logged::Logged;
use crate::support::management::Management;
use crate::support::service::Service;
use client::Identity;
use serde_json::json;
use stream::Speaks;

const WEB: &str = "web.n.svc.cluster.local";

struct Driven {
    server: Management,
    _proxy: Logged,
    ip: &'static str,
}

impl Driven {
    fn start(ip: &'static str, mode: &str, resources: &[serde_json::Value]) -> Self {
        let server = Management::istiod();
        let version = server.push(&stream::push(resources));
        let proxy = Logged::weft(&[
            "proxy",
            "--xds-address",
            &server.address.to_string(),
            "--xds-plaintext",
            "--xds-mode",
            mode,
            "--concurrency",
            "1",
            "--ip",
            ip,
            "--admin-address",
            &format!("{ip}:15000"),
        ]);
        let driven = Self { server, _proxy: proxy, ip };
        let kinds = [
            ResourceType::Cluster,
            ResourceType::Endpoint,
            ResourceType::Listener,
            ResourceType::Route,
            ResourceType::Secret,
        ];
        eventually("everything is answered", || {
            kinds.iter().all(|kind| driven.server.heard(*kind, version).is_some())
        });
        assert_eq!(driven.server.refusals(), [] as [String; 0]);
        eventually("it is ready", || {
            get(driven.at(15021), "/healthz/ready").is_ok_and(|answer| answer.0 == 200)
        });
        driven
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip.parse().unwrap(), port)
    }

    /// Status and body; 0 when the connection was closed instead.
    fn plain(&self, port: u16, host: &str, path: &str) -> (u16, String, String) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        client::answer(exchange(self.at(port), &request))
    }
}

fn in_both(ips: [&'static str; 2], test: impl Fn(&'static str, &str)) {
    for (ip, mode) in ips.into_iter().zip(["delta", "sotw"]) {
        test(ip, mode);
    }
}

#[test]
fn inbound_ports_take_what_their_peer_mode_and_protocol_say() {
    in_both(["127.59.1.1", "127.59.1.2"], |ip, mode| {
        let own = Identity::new();
        let (application, secured) = (Service::start("app"), own.serve_tls("tls app"));
        let ports = [
            (8001, "PERMISSIVE", Speaks::Anything),
            (8002, "PERMISSIVE", Speaks::Http),
            (8003, "PERMISSIVE", Speaks::Tcp),
            (8011, "STRICT", Speaks::Anything),
            (8012, "STRICT", Speaks::Http),
            (8013, "STRICT", Speaks::Tcp),
            (8021, "DISABLE", Speaks::Anything),
            (8022, "DISABLE", Speaks::Http),
            (8023, "DISABLE", Speaks::Tcp),
            // The same with an application that ends TLS itself.
            (8101, "PERMISSIVE", Speaks::Anything),
            (8103, "PERMISSIVE", Speaks::Tcp),
        ];
        let mut resources = stream::fixed(ip);
        for (port, mode, speaks) in ports {
            let behind = if port > 8100 { secured } else { application.port };
            resources.push(stream::inbound_cluster(port, behind));
            resources.push(stream::inbound_listener(ip, port, mode, speaks));
        }
        resources.extend([
            stream::certificate("default", &own.chain, &own.key),
            stream::roots("ROOTCA", &own.roots),
            stream::outbound_cluster("", WEB),
            stream::assignment("", WEB, &[("127.0.0.1", application.port, false)]),
            stream::outbound_listener(ip, 9080, "80"),
            stream::routes("80", WEB, &[stream::route("/", &format!("outbound|80||{WEB}"), json!({}))]),
        ]);
        let driven = Driven::start(ip, mode, &resources);

        // In plain text: through the connection manager, as bytes, or not at all.
        for (port, expected) in [
            (8001, "http"),
            (8002, "http"),
            (8003, "tcp"),
            (8011, "no"),
            (8012, "no"),
            (8013, "no"),
            (8021, "http"),
            (8022, "http"),
            (8023, "tcp"),
        ] {
            let (status, head, _) = driven.plain(port, "web", "/");
            assert_eq!(client::way(status, &head), expected, "plain at {port}: {head}");
        }
        // By mutual TLS, with what clients of the mesh offer: their HTTP, and their TCP.
        for (port, by_http, by_tcp) in [
            (8001, "http", "tcp"),
            (8002, "http", "http"),
            (8003, "tcp", "tcp"),
            (8011, "http", "tcp"),
            (8012, "http", "http"),
            (8013, "tcp", "tcp"),
        ] {
            for (alpn, expected) in
                [(&["istio-http/1.1"][..], by_http), (&["istio-peer-exchange", "istio"], by_tcp)]
            {
                let (status, head, _) = own.get(driven.at(port), "app.test", alpn, true);
                assert_eq!(client::way(status, &head), expected, "{alpn:?} at {port}: {head}");
            }
            // Without a certificate nobody gets in.
            let (status, head, _) = own.get(driven.at(port), "app.test", &["istio-http/1.1"], false);
            assert_eq!(client::way(status, &head), "no", "without a certificate at {port}");
        }
        let with_name: Vec<String> =
            application.heads().into_iter().filter(|h| h.contains("x-forwarded-client-cert")).collect();
        assert!(!with_name.is_empty());
        let uri = "URI=spiffe://cluster.local/ns/n/sa/app";
        assert!(with_name.iter().all(|head| head.contains(uri)), "{with_name:?}");
        // TLS that is not the mesh's goes through untouched, to an application that ends it.
        for port in [8101, 8103] {
            let (status, head, body) = own.get(driven.at(port), "app.test", &["http/1.1"], false);
            assert_eq!((status, body.as_str()), (200, "tls app"), "at {port}: {head}");
        }
        // Nobody is to address the captured ports themselves.
        for port in [15001, 15006] {
            let mut connection = std::net::TcpStream::connect(driven.at(port)).unwrap();
            connection.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            assert!(matches!(connection.read(&mut [0]), Ok(0) | Err(_)), "{port}");
        }
    });
}

#[test]
fn outbound_requests_go_as_routes_clusters_and_endpoints_say() {
    in_both(["127.59.2.1", "127.59.2.2"], |ip, mode| {
        let own = Identity::new();
        let [plain, inside, copy] = ["plain", "inside", "copy"].map(Service::start);
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut resources = stream::fixed(ip);
        let cluster = |subset: &str, host: &str| format!("outbound|80|{subset}|{host}");
        let places: [(&str, &str, &[stream::Place<'_>]); 4] = [
            ("", WEB, &[("127.0.0.1", plain.port, false)]),
            // The proxy's own inbound port, behind mutual TLS.
            ("v2", WEB, &[(ip, 8001, true)]),
            ("", "flaky", &[("127.0.0.1", closed, false), ("127.0.0.1", plain.port, false)]),
            ("", "copy", &[("127.0.0.1", copy.port, false)]),
        ];
        for (subset, host, endpoints) in places {
            resources.push(stream::outbound_cluster(subset, host));
            resources.push(stream::assignment(subset, host, endpoints));
        }
        let copies = json!({"route": {"request_mirror_policies": [{"cluster": cluster("", "copy"), "trace_sampled": false,
            "runtime_fraction": {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}}]}});
        let rules = vec![
            stream::route("/v2", &cluster("v2", WEB), json!({})),
            stream::route("/flaky", &cluster("", "flaky"), json!({})),
            stream::route("/fault", &cluster("", WEB), stream::abort(418)),
            stream::route("/mirror", &cluster("", WEB), copies),
            stream::route("/", &cluster("", WEB), json!({})),
        ];
        resources.extend([
            stream::inbound_cluster(8001, inside.port),
            stream::inbound_listener(ip, 8001, "PERMISSIVE", Speaks::Anything),
            stream::certificate("default", &own.chain, &own.key),
            stream::roots("ROOTCA", &own.roots),
            stream::outbound_listener(ip, 9080, "80"),
            stream::routes("80", WEB, &rules),
            // Its routes are not there: istiod sends an empty configuration, and requests find nothing.
            stream::outbound_listener(ip, 9081, "81"),
        ]);
        let driven = Driven::start(ip, mode, &resources);
        let ask = |host: &str, path: &str| driven.plain(9080, host, path);

        for host in ["web", "web.n", WEB, "web:80", "web.n.svc.cluster.local:1234"] {
            assert_eq!(ask(host, "/").2, "plain", "{host}");
        }
        assert!(
            plain.heads().iter().all(|head| head.contains("x-envoy-attempt-count: 1")),
            "{:?}",
            plain.heads()
        );
        assert_eq!(ask("nowhere", "/").0, 502, "what the registry does not know");
        assert_eq!(driven.plain(9081, "web", "/").0, 404, "no routes at all");

        // The endpoint says that it takes mutual TLS; ALPN says to its port that this is HTTP.
        assert_eq!(ask("web", "/v2").2, "inside");
        let head = inside.heads().pop().unwrap();
        assert!(head.contains("URI=spiffe://cluster.local/ns/n/sa/app"), "{head}");

        // A connection that fails is tried again elsewhere.
        for _ in 0..10 {
            assert_eq!(ask("web", "/flaky").2, "plain");
        }
        let again = |head: &&String| head.contains("GET /flaky") && head.contains("x-envoy-attempt-count: 2");
        assert!(plain.heads().iter().any(|head| again(&head)), "{:?}", plain.heads());

        assert_eq!(ask("web", "/fault").0, 418);
        assert_eq!(ask("web", "/mirror").2, "plain");
        eventually("the copy arrives", || copy.heads().iter().any(|h| h.contains("GET /mirror")));

        // A filter that there is not is refused by its name, and the rest of the push counts.
        let bad = stream::push(&[stream::outbound_listener(ip, 9080, "80")])
            .replace("stats.PluginConfig", "acme.Unknown");
        let direct = json!({"name": "new", "match": {"prefix": "/new"}, "direct_response": {"status": 201}});
        let good = stream::push(&[stream::routes("80", WEB, &[direct, rules[4].clone()])]);
        let version = driven.server.push(&format!("{bad}\n---\n{good}"));
        let mut heard = None;
        eventually("the listener is refused", || {
            heard = driven.server.heard(ResourceType::Listener, version);
            heard.is_some()
        });
        let refused = heard.flatten().expect("a refusal");
        assert!(refused.contains(&format!("{ip}_9080")) && refused.contains("acme.Unknown"), "{refused}");
        eventually("the routes of the same push", || ask("web", "/new").0 == 201);
        assert_eq!(ask("web", "/").2, "plain");
    });
}

#[test]
fn a_gateway_ends_tls_by_server_name_passes_it_through_and_redirects() {
    in_both(["127.59.3.1", "127.59.3.2"], |ip, mode| {
        let own = Identity::new();
        let (plain, through) = (Service::start("plain"), own.serve_tls("through"));
        let to = "outbound|80||plain.test";
        let resources = [
            stream::outbound_cluster("", "plain.test"),
            stream::assignment("", "plain.test", &[("127.0.0.1", plain.port, false)]),
            stream::outbound_cluster("", "through.test"),
            stream::assignment("", "through.test", &[("127.0.0.1", through, false)]),
            stream::gateway_https(ip, 8443),
            stream::gateway_http(ip, 8080),
            stream::gateway_routes("https.8443.simple.test", "simple.test", to, false),
            stream::gateway_routes("https.8443.mutual.test", "mutual.test", to, false),
            stream::gateway_routes("http.8080", "simple.test", to, true),
            stream::certificate("kubernetes://shop", &own.chain, &own.key),
            stream::roots("kubernetes://shop-cacert", &own.roots),
            stream::certificate("default", &own.chain, &own.key),
            stream::roots("ROOTCA", &own.roots),
        ];
        let driven = Driven::start(ip, mode, &resources);
        let get = |name: &'static str, certificate: bool| {
            own.get(driven.at(8443), name, &["http/1.1"], certificate)
        };
        assert_eq!(get("simple.test", false).2, "plain");
        assert_eq!(get("mutual.test", true).2, "plain");
        assert_eq!(get("mutual.test", false).0, 0, "a certificate is wanted there");
        assert_eq!(get("through.test", false).2, "through");
        assert_eq!(get("other.test", false).0, 0, "no server has this name");
        let names = plain.heads();
        assert!(
            names[1].contains("x-forwarded-client-cert") && names[1].contains("x-forwarded-proto: https"),
            "{names:?}"
        );
        assert!(!names[0].contains("x-forwarded-client-cert"), "{names:?}");
        let (status, head, _) = driven.plain(8080, "simple.test", "/x?y");
        assert_eq!(status, 301, "{head}");
        assert!(head.contains("location: https://simple.test/x?y"), "{head}");
        assert_eq!(driven.plain(8080, "other.test", "/").0, 404);
    });
}
