//! TLS towards the downstream: `DownstreamTlsContext` compiled, and `accept`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::{CipherSuite, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio_rustls::LazyConfigAcceptor;
use xds_protos::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::choice::Choice;
use super::common::{Common, Material, finish};
use super::error::{TlsError, TlsStats};
use super::flight;
use super::validation::{PeerRole, Validation, VerifyError};
use super::verifier::Verifier;
use crate::io::{Ahead, Io, Rare, TlsInfo};
use crate::state::error::at;
use crate::state::{CompileContext, ConfigError};

/// The suites by which a client of TLS 1.3 is known.
const TLS13: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// The server side of TLS for one filter chain.
#[derive(Debug)]
pub struct DownstreamContext {
    common: Common,
    require_client_certificate: bool,
    /// Look at all certificates for a client that asks for a name which none carries.
    scan_all: bool,
    resumption: bool,
    built: ArcSwapOption<Built>,
    building: Mutex<()>,
}

/// rustls configurations made from the secrets of one moment.
#[derive(Debug)]
struct Built {
    generation: u64,
    rules_generation: u64,
    /// For clients of TLS 1.3, whose order of ciphers counts.
    newest: Configs,
    /// For those of TLS 1.2, where ours counts.
    older: Configs,
    ticketer: Option<Arc<dyn ProducesTickets>>,
    rules: Option<Arc<Validation>>,
    local_id: Option<Arc<str>>,
    local_certificate: Option<Arc<CertificateDer<'static>>>,
}

#[derive(Debug)]
struct Configs {
    /// Offers our ALPN list; for clients that share a protocol with it.
    with_alpn: Arc<ServerConfig>,
    /// Offers none: rustls ends a handshake without overlap, Envoy goes on without a protocol.
    without_alpn: Arc<ServerConfig>,
}

impl Configs {
    fn new(without_alpn: ServerConfig, alpn: &[Vec<u8>]) -> Self {
        let mut with_alpn = without_alpn.clone();
        with_alpn.alpn_protocols = alpn.to_vec();
        Self { with_alpn: Arc::new(with_alpn), without_alpn: Arc::new(without_alpn) }
    }
}

