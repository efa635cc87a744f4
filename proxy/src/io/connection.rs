//! What is known of a downstream connection once its filter chain is chosen; shared read-only by all its requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::RoundTrip;
use super::metadata::{FilterState, Notes, Said};
use super::proxy_header::Tlv;

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// The next connection's number, to or from whomever.
pub fn number() -> u64 {
    NUMBERS.fetch_add(1, Relaxed)
}

/// The direction a listener says it has (Envoy's `traffic_direction`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Not said: a gateway, a test.
    #[default]
    Unspecified,
    /// Towards the local workload.
    Inbound,
    /// From the local workload.
    Outbound,
}

/// What the TLS handshake established.
#[derive(Clone, Debug, Default)]
pub struct TlsInfo {
    /// `TLSv1.3`, `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite's name, OpenSSL's.
    pub cipher: &'static str,
    /// The key exchange group, such as `X25519MLKEM768`.
    pub group: &'static str,
    /// The application protocol agreed on by ALPN.
    pub alpn: Option<Vec<u8>>,
    /// The name that the client asked for.
    pub sni: Option<Arc<str>>,
    /// Whether the session was resumed.
    pub resumed: bool,
    /// The peer's verified SPIFFE id.
    pub peer_id: Option<Arc<str>>,
    /// Our own SPIFFE id in this connection.
    pub local_id: Option<Arc<str>>,
    /// A number that the two ends of this session alone know (an exporter of TLS), where both have such an id.
    pub number: Option<u128>,
    /// Our own certificate, where there is one to choose from.
    pub local_certificate: Option<Arc<rustls_pki_types::CertificateDer<'static>>>,
    /// When a client's ClientHello came, and when its handshake was done.
    pub handshake: Option<(Instant, Instant)>,
    /// The session's id, where a format speaks of it and TLS 1.2 has one; else empty.
    pub session_id: Vec<u8>,
    /// The certificate that vouches for the peer's, where a format speaks of it: shown, or one of our own roots.
    pub peer_issuer: Option<rustls_pki_types::CertificateDer<'static>>,
    /// The peer's certificate chain in DER, leaf first; empty when it showed none.
    pub peer_chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    /// All URI SANs of the peer's certificate.
    pub peer_uri_sans: Vec<String>,
    /// All DNS SANs of the peer's certificate.
    pub peer_dns_sans: Vec<String>,
    /// The subject of the peer's certificate as RFC 2253 text; empty where there is none.
    pub peer_subject: String,
}

/// The source that connections to the upstream are to have (`original_src`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamSource {
    /// The downstream's address; its port is 0 where the kernel chooses one.
    pub address: SocketAddr,
    /// The mark of the packets (SO_MARK); 0 is none.
    pub mark: u32,
}

/// What of a downstream connection shapes those to the upstream; connections that differ in it are not shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PassedOn {
    /// Bind to the downstream's address.
    pub source: Option<UpstreamSource>,
    /// Values of the downstream's PROXY protocol header, for the upstream's.
    pub tlvs: Vec<Tlv>,
}

/// What a connection to the upstream shows of the downstream's; those that show different things are not shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// For the upstream's PROXY protocol header: the client's address, and the one that it dialled.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// The rest.
    pub passed_on: PassedOn,
}

impl Origin {
    /// What this downstream shows; none if nothing. `header`: the upstream gets a PROXY protocol header.
    pub fn of(info: &ConnectionInfo, header: bool) -> Option<Self> {
        let passed_on = info.passed_on.as_deref();
        let addresses = header.then_some((info.remote, info.local));
        if addresses.is_none() && passed_on.is_none_or(|p| p.source.is_none()) {
            return None;
        }
        let mut passed_on = passed_on.cloned().unwrap_or_default();
        if !header {
            passed_on.tlvs.clear();
        }
        Some(Self { addresses, passed_on })
    }
}

/// What a TLS client is recognised by, as far as the TLS inspector was asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprints {
    /// By JA3, in hexadecimal digits.
    pub ja3: Option<String>,
    /// By JA4.
    pub ja4: Option<String>,
}

/// A downstream connection's facts.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Unique in this process.
    pub id: u64,
    /// The peer's address, after the PROXY protocol or `original_src` where they apply.
    pub remote: SocketAddr,
    /// The peer's address on the socket itself.
    pub direct_remote: SocketAddr,
    /// The address that the client dialled: the original destination where it was restored, else the socket's own.
    pub local: SocketAddr,
    /// Our address on the socket itself.
    pub direct_local: SocketAddr,
    /// Whether `local` was restored (SO_ORIGINAL_DST, TPROXY, PROXY protocol).
    pub local_restored: bool,
    /// The listener's name.
    pub listener: Arc<str>,
    /// The listener's direction.
    pub direction: Direction,
    /// What configuration says of it, in metadata.
    pub listener_metadata: Option<Arc<Said>>,
    /// The filter chain's name; may be empty.
    pub filter_chain: Arc<str>,
    /// What configuration says of that.
    pub chain_metadata: Option<Arc<Said>>,
    /// The server name seen by TLS or by the TLS inspector.
    pub sni: Option<Arc<str>>,
    /// The transport was terminated TLS.
    pub tls: Option<Arc<TlsInfo>>,
    /// What the TLS inspector recognises the client by.
    pub fingerprints: Option<Arc<Fingerprints>>,
    /// How long its segments take, where a format speaks of it.
    pub round_trip: Option<Arc<RoundTrip>>,
    /// From the connection's begin to the end of its TLS handshake, if there was one.
    pub handshake: Option<Duration>,
    /// Why the transport failed, in words.
    pub failure: Option<Box<str>>,
    /// Where network filters say something of the connection to its access log; none if no filter may.
    pub notes: Option<Arc<Notes>>,
    /// What they say to later filters, HTTP's included.
    pub filter_state: FilterState,
    /// What shapes connections to the upstream, if anything does.
    pub passed_on: Option<Arc<PassedOn>>,
}

impl ConnectionInfo {
    /// A connection of which nothing else is known than its ends.
    pub fn between(remote: SocketAddr, local: SocketAddr) -> Self {
        Self {
            id: 0,
            remote,
            direct_remote: remote,
            local,
            direct_local: local,
            local_restored: false,
            listener: "".into(),
            direction: Direction::default(),
            listener_metadata: None,
            filter_chain: "".into(),
            chain_metadata: None,
            sni: None,
            tls: None,
            fingerprints: None,
            round_trip: None,
            handshake: None,
            failure: None,
            notes: None,
            filter_state: FilterState::default(),
            passed_on: None,
        }
    }

    /// The peer's verified identity, if the connection is mutually authenticated.
    pub fn peer_id(&self) -> Option<&Arc<str>> {
        self.tls.as_ref().and_then(|t| t.peer_id.as_ref())
    }
}
