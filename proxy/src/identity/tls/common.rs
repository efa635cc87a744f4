//! What both directions share: where certificates and rules come from, and how a finished handshake is read.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls::{ConnectionCommon, HandshakeKind, ProtocolVersion};
use rustls_pki_types::{CertificateDer, UnixTime};
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::error::TlsError;
use super::params::{Params, cipher_name, group_name};
use super::peer::Peer;
use super::validation::{PeerRole, Validation, ValidationConfig, VerifyError};
use super::{Secret, data_source};
use crate::io::TlsInfo;
use crate::state::error::collect;
use crate::state::{CompileContext, ConfigError, SecretSource, Slot};

/// A certificate, inline or by name.
#[derive(Debug)]
enum CertificateSource {
    Inline(Arc<CertifiedKey>),
    Slot(Arc<Slot<Secret>>),
}

/// A compiled `CommonTlsContext`.
#[derive(Debug)]
pub(super) struct Common {
    certificates: Vec<CertificateSource>,
    rules: Option<ValidationConfig>,
    rules_slot: Option<Arc<Slot<Secret>>>,
    pub(super) alpn: Vec<Vec<u8>>,
    pub(super) params: Params,
    role: PeerRole,
}

/// The secrets in force at one moment.
pub(super) struct Material {
    pub(super) certificates: Vec<Arc<CertifiedKey>>,
    pub(super) rules: Option<Arc<Validation>>,
    pub(super) local_id: Option<Arc<str>>,
    /// Where there is but one.
    pub(super) local_certificate: Option<Arc<CertificateDer<'static>>>,
}

impl Common {
    pub(super) fn compile(
        proto: &pb::CommonTlsContext,
        role: PeerRole,
        ctx: &CompileContext,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let params = collect(Params::compile(proto.tls_params.as_ref()), "tls_params", &mut errors);
        let mut certificates = Vec::new();
        for (i, certificate) in proto.tls_certificates.iter().enumerate() {
            match tls_certificate(certificate) {
                Ok(pair) => certificates.push(CertificateSource::Inline(pair)),
                Err(e) => errors.push(e.at(format_args!("tls_certificates[{i}]"))),
            }
        }
        for (i, sds) in proto.tls_certificate_sds_secret_configs.iter().enumerate() {
            match slot(sds, ctx) {
                Ok(slot) => certificates.push(CertificateSource::Slot(slot)),
                Err(e) => errors.push(e.at(format_args!("tls_certificate_sds_secret_configs[{i}]"))),
            }
        }
        let (rules, rules_slot) = rules(proto, ctx, &mut errors);
        for (field, present) in [
            ("custom_handshaker", proto.custom_handshaker.is_some()),
            ("key_log", proto.key_log.is_some()),
            ("custom_tls_certificate_selector", proto.custom_tls_certificate_selector.is_some()),
            ("tls_certificate_provider_instance", proto.tls_certificate_provider_instance.is_some()),
        ] {
            if present {
                errors.push(ConfigError::unsupported(field, "it"));
            }
        }
        match params {
            Some(params) if errors.is_empty() => Ok(Self {
                certificates,
                rules,
                rules_slot,
                alpn: proto.alpn_protocols.iter().map(|p| p.clone().into_bytes()).collect(),
                params,
                role,
            }),
            _ => Err(errors),
        }
    }

    pub(super) fn has_certificates(&self) -> bool {
        !self.certificates.is_empty()
    }

    pub(super) fn has_rules(&self) -> bool {
        self.rules.is_some() || self.rules_slot.is_some()
    }

    fn slots(&self) -> impl Iterator<Item = &Arc<Slot<Secret>>> {
        let certificates = self.certificates.iter().filter_map(|c| match c {
            CertificateSource::Slot(slot) => Some(slot),
            CertificateSource::Inline(_) => None,
        });
        certificates.chain(&self.rules_slot)
    }

    /// A number that moves with every change of a secret this context uses.
    pub(super) fn generation(&self) -> u64 {
        // Each slot's own number only grows, so the sum moves when any of them does.
        self.slots().map(|s| s.generation()).sum()
    }

    /// The same for the rules alone: what resumption tickets hang on.
    pub(super) fn rules_generation(&self) -> u64 {
        self.rules_slot.as_ref().map_or(0, |s| s.generation())
    }

    /// The first secret that has not come, if any.
    pub(super) fn missing(&self) -> Option<Arc<str>> {
        self.slots().find(|s| s.load().is_none()).map(|s| s.name().clone())
    }

    /// Whether a peer has the names that are asked for, whoever vouches for them.
    pub(super) fn suppose(&self, certificate: &CertificateDer<'static>) -> Result<Peer, VerifyError> {
        let names = self.rules.as_ref().map(ValidationConfig::names).unwrap_or_default();
        Validation::new(names, self.role).verify_peer(std::slice::from_ref(certificate), UnixTime::now())
    }

