//! TLS towards the upstream: `UpstreamTlsContext` compiled, and `connect`.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;
use xds_protos::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::common::{Common, Material, finish};
use super::error::{TlsError, TlsStats};
use super::flight;
use super::san::SanMatcher;
use super::validation::{PeerRole, Validation, ValidationConfig};
use super::verifier::Verifier;
use crate::io::{Io, Origin, Rare, TlsInfo};
use crate::state::error::at;
use crate::state::{CompileContext, ConfigError};

/// The client side of TLS for one cluster (or one transport socket match of it).
#[derive(Debug)]
pub struct UpstreamContext {
    common: Common,
    sni: Option<ServerName<'static>>,
    /// Ask for the host's own name.
    host_sni: bool,
    /// The server's certificate has to carry the name that was asked for, in place of the names that the rules want.
    san_is_sni: bool,
    resumption: bool,
    built: ArcSwapOption<Built>,
    building: Mutex<()>,
}

#[derive(Debug)]
struct Built {
    generation: u64,
    config: Arc<ClientConfig>,
    rules: Option<Arc<Validation>>,
    local_id: Option<Arc<str>>,
    local_certificate: Option<Arc<CertificateDer<'static>>>,
}

/// What differs from one connection of a context to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectOptions<'a> {
    /// The server name to ask for instead of the context's (`auto_sni`).
    pub sni: Option<&'a str>,
    /// The protocols to offer instead of the context's (the filter `istio.alpn`).
    pub alpn: Option<&'a [Vec<u8>]>,
    /// The protocols to offer where neither that nor the context names any: those that the connection is for.
    pub fallback: &'a [&'a [u8]],
    /// A host name that the server's certificate has to carry as well (`auto_san_validation`).
    pub san: Option<&'a str>,
    /// The host's own name, where it has one.
    pub host: Option<&'a str>,
    /// What the connection shows of the downstream's.
    pub origin: Option<&'a Origin>,
}

impl UpstreamContext {
    /// Compiles the message; secrets it names become dependencies of `ctx`.
    pub fn compile(proto: &pb::UpstreamTlsContext, ctx: &CompileContext) -> Result<Self, Vec<ConfigError>> {
        let common_proto = proto.common_tls_context.clone().unwrap_or_default();
        let mut errors = Vec::new();
        let common = Common::compile(&common_proto, PeerRole::Server, ctx)
            .map_err(at("common_tls_context"))
            .map_err(|e| errors.extend(e))
            .ok();
        let sni = if proto.sni.is_empty() {
            None
        } else {
            server_name(&proto.sni).map_err(|e| errors.push(e.at("sni"))).ok()
        };
        if proto.allow_renegotiation {
            errors.push(ConfigError::unsupported(
                "allow_renegotiation",
                "renegotiation (it is not in TLS 1.3)",
            ));
        }
        match common {
            Some(common) if errors.is_empty() => Ok(Self {
                common,
                sni,
                host_sni: proto.auto_host_sni,
                san_is_sni: proto.auto_sni_san_validation,
                resumption: proto.max_session_keys != Some(0),
                built: ArcSwapOption::empty(),
                building: Mutex::new(()),
            }),
            _ => Err(errors),
        }
    }

    /// The name of a secret that handshakes still wait for.
    pub fn missing_secret(&self) -> Option<Arc<str>> {
        self.common.missing()
    }

    /// The protocols this context offers by itself.
    pub fn alpn(&self) -> &[Vec<u8>] {
        &self.common.alpn
    }

    /// Originates TLS on `io`. The caller adds the deadline (`connect_timeout`).
    pub async fn connect(
        &self,
        io: Io,
        options: ConnectOptions<'_>,
        stats: &TlsStats,
    ) -> Result<(Io, TlsInfo), TlsError> {
        let result = self.handshake(io, options).await;
        match &result {
            Ok((_, info)) => stats.succeeded(info),
            Err(e) => stats.failed(e),
        }
        result
    }

