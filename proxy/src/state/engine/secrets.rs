//! Secrets: from the control plane, from files, and the workload's own identity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use xds_protos::envoy::extensions::transport_sockets::tls::v3::Secret as SecretProto;

use super::{Stored, decode};
use crate::identity::Secret;
use crate::identity::tls::compile_secret;
use crate::identity::workload::WorkloadCertificate;
use crate::state::{CompileContext, ConfigError, SecretSource, SecretTable};

/// The names under which Istio asks for the workload's own certificate and roots.
const IDENTITY: [&str; 2] = ["default", "ROOTCA"];

pub(super) struct Secrets {
    table: Arc<SecretTable>,
    stored: BTreeMap<String, Stored>,
    /// Names to ask the control plane for.
    ads: BTreeSet<String>,
    /// Names whose file is read: path, and when it was last changed.
    files: BTreeMap<String, (String, Option<SystemTime>)>,
}

impl Secrets {
    pub(super) fn new(table: Arc<SecretTable>) -> Self {
        Self { table, stored: BTreeMap::new(), ads: BTreeSet::new(), files: BTreeMap::new() }
    }

    pub(super) fn upsert(&mut self, name: &str, stored: Stored) -> Result<(), Vec<ConfigError>> {
        if self.stored.get(name).is_some_and(|s| s.bytes == stored.bytes) {
            return Ok(());
        }
        let message: SecretProto = decode(&stored.bytes)?;
        let secret = compile_secret(&message)?;
        self.table.slot(name).publish(Arc::new(secret));
        self.stored.insert(name.to_owned(), stored);
        Ok(())
    }

    /// Takes note of where the secrets come from that a resource just named.
    pub(super) fn follow(&mut self, context: &CompileContext) {
        for (name, source) in context.secret_sources() {
            match source {
                SecretSource::Ads => {
                    self.ads.insert(name.to_string());
                }
                SecretSource::File(path) => {
                    self.files.entry(name.to_string()).or_insert((path, None));
                }
                SecretSource::Static | SecretSource::Identity => {}
            }
        }
        self.reread_files();
    }

    /// Reads files of secrets that have changed; says whether one had.
    pub(super) fn reread_files(&mut self) -> bool {
        let mut changed = false;
        let mut read = Vec::new();
        for (name, (path, seen)) in &mut self.files {
            let Ok(modified) = std::fs::metadata(&*path).and_then(|m| m.modified()) else { continue };
            if *seen == Some(modified) {
                continue;
            }
            *seen = Some(modified);
            read.push((name.clone(), path.clone()));
        }
        for (name, path) in read {
            match from_file(&path) {
                Ok(secret) => {
                    self.table.slot(&name).publish(Arc::new(secret));
                    changed = true;
                }
                Err(error) => {
                    tracing::error!(name, path, %error, "secret not taken; the last good one stays")
                }
            }
        }
        changed
    }

    /// The workload's certificate and the roots that it trusts.
    pub(super) fn set_identity(&mut self, certificate: &WorkloadCertificate) {
        let roots = Secret::roots(certificate.bundle().to_vec());
        let own =
            Secret::certificate_pem(certificate.chain_pem().as_bytes(), certificate.key_pem().as_bytes());
        for (name, secret) in IDENTITY.into_iter().zip([own, roots]) {
            match secret {
                Ok(secret) => {
                    self.table.slot(name).publish(Arc::new(secret));
                }
                // What the certificate service sends was checked before; this is for a bug, and keeps the old one.
                Err(error) => tracing::error!(name, %error, "the workload's certificate cannot be used"),
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        // A secret that is withdrawn goes on serving: ending it would end what flows.
        self.stored.remove(name);
    }

    /// Names to ask for.
    pub(super) fn wanted(&self) -> Vec<String> {
        self.ads.iter().cloned().collect()
    }

    pub(super) fn stored(&mut self, name: &str) -> Option<&mut Stored> {
        self.stored.get_mut(name)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.stored.iter().map(|(n, s)| (n.as_str(), s))
    }
}

/// A secret resource in a file, JSON or YAML: a DiscoveryResponse as Envoy reads it, or the secret itself.
fn from_file(path: &str) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let value = xds_protos::json::value_from_yaml_str(&text).map_err(|e| e.to_string())?;
    let resource = match value.get("resources").and_then(|r| r.get(0)) {
        Some(resource) => {
            let mut resource = resource.clone();
            if let Some(object) = resource.as_object_mut() {
                object.remove("@type");
            }
            resource
        }
        None => value,
    };
    let secret: SecretProto = xds_protos::json::from_value(resource).map_err(|e| e.to_string())?;
    compile_secret(&secret).map_err(|e| crate::state::error::join(&e))
}
