//! Roots by trust domain: Envoy's SPIFFE certificate validator (`envoy.tls.cert_validator.spiffe`), by which a mesh trusts
//! another one without letting that one's authority name its own workloads.

use prost::Message;
use xds_protos::envoy::config::core::v3::TypedExtensionConfig;
use xds_protos::envoy::extensions::transport_sockets::tls::v3::SpiffeCertValidatorConfig;

use super::data_source;
use super::secret::certificates;
use super::validation::ValidationConfig;
use crate::state::ConfigError;

/// Envoy finds it by this name.
const NAME: &str = "envoy.tls.cert_validator.spiffe";
const TYPE: &str = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// The trust domains of the message, each with its roots.
pub(super) fn domains(config: &TypedExtensionConfig) -> Result<Vec<(String, ValidationConfig)>, ConfigError> {
    if config.name != NAME {
        let name = &config.name;
        return Err(ConfigError::unsupported("name", format_args!("the validator {name:?} (only {NAME})")));
    }
    let any = config.typed_config.as_ref().ok_or_else(|| ConfigError::missing("typed_config"))?;
    if xds_protos::type_url::name(&any.type_url) != TYPE {
        return Err(ConfigError::unsupported("typed_config", format_args!("the type {}", any.type_url)));
    }
    let message = SpiffeCertValidatorConfig::decode(any.value.as_ref())
        .map_err(|e| ConfigError::new("typed_config", format!("cannot be read: {e}")))?;
    let mut domains: Vec<(String, ValidationConfig)> = Vec::new();
    for (i, domain) in message.trust_domains.iter().enumerate() {
        let at = |field: &str| format!("typed_config.trust_domains[{i}].{field}");
        if domains.iter().any(|(name, _)| *name == domain.name) {
            return Err(ConfigError::new(at("name"), format!("{:?} is there twice", domain.name)));
        }
        let source = domain.trust_bundle.as_ref().ok_or_else(|| ConfigError::missing(at("trust_bundle")))?;
        let roots = data_source::read(source)
            .and_then(|pem| certificates(&pem))
            .and_then(ValidationConfig::from_roots)
            .map_err(|e| e.at(at("trust_bundle")))?;
        domains.push((domain.name.clone(), roots));
    }
    if domains.is_empty() {
        return Err(ConfigError::new("typed_config.trust_domains", "names no trust domain"));
    }
    Ok(domains)
}

/// The trust domain of a SPIFFE id.
pub(super) fn trust_domain(uri: &str) -> Option<&str> {
    let rest = uri.strip_prefix("spiffe://")?;
    rest.split('/').next().filter(|domain| !domain.is_empty())
}
