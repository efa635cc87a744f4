//! TLS versions, cipher suites and groups: Envoy's `TlsParameters` over what aws-lc-rs has.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion};
use xds_protos::envoy::extensions::transport_sockets::tls::v3 as pb;

use crate::state::ConfigError;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(base_provider()));

/// aws-lc-rs with X25519MLKEM768 and, as in Envoy on a processor with AES instructions, AES-128-GCM preferred.
fn base_provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        let name = format!("{:?}", suite.suite());
        // Versions stay apart: those of TLS 1.3 come first.
        (suite.tls13().is_none(), !name.contains("AES_128_GCM"))
    });
    provider
}

/// The one crypto provider.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// Compiled parameters.
#[derive(Clone, Debug)]
pub struct Params {
    /// Suites and groups.
    pub provider: Arc<CryptoProvider>,
    /// Versions, highest first.
    pub versions: Vec<&'static SupportedProtocolVersion>,
}

impl Default for Params {
    fn default() -> Self {
        Self { provider: provider(), versions: vec![&rustls::version::TLS13, &rustls::version::TLS12] }
    }
}

impl Params {
    /// Compiles `tls_params`. Cipher names that rustls does not have are left out with a note in the log; nothing left is
    /// an error, as are versions below TLS 1.2.
    pub fn compile(proto: Option<&pb::TlsParameters>) -> Result<Self, Vec<ConfigError>> {
        let Some(proto) = proto else { return Ok(Self::default()) };
        let mut errors = Vec::new();
        let versions = versions(proto, &mut errors);
        let mut base = base_provider();
        if !proto.cipher_suites.is_empty() {
            let tls12 = suites(&proto.cipher_suites);
            if tls12.is_empty() {
                errors.push(ConfigError::new(
                    "cipher_suites",
                    format!("names no suite that this proxy has: {}", proto.cipher_suites.join(", ")),
                ));
            }
            let mut kept: Vec<_> =
                base.cipher_suites.iter().copied().filter(|s| s.tls13().is_some()).collect();
            kept.extend(tls12);
            base.cipher_suites = kept;
        }
        if !proto.ecdh_curves.is_empty() {
            let groups: Vec<_> = proto.ecdh_curves.iter().filter_map(|name| group(name)).collect();
            if groups.is_empty() {
                errors.push(ConfigError::new(
                    "ecdh_curves",
                    format!("names no group that this proxy has: {}", proto.ecdh_curves.join(", ")),
                ));
            }
            base.kx_groups = groups;
        }
        if !proto.signature_algorithms.is_empty() {
            errors.push(ConfigError::unsupported("signature_algorithms", "choosing signature algorithms"));
        }
        if !proto.compliance_policies.is_empty() {
            errors.push(ConfigError::unsupported("compliance_policies", "a compliance policy"));
        }
        if errors.is_empty() { Ok(Self { provider: Arc::new(base), versions }) } else { Err(errors) }
    }
}

fn versions(
    proto: &pb::TlsParameters,
    errors: &mut Vec<ConfigError>,
) -> Vec<&'static SupportedProtocolVersion> {
    use pb::tls_parameters::TlsProtocol::{TlSv10, TlSv11, TlSv12, TlSv13, TlsAuto};
    for (field, value) in [
        ("tls_minimum_protocol_version", proto.tls_minimum_protocol_version()),
        ("tls_maximum_protocol_version", proto.tls_maximum_protocol_version()),
    ] {
        if matches!(value, TlSv10 | TlSv11) {
            errors.push(ConfigError::new(field, "TLS below 1.2 is not supported; the least is TLSv1_2"));
        }
    }
    let with_12 = matches!(proto.tls_minimum_protocol_version(), TlsAuto | TlSv12);
    let with_13 = matches!(proto.tls_maximum_protocol_version(), TlsAuto | TlSv13);
    let mut versions = Vec::new();
    if with_13 {
        versions.push(&rustls::version::TLS13);
    }
    if with_12 {
        versions.push(&rustls::version::TLS12);
    }
    if versions.is_empty() && errors.is_empty() {
        errors.push(ConfigError::new("tls_maximum_protocol_version", "is below the minimum version"));
    }
    versions
}

/// OpenSSL's names of the suites of TLS 1.2 that there are.
const TLS12: [(&str, CipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// TLS 1.2 suites by OpenSSL's names; a bracketed group of equal preference is read in its order.
fn suites(names: &[String]) -> Vec<SupportedCipherSuite> {
    let all = aws_lc_rs::ALL_CIPHER_SUITES;
    let mut found = Vec::new();
    for name in names.iter().flat_map(|n| n.trim_matches(['[', ']']).split('|')) {
        let Some((_, suite)) = TLS12.iter().find(|(known, _)| *known == name) else {
            tracing::debug!(cipher = name, "cipher suite is not in this proxy's TLS and is left out");
            continue;
        };
        if let Some(suite) = all.iter().find(|s| s.suite() == *suite)
            && !found.contains(suite)
        {
            found.push(*suite);
        }
    }
    found
}

fn group(name: &str) -> Option<&'static dyn SupportedKxGroup> {
    use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
    match name {
        "X25519" => Some(X25519),
        "P-256" => Some(SECP256R1),
        "P-384" => Some(SECP384R1),
        "X25519MLKEM768" => Some(X25519MLKEM768),
        other => {
            tracing::debug!(group = other, "key exchange group is not in this proxy's TLS and is left out");
            None
        }
    }
}

/// A suite's name as OpenSSL, and so Envoy, has it.
pub fn cipher_name(suite: CipherSuite) -> &'static str {
    if let Some((name, _)) = TLS12.iter().find(|(_, s)| *s == suite) {
        return name;
    }
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}

/// The name of a group that this proxy may negotiate.
pub fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        other => other.as_str().unwrap_or("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_left_out_and_nothing_left_is_refused() {
        let proto = pb::TlsParameters {
            cipher_suites: vec!["AES256-GCM-SHA384".into(), "ECDHE-ECDSA-AES256-GCM-SHA384".into()],
            ..Default::default()
        };
        let params = Params::compile(Some(&proto)).unwrap();
        assert_eq!(params.provider.cipher_suites.iter().filter(|s| s.tls13().is_none()).count(), 1);
        let proto =
            pb::TlsParameters { cipher_suites: vec!["AES256-GCM-SHA384".into()], ..Default::default() };
        let errors = Params::compile(Some(&proto)).unwrap_err();
        assert_eq!(errors[0].path, "cipher_suites");
    }

    #[test]
    fn versions_are_limited() {
        let mut proto = pb::TlsParameters::default();
        proto.set_tls_minimum_protocol_version(pb::tls_parameters::TlsProtocol::TlSv13);
        assert_eq!(Params::compile(Some(&proto)).unwrap().versions, vec![&rustls::version::TLS13]);
        proto.set_tls_minimum_protocol_version(pb::tls_parameters::TlsProtocol::TlSv11);
        assert_eq!(Params::compile(Some(&proto)).unwrap_err()[0].path, "tls_minimum_protocol_version");
    }
}
