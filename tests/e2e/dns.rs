//! Names of the mesh at a proxy's DNS: from our control plane, through its changes and its death.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};

use crate::support::control::Control;
use crate::support::http::get;
use crate::support::logged::Logged;
use crate::support::{eventually, stderr, weft};

const USERS: &str = "
apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
";
const ORDERS: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: store}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}
";

/// A bootstrap of a proxy whose DNS is captured, so it says, before a control plane.
fn bootstrap(ip: &str, control: &str, capture: &str) -> Value {
    let address = |ip: &str, port: u16| json!({"socket_address": {"address": ip, "port_value": port}});
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {
            "id": format!("sidecar~{ip}~web.shop~shop.svc.cluster.local"),
            "metadata": {"NAMESPACE": "shop", "INTERCEPTION_MODE": "NONE", "DNS_CAPTURE": capture},
        },
        "admin": {"address": address(ip, 15000)},
        "dynamic_resources": {"lds_config": ads, "cds_config": ads, "ads_config": {
            "api_type": "DELTA_GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
        }},
        "static_resources": {"clusters": [{
            "name": "xds-grpc", "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": address(control, 15010)}}]}]},
        }]},
    })
}

/// The command of such a proxy; nobody answers at the server of its resolv.conf.
fn proxy(directory: &std::path::Path, bootstrap: &Value, dns: &str) -> Vec<String> {
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let config = file("bootstrap.json", &bootstrap.to_string());
    let resolv = file("resolv.conf", "nameserver 127.0.68.9\nsearch shop.svc.cluster.local\n");
    ["proxy", "-c", &config, "--dns-address", dns, "--resolv-conf", &resolv, "--concurrency", "1"]
        .map(str::to_owned)
        .into()
}

/// The code and addresses that a name has there.
fn ask(at: SocketAddr, name: &str) -> std::io::Result<(ResponseCode, Vec<String>)> {
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), RecordType::A));
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(Duration::from_secs(8)))?;
    socket.send(&message.to_vec().unwrap())?;
    let mut buffer = [0; 4096];
    let size = socket.recv(&mut buffer)?;
    let answer = Message::from_vec(&buffer[..size]).unwrap();
    let data = answer.answers.iter().map(|r| r.data.to_string()).collect();
    Ok((answer.metadata.response_code, data))
}

#[test]
fn names_follow_the_control_plane_and_outlive_it() {
    let mut control = Control::start("127.0.68.2", USERS);
    let directory = tempfile::tempdir().unwrap();
    let dns = "127.0.68.1:15053";
    let command = proxy(directory.path(), &bootstrap("127.0.68.1", control.ip, "true"), dns);
    let proxy = Logged::weft(&command);
    let (admin, dns) = ("127.0.68.1:15000".parse().unwrap(), dns.parse().unwrap());
    eventually("the proxy is ready", || get(admin, "/ready").is_ok_and(|a| a.0 == 200));
    let known = |ip: &str| (ResponseCode::NoError, vec![ip.to_owned()]);
    assert_eq!(ask(dns, "users").unwrap(), known("10.96.0.1"), "{}", proxy.log());

    // Nobody in the mesh; the server that would know does not answer.
    assert_eq!(ask(dns, "orders.store").unwrap(), (ResponseCode::ServFail, vec![]));
    std::fs::write(control.config("orders.yaml"), ORDERS).unwrap();
    eventually("the new name is known", || ask(dns, "orders.store").unwrap() == known("10.96.0.2"));
    std::fs::write(control.config("orders.yaml"), ORDERS.replace("10.96.0.2", "10.96.0.3")).unwrap();
    eventually("its new address is, too", || ask(dns, "orders.store.svc").unwrap() == known("10.96.0.3"));

    // An operator sees on both sides what is known.
    let dump: Value = serde_json::from_str(&control.page("/debug/config_dump?proxyID=web.shop")).unwrap();
    let tables = &dump["type.googleapis.com/istio.networking.nds.v1.NameTable"];
    assert_eq!(tables[0]["table"]["users.shop.svc.cluster.local"]["ips"], json!(["10.96.0.1"]));
    eventually("it was acknowledged", || {
        control.page("/debug/syncz").contains(r#""nametable_status": "SYNCED""#)
    });
    let page: Value = serde_json::from_str(&get(admin, "/dns").unwrap().1).unwrap();
    let hosts: Vec<&str> =
        page["names"].as_array().unwrap().iter().map(|n| n["host"].as_str().unwrap()).collect();
    assert_eq!(hosts, ["orders.store.svc.cluster.local", "users.shop.svc.cluster.local"]);
    assert_eq!(page["servers"][0]["address"], "127.0.68.9:53");
    let (_, stats) = get(admin, "/stats").unwrap();
    assert!(stats.lines().any(|l| l.starts_with("dns.local_total: ")), "{stats}");

    control.process.kill();
    eventually("the control plane is gone", || proxy.log().contains("no stream to the control plane"));
    assert_eq!(ask(dns, "users.shop").unwrap(), known("10.96.0.1"));
}

#[test]
fn dns_that_cannot_be_answered_ends_the_start_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let start = |capture: &str, dns: &str, resolv: Option<&str>| {
        let mut command = proxy(directory.path(), &bootstrap("127.0.69.1", "127.0.69.2", capture), dns);
        if let Some(resolv) = resolv {
            std::fs::write(directory.path().join("other"), resolv).unwrap();
            command[6] = directory.path().join("other").to_str().unwrap().to_owned();
        }
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let output = weft(&words);
        assert!(!output.status.success());
        stderr(&output)
    };
    let taken = UdpSocket::bind("127.0.69.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (error, words) in [
        (start("true", &address, None), &[address.as_str(), "--dns-address"][..]),
        (start("true", "15053", None), &["\"15053\"", "localhost:PORT"]),
        (start("true", "127.0.69.1:15053", Some("search a.b\n")), &["other", "no nameserver"]),
        (start("yes", "127.0.69.1:15053", None), &["DNS_CAPTURE", "\"yes\"", "true or false"]),
    ] {
        assert!(words.iter().all(|w| error.contains(w)), "{words:?}: {error}");
    }
}
