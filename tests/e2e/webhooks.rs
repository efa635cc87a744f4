//! The webhooks' port, asked as an API server asks: by HTTPS, with the mesh's root, and reviews of `admission.k8s.io/v1`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use super::support::control::Control;
use super::support::{eventually, stderr, weft};

const MESH: &str = "trustDomain: shop.example\ndefaultConfig: {concurrency: 3}\n";

/// One question to `127.x.y.z:15017`, with TLS checked by `root` for `name`; status and body.
fn ask(ip: &str, root: &Path, name: &str, path: &str, body: &str) -> Result<(u16, String), String> {
    let mut roots = RootCertStore::empty();
    for one in weft_certs::pem::certificates(&std::fs::read(root).unwrap()).unwrap() {
        roots.add(one).unwrap();
    }
    let config = ClientConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let tcp = TcpStream::connect((ip, 15017)).map_err(|e| e.to_string())?;
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, tcp);
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: webhook\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).map_err(|e| e.to_string())?;
    let mut text = Vec::new();
    // A server that closes without a word of TLS is an end like another.
    match stream.read_to_end(&mut text) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(error.to_string()),
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_default();
    Ok((status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

fn review(kind: [&str; 3], object: Value) -> String {
    let [group, version, kind] = kind;
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "705ab4f5", "operation": "CREATE", "namespace": "shop",
        "kind": {"group": group, "version": version, "kind": kind}, "object": object}})
    .to_string()
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "web"}]}})
}

