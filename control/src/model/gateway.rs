//! Gateway: which ports a gateway workload opens, for which hosts, and how it ends TLS (networking.istio.io).

use serde::Deserialize;

use super::values::Labels;

/// The specification of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Gateway {
    /// Workloads that serve it, in any namespace; empty selects every gateway.
    pub selector: Labels,
    /// What they open.
    pub servers: Vec<Server>,
    /// The one namespace of those workloads; for Gateways that were made of the Gateway API's.
    #[serde(skip)]
    pub namespace: Option<String>,
}

/// One open port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Server {
    /// The port.
    pub port: GatewayPort,
    /// Address to bind; empty for any.
    pub bind: String,
    /// `host`, `namespace/host`, `./host` or `*/host`; wildcards allowed.
    pub hosts: Vec<String>,
    /// How TLS ends here.
    pub tls: Option<ServerTls>,
    /// Name for statistics; unique in the mesh if given.
    pub name: String,
}

impl Server {
    /// Whether TLS goes on to the service that its server name says.
    pub fn passes_by_name(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mode == ServerTlsMode::AutoPassthrough)
    }
}

/// A port of a gateway or of a Sidecar's listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayPort {
    /// 1 to 65535.
    pub number: u16,
    /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS, as written.
    pub protocol: String,
    /// Its name.
    pub name: String,
}

impl GatewayPort {
    /// Istio's word for a Sidecar's egress port at which applications send requests as to an HTTP proxy, for any service and
    /// port.
    pub fn is_http_proxy(&self) -> bool {
        self.protocol.eq_ignore_ascii_case("HTTP_PROXY")
    }
}

/// How a server ends TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServerTls {
    /// Redirect plain HTTP to https with 301.
    pub https_redirect: bool,
    /// What is done.
    pub mode: ServerTlsMode,
    /// File with the server's chain.
    pub server_certificate: String,
    /// File with the server's key.
    pub private_key: String,
    /// File with the roots that sign clients.
    pub ca_certificates: String,
    /// Secret with key and chain.
    pub credential_name: String,
    /// Several Secrets with key and chain, such as one of RSA and one of ECDSA. Instead of `credential_name`.
    pub credential_names: Vec<String>,
    /// Secrets of certain namespaces, with key and chain, whichever the proxy's namespace is. Only what was made of the
    /// Gateway API has them, whose ReferenceGrants say who may: instead of `credential_names`.
    #[serde(skip)]
    pub certificates: Vec<(String, String)>,
    /// Secret with the roots that sign clients; goes before those of `credential_name`.
    pub ca_cert_credential_name: String,
    /// Several pairs of files. Instead of `server_certificate` and `private_key`.
    pub tls_certificates: Vec<CertificateFiles>,
    /// File with the client certificates that were revoked.
    pub ca_crl: String,
    /// SHA-256 of client keys (SPKI, base64) of which a client must have one.
    pub verify_certificate_spki: Vec<String>,
    /// SHA-256 of client certificates (hexadecimal) of which a client must have one.
    pub verify_certificate_hash: Vec<String>,
    /// Names of which a client must carry one.
    pub subject_alt_names: Vec<String>,
    /// Lowest TLS version.
    pub min_protocol_version: TlsVersion,
    /// Highest TLS version.
    pub max_protocol_version: TlsVersion,
    /// Ciphers for TLS 1.2; empty for the default set.
    pub cipher_suites: Vec<String>,
}

impl ServerTls {
    /// The Secrets with key and chain, whichever way they are named.
    pub fn credentials(&self) -> impl Iterator<Item = &str> {
        let one = Some(self.credential_name.as_str()).filter(|name| !name.is_empty());
        one.into_iter().chain(self.credential_names.iter().map(String::as_str))
    }

    /// The files with key and chain, whichever way they are named.
    pub fn files(&self) -> Vec<CertificateFiles> {
        let one = CertificateFiles {
            server_certificate: self.server_certificate.clone(),
            private_key: self.private_key.clone(),
            ..CertificateFiles::default()
        };
        let one = Some(one).filter(|files| !files.server_certificate.is_empty());
        one.into_iter().chain(self.tls_certificates.iter().cloned()).collect()
    }
}

/// Files of a key and its chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CertificateFiles {
    /// The chain.
    pub server_certificate: String,
    /// The key.
    pub private_key: String,
    /// Roots that sign clients: not here but in the settings around it.
    pub ca_certificates: String,
}

/// What a server does with TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum ServerTlsMode {
    /// Passes it through by SNI.
    #[default]
    #[serde(rename = "PASSTHROUGH")]
    Passthrough,
    /// Ends it; no client certificate.
    #[serde(rename = "SIMPLE")]
    Simple,
    /// Ends it; a client certificate is required.
    #[serde(rename = "MUTUAL")]
    Mutual,
    /// Passes it through to the service that the SNI names, without a VirtualService.
    #[serde(rename = "AUTO_PASSTHROUGH")]
    AutoPassthrough,
    /// Ends it with the workload's own certificate; a mesh client certificate is required.
    #[serde(rename = "ISTIO_MUTUAL")]
    IstioMutual,
    /// Ends it; a client certificate is verified if there is one.
    #[serde(rename = "OPTIONAL_MUTUAL")]
    OptionalMutual,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum TlsVersion {
    /// The mesh's default.
    #[default]
    #[serde(rename = "TLS_AUTO")]
    Auto,
    /// TLS 1.0; rustls does not speak it.
    #[serde(rename = "TLSV1_0")]
    V1_0,
    /// TLS 1.1; rustls does not speak it.
    #[serde(rename = "TLSV1_1")]
    V1_1,
    /// TLS 1.2.
    #[serde(rename = "TLSV1_2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "TLSV1_3")]
    V1_3,
}
