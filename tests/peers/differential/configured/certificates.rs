//! The suite's own certificate authorities and certificates, made at its start: files in the pair's directory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;

use super::spec::Tls;

/// Name, issuer, subject alternative names (`dns:`, `uri:`, `ip:`).
const LEAVES: &[(&str, &str, &[&str])] = &[
    ("server", "ca", &["dns:a.example", "dns:*.wild.example", "uri:spiffe://cluster.local/ns/a/sa/server"]),
    ("server-b", "ca", &["dns:b.example"]),
    ("upstream", "ca", &["dns:up.example", "uri:spiffe://cluster.local/ns/a/sa/upstream", "ip:127.30.2.10"]),
    ("client", "ca", &["uri:spiffe://cluster.local/ns/a/sa/client", "dns:client.example"]),
    ("client-b", "ca", &["uri:spiffe://cluster.local/ns/b/sa/client"]),
    ("client-other", "ca", &["uri:spiffe://other.domain/ns/a/sa/client"]),
    ("client-between", "between", &["uri:spiffe://cluster.local/ns/a/sa/client"]),
    ("revoked", "ca", &["uri:spiffe://cluster.local/ns/a/sa/client"]),
    ("foreign", "foreign-ca", &["uri:spiffe://cluster.local/ns/a/sa/client"]),
];

/// The serial number of the certificate that `ca.crl` revokes.
const REVOKED: u64 = 666;

/// Writes them all: `NAME.pem`, `NAME.key`, and the authorities' `ca.pem`, `foreign-ca.pem`; what `ca` revokes, `ca.crl`; and
/// the secrets that are read by SDS from files.
pub fn write(directory: &Path) {
    let mut authorities = HashMap::new();
    for name in ["ca", "foreign-ca"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        authorities.insert(name, Issuer::new(params, key));
    }
    // One that `ca` vouches for; it is shown with the leaves that it vouches for.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "between");
    let between = params.signed_by(&key, &authorities["ca"]).unwrap().pem();
    authorities.insert("between", Issuer::new(params, key));
    for (name, issuer, sans) in LEAVES {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, *name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = sans
            .iter()
            .map(|san| match san.split_once(':').unwrap() {
                ("dns", n) => SanType::DnsName(n.try_into().unwrap()),
                ("uri", n) => SanType::URI(n.try_into().unwrap()),
                (_, n) => SanType::IpAddress(n.parse().unwrap()),
            })
            .collect();
        if *name == "revoked" {
            params.serial_number = Some(REVOKED.into());
        }
        let certificate = params.signed_by(&key, &authorities[issuer]).unwrap();
        let shown = if *issuer == "between" { certificate.pem() + &between } else { certificate.pem() };
        std::fs::write(directory.join(format!("{name}.pem")), shown).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let now = time::OffsetDateTime::now_utc();
    let list = CertificateRevocationListParams {
        this_update: now - time::Duration::days(1),
        next_update: now + time::Duration::days(1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: REVOKED.into(),
            revocation_time: now - time::Duration::hours(1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    std::fs::write(directory.join("ca.crl"), list.signed_by(&authorities["ca"]).unwrap().pem().unwrap())
        .unwrap();
    let file = |name: &str| json!({ "filename": directory.join(name) });
    let pair = |name: &str| {
        json!({ "tls_certificate": {
            "certificate_chain": file(&format!("{name}.pem")), "private_key": file(&format!("{name}.key"))
        } })
    };
    let authority = json!({ "validation_context": { "trusted_ca": file("ca.pem") } });
    let generic = |text: &str| json!({ "generic_secret": { "secret": { "inline_string": text } } });
    let secrets = [
        ("server", pair("server")),
        ("client", pair("client")),
        ("authority", authority),
        ("token", generic("s3cr3t")),
        ("password", generic("Basic dXNlcjpwYXNz")),
        ("nothing", generic("")),
    ];
    for (name, mut secret) in secrets {
        secret["@type"] = json!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret");
        secret["name"] = json!(name);
        let response = json!({ "version_info": "1", "resources": [secret] });
        // JSON is YAML.
        std::fs::write(directory.join(format!("sds-{name}.yaml")), response.to_string()).unwrap();
    }
}

fn chain(directory: &Path, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificates = CertificateDer::pem_file_iter(directory.join(format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join(format!("{name}.key"))).unwrap();
    (certificates.map(Result::unwrap).collect(), key)
}

/// What a client of the suite connects by. Any certificate of a server is taken: which one it was is compared.
pub fn client(directory: &Path, tls: &Tls) -> (Arc<rustls::ClientConfig>, ServerName<'static>) {
    let mut provider = weft_certs::provider().clone();
    if tls.version.as_deref() == Some("1.2") {
        // A client of those days does not list what it does not know.
        Arc::make_mut(&mut provider).cipher_suites.retain(|suite| suite.tls13().is_none());
    }
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.version.as_deref() {
        Some("1.2") => &[&rustls::version::TLS12],
        Some("1.3") => &[&rustls::version::TLS13],
        _ => rustls::ALL_VERSIONS,
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(weft::demo::check::observe::tls::Anybody));
    let mut config = match &tls.certificate {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let (certificates, key) = chain(directory, name);
            builder.with_client_auth_cert(certificates, key).unwrap()
        }
    };
    config.alpn_protocols = tls.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    config.enable_sni = tls.sni.is_some();
    let name = tls.sni.clone().unwrap_or_else(|| "no-name.example".to_owned());
    (Arc::new(config), ServerName::try_from(name).unwrap())
}

/// What a server of the suite (an upstream) shows: its certificate, and by its mode whether it demands one, and whether it gives
/// tickets of TLS 1.2 instead of keeping sessions.
pub fn server(directory: &Path, mode: &str, alpn: &[&str]) -> Arc<rustls::ServerConfig> {
    let provider = weft_certs::provider().clone();
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if mode == "mutual" {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let (certificates, key) = chain(directory, "upstream");
    let mut config = builder.with_single_cert(certificates, key).unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    if mode == "tickets" {
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    }
    Arc::new(config)
}
