//! Signers that believe what a request says of itself (Kubernetes' CSR API, EST): what may be put before them, and what of their
//! answers is taken.

use std::net::IpAddr;

use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use weft_certs::chain::is_root;
use weft_certs::csr::CheckedRequest;
use weft_certs::spiffe::SpiffeId;
use weft_certs::verify::{Bundle, Expected, Usage, ValidationContext, verify_peer};

use super::openbao::Signed;

/// The least that anybody is asked for, in seconds.
pub(super) const SHORTEST: i64 = 600;
/// As far as a signer's clock may be ahead.
const AHEAD: time::Duration = time::Duration::minutes(5);

/// Whether a request names its proven sender, and besides just these DNS names and addresses.
///
/// # Errors
/// It names somebody else: whom, in words.
pub(super) fn names_its_sender(
    request: &CheckedRequest,
    id: &SpiffeId,
    besides: (&[&str], &[IpAddr]),
) -> Result<(), String> {
    let names = request.names();
    let own = names.uris == [id.as_str()] && names.dns == besides.0 && names.addresses == besides.1;
    if own && names.subject.is_empty() && names.others.is_empty() { Ok(()) } else { Err(names.to_string()) }
}

/// The roots among these certificates (PEM), PEM.
///
/// # Errors
/// There is none.
pub(super) fn roots(pem: &[u8]) -> Result<String, String> {
    let all = weft_certs::pem::certificates(pem).map_err(|error| error.to_string())?;
    let roots: String = all.iter().filter(|c| is_root(c)).map(weft_certs::pem::encode).collect();
    if roots.is_empty() {
        return Err("holds no root (a certificate that is its own issuer)".to_owned());
    }
    Ok(roots)
}

/// What a signer gave, leaf first, if the mesh can use it. Whoever renews has one that is taken, and would put another in its place.
///
/// # Errors
/// It cannot; why, in words.
pub(super) fn usable(
    chain: &[CertificateDer<'static>],
    roots: &str,
    request: &CheckedRequest,
    id: &SpiffeId,
    longest: time::Duration,
) -> Result<Signed, String> {
    let leaf = chain.first().ok_or("there is none")?;
    let facts = weft_certs::inspect::facts(leaf).map_err(|error| error.to_string())?;
    if facts.uri_sans != [id.as_str()] {
        return Err(format!("it is for {:?}, and {id} is who asked", facts.uri_sans));
    }
    if facts.is_ca {
        return Err("it may sign others".to_owned());
    }
    weft_certs::issued::answers(leaf, request)?;
    lives_no_longer(facts.not_after, OffsetDateTime::now_utc(), longest)?;
    if !request.is_key_of(leaf) {
        return Err("it is for another key".to_owned());
    }
    let roots = weft_certs::pem::certificates(roots.as_bytes()).map_err(|error| error.to_string())?;
    let bundle = Bundle::new(roots).map_err(|error| error.to_string())?;
    let context = ValidationContext { bundle, expected: Expected::Ids(vec![id.clone()]) };
    for usage in [Usage::Client, Usage::Server] {
        verify_peer(chain, &context, UnixTime::now(), usage).map_err(|error| {
            format!(
                "the mesh would not take it ({error}): are the signer's roots those that are trusted (--ca-trust)?"
            )
        })?;
    }
    let between = chain[1..].iter().filter(|certificate| !is_root(certificate));
    Ok(Signed {
        certificate: weft_certs::pem::encode(leaf),
        intermediates: between.map(weft_certs::pem::encode).collect(),
    })
}

/// How long one may live is at most a wish to a signer, which may give what it likes.
fn lives_no_longer(end: OffsetDateTime, now: OffsetDateTime, longest: time::Duration) -> Result<(), String> {
    // Its clock may be ahead of ours.
    if end - now <= longest.max(time::Duration::seconds(SHORTEST)) + AHEAD {
        return Ok(());
    }
    Err(format!(
        "it lives for {} hours more, and {} are the most (--max-workload-cert-ttl): have the signer give less, or raise the limit",
        (end - now).whole_hours(),
        longest.whole_hours()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_signer_gives_lives_no_longer_than_it_may() {
        let (now, hours) = (OffsetDateTime::now_utc(), time::Duration::hours);
        let given = |life: time::Duration, longest| lives_no_longer(now + life, now, longest);
        given(hours(24), hours(24)).unwrap();
        given(hours(24) + time::Duration::minutes(4), hours(24)).unwrap();
        // Kubernetes' API takes no request for less than ten minutes.
        given(time::Duration::minutes(10), time::Duration::minutes(1)).unwrap();
        let error = given(hours(8760), hours(2160)).unwrap_err();
        assert!(
            error.contains("8760 hours") && error.contains("2160 are the most (--max-workload-cert-ttl)"),
            "{error}"
        );
    }
}
