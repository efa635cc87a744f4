//! `envoy.filters.http.credential_injector`: puts a secret into a field of the request, with which the workload behind this
//! proxy proves itself to the service that it calls. The secret comes by SDS, and each request has the newest.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, header};
use xds_protos::envoy::extensions::filters::http::credential_injector::v3 as proto;
use xds_protos::envoy::extensions::http::injected_credentials::generic::v3::Generic;

use super::Verdict;
use crate::codec::Headers;
use crate::identity::Secret;
use crate::identity::tls::secret_slot;
use crate::router::LocalReply;
use crate::state::slot::Slot;
use crate::state::{CompileContext, ConfigError};
use crate::telemetry::registry::{Counter, Group};

/// The filter.
pub struct CredentialInjector {
    header: HeaderName,
    /// What comes before the secret.
    prefix: Box<[u8]>,
    secret: Arc<Slot<Secret>>,
    overwrite: bool,
    /// Requests go on where there is no secret.
    optional: bool,
    _group: Arc<Group>,
    injected: Counter,
    failed: Counter,
    already_exists: Counter,
}

impl CredentialInjector {
    /// Compiles the filter.
    ///
    /// # Errors
    /// Another kind of credential than the generic one, a field that requests cannot have, a secret without a source.
    pub fn compile(
        config: &proto::CredentialInjector,
        stat_prefix: &str,
        context: &CompileContext,
    ) -> Result<Self, ConfigError> {
        let credential = config.credential.as_ref().and_then(|c| c.typed_config.as_ref());
        let credential = credential.ok_or_else(|| ConfigError::missing("credential.typed_config"))?;
        let inside = |e: ConfigError| e.at("credential.typed_config");
        let generic: Generic =
            credential.unpack().map_err(|e| inside(ConfigError::new("", e.to_string())))?;
        let header = match generic.header.as_str() {
            "" => header::AUTHORIZATION,
            name => HeaderName::from_bytes(name.as_bytes())
                .ok()
                .filter(|name| name != header::HOST)
                .ok_or_else(|| inside(ConfigError::unsupported("header", format!("the field {name:?}"))))?,
        };
        let prefix = generic.header_value_prefix.into_bytes();
        HeaderValue::from_bytes(&prefix).map_err(|_| {
            inside(ConfigError::new("header_value_prefix", "has characters that no field has"))
        })?;
        let sds = generic.credential.as_ref().ok_or_else(|| inside(ConfigError::missing("credential")))?;
        let secret = secret_slot(sds, context).map_err(|e| inside(e.at("credential")))?;
        let group = Group::new(format!("http.{stat_prefix}"), Vec::new());
        let counter = |name: &str| group.counter(format!("credential_injector.{name}"));
        Ok(Self {
            header,
            prefix: prefix.into(),
            secret,
            overwrite: config.overwrite,
            optional: config.allow_request_without_credential,
            injected: counter("injected"),
            failed: counter("failed"),
            already_exists: counter("already_exists"),
            _group: group,
        })
    }

    /// Puts it in.
    pub(super) fn request_head(&self, headers: &mut Headers) -> Verdict {
        if !self.overwrite && headers.contains(&self.header) {
            self.already_exists.inc();
            return Verdict::Continue;
        }
        if let Some(value) = self.value() {
            headers.set(self.header.clone(), value);
            self.injected.inc();
            return Verdict::Continue;
        }
        self.failed.inc();
        if self.optional {
            return Verdict::Continue;
        }
        let text = "Failed to inject credential.";
        Verdict::Reply(LocalReply::new(StatusCode::UNAUTHORIZED, text, "failed_to_inject_credential"))
    }

    /// The field's value; none without a secret, or with one that no field can have.
    fn value(&self) -> Option<HeaderValue> {
        let secret = self.secret.load();
        let secret = secret.as_ref()?.as_generic().filter(|secret| !secret.is_empty())?;
        let mut value = if self.prefix.is_empty() {
            HeaderValue::from_maybe_shared(secret.clone())
        } else {
            HeaderValue::from_maybe_shared(bytes::Bytes::from([&*self.prefix, secret].concat()))
        }
        .ok()?;
        // No table of the peer's and no log has it.
        value.set_sensitive(true);
        Some(value)
    }
}