/// The pod, as the answer's patch makes it.
fn patched(response: &Value) -> Value {
    let patch =
        base64::engine::general_purpose::STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let mut pod = pod();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

/// The values of the proxy's environment that are texts.
fn environment(pod: &Value, name: &str) -> Value {
    let list = pod["spec"]["initContainers"].as_array().unwrap();
    let proxy = list.iter().find(|one| one["name"] == "istio-proxy").unwrap();
    let env = proxy["env"].as_array().unwrap();
    env.iter().find(|one| one["name"] == name).map(|one| one["value"].clone()).unwrap_or_default()
}

#[test]
fn pods_are_injected_by_the_mesh_settings_and_objects_are_checked() {
    const IP: &str = "127.0.70.1";
    let control =
        Control::start_with(IP, MESH, &["--webhook-port", "15017", "--server-name", "istiod.mesh.svc"]);
    let root = control.root();
    let ask = |name: &str, path: &str, body: &str| ask(IP, &root, name, path, body);
    // Both names that it may be reached by, and no other.
    for name in ["istiod.istio-system.svc", "istiod.mesh.svc"] {
        let (status, body) = ask(name, "/inject", &review(["", "v1", "Pod"], pod())).unwrap();
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let response = &answer["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("705ab4f5"), &json!(true)));
        let pod = patched(response);
        assert_eq!(environment(&pod, "TRUST_DOMAIN"), "shop.example");
        assert!(environment(&pod, "PROXY_CONFIG").as_str().unwrap().contains("\"concurrency\":3"));
    }
    let wrong = ask("elsewhere.svc", "/inject", "{}").unwrap_err();
    assert!(wrong.contains("certificate"), "{wrong}");

    let rule = |weight: i64| {
        let spec =
            json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}, "weight": weight}]}]});
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "a", "uid": "1"}, "spec": spec})
    };
    let validated = |object: Value| {
        let text = review(["networking.istio.io", "v1", "VirtualService"], object);
        let (_, body) = ask("istiod.istio-system.svc", "/validate", &text).unwrap();
        serde_json::from_str::<Value>(&body).unwrap()["response"].clone()
    };
    assert_eq!(validated(rule(100))["allowed"], true);
    let refused = validated(rule(-1));
    assert_eq!(refused["allowed"], false);
    assert!(
        refused["status"]["message"].as_str().unwrap().starts_with("spec.http[0].route[0].weight: "),
        "{refused}"
    );

    // What is no question gets no answer that could pass for one.
    assert_eq!(ask("istiod.istio-system.svc", "/validate", "{}").unwrap().0, 400);
    assert_eq!(ask("istiod.istio-system.svc", "/elsewhere", "{}").unwrap().0, 404);
    let huge = format!("{{\"x\": \"{}\"}}", "x".repeat(9 * 1024 * 1024));
    // The answer may be lost with the connection that is closed while we still write.
    assert!(ask("istiod.istio-system.svc", "/validate", &huge).map_or(true, |(status, _)| status == 413));
    let metrics = super::support::http::get(format!("{IP}:15014").parse().unwrap(), "/metrics").unwrap().1;
    for line in [
        "sidecar_injection_success_total 2",
        "sidecar_injection_time_seconds_count ",
        "galley_validation_failed{group=\"networking.istio.io\",version=\"v1\",resource=\"virtualservices\",reason=\"invalid_resource\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[test]
fn settings_and_certificate_in_files_are_followed_and_a_bad_change_changes_nothing() {
    const IP: &str = "127.0.70.2";
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let certificate = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let made =
            rcgen::CertificateParams::new(vec!["hooks.svc".to_owned()]).unwrap().self_signed(&key).unwrap();
        (made.pem(), key.serialize_pem())
    };
    let write = |(chain, key): (String, String)| {
        std::fs::write(at("tls.key"), key).unwrap();
        std::fs::write(at("tls.crt"), chain).unwrap();
    };
    write(certificate());
    std::fs::write(at("values.yaml"), "clusterName: one\n").unwrap();
    let text = |name: &str| -> &'static str { at(name).to_string_lossy().into_owned().leak() };
    let more: Vec<&'static str> = vec![
        "--webhook-port",
        "15017",
        "--injection-config",
        text("values.yaml"),
        "--webhook-cert",
        text("tls.crt"),
        "--webhook-key",
        text("tls.key"),
    ];
    let _control = Control::start_with(IP, MESH, more.leak());
    let cluster = || {
        let (_, body) = ask(IP, &at("tls.crt"), "hooks.svc", "/inject", &review(["", "v1", "Pod"], pod()))?;
        let answer: Value = serde_json::from_str(&body).map_err(|e| e.to_string())?;
        Ok::<_, String>(environment(&patched(&answer["response"]), "ISTIO_META_CLUSTER_ID"))
    };
    assert_eq!(cluster().unwrap(), "one");
    std::fs::write(at("values.yaml"), "clusterNam: two\n").unwrap();
    assert_eq!(cluster().unwrap(), "one", "a file that cannot be read changes nothing");
    std::fs::write(at("values.yaml"), "clusterName: three\n").unwrap();
    assert_eq!(cluster().unwrap(), "three");
    // Another certificate, halfway written first.
    let (chain, key) = certificate();
    let old = std::fs::read(at("tls.crt")).unwrap();
    std::fs::write(at("tls.key"), "half of it").unwrap();
    assert_eq!(cluster().unwrap(), "three");
    std::fs::write(at("tls.key"), key).unwrap();
    std::fs::write(at("tls.crt"), chain).unwrap();
    eventually("the new certificate is shown", || cluster().is_ok_and(|name| name == "three"));
    std::fs::write(at("old.crt"), old).unwrap();
    assert!(ask(IP, &at("old.crt"), "hooks.svc", "/ready", "").is_err(), "the old one is not shown any more");
}

#[test]
fn settings_that_are_wrong_from_the_start_are_a_reason_not_to_start() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("values.yaml");
    std::fs::write(&file, "proxy: {resources: {}, cpu: 1}\n").unwrap();
    let (config, file) = (directory.path().to_str().unwrap(), file.to_str().unwrap());
    std::fs::create_dir(directory.path().join("config")).unwrap();
    let output = weft(&[
        "control",
        "--config-dir",
        &format!("{config}/config"),
        "--address",
        "127.0.70.3",
        "--webhook-port",
        "15017",
        "--injection-config",
        file,
    ]);
    let error = stderr(&output);
    assert!(
        !output.status.success() && error.contains("--injection-config") && error.contains("cpu"),
        "{error}"
    );
}