    async fn handshake(&self, mut io: Io, options: ConnectOptions<'_>) -> Result<(Io, TlsInfo), TlsError> {
        let built = self.current()?;
        let listens = Rare::UpstreamSession.is_wanted()
            && self.common.params.versions.contains(&&rustls::version::TLS12);
        if listens {
            io.listen_in();
        }
        let asked = options.sni.and_then(|n| server_name(n).ok());
        let hosts = || options.host.filter(|_| self.host_sni).and_then(|n| server_name(n).ok());
        let name = asked.or_else(hosts).or_else(|| self.sni.clone());
        let sni = name.as_ref().map(|n| Arc::<str>::from(n.to_str().as_ref()));
        let mut config = built.config.clone();
        if name.is_none() {
            let mut nameless = (*config).clone();
            nameless.enable_sni = false;
            config = Arc::new(nameless);
        }
        // Without a name the connector still wants one, for its session store's key.
        let name = name.unwrap_or_else(|| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()));
        let connector = TlsConnector::from(config);
        let mut stream = match options.alpn {
            Some(alpn) => connector.with_alpn(alpn.to_vec()).connect(name, io).await,
            None if self.common.alpn.is_empty() && !options.fallback.is_empty() => {
                let alpn = options.fallback.iter().map(|p| p.to_vec()).collect();
                connector.with_alpn(alpn).connect(name, io).await
            }
            None => connector.connect(name, io).await,
        }
        .map_err(TlsError::from_io)?;
        let mut info = finish(stream.get_ref().1, built.rules.as_ref(), built.local_id.clone())?;
        let heard = if listens { stream.get_mut().0.heard() } else { Vec::new() };
        if info.version == "TLSv1.2" {
            // A client that resumes by a ticket makes an id up, which the server says after it: it is none of the session's.
            info.session_id = flight::made(&heard, !info.resumed);
        }
        let same = sni.as_deref().filter(|_| self.san_is_sni);
        if let Some(host) = options.san.or(same) {
            let rules = ValidationConfig::with_san(SanMatcher::host(host));
            Validation::new(rules, PeerRole::Server)
                .verify_peer(&info.peer_chain, UnixTime::now())
                .map_err(|e| TlsError::Refused { reason: e.reason(), text: e.to_string() })?;
        }
        info.sni = sni;
        info.local_certificate = built.local_certificate.clone();
        Ok((Io::tls_client(stream), info))
    }

    fn current(&self) -> Result<Arc<Built>, TlsError> {
        let generation = self.common.generation();
        if let Some(built) = &*self.built.load()
            && built.generation == generation
        {
            return Ok(built.clone());
        }
        let _one_at_a_time = self.building.lock();
        let generation = self.common.generation();
        if let Some(built) = self.built.load_full().filter(|b| b.generation == generation) {
            return Ok(built);
        }
        let built = Arc::new(self.build(generation)?);
        self.built.store(Some(built.clone()));
        Ok(built)
    }

    /// A new configuration has an empty session store: no ticket crosses a change of secrets.
    fn build(&self, generation: u64) -> Result<Built, TlsError> {
        let Material { certificates, rules, local_id, local_certificate } = self.common.material()?;
        let params = &self.common.params;
        // Without rules any server is taken, as in Envoy without a validation context.
        let open = || Arc::new(Validation::new(ValidationConfig::default(), PeerRole::Server));
        let rules = rules.map(|r| if self.san_is_sni { Arc::new(r.without_names()) } else { r });
        let verifier = Verifier::new(rules.clone().unwrap_or_else(open), true);
        let mut config = ClientConfig::builder_with_provider(params.provider.clone())
            .with_protocol_versions(&params.versions)
            .map_err(|e| TlsError::BadSecret(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(FirstFitting(certificates)));
        config.alpn_protocols.clone_from(&self.common.alpn);
        if !self.resumption {
            config.resumption = Resumption::disabled();
        }
        Ok(Built { generation, config: Arc::new(config), rules, local_id, local_certificate })
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, ConfigError> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| ConfigError::new("", format!("{name:?} is not a name that TLS can ask for")))
}

/// Shows our certificate to any server that asks and can verify its key.
#[derive(Debug)]
struct FirstFitting(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for FirstFitting {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|c| c.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}
