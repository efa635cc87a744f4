use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use serde_json::{Value, json};

use super::*;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

fn params(name: &str, ca: bool) -> CertificateParams {
    let mut params = CertificateParams::new(vec![format!("{name}.example")]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    if ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    } else {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    }
    params
}

impl Ca {
    fn new(name: &str, by: Option<&Self>) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = params(name, true);
        let certificate = match by {
            Some(ca) => params.signed_by(&key, &ca.issuer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        Self { der: certificate.der().clone(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, serial: u64) -> CertificateDer<'static> {
        let mut params = params("leaf", false);
        params.serial_number = Some(SerialNumber::from(serial));
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
    }

    /// A list that revokes these; one day old, valid for another unless it has `ended`.
    fn crl(&self, revoked: &[u64], ended: bool) -> String {
        let now = time::OffsetDateTime::now_utc();
        let (day, hour) = (time::Duration::days(1), time::Duration::hours(1));
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now - day,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now - day,
            next_update: if ended { now - hour } else { now + day },
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn check(context: Value, chain: &[CertificateDer<'static>]) -> Result<(), &'static str> {
    let proto = xds_protos::json::from_value(context).unwrap();
    let config = ValidationConfig::compile(&proto).unwrap_or_else(|e| panic!("{e:?}"));
    let rules = Validation::new(config, PeerRole::Client);
    rules.verify_peer(chain, UnixTime::now()).map(|_| ()).map_err(|e| e.reason())
}

#[test]
fn a_revoked_leaf_is_refused_and_so_is_one_that_no_list_speaks_for() {
    let root = Ca::new("root", None);
    let context =
        |crl: &str| json!({ "trusted_ca": { "inline_string": root.pem }, "crl": { "inline_string": crl } });
    let one = context(&root.crl(&[7], false));
    assert_eq!(check(one.clone(), &[root.leaf(8)]), Ok(()));
    assert_eq!(check(one, &[root.leaf(7)]), Err("revoked"));
    assert_eq!(check(context(&root.crl(&[], true)), &[root.leaf(8)]), Err("bad_chain"));
    let other = Ca::new("other", None);
    assert_eq!(check(context(&other.crl(&[], false)), &[root.leaf(8)]), Err("bad_chain"));
}

#[test]
fn every_certificate_of_the_chain_is_looked_up_unless_the_leaf_alone_is_asked_for() {
    let root = Ca::new("root", None);
    let middle = Ca::new("middle", Some(&root));
    let chain = [middle.leaf(8), middle.der.clone()];
    let context = |crl: String, leaf_only: bool| {
        json!({ "trusted_ca": { "inline_string": root.pem }, "crl": { "inline_string": crl },
            "only_verify_leaf_cert_crl": leaf_only })
    };
    let both = middle.crl(&[], false) + &root.crl(&[], false);
    assert_eq!(check(context(both, false), &chain), Ok(()));
    let leafs = || middle.crl(&[], false);
    assert_eq!(check(context(leafs(), false), &chain), Err("bad_chain"));
    assert_eq!(check(context(leafs(), true), &chain), Ok(()));
    assert_eq!(check(context(middle.crl(&[8], false), true), &chain), Err("revoked"));
}

#[test]
fn a_pinned_certificate_or_key_passes_and_no_other() {
    let root = Ca::new("root", None);
    let (leaf, other) = (root.leaf(1), root.leaf(2));
    let digest = |bytes: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let hash: Vec<_> = digest(&leaf).as_ref().iter().map(|b| format!("{b:02X}")).collect();
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    let key = base64::engine::general_purpose::STANDARD.encode(digest(parsed.public_key().raw));
    for pins in [
        json!({ "verify_certificate_hash": [hash.join(":")] }),
        json!({ "verify_certificate_hash": ["00".repeat(32), hash.concat().to_lowercase()] }),
        json!({ "verify_certificate_spki": [key] }),
        // One of the two lists is enough.
        json!({ "verify_certificate_hash": ["00".repeat(32)], "verify_certificate_spki": [key] }),
    ] {
        let mut context = pins.clone();
        context["trusted_ca"] = json!({ "inline_string": root.pem });
        for context in [pins, context] {
            assert_eq!(check(context.clone(), std::slice::from_ref(&leaf)), Ok(()), "{context}");
            assert_eq!(
                check(context.clone(), std::slice::from_ref(&other)),
                Err("hash_mismatch"),
                "{context}"
            );
        }
    }
}

#[test]
fn a_chain_may_not_be_deeper_than_it_is_said() {
    let root = Ca::new("root", None);
    let upper = Ca::new("upper", Some(&root));
    let lower = Ca::new("lower", Some(&upper));
    let chain = [lower.leaf(1), lower.der.clone(), upper.der.clone()];
    let context =
        |depth: u32| json!({ "trusted_ca": { "inline_string": root.pem }, "max_verify_depth": depth });
    assert_eq!(check(context(2), &chain), Ok(()));
    assert_eq!(check(context(1), &chain), Err("bad_chain"));
}

#[test]
fn what_cannot_be_used_is_refused_by_its_place() {
    let root = Ca::new("root", None);
    for (context, path) in [
        (json!({ "verify_certificate_hash": ["abc"] }), "verify_certificate_hash[0]"),
        (json!({ "verify_certificate_spki": ["YWJj"] }), "verify_certificate_spki[0]"),
        (json!({ "trusted_ca": { "inline_string": root.pem }, "crl": { "inline_string": "x" } }), "crl"),
        (json!({ "crl": { "inline_string": root.crl(&[], false) } }), "crl"),
    ] {
        let proto = xds_protos::json::from_value(context).unwrap();
        let errors = ValidationConfig::compile(&proto).map(|_| ()).unwrap_err();
        assert_eq!(errors[0].path, path, "{errors:?}");
    }
}

#[test]
fn who_vouches_for_a_peer_is_shown_by_it_or_one_of_the_roots() {
    let root = Ca::new("root", None);
    let (between, other) = (Ca::new("between", Some(&root)), Ca::new("other", None));
    let issuer = |roots: &[&Ca], accept: &str, chain: &[CertificateDer<'static>]| {
        let pem: String = roots.iter().map(|ca| ca.pem.as_str()).collect();
        let context = json!({ "trusted_ca": { "inline_string": pem }, "trust_chain_verification": accept });
        let proto = xds_protos::json::from_value(context).unwrap();
        let config = ValidationConfig::compile(&proto).unwrap_or_else(|e| panic!("{e:?}"));
        Validation::new(config, PeerRole::Client).issuer(chain, UnixTime::now())
    };
    const VERIFY: &str = "VERIFY_TRUST_CHAIN";
    let (near, far) = (root.leaf(1), between.leaf(2));
    assert_eq!(issuer(&[&other, &root], VERIFY, std::slice::from_ref(&near)), Some(root.der.clone()));
    let shown = [far.clone(), other.der.clone(), between.der.clone()];
    assert_eq!(issuer(&[&root], VERIFY, &shown), Some(between.der.clone()), "not the next that was shown");
    assert_eq!(issuer(&[&root, &between], VERIFY, std::slice::from_ref(&far)), Some(between.der.clone()));
    // A chain that does not verify has nobody who vouches for it, also where it is let in.
    assert_eq!(issuer(&[&root], VERIFY, std::slice::from_ref(&far)), None);
    assert_eq!(issuer(&[&other], "ACCEPT_UNTRUSTED", &shown), None);
    assert_eq!(issuer(&[&root], "ACCEPT_UNTRUSTED", &shown), Some(between.der.clone()));
    assert_eq!(issuer(&[&root], VERIFY, &[]), None);
}
