//! `weft agent` between a real control plane and a client that speaks as Envoy would.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use weft_proxy::xds::{Address, Endpoint};
use xds_protos::envoy::config::bootstrap::v3::Bootstrap;
use xds_protos::envoy::config::core::v3::data_source::Specifier;
use xds_protos::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use xds_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use xds_protos::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use xds_protos::type_url;

use crate::support::control::Control;
use crate::support::http::get;
use crate::support::logged::Logged;
use crate::support::{eventually, stderr, weft};

const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop, namespace: shop}
spec:
  hosts: [shop.example]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1}]
";

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("did not happen in time")
}

async fn channel(socket: &Path) -> tonic::transport::Channel {
    Endpoint { address: Address::Unix(socket.to_owned()), tls: None }.connect().await.unwrap()
}

fn arguments(control: &Control, directory: &Path, ip: &str) -> Vec<String> {
    let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let pairs = [
        ("--xds-address", format!("{}:15012", control.ip)),
        ("--root-cert", control.root().to_string_lossy().into_owned()),
        ("--token-file", at("token")),
        ("--cert-ttl", "6s".to_owned()),
        ("--name", "cart-1".to_owned()),
        ("--namespace", "shop".to_owned()),
        ("--service-account", "cart".to_owned()),
        ("--ip", ip.to_owned()),
        ("--sds-socket", at("run/sds")),
        ("--xds-socket", at("run/xds")),
        ("--bootstrap", at("envoy.json")),
        ("--admin-address", format!("{ip}:15000")),
        ("--status-address", format!("{ip}:15020")),
    ];
    let pairs = pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
    std::iter::once("agent".to_owned()).chain(pairs).collect()
}

/// The next answer's `default`: chain and key.
async fn certificate(stream: &mut Streaming<DiscoveryResponse>) -> (DiscoveryResponse, Vec<u8>, Vec<u8>) {
    loop {
        let response = soon(stream.message()).await.unwrap().expect("the stream ended");
        for any in &response.resources {
            let secret: Secret = any.unpack().unwrap();
            let Some(Type::TlsCertificate(own)) = secret.r#type else { continue };
            assert_eq!(secret.name, "default");
            let bytes = |source: Option<xds_protos::envoy::config::core::v3::DataSource>| match source
                .unwrap()
                .specifier
            {
                Some(Specifier::InlineBytes(bytes)) => bytes.to_vec(),
                other => panic!("{other:?}"),
            };
            return (response, bytes(own.certificate_chain), bytes(own.private_key));
        }
    }
}

/// An ADS stream on the agent's socket, with its first answer: the clusters.
async fn ads(
    socket: &Path,
    node: &xds_protos::envoy::config::core::v3::Node,
) -> Streaming<DeltaDiscoveryResponse> {
    let mut client = AggregatedDiscoveryServiceClient::new(channel(socket).await);
    let (requests, outgoing) = mpsc::channel(4);
    let request = DeltaDiscoveryRequest {
        node: Some(node.clone()),
        type_url: type_url::CLUSTER.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(request).await.unwrap();
    // Open for as long as the test runs.
    std::mem::forget(requests);
    let mut stream =
        soon(client.delta_aggregated_resources(ReceiverStream::new(outgoing))).await.unwrap().into_inner();
    let clusters = soon(stream.message()).await.unwrap().expect("clusters");
    let names: Vec<_> = clusters.resources.iter().map(|r| r.name.as_str()).collect();
    assert!(names.contains(&"outbound|80||shop.example"), "{names:?}");
    stream
}

#[tokio::test]
async fn a_foreign_proxy_gets_identity_and_configuration_over_the_sockets() {
    let mut control = Control::start("127.55.1.1", MESH);
    let directory = tempfile::tempdir().unwrap();
    let token =
        weft_control::ca::token::create(&control.state(), "shop", "cart", Duration::from_secs(600)).unwrap();
    std::fs::write(directory.path().join("token"), token).unwrap();
    let arguments = arguments(&control, directory.path(), "127.55.1.2");
    let mut agent = Logged::weft(&arguments);
    let (sds, xds) = (directory.path().join("run/sds"), directory.path().join("run/xds"));
    let file = directory.path().join("envoy.json");
    eventually("the bootstrap", || file.exists());
    for socket in [&sds, &xds] {
        assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let bootstrap: Bootstrap =
        xds_protos::json::from_yaml_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let node = bootstrap.node.unwrap();
    assert_eq!(node.id, "sidecar~127.55.1.2~cart-1.shop~shop.svc.cluster.local");

    // Identity: of the service account that the token proves, by the control plane's authority, for this very key.
    let mut client = SecretDiscoveryServiceClient::new(channel(&sds).await);
    let (requests, outgoing) = mpsc::channel(4);
    let mut request = DiscoveryRequest {
        type_url: type_url::SECRET.to_owned(),
        resource_names: vec!["default".to_owned()],
        ..DiscoveryRequest::default()
    };
    requests.send(request.clone()).await.unwrap();
    let mut secrets = soon(client.stream_secrets(ReceiverStream::new(outgoing))).await.unwrap().into_inner();
    let (answer, chain, key) = certificate(&mut secrets).await;
    let chain = weft_certs::pem::certificates(&chain).unwrap();
    assert_eq!(
        weft_certs::inspect::facts(&chain[0]).unwrap().uri_sans,
        ["spiffe://cluster.local/ns/shop/sa/cart"]
    );
    let private = weft_certs::pem::private_key(&key).unwrap();
    let private = weft_certs::provider().key_provider.load_private_key(private).unwrap();
    rustls::sign::CertifiedKey::new(chain, private).keys_match().unwrap();
    request.response_nonce = answer.nonce;
    requests.send(request.clone()).await.unwrap();

    // Configuration, until the control plane is lost, which the proxy hears.
    let mut stream = ads(&xds, &node).await;
    control.process.kill();
    let lost = loop {
        match soon(stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if all were well"),
            Err(status) => break status,
        }
    };
    assert_eq!(lost.code(), Code::Unavailable, "{lost}");
    assert!(lost.message().contains("the control plane at 127.55.1.1:15012 was lost"), "{lost}");
    let mut again = AggregatedDiscoveryServiceClient::new(channel(&xds).await);
    let refused = soon(again.delta_aggregated_resources(tokio_stream::iter([]))).await.unwrap_err();
    assert!(refused.message().contains("is the control plane running there"), "{refused}");

    // It comes back: streams are relayed again, and the certificate is renewed on the SDS stream that never ended.
    control.restart();
    let _stream = ads(&xds, &node).await;
    let (_, _, renewed) = certificate(&mut secrets).await;
    assert_ne!(renewed, key);
    let status = "127.55.1.2:15020".parse().unwrap();
    let (code, reason) = get(status, "/healthz/ready").unwrap();
    assert!(code == 503 && reason.contains("admin interface at 127.55.1.2:15000"), "{code} {reason}");
    let metrics = get(status, "/metrics").unwrap().1;
    assert!(metrics.lines().any(|l| l == "weft_agent_xds_active_streams 1"), "{metrics}");

    // A second one is told that the sockets are in use, and the first goes on.
    let output = weft(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let error = stderr(&output);
    assert!(!output.status.success() && error.contains("another process listens on it"), "{error}");
    assert!(error.contains("run/sds") && error.contains("--sds-socket"), "{error}");
    ads(&xds, &node).await;

    agent.terminate();
    assert!(agent.wait().success());
    assert!(!sds.exists() && !xds.exists());
}

/// What an Envoy's admin interface says of its readiness.
fn admin(address: &str) -> Arc<AtomicBool> {
    let (listener, ready) = (TcpListener::bind(address).unwrap(), Arc::new(AtomicBool::new(false)));
    let told = ready.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let body = match told.load(Ordering::SeqCst) {
                true => {
                    "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n\
                     listener_manager.workers_started: 1\nserver.state: 0\n"
                }
                false => "server.state: 2\n",
            };
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + body).as_bytes());
        }
    });
    ready
}

