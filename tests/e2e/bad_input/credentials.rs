//! Tokens and certificate requests that prove nothing, and control planes that are not there.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tonic::Code;
use weft_control::ca::token;
use weft_proxy::xds::{Credentials, Endpoint, Tls};
use xds_protos::istio::v1::auth::IstioCertificateRequest;
use xds_protos::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;

use crate::support::control::Control;
use crate::support::eventually;
use crate::support::http::get;
use crate::support::logged::Logged;

const EMPTY: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: '{}'}\n";
const HOUR: Duration = Duration::from_secs(3600);

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

fn key(state: &Path) -> String {
    std::fs::read_to_string(state.join(weft_control::ca::store::TOKEN_KEY)).unwrap()
}

/// A token of the control plane for this service account of namespace shop.
fn token_for(control: &Control, account: &str) -> String {
    let (issuer, _) = token::from_key(&key(&control.state())).unwrap();
    issuer.issue("shop", account, now(), HOUR).unwrap()
}

/// One that says what it is told to, signed with the control plane's key.
fn signed(control: &Control, claims: &serde_json::Value) -> String {
    let private = weft_certs::pem::private_key(key(&control.state()).as_bytes()).unwrap();
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
    jsonwebtoken::encode(&header, claims, &jsonwebtoken::EncodingKey::from_ec_der(private.secret_der()))
        .unwrap()
}

struct Proxy {
    process: Logged,
    ip: &'static str,
}

impl Proxy {
    fn start(control: &Control, root: &Path, token: &Path, ip: &'static str) -> Self {
        let process = Logged::weft(&[
            "proxy",
            "--xds-address",
            &format!("{}:15012", control.ip),
            "--root-cert",
            root.to_str().unwrap(),
            "--token-file",
            token.to_str().unwrap(),
            "--cert-ttl",
            "4s",
            "--namespace",
            "shop",
            "--service-account",
            "cart",
            "--ip",
            ip,
            "--admin-address",
            &format!("{ip}:15000"),
            "--interception-mode",
            "NONE",
            "--concurrency",
            "1",
        ]);
        Self { process, ip }
    }

    fn ready(&self) -> bool {
        get(format!("{}:15021", self.ip).parse().unwrap(), "/healthz/ready").is_ok_and(|a| a.0 == 200)
    }

