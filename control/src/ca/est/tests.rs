//! What is asked of a server of EST, and what of its answers is taken.

use std::sync::Arc;

use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use weft_certs::spiffe::{SpiffeId, TrustDomain};
use weft_events::Severity;

use super::own;
use super::played::{Manner, Played, USER};
use super::{Est, EstError, Settings};
use crate::ca::elsewhere::{self, Elsewhere};
use crate::ca::{CertificateAuthority, Limits};

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

/// A server, a directory, and settings by which a password proves who asks.
struct Stand {
    played: Arc<Played>,
    files: tempfile::TempDir,
    settings: Settings,
    server: tokio::task::JoinHandle<()>,
}

impl Stand {
    async fn new(label: Option<&'static str>) -> Self {
        let (played, files) = (Played::new(label), tempfile::tempdir().unwrap());
        let (address, server) = played.serve().await;
        let password = files.path().join("password");
        std::fs::write(&password, format!("{}\n", USER.1)).unwrap();
        let settings = Settings {
            address,
            label: label.map(str::to_owned),
            roots: Some(played.web_roots(files.path())),
            trust: None,
            certificate: None,
            password: Some((USER.0.to_owned(), password)),
            longest: Duration::days(90),
        };
        Self { played, files, settings, server }
    }

    /// By a certificate that lives since and for so long.
    fn with_certificate(&self, since: Duration, rest: Duration) -> Settings {
        let now = OffsetDateTime::now_utc();
        let files = self.played.client(self.files.path(), now - since, now + rest);
        Settings { certificate: Some(files), password: None, ..self.settings.clone() }
    }

    async fn est(&self, settings: &Settings) -> Est {
        let est = Est::new(settings.clone()).unwrap();
        est.roots().await.unwrap();
        est
    }

    fn behaves(&self, manner: Manner) {
        *self.played.manner.lock().unwrap() = manner;
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.played.asked.lock().unwrap())
    }
}

async fn sign(est: &Est) -> Result<Vec<CertificateDer<'static>>, EstError> {
    let made = weft_certs::csr::make(&id()).unwrap();
    let request = weft_certs::csr::check(&made.csr).unwrap();
    let signed = est.sign(&request, &id(), (&[], &[])).await?;
    let chain =
        weft_certs::pem::certificates((signed.certificate + &signed.intermediates).as_bytes()).unwrap();
    assert!(request.is_key_of(&chain[0]));
    Ok(chain)
}

#[tokio::test]
async fn a_workload_is_enrolled_by_either_proof_and_gets_what_leads_to_the_root() {
    for label in [None, Some("mesh")] {
        let stand = Stand::new(label).await;
        let below = label.map_or(String::new(), |label| format!("{label}/"));
        for (settings, proof) in [
            (stand.settings.clone(), "password"),
            (stand.with_certificate(Duration::days(1), Duration::days(9)), "certificate"),
        ] {
            for open_ended in [false, true] {
                stand.behaves(Manner { open_ended, ..Manner::default() });
                let est = stand.est(&settings).await;
                assert_eq!(est.roots().await.unwrap(), weft_certs::pem::encode(stand.played.root.der()));
                stand.asked();
                let chain = sign(&est).await.unwrap();
                assert_eq!(weft_certs::inspect::facts(&chain[0]).unwrap().uri_sans, [id().as_str()]);
                assert_eq!(
                    chain[1..],
                    [stand.played.intermediate.der().clone()],
                    "the root is no part of it"
                );
                let asked = stand.asked();
                let expected = format!("POST /.well-known/est/{below}simpleenroll by {proof}");
                assert!(asked.len() == 1 && asked[0].starts_with(&expected), "{asked:?}");
            }
        }
        stand.server.abort();
    }
}

