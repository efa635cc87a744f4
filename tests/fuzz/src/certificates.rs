//! Certificates and certificate requests: only what our root signed names anybody, and only a request whose key is strong and
//! its sender's own is signed, for the caller alone.

use std::sync::OnceLock;
use std::time::Duration as StdDuration;

use rustls_pki_types::{CertificateDer, UnixTime};
use time::{Duration, OffsetDateTime};
use weft_certs::authority::{Authority, KeyKind};
use weft_certs::verify::{Bundle, Expected, Usage, ValidationContext, verify_peer};
use weft_certs::{csr, inspect, pem};
use weft_proxy::identity::tls::Peer;

const ROOT: &[u8] = include_bytes!("../data/root.der");
/// The one workload certificate that this root signed with a SPIFFE id of our domain.
const LEAF: &[u8] = include_bytes!("../data/leaf.der");
/// 2026-01-01.
const NOW: u64 = 1_767_225_600;
const CALLER: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// DER, or PEM, of anybody.
pub fn check(data: &[u8]) {
    certificate(data);
    request(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = csr::check(text);
        for certificate in pem::certificates(data).into_iter().flatten() {
            self::certificate(&certificate);
        }
    }
}

fn certificate(der: &[u8]) {
    static CONTEXT: OnceLock<ValidationContext> = OnceLock::new();
    let context = CONTEXT.get_or_init(|| ValidationContext {
        bundle: Bundle::new(vec![CertificateDer::from_slice(ROOT).into_owned()]).expect("the root is one"),
        expected: Expected::Domains(vec!["cluster.local".parse().expect("a trust domain")]),
    });
    let certificate = CertificateDer::from_slice(der);
    let (peer, facts) = (Peer::of(&certificate), inspect::facts(&certificate));
    if let (Some(peer), Ok(facts)) = (&peer, &facts) {
        assert_eq!(peer.uri_sans, facts.uri_sans, "both readers see the same names");
    }
    for usage in [Usage::Client, Usage::Server] {
        let now = UnixTime::since_unix_epoch(StdDuration::from_secs(NOW));
        let Ok(id) = verify_peer(std::slice::from_ref(&certificate), context, now, usage) else { continue };
        // A signature can be spelt in more ways than one; what it is over cannot.
        assert_eq!(signed(der), signed(LEAF), "nobody is named whom the root did not sign");
        let peer = peer.as_ref().expect("what was verified can be read");
        assert_eq!(peer.uri_sans, [id.as_str()], "who is authenticated is who is authorised");
        assert_eq!(peer.id.as_deref(), Some(id.as_str()));
    }
}

/// The signed part of a certificate: the first element of the outer sequence.
fn signed(der: &[u8]) -> &[u8] {
    let header = |der: &[u8]| match der.get(1) {
        Some(length) if *length < 128 => (2, usize::from(*length)),
        Some(0x81) => (3, der.get(2).copied().map_or(0, usize::from)),
        Some(0x82) => (
            4,
            usize::from(der.get(2).copied().unwrap_or(0)) << 8
                | usize::from(der.get(3).copied().unwrap_or(0)),
        ),
        _ => (0, 0),
    };
    let inner = &der[header(der).0..];
    let (at, length) = header(inner);
    &inner[..at + length]
}

fn request(der: &[u8]) {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    let now = OffsetDateTime::from_unix_timestamp(NOW as i64).expect("a time");
    let Ok(checked) = csr::check(&pem_of(der)) else { return };
    let authority = AUTHORITY.get_or_init(|| {
        Authority::root(KeyKind::P256, now, Duration::days(1)).expect("an authority can be made")
    });
    let caller = CALLER.parse().expect("an id");
    let Ok(leaf) = authority.sign(&checked, &caller, now, Duration::hours(1)) else { return };
    let facts = inspect::facts(&leaf).expect("what we sign can be read");
    assert_eq!(facts.uri_sans, [CALLER], "the name is the caller's, whatever the request says");
    assert!(facts.dns_sans.is_empty() && facts.ip_sans.is_empty() && !facts.is_ca, "{facts:?}");
    let strong = match facts.key.split_once([' ', '-']) {
        Some(("RSA", bits)) => bits.parse::<u32>().is_ok_and(|b| b >= 2048),
        Some(("P", bits)) => matches!(bits, "256" | "384"),
        _ => false,
    };
    assert!(strong, "a weak key was signed: {}", facts.key);
}

fn pem_of(der: &[u8]) -> String {
    const BEGIN: &str = "CERTIFICATE";
    let text = pem::encode(&CertificateDer::from_slice(der));
    text.replace(BEGIN, "CERTIFICATE REQUEST")
}
