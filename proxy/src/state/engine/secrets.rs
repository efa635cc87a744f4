//! Secrets: from the control plane, from files, and the workload's own identity.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use xds_protos::ResourceType;
use xds_protos::envoy::extensions::transport_sockets::tls::v3::Secret as SecretProto;

use xds_protos::prost::Message;

use super::{Stored, decode};
use crate::identity::Secret;
use crate::identity::tls::compile_secret;
use crate::identity::tls::numbers::Shown;
use crate::identity::workload::WorkloadCertificate;
use crate::state::{CompileContext, ConfigError, SecretSource, SecretTable, Slot};
use crate::xds::Subscriptions;

/// The cluster of the workload's own SDS server, by Istio's name for it.
const SDS: &str = "sds-grpc";

/// The names under which Istio asks for the workload's own certificate and roots.
const IDENTITY: [&str; 2] = ["default", ROOTS];
const ROOTS: &str = "ROOTCA";

pub(super) struct Secrets {
    table: Arc<SecretTable>,
    stored: BTreeMap<String, Stored>,
    /// Names to ask the control plane for.
    ads: BTreeSet<String>,
    /// The SDS servers of the bootstrap by cluster, and the names to ask each for.
    servers: BTreeMap<String, (Subscriptions, BTreeSet<String>)>,
    /// Names whose file is read.
    files: BTreeMap<String, WatchedFile>,
    /// Their numbers.
    shown: BTreeMap<String, Shown>,
}