/// A workload that entered itself, asked by a command: it gets requests while that ends well and the proxy is ready.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_tells_how_a_workload_is_beside_a_proxy_that_must_be_ready_too() {
    const IP: &str = "127.55.2.2";
    let group = "
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vm, namespace: shop}
spec: {template: {serviceAccount: cart, ports: {http: 18080}, labels: {app: cart}}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 18080}]}
";
    let control =
        Control::start_with("127.55.2.1", &format!("{MESH}{group}"), &["--workload-entry-grace", "1s"]);
    let directory = tempfile::tempdir().unwrap();
    let token =
        weft_control::ca::token::create(&control.state(), "shop", "cart", Duration::from_secs(600)).unwrap();
    std::fs::write(directory.path().join("token"), token).unwrap();
    let (ready, well) = (admin(&format!("{IP}:15000")), directory.path().join("well"));
    let mut arguments = arguments(&control, directory.path(), IP);
    arguments.extend(["--auto-register-group", "vm"].map(str::to_owned));
    let probe = format!(
        "{{readinessProbe: {{exec: {{command: [test, -e, {}]}}, periodSeconds: 1, failureThreshold: 1}}}}",
        well.display()
    );
    let agent = Logged::weft_with(&arguments, &[("PROXY_CONFIG", &probe)]);
    let file = directory.path().join("envoy.json");
    eventually("the bootstrap", || file.exists());
    let bootstrap: Bootstrap =
        xds_protos::json::from_yaml_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let _stream = ads(&directory.path().join("run/xds"), &bootstrap.node.unwrap()).await;
    let serves = || {
        let services: serde_json::Value = serde_json::from_str(&control.page("/debug/endpointz")).unwrap();
        let mut all = services.as_array().unwrap().iter().flat_map(|s| s["endpoints"].as_array().unwrap());
        all.any(|endpoint| endpoint["address"] == IP)
    };
    agent.says(&["the application fails its probe", "the proxy is not ready"]);
    control.process.says(&["a workload is not well", "the proxy is not ready"]);
    std::fs::write(&well, "").unwrap();
    assert!(!serves(), "a proxy that is not ready serves nobody");
    ready.store(true, Ordering::SeqCst);
    eventually("it serves", serves);
    std::fs::remove_file(&well).unwrap();
    eventually("its command has failed", || !serves());
    std::fs::write(&well, "").unwrap();
    eventually("it serves again", serves);
    ready.store(false, Ordering::SeqCst);
    eventually("its proxy is not ready", || !serves());
}

#[test]
fn it_does_not_start_without_a_control_planes_address() {
    let output = weft(&["agent"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("--xds-address HOST:PORT"), "{}", stderr(&output));
}
