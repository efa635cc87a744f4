//! OpenBao's KV engine as its documentation has it, played by a server of ours; and files.

use std::sync::Mutex;

use http::StatusCode;
use serde_json::{Value, json};
use time::OffsetDateTime;
use weft_certs::authority::{Authority, KeyKind};

use super::*;
use crate::ca::openbao::{Auth, OpenBao, Settings};
use crate::ca::testing::serve;
use crate::ingest::load_str;

const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: g, namespace: edge, annotations: {weft.dev/role: gateway}}
spec: {address: 127.0.2.9, labels: {istio: ingress}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: istio-system}
spec:
  selector: {istio: ingress}
  servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: shop}}]
";

fn world(more: &str) -> World {
    load_str("t.yaml", &format!("{MESH}{more}")).into_result().unwrap()
}

/// A certificate and its key, as a credential has them.
fn pair() -> BTreeMap<&'static str, String> {
    let root = Authority::root(KeyKind::P256, OffsetDateTime::now_utc(), time::Duration::days(10)).unwrap();
    [("tls.crt", root.certificate_pem().to_owned()), ("tls.key", root.key_pem().to_owned())].into()
}

/// The chain that gateways of edge get; empty without.
fn chain(world: &World) -> String {
    let found = world.credential("edge", "shop").map(|(_, tls)| tls.certificate_chain.clone());
    String::from_utf8(found.unwrap_or_default()).unwrap()
}

async fn again(reader: &mut CredentialReader, world: &World) -> String {
    reader.all.values_mut().for_each(|state| state.due = Instant::now());
    chain(&reader.settle(world).await)
}

/// What the engine holds at weft/edge/shop: a version and its texts, or an answer in its place.
type Held = Arc<Mutex<Result<(u64, Value), (StatusCode, Value)>>>;

async fn engine(held: Held) -> (Source, tempfile::TempDir) {
    let (address, _) = serve(move |asked| {
        let token = asked.headers.get("x-vault-token").map(|t| t.to_str().unwrap().to_owned());
        if token.as_deref() != Some("t") {
            return (StatusCode::FORBIDDEN, json!({"errors": ["permission denied"]}));
        }
        match asked.what.as_str() {
            "GET /v1/auth/token/lookup-self" => (StatusCode::OK, json!({"data": {"ttl": 0}})),
            "GET /v1/kv/data/weft/edge/shop" => match &*held.lock().unwrap() {
                Ok((version, data)) => {
                    (StatusCode::OK, json!({"data": {"data": data, "metadata": {"version": version}}}))
                }
                Err(error) => error.clone(),
            },
            _ => (StatusCode::NOT_FOUND, json!({"errors": []})),
        }
    })
    .await;
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("token"), "t\n").unwrap();
    let auth = Auth::Token(files.path().join("token"));
    let settings =
        Settings { address, roots: None, namespace: None, mount: "kv".into(), role: String::new(), auth };
    (Source::OpenBao { openbao: OpenBao::new(settings).unwrap(), prefix: "weft".into() }, files)
}