#[tokio::test]
async fn what_names_somebody_else_is_not_asked_for_and_what_was_not_asked_for_is_not_taken() {
    let stand = Stand::new(None).await;
    let est = stand.est(&stand.settings).await;
    stand.asked();
    let other: SpiffeId = "spiffe://cluster.local/ns/a/sa/admin".parse().unwrap();
    for made in [weft_certs::csr::make(&other), weft_certs::csr::make_server(&id(), &["istiod"], &[])] {
        let request = weft_certs::csr::check(&made.unwrap().csr).unwrap();
        let error = est.sign(&request, &id(), (&[], &[])).await.unwrap_err();
        assert!(error.is_the_requests() && !error.passes(), "{error}");
    }
    // Nor by what another server would read: Microsoft's own attribute for extensions.
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![rcgen::SanType::URI(id().as_str().try_into().unwrap())];
    let hidden = rcgen::Attribute { oid: &[1, 3, 6, 1, 4, 1, 311, 2, 1, 14], values: vec![0x31, 2, 0x30, 0] };
    let key = rcgen::KeyPair::generate().unwrap();
    let hiding = params.serialize_request_with_attributes(&key, vec![hidden]).unwrap().pem().unwrap();
    let request = weft_certs::csr::check(&hiding).unwrap();
    let error = est.sign(&request, &id(), (&[], &[])).await.unwrap_err();
    assert!(error.is_the_requests() && error.to_string().contains("1.3.6.1.4.1.311.2.1.14"), "{error}");
    assert_eq!(stand.asked(), Vec::<String>::new());
    // The control plane's own has names of servers, too.
    let made = weft_certs::csr::make_server(&id(), &["istiod"], &[]).unwrap();
    let request = weft_certs::csr::check(&made.csr).unwrap();
    let signed = est.sign(&request, &id(), (&["istiod"], &[])).await.unwrap();
    let leaf = weft_certs::pem::certificates(signed.certificate.as_bytes()).unwrap();
    assert_eq!(weft_certs::inspect::facts(&leaf[0]).unwrap().dns_sans, ["istiod"]);
    // A server that leaves them out is of no use to its secure port.
    stand.behaves(Manner { names: Some(vec![id().to_string()]), ..Manner::default() });
    let error = est.sign(&request, &id(), (&["istiod"], &[])).await.unwrap_err();
    assert!(error.to_string().contains("istiod was asked for") && !error.passes(), "{error}");

    for (manner, words) in [
        (Manner { names: Some(vec![other.to_string()]), ..Manner::default() }, "sa/cart is who asked"),
        (
            Manner { names: Some(vec![id().to_string(), other.to_string()]), ..Manner::default() },
            "sa/cart is who asked",
        ),
        (
            Manner { purposes: vec![ExtendedKeyUsagePurpose::ClientAuth], ..Manner::default() },
            "lacks serverAuth, and every proxy is a server to some and a client to others: have the issuer's profile",
        ),
        (
            Manner {
                purposes: vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                    ExtendedKeyUsagePurpose::EmailProtection,
                ],
                ..Manner::default()
            },
            "has 1.3.6.1.5.5.7.3.4",
        ),
        (Manner { other_key: true, ..Manner::default() }, "for the key that was asked for"),
        (Manner { life: Duration::days(91), ..Manner::default() }, "--max-workload-cert-ttl"),
        (Manner { life: Duration::seconds(-1), ..Manner::default() }, "would not take it"),
    ] {
        stand.behaves(manner);
        let error = sign(&est).await.unwrap_err();
        assert!(error.to_string().contains(words) && !error.passes(), "{error}");
    }
    // Under a root that the mesh was not told of, too.
    stand.behaves(Manner::default());
    let trust = stand.files.path().join("trust.pem");
    std::fs::write(&trust, Played::new(None).root.pem()).unwrap();
    let pinned = stand.est(&Settings { trust: Some(trust.clone()), ..stand.settings.clone() }).await;
    let error = sign(&pinned).await.unwrap_err().to_string();
    assert!(error.contains("--ca-trust"), "{error}");
    std::fs::write(&trust, stand.played.root.pem()).unwrap();
    assert_eq!(pinned.roots().await.unwrap(), stand.played.root.pem(), "the file's owner took the other out");
    // The mesh is told first.
    let error = sign(&pinned).await.unwrap_err();
    assert!(error.passes() && matches!(error, EstError::Early { .. }), "{error}");
    pinned.trusted.lock().0[0].told -= crate::ca::roots::HEARS.whole_seconds();
    sign(&pinned).await.unwrap();
}