    /// The secrets as they are now.
    pub(super) fn material(&self) -> Result<Material, TlsError> {
        let mut certificates = Vec::new();
        for source in &self.certificates {
            certificates.push(match source {
                CertificateSource::Inline(pair) => pair.clone(),
                CertificateSource::Slot(slot) => {
                    let secret = load(slot)?;
                    secret.as_certificate().cloned().ok_or_else(|| wrong_kind(slot, "a certificate"))?
                }
            });
        }
        let rules = match (&self.rules, &self.rules_slot) {
            (inline, Some(slot)) => {
                let secret = load(slot)?;
                let over = secret.as_validation().ok_or_else(|| wrong_kind(slot, "trusted roots"))?;
                let base = inline.clone().unwrap_or_default();
                Some(base.merged(over))
            }
            (inline, None) => inline.clone(),
        };
        let local_id =
            certificates.first().and_then(|c| c.cert.first()).and_then(Peer::of).and_then(|p| p.id);
        let local_certificate = match &certificates[..] {
            [only] => only.cert.first().cloned().map(Arc::new),
            _ => None,
        };
        let rules = rules.map(|r| Arc::new(Validation::new(r, self.role)));
        Ok(Material { certificates, rules, local_id, local_certificate })
    }
}

fn load(slot: &Arc<Slot<Secret>>) -> Result<Arc<Secret>, TlsError> {
    slot.get().ok_or_else(|| TlsError::SecretMissing(slot.name().clone()))
}

fn wrong_kind(slot: &Slot<Secret>, wanted: &str) -> TlsError {
    TlsError::BadSecret(format!("secret {} does not hold {wanted}", slot.name()))
}

type Rules = (Option<ValidationConfig>, Option<Arc<Slot<Secret>>>);

fn rules(proto: &pb::CommonTlsContext, ctx: &CompileContext, errors: &mut Vec<ConfigError>) -> Rules {
    use pb::common_tls_context::ValidationContextType as Type;
    match &proto.validation_context_type {
        None => (None, None),
        Some(Type::ValidationContext(inline)) => {
            (collect(ValidationConfig::compile(inline), "validation_context", errors), None)
        }
        Some(Type::ValidationContextSdsSecretConfig(sds)) => match slot(sds, ctx) {
            Ok(slot) => (None, Some(slot)),
            Err(e) => {
                errors.push(e.at("validation_context_sds_secret_config"));
                (None, None)
            }
        },
        Some(Type::CombinedValidationContext(both)) => {
            let at = |field| format!("combined_validation_context.{field}");
            let inline = both.default_validation_context.clone().unwrap_or_default();
            let inline =
                collect(ValidationConfig::compile(&inline), at("default_validation_context"), errors);
            let field = "validation_context_sds_secret_config";
            let named = both
                .validation_context_sds_secret_config
                .as_ref()
                .ok_or_else(|| ConfigError::missing(""))
                .and_then(|sds| slot(sds, ctx));
            match named {
                Ok(slot) => (inline, Some(slot)),
                Err(e) => {
                    errors.push(e.at(at(field)));
                    (inline, None)
                }
            }
        }
        Some(
            Type::ValidationContextCertificateProvider(_)
            | Type::ValidationContextCertificateProviderInstance(_),
        ) => {
            errors.push(ConfigError::unsupported(
                "validation_context_certificate_provider",
                "a certificate provider",
            ));
            (None, None)
        }
    }
}

/// The slot of a secret that comes by SDS, or from the bootstrap.
///
/// # Errors
/// It has no name, or a source that this proxy does not ask.
pub fn slot(sds: &pb::SdsSecretConfig, ctx: &CompileContext) -> Result<Arc<Slot<Secret>>, ConfigError> {
    if sds.name.is_empty() {
        return Err(ConfigError::missing("name"));
    }
    let source = match &sds.sds_config {
        None => SecretSource::Static,
        Some(config) => source(config, ctx).map_err(|e| e.at("sds_config"))?,
    };
    Ok(ctx.secret(&sds.name, source))
}

fn source(config: &core::ConfigSource, ctx: &CompileContext) -> Result<SecretSource, ConfigError> {
    use core::config_source::ConfigSourceSpecifier as From;
    match &config.config_source_specifier {
        Some(From::Ads(_)) => Ok(SecretSource::Ads),
        Some(From::ApiConfigSource(api)) => {
            let cluster = api.grpc_services.first().and_then(|s| match &s.target_specifier {
                Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)) => Some(&grpc.cluster_name),
                _ => None,
            });
            match cluster.map(String::as_str) {
                Some("sds-grpc") => Ok(SecretSource::Identity),
                Some(cluster) if ctx.is_sds_server(cluster) => Ok(SecretSource::Server(cluster.to_owned())),
                _ => Err(ConfigError::unsupported(
                    "api_config_source",
                    "an SDS server that is neither a static cluster of the bootstrap nor the ADS stream",
                )),
            }
        }
        Some(From::PathConfigSource(file)) => Ok(SecretSource::File(file.path.clone())),
        _ => Err(ConfigError::unsupported("config_source_specifier", "this source of secrets")),
    }
}

