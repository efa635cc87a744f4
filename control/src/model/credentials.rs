//! Credentials that are kept outside the configuration, in files or OpenBao's KV engine: certificates and keys of gateways,
//! and what proves us to services outside the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::acme::AcmeCertificate;
use super::kubernetes::TlsSecret;
use super::meta::Object;
use super::world::World;

/// Where a credential is looked for: the namespace of the proxies that use it, and its name.
pub type CredentialName = (String, String);

/// A credential: texts by their keys, as a Kubernetes Secret has them. Its `Debug` form hides them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    values: BTreeMap<String, Zeroizing<String>>,
    tls: TlsSecret,
    version: u64,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Credential {
    /// Reads it: `tls.crt` and `tls.key` are a certificate and its key, `ca.crt` (or `cacert`) roots; all PEM.
    ///
    /// # Errors
    /// What is wrong with it, by its key and without its value.
    pub fn new(values: BTreeMap<String, Zeroizing<String>>) -> Result<Self, String> {
        let part = |names: [&str; 2]| -> Vec<u8> {
            let found = names.iter().find_map(|name| values.get(*name));
            found.map_or_else(Vec::new, |text| text.as_bytes().to_vec())
        };
        let tls = TlsSecret {
            certificate_chain: part(["tls.crt", "cert"]),
            private_key: part(["tls.key", "key"]),
            ca_certificates: part(["ca.crt", "cacert"]),
        };
        match (tls.certificate_chain.is_empty(), tls.private_key.is_empty()) {
            (false, false) => {
                // A pair of which one half has been replaced would take a listener down.
                weft_certs::pem::check_pair(&tls.certificate_chain, &tls.private_key)
                    .map_err(|why| format!("tls.crt and tls.key: {why}"))?;
            }
            (true, true) => {}
            (true, false) => return Err("it has tls.key without tls.crt".to_owned()),
            (false, true) => return Err("it has tls.crt without tls.key".to_owned()),
        }
        if !tls.ca_certificates.is_empty() {
            weft_certs::pem::certificates(&tls.ca_certificates).map_err(|why| format!("ca.crt: {why}"))?;
        }
        if values.is_empty() {
            return Err("it is empty".to_owned());
        }
        let mut hasher = DefaultHasher::new();
        values.iter().for_each(|(key, value)| (key, &**value).hash(&mut hasher));
        Ok(Self { values, tls, version: hasher.finish() })
    }

    /// Certificate, key and roots, as far as it has them.
    pub fn tls(&self) -> &TlsSecret {
        &self.tls
    }

    /// Its texts.
    pub fn values(&self) -> &BTreeMap<String, Zeroizing<String>> {
        &self.values
    }

    /// Hash of its content.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// What was last good of the credentials that are kept outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    known: BTreeMap<CredentialName, Arc<Credential>>,
    version: u64,
}

impl Credentials {
    /// What is known.
    pub fn new(known: BTreeMap<CredentialName, Arc<Credential>>) -> Self {
        let mut hasher = DefaultHasher::new();
        known.iter().for_each(|(name, credential)| (name, credential.version()).hash(&mut hasher));
        Self { known, version: hasher.finish() }
    }

    /// The one of this name, for proxies of a namespace.
    pub fn of(&self, namespace: &str, name: &str) -> Option<&Arc<Credential>> {
        self.known.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Hash of everything in it; 0 without any.
    pub fn version(&self) -> u64 {
        self.version
    }
}

impl World {
    /// The certificate, key and roots that proxies of a namespace mean by a name, and a hash of their content: of the Secret in
    /// the configuration, or else what is kept outside.
    pub fn credential(&self, namespace: &str, name: &str) -> Option<(u64, &TlsSecret)> {
        if let Some(secret) = self.secret(namespace, name) {
            return Some((secret.meta.version, &secret.spec));
        }
        let known = self.credentials().of(namespace, name)?;
        Some((known.version(), known.tls()))
    }

    /// What is named and in no Secret of the configuration, nor ordered of an ACME server: by Gateways, for the namespaces of the gateways that they are
    /// for, and by DestinationRules, for those of gateways or of the workloads that they select. And by ExternalCredentials and
    /// TrafficManagements, for their own.
    pub fn wanted_credentials(&self) -> BTreeSet<CredentialName> {
        let mut wanted = BTreeSet::new();
        let mut want = |namespace: &str, name: &str| {
            let acme = |o: &Arc<Object<AcmeCertificate>>| {
                o.meta.namespace == namespace && o.spec.credential_name == name
            };
            let has = || self.secret(namespace, name).is_some() || self.acme_certificates().iter().any(acme);
            if !name.is_empty() && !has() {
                wanted.insert((namespace.to_owned(), name.to_owned()));
            }
        };
        let routers: Vec<_> = self.workloads().iter().filter(|workload| workload.is_gateway()).collect();
        for gateway in self.gateways() {
            let selects =
                |place, labels| self.gateways_for(place, labels).iter().any(|g| Arc::ptr_eq(g, gateway));
            let selected = routers.iter().filter(|r| selects(&r.meta.namespace, r.labels()));
            let mut namespaces: BTreeSet<&str> = selected.map(|r| r.meta.namespace.as_str()).collect();
            if namespaces.is_empty() {
                namespaces.insert(&gateway.meta.namespace);
            }
            for tls in gateway.spec.servers.iter().filter_map(|server| server.tls.as_ref()) {
                for name in tls.credentials().chain([tls.ca_cert_credential_name.as_str()]) {
                    namespaces.iter().for_each(|namespace| want(namespace, name));
                }
                tls.certificates.iter().for_each(|(namespace, name)| want(namespace, name));
            }
        }
        let of_routers: BTreeSet<&str> = routers.iter().map(|r| r.meta.namespace.as_str()).collect();
        for rule in self.destination_rules() {
            let namespaces = match rule.spec.workload_selector {
                Some(_) => [rule.meta.namespace.as_str()].into(),
                None => of_routers.clone(),
            };
            let subsets = rule.spec.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
            for policy in rule.spec.traffic_policy.iter().chain(subsets) {
                let ports = policy.port_level_settings.iter().filter_map(|port| port.tls.as_ref());
                for tls in policy.tls.iter().chain(ports) {
                    namespaces.iter().for_each(|namespace| want(namespace, &tls.credential_name));
                }
            }
        }
        // The configuration's Secrets have certificates alone.
        wanted.extend(
            self.external_credentials()
                .iter()
                .map(|object| (object.meta.namespace.clone(), object.spec.credential_name.clone())),
        );
        let trials = self.traffic_managements().iter();
        wanted.extend(trials.filter_map(|object| {
            let name = &object.spec.canary_deployment.as_ref()?.prometheus.as_ref()?.credential_name;
            (!name.is_empty()).then(|| (object.meta.namespace.clone(), name.clone()))
        }));
        wanted
    }
}