#[tokio::test]
async fn a_root_that_the_server_forgets_stays_trusted_over_a_restart() {
    let (stand, state, other) = (Stand::new(None).await, tempfile::tempdir().unwrap(), Played::new(None));
    let own = weft_certs::pem::encode(stand.played.root.der());
    let begin = || {
        let est = Est::new(stand.settings.clone()).unwrap();
        est.take_up(state.path());
        est
    };
    let first = begin();
    assert_eq!(first.roots().await.unwrap(), own);
    stand.behaves(Manner { roots: Some(vec![other.root.der().clone()]), ..Manner::default() });
    let both = own.clone() + &weft_certs::pem::encode(other.root.der());
    assert_eq!(first.roots().await.unwrap(), both);
    for est in [&first, &begin()] {
        assert_eq!(est.roots().await.unwrap(), both);
        // It goes on signing under it, and then it has to stay longer yet.
        let end = est.trusted.lock().0[0].leaves.unwrap();
        est.trusted.lock().0[0].leaves = Some(end - 1000);
        sign(est).await.unwrap();
        assert!(est.trusted.lock().0[0].leaves.unwrap() >= end);
    }
    // Long after, it is gone.
    first.trusted.lock().0[0].leaves = Some(0);
    assert_eq!(first.roots().await.unwrap(), weft_certs::pem::encode(other.root.der()));
    assert!(sign(&first).await.unwrap_err().to_string().contains("would not take it"));
    // Had there been no control plane that knew it, the other would be new to a mesh that knows one already.
    let text = std::fs::read_to_string(state.path().join(super::roots::KEPT)).unwrap();
    assert!(!text.contains("leaves") && text.contains("told"), "{text}");
    stand.server.abort();
}

#[tokio::test]
async fn a_renewal_that_the_server_wants_time_for_is_the_same_request_again() {
    let stand = Stand::new(None).await;
    let settings = stand.with_certificate(Duration::days(8), Duration::hours(20));
    let (est, now) = (stand.est(&settings).await, OffsetDateTime::now_utc());
    let later = Manner { again_after: Some("7200".to_owned()), ..Manner::default() };
    stand.behaves(Manner { life: Duration::days(9), ..later });
    let error = est.renew(now).await.unwrap_err();
    assert!(matches!(error, EstError::Later { .. }), "{error}");
    // The server signs what comes for the second time, byte for byte.
    assert!(est.renew(now).await.unwrap().is_some());
    stand.server.abort();
}

#[test]
fn renewals_are_tried_again_when_the_server_says_or_ever_later_and_urgent_near_the_end() {
    let seconds = std::time::Duration::from_secs;
    let left = |left, life| Some(own::Left { left: Duration::hours(left), life: Duration::hours(life) });
    let later = |after| EstError::Later { url: String::new(), after: seconds(after) };
    let bad = EstError::Answer { url: String::new(), reason: String::new() };
    assert_eq!(own::pause(&later(7200), 9, left(100, 900)), seconds(7200));
    assert_eq!(own::pause(&later(9_999_999), 1, None), seconds(86_400));
    let pauses = [1, 2, 3, 7, 40].map(|failures| own::pause(&bad, failures, left(100, 900)).as_secs());
    assert_eq!(pauses, [60, 120, 240, 3600, 3600]);
    assert_eq!(own::pause(&bad, 40, left(2, 900)), seconds(1800), "sooner near the end");
    assert_eq!(own::pause(&bad, 40, left(-2, 900)), seconds(3600), "and not when it is over");
    let severities = [left(290, 900), left(170, 900), left(80, 900), left(-1, 900), None];
    assert_eq!(
        severities.map(own::severity),
        [Severity::Low, Severity::Medium, Severity::High, Severity::High, Severity::High]
    );
}

