//! The keys and certificates of a Kubernetes of our own: the API server's, its administrator's, and the key of service accounts.

use std::net::IpAddr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// What clients need besides the address.
pub struct Certificates {
    authority: String,
    administrator: (String, String),
}

impl Certificates {
    /// Makes all, and writes down what the API server reads.
    pub fn make(directory: &Path, address: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);

        let mut server = CertificateParams::default();
        server.subject_alt_names = vec![
            SanType::IpAddress(address.parse::<IpAddr>().unwrap()),
            SanType::DnsName("kubernetes.default.svc".try_into().unwrap()),
        ];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (certificate, key) = signed(server, "kube-apiserver", "", &issuer);
        let mut client = CertificateParams::default();
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let administrator = signed(client, "administrator", "system:masters", &issuer);
        let accounts = KeyPair::generate().unwrap();
        for (name, text) in [
            ("ca.crt", root.pem()),
            ("server.crt", certificate),
            ("server.key", key),
            ("accounts.key", accounts.serialize_pem()),
            ("accounts.pub", accounts.public_key_pem()),
        ] {
            std::fs::write(directory.join(name), text).unwrap();
        }
        Self { authority: root.pem(), administrator }
    }

    /// Who may do everything.
    pub fn administrator(&self) -> Value {
        let (certificate, key) = &self.administrator;
        json!({"client-certificate-data": STANDARD.encode(certificate), "client-key-data": STANDARD.encode(key)})
    }

    /// The file that clients are told by who they are and where the API server is.
    pub fn kubeconfig(&self, server: &str, user: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": server, "certificate-authority-data": STANDARD.encode(&self.authority)}}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        })
    }
}

fn signed(
    mut params: CertificateParams,
    name: &str,
    group: &str,
    issuer: &Issuer<'static, KeyPair>,
) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    if !group.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}