impl DownstreamContext {
    /// Compiles the message; secrets it names become dependencies of `ctx`.
    pub fn compile(proto: &pb::DownstreamTlsContext, ctx: &CompileContext) -> Result<Self, Vec<ConfigError>> {
        use pb::downstream_tls_context::SessionTicketKeysType as Tickets;
        let common_proto = proto.common_tls_context.clone().unwrap_or_default();
        let mut errors = Vec::new();
        let common = Common::compile(&common_proto, PeerRole::Client, ctx)
            .map_err(at("common_tls_context"))
            .map_err(|e| errors.extend(e))
            .ok();
        let require = proto.require_client_certificate.unwrap_or_default();
        if let Some(common) = &common {
            if !common.has_certificates() {
                errors.push(ConfigError::new(
                    "common_tls_context",
                    "a server needs tls_certificates or tls_certificate_sds_secret_configs",
                ));
            }
            if require && !common.has_rules() {
                errors.push(ConfigError::new(
                    "require_client_certificate",
                    "needs a validation context to check the client's certificate against",
                ));
            }
        }
        let resumption = match &proto.session_ticket_keys_type {
            None => true,
            Some(Tickets::DisableStatelessSessionResumption(off)) => !off,
            Some(Tickets::SessionTicketKeys(_)) => {
                errors.push(ConfigError::unsupported("session_ticket_keys", "choosing ticket keys"));
                true
            }
            Some(Tickets::SessionTicketKeysSdsSecretConfig(_)) => {
                errors.push(ConfigError::unsupported(
                    "session_ticket_keys_sds_secret_config",
                    "choosing ticket keys",
                ));
                true
            }
        };
        for (field, present) in [
            ("require_sni", proto.require_sni.unwrap_or_default()),
            (
                "ocsp_staple_policy",
                proto.ocsp_staple_policy() != pb::downstream_tls_context::OcspStaplePolicy::LenientStapling,
            ),
        ] {
            if present {
                errors.push(ConfigError::unsupported(field, "it"));
            }
        }
        match common {
            Some(common) if errors.is_empty() => Ok(Self {
                common,
                require_client_certificate: require,
                scan_all: proto.full_scan_certs_on_sni_mismatch.unwrap_or_default(),
                resumption,
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

    /// What a handshake with this client would establish, if the roots vouched for its certificate: whose roots they are is
    /// known to a running proxy only.
    ///
    /// # Errors
    /// A certificate is asked for and none is there, or it has none of the names that are asked for.
    pub fn suppose(&self, certificate: Option<&CertificateDer<'static>>) -> Result<TlsInfo, VerifyError> {
        let Some(certificate) = certificate else {
            let none = TlsInfo { version: "TLSv1.3", ..TlsInfo::default() };
            return if self.require_client_certificate { Err(VerifyError::NoCertificate) } else { Ok(none) };
        };
        let peer = self.common.suppose(certificate)?;
        Ok(TlsInfo {
            version: "TLSv1.3",
            peer_id: peer.id,
            peer_chain: vec![certificate.clone()],
            peer_uri_sans: peer.uri_sans,
            peer_dns_sans: peer.dns_sans,
            peer_subject: peer.subject,
            ..TlsInfo::default()
        })
    }

    /// Terminates TLS on `io`. The caller adds the deadline (`transport_socket_connect_timeout`).
    pub async fn accept(&self, io: Io, stats: &TlsStats) -> Result<(Io, TlsInfo), TlsError> {
        let result = self.handshake(io).await;
        match &result {
            Ok((_, info)) => stats.succeeded(info),
            Err(e) => stats.failed(e),
        }
        result
    }

    async fn handshake(&self, mut io: Io) -> Result<(Io, TlsInfo), TlsError> {
        let built = self.current()?;
        let offered = if Rare::DownstreamSession.is_wanted() { offered(&mut io).await } else { None };
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), io)
            .await
            .map_err(TlsError::from_io)?;
        let came = Instant::now();
        let (configs, overlap, sni) = {
            let client = hello.client_hello();
            let newest = self.common.params.versions.contains(&&rustls::version::TLS13)
                && client.cipher_suites().iter().any(|c| TLS13.contains(c));
            let configs = if newest { &built.newest } else { &built.older };
            let ours = &configs.with_alpn.alpn_protocols;
            let overlap = client.alpn().is_some_and(|mut theirs| theirs.any(|p| ours.iter().any(|o| o == p)));
            (configs, overlap, client.server_name().map(Arc::<str>::from))
        };
        let config = if overlap { &configs.with_alpn } else { &configs.without_alpn };
        let stream = hello.into_stream(config.clone()).await.map_err(TlsError::from_io)?;
        let mut info = finish(stream.get_ref().1, built.rules.as_ref(), built.local_id.clone())?;
        info.handshake = Some((came, Instant::now()));
        // A client that resumes nothing gets no id: what is known of its session is in its ticket.
        if let Some(offered) = offered.filter(|_| info.resumed && info.version == "TLSv1.2") {
            info.session_id = offered;
        }
        // Of a session that is resumed Envoy does not know it, either.
        if let Some(rules) = built.rules.as_ref().filter(|_| Rare::Issuer.is_wanted() && !info.resumed) {
            info.peer_issuer = rules.issuer(&info.peer_chain, UnixTime::now());
        }
        info.sni = sni;
        info.local_certificate = built.local_certificate.clone();
        Ok((Io::tls_server(stream), info))
    }

    /// The configurations for the secrets of now; made anew when one changed.
    fn current(&self) -> Result<Arc<Built>, TlsError> {
        let generation = self.common.generation();
        if let Some(built) = &*self.built.load()
            && built.generation == generation
        {
            return Ok(built.clone());
        }
        let _one_at_a_time = self.building.lock();
        let generation = self.common.generation();
        let before = self.built.load_full();
        if let Some(built) = before.as_ref().filter(|b| b.generation == generation) {
            return Ok(built.clone());
        }
        let built = Arc::new(self.build(generation, before.as_deref())?);
        self.built.store(Some(built.clone()));
        Ok(built)
    }

    fn build(&self, generation: u64, before: Option<&Built>) -> Result<Built, TlsError> {
        let rules_generation = self.common.rules_generation();
        let Material { certificates, rules, local_id, local_certificate } = self.common.material()?;
        let params = &self.common.params;
        let bad = |e: rustls::Error| TlsError::BadSecret(e.to_string());
        let builder = ServerConfig::builder_with_provider(params.provider.clone())
            .with_protocol_versions(&params.versions)
            .map_err(bad)?;
        let builder = match &rules {
            Some(rules) => builder
                .with_client_cert_verifier(Verifier::new(rules.clone(), self.require_client_certificate)),
            None => builder.with_client_cert_verifier(WebPkiClientVerifier::no_client_auth()),
        };
        let mut without_alpn = builder.with_cert_resolver(Arc::new(Choice::new(certificates, self.scan_all)));
        // Sessions live in tickets alone, and a ticket is worth nothing once the rules for peers changed: the key that
        // seals it goes with them. A new certificate of our own leaves it.
        without_alpn.session_storage = Arc::new(NoServerSessionStorage {});
        without_alpn.send_tls13_tickets = usize::from(self.resumption);
        let kept = before.filter(|b| b.rules_generation == rules_generation).and_then(|b| b.ticketer.clone());
        let ticketer = match kept {
            Some(ticketer) => Some(ticketer),
            None if self.resumption => Some(Ticketer::new().map_err(bad)?),
            None => None,
        };
        if let Some(ticketer) = &ticketer {
            without_alpn.ticketer = ticketer.clone();
        }
        let mut older = without_alpn.clone();
        older.ignore_client_order = true;
        Ok(Built {
            generation,
            rules_generation,
            newest: Configs::new(without_alpn, &self.common.alpn),
            older: Configs::new(older, &self.common.alpn),
            ticketer,
            rules,
            local_id,
            local_certificate,
        })
    }
}

/// The session that a client wants to resume. What is read of its hello is put back.
async fn offered(io: &mut Io) -> Option<Vec<u8>> {
    let mut ahead = Ahead::of(io);
    loop {
        if let ControlFlow::Break(known) = flight::offered(ahead.bytes()) {
            return known;
        }
        // What is wrong with the stream the handshake will tell.
        if ahead.more().await.is_ok_and(|n| n > 0) {
            continue;
        }
        return None;
    }
}