#[tokio::test]
async fn a_server_that_wants_time_is_asked_again_and_what_it_says_is_passed_on() {
    let stand = Stand::new(None).await;
    let est = stand.est(&stand.settings).await;
    stand.asked();
    stand.behaves(Manner { again_after: Some("1".to_owned()), ..Manner::default() });
    sign(&est).await.unwrap();
    assert_eq!(stand.asked().len(), 2, "the same request comes again");
    stand.behaves(Manner { again_after: Some("3600".to_owned()), ..Manner::default() });
    let error = sign(&est).await.unwrap_err();
    assert!(error.passes() && error.to_string().contains("in 3600 s"), "{error}");

    let text = |status: u16, kind: &str, body: &str| Manner {
        instead: Some((status, vec![("content-type", kind.to_owned())], body.to_owned())),
        ..Manner::default()
    };
    let mime = "application/pkcs7-mime; smime-type=certs-only";
    for (manner, words, passes) in [
        (
            text(400, "text/plain", "EC keys\r\n\tare not taken\u{7}\n"),
            "400 Bad Request: EC keys are not taken;",
            false,
        ),
        (text(401, "text/plain", "who?"), "--ca-est-user", false),
        (text(404, "text/plain", ""), "no more than that; look at --ca-addr and --ca-est-label", false),
        (text(302, "text/plain", "over there"), "not followed elsewhere", false),
        (text(503, "text/html", &"x".repeat(5000)), "xxx...; what is there stays", true),
        (text(429, "text/plain", "slowly"), "slowly", true),
        (text(200, "text/html", "<p>Sign in"), "of type \"text/html\"", false),
        (text(200, mime, "%%%"), "not in base64", false),
        (text(200, mime, "aGVsbG8="), "not a PKCS#7 message", false),
        (text(204, mime, ""), "204 No Content", false),
    ] {
        stand.behaves(manner);
        let error = sign(&est).await.unwrap_err();
        assert!(error.to_string().contains(words) && error.passes() == passes, "{words:?}: {error}");
        assert!(error.to_string().len() < 700 && !error.to_string().contains(char::is_control), "{error}");
    }
    stand.behaves(Manner::default());
    std::fs::write(&stand.settings.password.as_ref().unwrap().1, "wrong").unwrap();
    let error = sign(&est).await.unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("who are you?"), "{error}");
    std::fs::write(&stand.settings.password.as_ref().unwrap().1, "").unwrap();
    let error = sign(&est).await.unwrap_err();
    assert!(error.passes() && error.to_string().starts_with("--ca-est-password-file "), "{error}");
    let path = stand.files.path().to_str().unwrap();
    assert!(error.to_string().contains(path) && !error.outward().contains(path), "{}", error.outward());
    assert!(error.outward().contains("--ca-est-password-file"), "{}", error.outward());
}

#[test]
fn when_to_ask_again_is_in_seconds_or_a_moment() {
    let now = time::macros::datetime!(2026-11-27 08:00:00 UTC);
    let after = |text: Option<&str>| {
        let mut headers = http::HeaderMap::new();
        if let Some(text) = text {
            headers.insert("retry-after", text.parse().unwrap());
        }
        super::retry_after(&headers, now).as_secs()
    };
    let cases = [
        (Some("120"), 120),
        (Some("0"), 1),
        (Some("Fri, 27 Nov 2026 08:00:30 GMT"), 30),
        (Some("Fri, 27 Nov 2026 07:00:30 GMT"), 1),
        (Some("soon"), 60),
        (None, 60),
    ];
    for (text, seconds) in cases {
        assert_eq!(after(text), seconds, "{text:?}");
    }
}

#[tokio::test]
async fn the_control_planes_own_certificate_is_renewed_in_time_and_kept() {
    let stand = Stand::new(None).await;
    let state = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    // It is not due, and nobody is asked.
    let fresh = stand.est(&stand.with_certificate(Duration::days(5), Duration::days(5))).await;
    stand.asked();
    assert!(fresh.renew(now).await.unwrap().is_none() && stand.asked().is_empty());
    // Two thirds of its life are over.
    let settings = stand.with_certificate(Duration::days(8), Duration::hours(20));
    let est = stand.est(&settings).await;
    est.take_up(state.path());
    stand.asked();
    let old =
        weft_certs::pem::certificates(&std::fs::read(&settings.certificate.as_ref().unwrap().0).unwrap());
    let old = weft_certs::inspect::facts(&old.unwrap()[0]).unwrap();
    stand.behaves(Manner { life: Duration::hours(1), ..Manner::default() });
    let error = est.renew(now).await.unwrap_err().to_string();
    assert!(error.contains("lives no longer"), "{error}");
    stand.behaves(Manner { life: Duration::days(9), ..Manner::default() });
    let new = est.renew(now).await.unwrap().unwrap();
    assert!(new.not_after - now > Duration::days(8) && new.subject == old.subject, "{new:?}");
    let by_old = format!("POST /.well-known/est/simplereenroll by certificate {}", old.serial);
    assert_eq!(stand.asked(), [by_old.clone(), by_old]);
    // From then on the new one is shown, also after a start; and it is not due again.
    let by_new = format!("POST /.well-known/est/simpleenroll by certificate {}", new.serial);
    sign(&est).await.unwrap();
    assert_eq!(stand.asked(), std::slice::from_ref(&by_new));
    assert!(est.renew(now).await.unwrap().is_none());
    let again = Est::new(settings.clone()).unwrap();
    again.take_up(state.path());
    again.roots().await.unwrap();
    stand.asked();
    sign(&again).await.unwrap();
    assert_eq!(stand.asked(), [by_new]);
    // Somebody puts one there that lives longer.
    stand.with_certificate(Duration::days(1), Duration::days(30));
    sign(&again).await.unwrap();
    let asked = stand.asked();
    assert!(!asked[0].contains(&new.serial) && asked[0].contains("by certificate"), "{asked:?}");
    // A key that does not belong to it is said by its name.
    std::fs::write(
        &settings.certificate.as_ref().unwrap().1,
        rcgen::KeyPair::generate().unwrap().serialize_pem(),
    )
    .unwrap();
    let error = sign(&again).await.unwrap_err();
    assert!(error.passes() && error.to_string().contains("do not belong together"), "{error}");
}