#[tokio::test]
async fn what_openbao_holds_is_taken_by_version_and_the_last_good_one_stays_also_over_a_start() {
    let (first, second) = (pair(), pair());
    let held: Held = Arc::new(Mutex::new(Err((StatusCode::NOT_FOUND, json!({"errors": []})))));
    let (source, _files) = engine(held.clone()).await;
    let state = tempfile::tempdir().unwrap();
    let reader = || CredentialReader::new(source.clone(), Duration::from_secs(60), Some(state.path()));
    let (mut reader_now, world) = (reader(), world(""));
    assert_eq!(again(&mut reader_now, &world).await, "");
    let without = reader_now.settle(&world).await.version();
    *held.lock().unwrap() = Ok((1, json!(first)));
    assert_eq!(again(&mut reader_now, &world).await, first["tls.crt"]);
    assert_ne!(reader_now.settle(&world).await.version(), without);
    // The same version is the same content, whatever comes.
    *held.lock().unwrap() = Ok((1, json!(second)));
    assert_eq!(again(&mut reader_now, &world).await, first["tls.crt"]);
    *held.lock().unwrap() = Ok((2, json!(second)));
    assert_eq!(again(&mut reader_now, &world).await, second["tls.crt"]);

    let mixed = json!({"tls.crt": first["tls.crt"], "tls.key": second["tls.key"]});
    let refused =
        |status: u16, text: &str| Err((StatusCode::from_u16(status).unwrap(), json!({"errors": [text]})));
    for (bad, why) in [
        (Ok((3, mixed)), "they do not belong together"),
        (Ok((4, json!({"tls.crt": first["tls.crt"]}))), "tls.crt without tls.key"),
        (Ok((5, json!({"tls.crt": "x", "tls.key": "y"}))), "the certificate"),
        (Ok((6, json!({"ca.crt": "nothing"}))), "ca.crt"),
        (Ok((7, json!({"number": 7}))), "number is no text"),
        (Ok((8, json!({}))), "it is empty"),
        (refused(503, "OpenBao is sealed"), "sealed"),
        (refused(404, ""), "404"),
        (Err((StatusCode::OK, json!({"data": {"tls.crt": "x"}}))), "KV of version 2"),
    ] {
        *held.lock().unwrap() = bad;
        assert_eq!(again(&mut reader_now, &world).await, second["tls.crt"], "{why}");
        let error = reader_now.all.values().find_map(|state| state.error.clone()).unwrap_or_default();
        assert!(error.contains(why), "{why}: {error}");
        assert!(!error.contains("BEGIN"), "{error}");
        // A start meanwhile has what was kept; one without a state directory has nothing.
        assert_eq!(again(&mut reader(), &world).await, second["tls.crt"], "{why}");
        let mut elsewhere = CredentialReader::new(source.clone(), Duration::from_secs(60), None);
        assert_eq!(again(&mut elsewhere, &world).await, "", "{why}");
    }
    let kept = || std::fs::read_dir(state.path().join("credentials")).unwrap().map(|e| e.unwrap().path());
    let modes = kept().map(|path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    });
    assert_eq!(modes.collect::<Vec<_>>(), [0o600]);

    // What the configuration has itself is not asked for, and nothing is kept of it.
    let own = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: shop, namespace: edge}}\ntype: kubernetes.io/tls\n\
         stringData: {}\n",
        json!(first)
    );
    assert_eq!(again(&mut reader_now, &self::world(&own)).await, first["tls.crt"]);
    assert_eq!((reader_now.all.len(), kept().count()), (0, 0));
}

#[tokio::test]
async fn files_are_read_like_a_mounted_secret_and_half_a_replacement_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("edge/shop");
    std::fs::create_dir_all(at.join("..data")).unwrap();
    let (first, second) = (pair(), pair());
    let mut reader =
        CredentialReader::new(Source::Files(directory.path().to_owned()), Duration::from_secs(2), None);
    let world = world("");
    for (key, value) in &first {
        assert_eq!(again(&mut reader, &world).await, "");
        std::fs::write(at.join(key), value).unwrap();
    }
    assert_eq!(again(&mut reader, &world).await, first["tls.crt"]);
    std::fs::write(at.join("tls.key"), &second["tls.key"]).unwrap();
    assert_eq!(again(&mut reader, &world).await, first["tls.crt"]);
    std::fs::write(at.join("tls.crt"), &second["tls.crt"]).unwrap();
    assert_eq!(again(&mut reader, &world).await, second["tls.crt"]);
    std::fs::remove_dir_all(&at).unwrap();
    assert_eq!(again(&mut reader, &world).await, second["tls.crt"]);
}

#[test]
fn credentials_are_wanted_for_the_namespaces_of_the_proxies_that_use_them() {
    let wanted = |more: &str| -> Vec<String> {
        world(more)
            .wanted_credentials()
            .into_iter()
            .map(|(namespace, name)| format!("{namespace}/{name}"))
            .collect()
    };
    // The Gateway is in istio-system, the workload that it selects in edge.
    assert_eq!(wanted(""), ["edge/shop"]);
    let rule = |namespace: &str, selector: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: {namespace}}}\n\
             spec: {{host: api.example, {selector} trafficPolicy: {{portLevelSettings: [{{port: {{number: 443}}, \
             tls: {{mode: MUTUAL, credentialName: partner}}}}]}}}}\n"
        )
    };
    assert_eq!(wanted(&rule("istio-system", "")), ["edge/partner", "edge/shop"]);
    let selector = "workloadSelector: {matchLabels: {app: cart}},";
    assert_eq!(wanted(&rule("shop", selector)), ["edge/shop", "shop/partner"]);
}
