//! The door over loopback, with clients of a small mesh.

use std::time::Duration;

use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;
use weft_certs::authority::{Authority, KeyKind};
use weft_certs::{csr, inspect, pem};

use super::*;
use crate::identity::tls::compile_secret;
use crate::identity::tls::validation::ValidationConfig;

const ALL: &[&SupportedProtocolVersion] = rustls::ALL_VERSIONS;

fn certificate(by: &Authority, id: &str) -> WorkloadCertificate {
    let (now, id) = (OffsetDateTime::now_utc(), id.parse().unwrap());
    let made = csr::make(&id).unwrap();
    let leaf = by.sign(&csr::check(&made.csr).unwrap(), &id, now, time::Duration::hours(1)).unwrap();
    let answer = [pem::encode(&leaf), by.certificate_pem().to_owned()];
    WorkloadCertificate::assemble(made.key, &answer, now).unwrap()
}

/// A workload's door, and a listener for it.
struct Place {
    authority: Authority,
    door: Door,
    roots: Arc<Slot<Secret>>,
    listener: TcpListener,
    _current: tokio::sync::watch::Sender<Option<Arc<WorkloadCertificate>>>,
}

impl Place {
    async fn new() -> Self {
        let now = OffsetDateTime::now_utc();
        let authority = Authority::root(KeyKind::P256, now, time::Duration::days(10)).unwrap();
        let own = certificate(&authority, "spiffe://cluster.local/ns/shop/sa/api");
        let roots = Slot::ready("ROOTCA", Arc::new(Secret::roots(own.bundle().to_vec()).unwrap()));
        let (sender, current) = tokio::sync::watch::channel(Some(Arc::new(own)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { authority, door: Door::new(current, roots.clone()), roots, listener, _current: sender }
    }

    fn client(
        &self,
        id: &str,
        versions: &[&'static SupportedProtocolVersion],
    ) -> (WorkloadCertificate, Arc<ClientConfig>) {
        let own = certificate(&self.authority, id);
        let rules = ValidationConfig::from_roots(own.bundle().to_vec()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Verifier::new(
                Arc::new(Validation::new(rules, PeerRole::Server)),
                true,
            ))
            .with_client_auth_cert(own.chain().to_vec(), own.key().clone_key().into())
            .unwrap();
        (own, Arc::new(config))
    }

    /// Whom the mesh trusts, as the control plane says it.
    fn say(&self, context: serde_json::Value) {
        let secret = serde_json::json!({"name": "ROOTCA", "validation_context": context});
        let secret = compile_secret(&xds_protos::json::from_value(secret).unwrap()).unwrap();
        self.roots.publish(Arc::new(secret));
    }

    fn revoke(&self, whom: &WorkloadCertificate) {
        let now = OffsetDateTime::now_utc();
        let serial = inspect::facts(&whom.chain()[0]).unwrap().serial;
        let digits =
            (0..serial.len()).step_by(2).map(|at| u8::from_str_radix(&serial[at..at + 2], 16).unwrap());
        let serial = digits.collect();
        let list = self.authority.revocation_list(&[(serial, now)], 1, now).unwrap();
        let roots = self.authority.certificate_pem();
        self.say(serde_json::json!({"trusted_ca": {"inline_string": roots}, "crl": {"inline_string": list},
            "only_verify_leaf_cert_crl": true}));
    }

    /// Has this client come in, and hear a word: a client of TLS 1.3 knows only then whether it was let in.
    async fn visit(
        &self,
        config: &Arc<ClientConfig>,
    ) -> anyhow::Result<(TlsStream<TcpStream>, ClientStream<TcpStream>)> {
        let address = self.listener.local_addr().unwrap();
        let inside = async {
            let mut stream = self.door.accept(self.door.next(&self.listener).await?).await?;
            stream.write_all(b"x").await?;
            stream.flush().await?;
            anyhow::Ok(stream)
        };
        let outside = async {
            let stream = TcpStream::connect(address).await?;
            let name = "api.shop".try_into().unwrap();
            let mut stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
            stream.read_u8().await?;
            anyhow::Ok(stream)
        };
        let both = async { tokio::try_join!(inside, outside) };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("both come to an end")
    }
}

#[tokio::test]
async fn who_was_revoked_is_let_in_no_more_and_hears_no_more() {
    let place = Place::new().await;
    let (thief, config) = place.client("spiffe://cluster.local/ns/shop/sa/stolen", ALL);
    let (_, honest) = place.client("spiffe://cluster.local/ns/shop/sa/prometheus", ALL);
    place.visit(&honest).await.unwrap();
    let (inside, _outside) = place.visit(&config).await.unwrap();
    let chain = inside.get_ref().1.peer_certificates().unwrap();
    place.door.still_admits(chain).unwrap();
    place.revoke(&thief);
    let error = place.door.still_admits(chain).unwrap_err().to_string();
    assert!(error.contains("does not verify"), "{error}");
    assert!(place.visit(&config).await.is_err());
    place.visit(&honest).await.unwrap();
}

#[tokio::test]
async fn every_time_somebody_comes_his_certificate_is_looked_at() {
    let place = Place::new().await;
    for version in ALL.iter().copied() {
        let (_, config) = place.client("spiffe://cluster.local/ns/shop/sa/prometheus", &[version]);
        for _ in 0..2 {
            let (_, outside) = place.visit(&config).await.unwrap();
            let kind = outside.get_ref().1.handshake_kind();
            let whole = matches!(kind, Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest));
            assert!(whole, "{version:?}: {kind:?}");
        }
    }
}

#[tokio::test]
async fn who_is_of_a_domain_that_is_trusted_beside_ours_stays_outside() {
    let place = Place::new().await;
    let now = OffsetDateTime::now_utc();
    let other = Authority::root(KeyKind::P256, now, time::Duration::days(10)).unwrap();
    let bundle = |by: &Authority| serde_json::json!({"inline_string": by.certificate_pem()});
    let domains = [("cluster.local", &place.authority), ("old.local", &place.authority), ("partner", &other)];
    let domains = domains.map(|(name, by)| serde_json::json!({"name": name, "trust_bundle": bundle(by)}));
    place.say(serde_json::json!({"trusted_ca": bundle(&place.authority), "custom_validator_config": {
    "name": "envoy.tls.cert_validator.spiffe",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        "trust_domains": domains,
    }}}));
    let chain = |by, domain| certificate(by, &format!("spiffe://{domain}/ns/a/sa/b")).chain().to_vec();
    place.door.still_admits(&chain(&place.authority, "cluster.local")).unwrap();
    place.door.still_admits(&chain(&place.authority, "old.local")).unwrap();
    assert!(place.door.still_admits(&chain(&other, "partner")).is_err());
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_sent_away_and_takes_no_more_than_his_turn() {
    let place = Place::new().await;
    let address = place.listener.local_addr().unwrap();
    let mut silent = Vec::new();
    let mut callers = Vec::new();
    for _ in 0..AT_ONCE {
        silent.push(TcpStream::connect(address).await.unwrap());
        callers.push(place.door.next(&place.listener).await.unwrap());
    }
    silent.push(TcpStream::connect(address).await.unwrap());
    let next = place.door.next(&place.listener);
    let mut next = std::pin::pin!(next);
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut next).await.is_err(), "all turns are taken");
    let error = place.door.accept(callers.pop().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("too long"), "{error}");
    assert_eq!(next.await.unwrap().address, silent[AT_ONCE].local_addr().unwrap());
}