async fn open(
    settings: &Settings,
    directory: &std::path::Path,
) -> anyhow::Result<(Arc<CertificateAuthority>, zeroize::Zeroizing<String>)> {
    let domain: TrustDomain = "cluster.local".parse().unwrap();
    let signer = Elsewhere::Est(Est::new(settings.clone())?);
    elsewhere::open(signer, Some(directory), Limits::default(), domain).await
}

#[tokio::test]
async fn a_control_plane_starts_and_proxies_wait_while_the_server_is_away() {
    let (stand, state) = (Stand::new(None).await, tempfile::tempdir().unwrap());
    let settings = stand.with_certificate(Duration::days(1), Duration::days(9));
    let now = OffsetDateTime::now_utc();
    let (first, key) = open(&settings, state.path()).await.unwrap();
    let (served, _) = first.server(&["istiod"], &[], now, Duration::hours(1)).await.unwrap();
    let made = weft_certs::csr::make(&id()).unwrap();
    let chain = first.sign(&made.csr, &id(), 0, now).await.unwrap();
    assert_eq!(chain[2], weft_certs::pem::encode(stand.played.root.der()));

    stand.server.abort();
    let _ = stand.server.await;
    let error = first.sign(&made.csr, &id(), 0, now).await.unwrap_err();
    assert!(error.passes() && error.to_string().contains("this is tried again"), "{error}");
    let (again, same_key) = open(&settings, state.path()).await.unwrap();
    assert_eq!((key, &*again.trust().borrow().roots), (same_key, &*chain[2]));
    let (kept, _) = again.server(&["istiod"], &[], now, Duration::hours(1)).await.unwrap();
    assert_eq!(kept, served);
    // Without what was kept there is nothing to begin with.
    let empty = tempfile::tempdir().unwrap();
    let error = format!("{:#}", open(&settings, empty.path()).await.err().unwrap());
    assert!(error.contains("--ca est") && error.contains("not to be had"), "{error}");

    // It comes back with another intermediate, of the same name, and nobody has to be told.
    let at = settings.address.strip_prefix("https://").unwrap().parse().unwrap();
    let renewed = stand.played.with_another_intermediate();
    let (_, server) = renewed.serve_at(at).await;
    for authority in [&first, &again] {
        let chain = authority.sign(&made.csr, &id(), 0, now).await.unwrap();
        let between = weft_certs::pem::certificates(chain[1].as_bytes()).unwrap();
        assert_eq!(between, [renewed.intermediate.der().clone()]);
    }
    server.abort();
}

#[tokio::test]
async fn settings_that_do_not_say_enough_are_refused_with_what_to_do() {
    let stand = Stand::new(None).await;
    let refused = |change: &dyn Fn(&mut Settings)| {
        let mut settings = stand.settings.clone();
        change(&mut settings);
        format!("{:#}", Est::new(settings).err().unwrap())
    };
    assert!(refused(&|s| s.address = "http://est.example".into()).contains("over TLS alone"));
    assert!(refused(&|s| s.address = "https://a:b@est.example".into()).contains("over TLS alone"));
    assert!(
        refused(&|s| s.address = "https://est.example/.well-known/est".into()).contains("--ca-est-label")
    );
    assert!(refused(&|s| s.label = Some("a/b".into())).contains("--ca-est-label a/b"));
    assert!(refused(&|s| s.label = Some("simpleenroll".into())).contains("no operation's name"));
    assert!(refused(&|s| s.password = None).contains("--ca-est-cert"));
    assert!(
        Est::new(Settings { address: "https://est.example:8443/".into(), ..stand.settings.clone() }).is_ok()
    );
}
