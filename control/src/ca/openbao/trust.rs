//! Whom the mesh trusts while OpenBao signs: the roots of all the issuers of the engine, not of the one that signs by default alone.
//! So an issuer that is added is trusted before it signs, and the one before it for as long as it stays in the engine.

use http::Method;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use time::OffsetDateTime;
use weft_certs::chain::is_root;
use weft_certs::csr::CheckedRequest;
use weft_certs::spiffe::SpiffeId;
use weft_certs::verify::{Bundle, Expected, Usage, ValidationContext, VerifyError, verify_peer};

use super::{OpenBao, OpenBaoError};
use crate::ca::roots::{HEARS, Roots};

impl OpenBao {
    /// The roots that were trusted when this was last known (PEM), for a start without OpenBao.
    pub fn take_up_roots(&self, pem: &str) {
        *self.trusted.lock() = Roots::known(pem);
    }

    pub(super) fn knows_no_root(&self) -> bool {
        self.trusted.lock().0.is_empty()
    }

    /// The roots that the engine's issuers lead to, PEM.
    pub async fn roots(&self) -> Result<String, OpenBaoError> {
        let engine = format!("/v1/{}", self.settings.mount);
        let listed = format!("{engine}/issuers?list=true");
        let answer = self.ask(Method::GET, &listed, None).await?;
        let bad = |reason: String| OpenBaoError::Answer { what: listed.clone(), reason };
        let issuers = answer["data"]["keys"].as_array().ok_or_else(|| bad("lists no issuers".to_owned()))?;
        let mut roots = String::new();
        for issuer in issuers.iter().filter_map(Value::as_str) {
            let of = format!("{engine}/issuer/{issuer}/json");
            let answer = self.ask(Method::GET, &of, None).await?;
            let texts = answer["data"]["ca_chain"].as_array().into_iter().flatten();
            for text in texts.chain([&answer["data"]["certificate"]]).filter_map(Value::as_str) {
                let all = weft_certs::pem::certificates(text.as_bytes())
                    .map_err(|error| OpenBaoError::Answer { what: of.clone(), reason: error.to_string() })?;
                for root in all.iter().filter(|c| is_root(c)).map(weft_certs::pem::encode) {
                    // Several issuers lead to one.
                    if !roots.contains(&root) {
                        roots.push_str(&root);
                    }
                }
            }
        }
        if roots.is_empty() {
            return Err(bad(format!(
                "leads to no root; import the root's certificate, without its key (bao write {}/issuers/import/cert pem_bundle=@root.pem)",
                self.settings.mount
            )));
        }
        let mut trusted = self.trusted.lock();
        let change = trusted.hear(&roots, OffsetDateTime::now_utc(), None);
        for root in &change.new {
            tracing::info!(root, "OpenBao's engine leads to a root that is new; the mesh is told of it");
        }
        for root in &change.ended {
            tracing::info!(
                root,
                "no issuer of OpenBao's engine leads to this root any more; it is trusted no more"
            );
        }
        Ok(trusted.trusted())
    }

    /// Whether the mesh takes what OpenBao signed (leaf first) for this request, and has had time to hear of its root. Whoever renews
    /// has one that is taken, and would put another in its place.
    pub(super) fn check(
        &self,
        chain: &[CertificateDer<'static>],
        request: &CheckedRequest,
        id: &SpiffeId,
    ) -> Result<(), OpenBaoError> {
        let role = &self.settings.role;
        let bad = |reason: String| OpenBaoError::Answer {
            what: format!("/v1/{}/sign/{role}", self.settings.mount),
            reason,
        };
        let taken = |roots: String| {
            let roots = weft_certs::pem::certificates(roots.as_bytes()).unwrap_or_default();
            let bundle = Bundle::new(roots).map_err(|error| VerifyError::Malformed(error.to_string()))?;
            let context = ValidationContext { bundle, expected: Expected::Ids(vec![id.clone()]) };
            for usage in [Usage::Client, Usage::Server] {
                verify_peer(chain, &context, UnixTime::now(), usage)?;
            }
            Ok(())
        };
        if !chain.first().is_some_and(|leaf| request.is_key_of(leaf)) {
            return Err(bad("the certificate is for another key".to_owned()));
        }
        let heard = self.trusted.lock().heard_of(OffsetDateTime::now_utc());
        match taken(heard) {
            Ok(()) => Ok(()),
            Err(VerifyError::UnknownCa) => Err(OpenBaoError::Unheard { minutes: HEARS.whole_minutes() }),
            Err(error) => Err(bad(format!(
                "the mesh would not take the certificate ({error}); the role {role} must have server_flag and client_flag"
            ))),
        }
    }
}
