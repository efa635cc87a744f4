//! RequestAuthentication: which tokens a workload knows, and how they are checked (security.istio.io).

use std::time::Duration;

use serde::Deserialize;

use super::gateway_api::TargetRef;
use super::keys::KeySource;
use super::values::{Labels, Timespan, WorkloadSelector};

/// How long a provider's keys are waited for when a rule does not say; Istio's default.
const PATIENCE: Duration = Duration::from_secs(5);

/// The specification of a RequestAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RequestAuthentication {
    /// Workloads to which it applies; absent for the whole namespace, or the mesh in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// One Gateway or Service for whose workloads it is. The old form of `target_refs`.
    pub target_ref: Option<TargetRef>,
    /// Gateways or Services for whose workloads it is, instead of a selector. Resolved when a state is read: empty in a World.
    pub target_refs: Vec<TargetRef>,
    /// The one namespace of its workloads, where a target said so.
    #[serde(skip)]
    pub place: Option<String>,
    /// Whose tokens are known. A token must be good by one of all rules that apply; a request without one passes.
    pub jwt_rules: Vec<JwtRule>,
}

impl RequestAuthentication {
    /// Whether it applies to a workload with these labels, as far as its selector says.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_none_or(|selector| selector.selects(labels))
    }

    /// Whether it applies to a workload of this namespace, which its own or the root namespace's policies are for.
    pub fn applies(&self, namespace: &str, labels: &Labels) -> bool {
        // One with targets that nobody has resolved is for nobody.
        let resolved = self.target_ref.is_none() && self.target_refs.is_empty();
        resolved && self.place.as_deref().is_none_or(|only| only == namespace) && self.selects(labels)
    }
}

/// One issuer's tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct JwtRule {
    /// Its name, exactly as tokens have it (`iss`).
    pub issuer: String,
    /// A token must be for one of these (`aud`); any is good where there are none.
    pub audiences: Vec<String>,
    /// Where the issuer's keys are. Without it and `jwks` the issuer's discovery document says.
    pub jwks_uri: String,
    /// The issuer's keys: a JSON Web Key Set (RFC 7517).
    pub jwks: String,
    /// Headers that carry a token.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that carry a token. Where no place is named, the `authorization` header (`Bearer `) and the
    /// parameter `access_token` may carry it.
    pub from_params: Vec<String>,
    /// Cookies that carry a token.
    pub from_cookies: Vec<String>,
    /// The application gets the payload of a good token in this header, as base64url.
    pub output_payload_to_header: String,
    /// The application gets claims of a good token in these headers.
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// The application gets the token as well.
    pub forward_original_token: bool,
    /// How long the keys are waited for.
    pub timeout: Option<Timespan>,
    /// Claims that are lists, written with spaces between; `scope` and `permission` always are.
    pub space_delimited_claims: Vec<String>,
}

/// A header that carries a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct JwtHeader {
    /// Its name.
    pub name: String,
    /// What stands before the token, the space included.
    pub prefix: String,
}

/// A claim that the application gets in a header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimToHeader {
    /// The header.
    pub header: String,
    /// The claim; dots lead into objects.
    pub claim: String,
}

impl JwtRule {
    /// Where its keys must be fetched from; none if it has them itself.
    pub fn key_source(&self) -> Option<KeySource> {
        match (self.jwks.is_empty(), self.jwks_uri.is_empty()) {
            (false, _) => None,
            (true, false) => Some(KeySource::Url(self.jwks_uri.clone())),
            (true, true) => Some(KeySource::Issuer(self.issuer.clone())),
        }
    }

    /// How long its keys are waited for.
    pub fn patience(&self) -> Duration {
        self.timeout.map_or(PATIENCE, Timespan::get)
    }
}