impl Secrets {
    pub(super) fn new(table: Arc<SecretTable>) -> Self {
        Self {
            table,
            stored: BTreeMap::new(),
            ads: BTreeSet::new(),
            servers: BTreeMap::new(),
            files: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    pub(super) fn upsert(&mut self, name: &str, stored: Stored) -> Result<(), Vec<ConfigError>> {
        if self.stored.get(name).is_some_and(|s| s.bytes == stored.bytes) {
            return Ok(());
        }
        let message: SecretProto = decode(&stored.bytes)?;
        let secret = compile_secret(&message)?;
        self.publish(name, secret);
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
                    self.files.entry(name.to_string()).or_insert_with(|| WatchedFile::new(path.into()));
                }
                SecretSource::Identity => self.ask(SDS, &name),
                SecretSource::Server(cluster) => self.ask(&cluster, &name),
                SecretSource::Static => {}
            }
        }
        self.reread_files();
    }

    /// Asks the SDS server of a cluster from now on; gives what the one who asks it is to ask for.
    pub(super) fn add_server(&mut self, cluster: &str) -> Subscriptions {
        let wanted = Subscriptions::only(ResourceType::Secret);
        self.servers.insert(cluster.to_owned(), (wanted.clone(), BTreeSet::new()));
        wanted
    }

    fn ask(&mut self, cluster: &str, name: &str) {
        // Without such a cluster, the workload's own secrets are what this proxy holds inside.
        let Some((wanted, names)) = self.servers.get_mut(cluster) else { return };
        if names.insert(name.to_owned()) {
            wanted.set(ResourceType::Secret, names.iter().cloned());
        }
    }

    /// Reads files of secrets that have changed, or that name others which have; says whether any had.
    pub(super) fn reread_files(&mut self) -> bool {
        let mut read = Vec::new();
        for (name, file) in &mut self.files {
            if file.prints == file.paths.iter().map(print).collect::<Vec<_>>() || print(&file.path).is_none()
            {
                continue;
            }
            match file.read() {
                Ok(secret) => read.push((name.clone(), secret)),
                Err(error) => {
                    let path = file.path.display();
                    tracing::error!(name, %path, %error, "secret not taken; the last good one stays");
                }
            }
        }
        let changed = !read.is_empty();
        for (name, secret) in read {
            self.publish(&name, secret);
        }
        changed
    }

    fn publish(&mut self, name: &str, secret: Secret) {
        self.shown.entry(name.to_owned()).or_insert_with(|| Shown::new(name)).publish(&secret);
        self.table.slot(name).publish(Arc::new(secret));
    }

    /// Asks the control plane for the roots that workloads trust: they change, and are revoked, between two certificates.
    pub(super) fn follow_roots(&mut self) {
        self.ads.insert(ROOTS.to_owned());
    }

    /// Where those roots are.
    pub(super) fn mesh_roots(&self) -> Arc<Slot<Secret>> {
        self.table.slot(ROOTS)
    }

    /// The workload's certificate and the roots that it trusts, unless the control plane said newer ones.
    pub(super) fn set_identity(&mut self, certificate: &WorkloadCertificate) {
        let roots = Secret::roots(certificate.bundle().to_vec());
        let own =
            Secret::certificate_pem(certificate.chain_pem().as_bytes(), certificate.key_pem().as_bytes());
        for (name, secret) in IDENTITY.into_iter().zip([own, roots]) {
            match secret {
                Ok(_) if name == ROOTS && self.stored.contains_key(ROOTS) => {}
                Ok(secret) => self.publish(name, secret),
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

/// A file that holds a secret resource, and those that it names.
struct WatchedFile {
    path: PathBuf,
    /// All of them.
    paths: Vec<PathBuf>,
    /// What they were like when they were read.
    prints: Vec<Print>,
}

/// What tells that a file is another one, or none if it is not there. A symbolic link counts as what it leads to, so that
/// changing it, as Kubernetes does, is a change.
type Print = Option<(i64, i64, u64, u64)>;

fn print(path: &PathBuf) -> Print {
    let found = std::fs::metadata(path).ok()?;
    Some((found.mtime(), found.mtime_nsec(), found.ino(), found.size()))
}

impl WatchedFile {
    fn new(path: PathBuf) -> Self {
        Self { paths: vec![path.clone()], prints: vec![None], path }
    }

    /// The secret: a DiscoveryResponse as Envoy reads it, or the resource itself, in JSON or YAML.
    fn read(&mut self) -> Result<Secret, String> {
        // What is read is at least as new as what is remembered, so that no change is missed.
        self.prints = self.paths.iter().map(print).collect();
        let text = std::fs::read_to_string(&self.path).map_err(|e| e.to_string())?;
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
        self.paths = vec![self.path.clone()];
        file_names(&resource, &mut self.paths);
        self.prints = self.paths.iter().map(print).collect();
        let secret: SecretProto = xds_protos::json::from_value(resource).map_err(|e| e.to_string())?;
        let bytes = secret.encode_to_vec();
        let secret: SecretProto = decode(&bytes).map_err(|e| crate::state::error::join(&e))?;
        compile_secret(&secret).map_err(|e| crate::state::error::join(&e))
    }
}

/// The files that a resource names.
fn file_names(value: &serde_json::Value, found: &mut Vec<PathBuf>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(path) if key == "filename" => found.push(path.into()),
                    _ => file_names(value, found),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|v| file_names(v, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use weft_certs::authority::{Authority, KeyKind};

    use super::*;

    #[test]
    fn a_secret_follows_the_files_that_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| {
            // As whoever replaces a file does.
            std::fs::write(at("new"), text).unwrap();
            std::fs::rename(at("new"), at(name)).unwrap();
        };
        let root = || {
            let now = time::OffsetDateTime::now_utc();
            Authority::root(KeyKind::P256, now, time::Duration::hours(1))
                .unwrap()
                .certificate_pem()
                .to_owned()
        };
        let (first, second) = (root(), root());
        write("root.pem", &first);
        let resource = serde_json::json!({"resources": [{
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            "name": "roots", "validation_context": {
                "trusted_ca": {"filename": at("root.pem")}, "watched_directory": {"path": dir.path()}}}]});
        write("sds.json", &resource.to_string());

        let table = Arc::new(SecretTable::default());
        let mut secrets = Secrets::new(table.clone());
        secrets.files.insert("roots".to_owned(), WatchedFile::new(at("sds.json")));
        let roots = || table.get("roots").and_then(|s| s.as_validation().map(|v| v.roots.clone()));
        assert!(secrets.reread_files());
        let before = roots().unwrap();
        assert!(!secrets.reread_files(), "nothing changed");
        write("root.pem", "not PEM");
        assert!(!secrets.reread_files());
        assert_eq!(roots().unwrap(), before, "the last good one stays");
        write("root.pem", &second);
        assert!(secrets.reread_files());
        assert_ne!(roots().unwrap(), before);
    }
}