    /// The serial number of its certificate; empty without one.
    fn serial(&self) -> String {
        let certs = get(format!("{}:15000", self.ip).parse().unwrap(), "/certs").unwrap().1;
        let certs: serde_json::Value = serde_json::from_str(&certs).unwrap();
        certs["certificates"][0]["cert_chain"][0]["serial_number"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn a_token_that_proves_nothing_is_refused_with_what_to_do_and_a_good_one_is_taken_up() {
    let control = Control::start("127.54.1.1", EMPTY);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let exp = (now() + HOUR).as_secs();
    let subject = "system:serviceaccount:shop:cart";
    let stranger = {
        let shape = weft_control::ca::store::Shape {
            root_key: weft_certs::authority::KeyKind::P256,
            intermediate_key: weft_certs::authority::KeyKind::P256,
            ..Default::default()
        };
        let other = weft_control::ca::State::create(shape, SystemTime::now().into()).unwrap();
        let (issuer, _) = token::from_key(&other.token_key).unwrap();
        issuer.issue("shop", "cart", now(), HOUR).unwrap()
    };
    let expired = {
        let (issuer, _) = token::from_key(&key(&control.state())).unwrap();
        issuer.issue("shop", "cart", now() - 2 * HOUR, HOUR).unwrap()
    };
    let claims = |audience: &str, subject: &str| serde_json::json!({"iss": "weft", "sub": subject, "aud": [audience], "iat": 0, "exp": exp});
    let proxy = Proxy::start(&control, &control.root(), &file, "127.54.1.2");
    proxy.process.says(&["no new certificate", file.to_str().unwrap(), "No such file", "weft token create"]);
    for (token, words) in [
        (expired, &["Unauthenticated", "the token has expired", "weft token create"][..]),
        (
            signed(&control, &claims("kubernetes", subject)),
            &["Unauthenticated", "for another audience", "istio-ca"],
        ),
        (stranger, &["Unauthenticated", "not by this control plane's key", "--state-dir"]),
        (
            signed(&control, &claims("istio-ca", "somebody")),
            &["Unauthenticated", "\"somebody\" is not a service account"],
        ),
        ("no token\n".to_owned(), &["Unauthenticated", "the token cannot be used"]),
        (
            token_for(&control, "admin"),
            &["it is for spiffe://cluster.local/ns/shop/sa/admin", "another service account"],
        ),
    ] {
        // A proxy of its own for each: the pauses between attempts grow.
        std::fs::write(&file, token).unwrap();
        let proxy = Proxy::start(&control, &control.root(), &file, "127.54.1.3");
        proxy.process.says(&[&["no new certificate"], words].concat());
        assert!(!proxy.ready());
    }
    std::fs::write(&file, token_for(&control, "cart")).unwrap();
    // It began without any token.
    eventually("the first proxy is ready", || proxy.ready());

    // It has a certificate by now, which is renewed by itself: the token counts no more.
    std::fs::write(&file, "no token").unwrap();
    for _ in 0..2 {
        let serial = proxy.serial();
        eventually("another certificate", || proxy.serial() != serial);
        assert!(proxy.ready());
    }
}

#[test]
fn a_control_plane_that_is_not_there_or_not_ours_is_said_and_taken_up_when_it_is() {
    let mut control = Control::start("127.54.2.1", EMPTY);
    let directory = tempfile::tempdir().unwrap();
    let (file, root) = (directory.path().join("token"), directory.path().join("root-cert.pem"));
    std::fs::write(&file, token_for(&control, "cart")).unwrap();
    let mine = std::fs::read(control.root()).unwrap();
    let other = {
        let made = weft_certs::authority::Authority::root(
            weft_certs::authority::KeyKind::P256,
            SystemTime::now().into(),
            time::Duration::days(1),
        );
        made.unwrap().certificate_pem().to_owned()
    };
    std::fs::write(&root, other).unwrap();
    let proxy = Proxy::start(&control, &root, &file, "127.54.2.2");
    proxy.process.says(&["no stream to the control plane", "127.54.2.1:15012", "invalid peer certificate"]);
    proxy.process.says(&["no new certificate", "is the trust bundle its own?"]);
    control.process.kill();
    proxy.process.says(&["no stream to the control plane", "Connection refused", "what is configured stays"]);
    proxy.process.says(&["no new certificate", "Connection refused", "is the control plane running there"]);
    assert!(!proxy.ready());
    // The right root is put there, and the control plane starts.
    std::fs::write(&root, mine).unwrap();
    control.restart();
    eventually("the proxy is ready", || proxy.ready());
}

#[tokio::test]
async fn certificate_requests_that_cannot_be_signed_are_refused_and_good_ones_still_signed() {
    let control = Control::start("127.54.3.1", EMPTY);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, token_for(&control, "cart")).unwrap();
    let tls = Tls { roots: control.root(), server_name: None, identity: None, beside: None };
    let endpoint = Endpoint { address: "127.54.3.1:15012".parse().unwrap(), tls: Some(tls) };
    let mut client = IstioCertificateServiceClient::new(endpoint.connect().await.unwrap());
    let credentials = Credentials { token: Some(file), headers: Vec::new() };
    let request = |csr: &str, seconds: i64| {
        let message =
            IstioCertificateRequest { csr: csr.into(), validity_duration: seconds, ..Default::default() };
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = credentials.metadata().unwrap();
        request
    };
    let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let good = weft_certs::csr::make(&id).unwrap().csr;
    let broken = {
        // Another name of the same length, under the signature for the first.
        use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};
        let mut der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
        let at = der.windows(8).position(|w| w == b"/sa/cart").unwrap();
        der[at + 4] = b'b';
        pem(&der)
    };
    let weak = include_str!("../../../certs/testdata/rsa1024.csr.pem");
    for (csr, seconds, words) in [
        (weak, 0, ["weak key (RSA 1024)", "use ECDSA P-256"]),
        (&broken, 0, ["signature does not verify", "signed by another key"]),
        ("nonsense", 0, ["cannot be read", "CERTIFICATE REQUEST"]),
        (&good, 91 * 86_400, ["over the limit", "--max-workload-cert-ttl"]),
    ] {
        let status = client.create_certificate(request(csr, seconds)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        for word in words {
            assert!(status.message().contains(word), "no {word:?} in {status}");
        }
        // The control plane's own log says who asked.
        control.process.says(&["certificate request refused", "sa/cart", words[0]]);
        let chain = client.create_certificate(request(&good, 0)).await.unwrap().into_inner().cert_chain;
        assert_eq!(chain.len(), 3);
    }
    let anonymous = tonic::Request::new(IstioCertificateRequest { csr: good.clone(), ..Default::default() });
    let status = client.create_certificate(anonymous).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("weft token create"), "{status}");
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}
