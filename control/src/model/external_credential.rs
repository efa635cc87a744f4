//! ExternalCredential: a secret that proxies put into requests to services outside the mesh (weft.dev).

use std::sync::Arc;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::meta::Object;
use super::values::{Labels, WorkloadSelector};
use super::world::World;

/// The specification of an ExternalCredential. It holds for proxies of its namespace, sidecars and gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExternalCredential {
    /// Workloads that have it; absent for all of the namespace.
    pub selector: Option<WorkloadSelector>,
    /// The services to which requests carry it, by their full names.
    pub hosts: Vec<String>,
    /// The field; `authorization` where it is empty.
    pub header: String,
    /// What comes before the secret, such as `Bearer ` with its blank.
    pub header_value_prefix: String,
    /// The credential, where `--credentials` says.
    pub credential_name: String,
    /// Which of its texts.
    pub key: String,
    /// Whether it takes the place of what the request has in the field; it does unless this says false.
    pub overwrite: Option<bool>,
    /// Whether requests go on as long as there is no secret, rather than being answered 401.
    pub allow_request_without_credential: bool,
}

impl Object<ExternalCredential> {
    /// The name of the filter that puts it in.
    pub fn filter(&self) -> String {
        format!("weft.credential.{}.{}", self.meta.namespace, self.meta.name)
    }

    /// The name of its secret.
    pub fn secret(&self) -> String {
        format!("credential://{}/{}", self.spec.credential_name, self.spec.key)
    }
}

impl World {
    /// Those that a proxy has, oldest first.
    pub fn external_credentials_at(
        &self,
        namespace: &str,
        labels: &Labels,
    ) -> impl Iterator<Item = &Arc<Object<ExternalCredential>>> {
        self.external_credentials().iter().filter(move |object| {
            let selects = |selector: &WorkloadSelector| selector.selects(labels);
            object.meta.namespace == namespace && object.spec.selector.as_ref().is_none_or(selects)
        })
    }

    /// The text that one of a namespace means, without the line's end that files have, and a hash of the credential that it is of.
    pub fn external_secret(&self, object: &Object<ExternalCredential>) -> Option<(u64, Zeroizing<String>)> {
        let spec = &object.spec;
        let credential = self.credentials().of(&object.meta.namespace, &spec.credential_name)?;
        let text = credential.values().get(&spec.key)?.trim_end_matches(['\r', '\n']);
        Some((credential.version(), Zeroizing::new(text.to_owned())))
    }
}