/// The certificate and key of a `TlsCertificate` message; files it names are read now.
pub(super) fn tls_certificate(proto: &pb::TlsCertificate) -> Result<Arc<CertifiedKey>, ConfigError> {
    for (field, present) in [
        ("private_key_provider", proto.private_key_provider.is_some()),
        ("pkcs12", proto.pkcs12.is_some()),
        ("password", proto.password.is_some()),
        ("ocsp_staple", proto.ocsp_staple.is_some()),
        ("signed_certificate_timestamp", !proto.signed_certificate_timestamp.is_empty()),
    ] {
        if present {
            return Err(ConfigError::unsupported(field, "it"));
        }
    }
    let part = |source: &Option<core::DataSource>, field: &'static str| {
        let source = source.as_ref().ok_or_else(|| ConfigError::missing(field))?;
        data_source::read(source).map_err(|e| e.at(field))
    };
    let chain = part(&proto.certificate_chain, "certificate_chain")?;
    let key = part(&proto.private_key, "private_key")?;
    match Secret::certificate_pem(&chain, &key)? {
        Secret::Certificate(pair) => Ok(pair),
        Secret::Validation(_) | Secret::Generic(_) => Err(ConfigError::missing("certificate_chain")),
    }
}

/// Compiles an SDS resource.
pub fn compile_secret(proto: &pb::Secret) -> Result<Secret, Vec<ConfigError>> {
    use pb::secret::Type;
    match &proto.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            tls_certificate(certificate).map(Secret::Certificate).map_err(|e| vec![e.at("tls_certificate")])
        }
        Some(Type::ValidationContext(rules)) => ValidationConfig::compile(rules)
            .map(|r| Secret::Validation(Arc::new(r)))
            .map_err(crate::state::error::at("validation_context")),
        Some(Type::SessionTicketKeys(_)) => {
            Err(ConfigError::unsupported("session_ticket_keys", "a secret of session ticket keys").into())
        }
        Some(Type::GenericSecret(generic)) => match &generic.secret {
            Some(source) => data_source::read(source)
                .map(|bytes| Secret::Generic(bytes.into()))
                .map_err(|e| vec![e.at("generic_secret.secret")]),
            None => Err(ConfigError::missing("generic_secret.secret").into()),
        },
        None => Err(ConfigError::missing("type").into()),
    }
}

/// Reads what a finished handshake established, and checks the peer anew where rustls did not.
pub(super) fn finish<Data>(
    conn: &ConnectionCommon<Data>,
    rules: Option<&Arc<Validation>>,
    local_id: Option<Arc<str>>,
) -> Result<TlsInfo, TlsError> {
    let chain = conn.peer_certificates().unwrap_or_default();
    let resumed = conn.handshake_kind() == Some(HandshakeKind::Resumed);
    let mut peer = Peer::default();
    let mut peer_id = None;
    if let Some(leaf) = chain.first() {
        peer = match rules {
            Some(rules) if resumed => rules
                .verify_peer(chain, UnixTime::now())
                .map_err(|e| TlsError::Refused { reason: e.reason(), text: e.to_string() })?,
            _ => Peer::of(leaf).unwrap_or_default(),
        };
        if rules.is_some_and(|r| r.verifies()) {
            peer_id = peer.id.clone();
        }
    }
    Ok(TlsInfo {
        version: match conn.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "unknown",
        },
        cipher: conn.negotiated_cipher_suite().map_or("unknown", |s| cipher_name(s.suite())),
        group: conn.negotiated_key_exchange_group().map_or("", |g| group_name(g.name())),
        alpn: conn.alpn_protocol().map(<[u8]>::to_vec),
        sni: None,
        resumed,
        number: (peer_id.is_some() && local_id.is_some()).then(|| number(conn)).flatten(),
        peer_id,
        local_id,
        local_certificate: None,
        handshake: None,
        session_id: Vec::new(),
        peer_issuer: None,
        peer_chain: chain.to_vec(),
        peer_uri_sans: peer.uri_sans,
        peer_dns_sans: peer.dns_sans,
        peer_subject: peer.subject,
    })
}

/// What both ends of this session and nobody else can work out (RFC 8446, section 7.5).
fn number<Data>(conn: &ConnectionCommon<Data>) -> Option<u128> {
    conn.export_keying_material([0; 16], b"EXPORTER-weft-peer-metadata", None).ok().map(u128::from_be_bytes)
}
