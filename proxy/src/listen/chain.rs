//! Which filter chain a connection gets.
//!
//! Envoy's order of precedence (listener_components.proto, FilterChainMatch): destination port, destination address, server
//! name, transport protocol, application protocols, directly connected source address, source type, source address, source
//! port. At each step the most specific value that matches decides, and there is no way back: a connection that matches at one
//! step and finds nothing at the next has no chain.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::watch;

use crate::codec::DrainPhase;
use crate::identity::tls::DownstreamContext;
use crate::io::metadata::Said;
use crate::network::NetworkChain;

/// What the transport is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TransportProtocol {
    /// Anything but TLS, or not looked at.
    #[default]
    RawBuffer,
    /// A TLS ClientHello was seen.
    Tls,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SourceType {
    /// Anywhere.
    #[default]
    Any,
    /// This machine: the loopback, or the address it was dialled by.
    SameIpOrLoopback,
    /// Elsewhere.
    External,
}

/// What is known of a connection when its chain is chosen.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The address it was made to (the original one, where restored).
    pub destination: SocketAddr,
    /// The peer, after the PROXY protocol.
    pub source: SocketAddr,
    /// The peer on the socket.
    pub direct_source: IpAddr,
    /// The TLS inspector's findings.
    pub transport: TransportProtocol,
    /// The server name, lower case.
    pub server_name: Option<&'a str>,
    /// ALPN of the ClientHello, or what the HTTP inspector found.
    pub application_protocols: &'a [Vec<u8>],
}

/// One chain's criteria; an empty one matches anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChainMatch {
    /// Destination port.
    pub destination_port: Option<u16>,
    /// Destination addresses.
    pub prefix_ranges: Vec<IpNet>,
    /// Server names, lower case: exact, or `*.suffix`.
    pub server_names: Vec<String>,
    /// Transport protocol.
    pub transport_protocol: Option<TransportProtocol>,
    /// Application protocols.
    pub application_protocols: Vec<Vec<u8>>,
    /// Directly connected source addresses.
    pub direct_source_prefix_ranges: Vec<IpNet>,
    /// Source type.
    pub source_type: SourceType,
    /// Source addresses.
    pub source_prefix_ranges: Vec<IpNet>,
    /// Source ports.
    pub source_ports: Vec<u16>,
}

/// A filter chain: what a connection goes through.
pub struct FilterChain {
    /// Its name; may be empty.
    pub name: Arc<str>,
    /// What the configuration says of it.
    pub metadata: Option<Arc<Said>>,
    /// The message it was compiled from: chains of equal content are the same chain, and keep their connections when their
    /// listener is updated.
    pub content: Vec<u8>,
    /// When it is chosen.
    pub matches: ChainMatch,
    /// TLS termination.
    pub tls: Option<Arc<DownstreamContext>>,
    /// How long the handshake may take.
    pub handshake_timeout: Option<std::time::Duration>,
    /// Its network filters.
    pub network: Arc<NetworkChain>,
    /// Tells its connections to end.
    pub drain: watch::Sender<DrainPhase>,
}

impl std::fmt::Debug for FilterChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilterChain")
            .field("name", &self.name)
            .field("matches", &self.matches)
            .finish_non_exhaustive()
    }
}

/// How well a criterion matches: nothing asked, or asked and met (more is more specific). `None`: asked and not met.
type Fit = Option<u32>;

fn networks(ranges: &[IpNet], ip: IpAddr) -> Fit {
    if ranges.is_empty() {
        return Some(0);
    }
    let best = ranges.iter().filter(|r| r.contains(&ip)).map(|r| u32::from(r.prefix_len())).max();
    best.map(|length| length + 1)
}

fn names(patterns: &[String], name: Option<&str>) -> Fit {
    if patterns.is_empty() {
        return Some(0);
    }
    let name = name?;
    let fit = |pattern: &String| match pattern.strip_prefix('*') {
        Some(suffix) if name.len() > suffix.len() && name.ends_with(suffix) => Some(suffix.len() as u32),
        Some(_) => None,
        None => (pattern == name).then_some(u32::MAX),
    };
    patterns.iter().filter_map(fit).max()
}

fn asked<T>(wanted: &Option<T>, met: impl FnOnce(&T) -> bool) -> Fit {
    match wanted {
        None => Some(0),
        Some(wanted) => met(wanted).then_some(1),
    }
}

/// The loopback's own address; the others of 127.0.0.0/8 are no loopback to Envoy.
fn is_loopback(ip: IpAddr) -> bool {
    ip == IpAddr::from(Ipv4Addr::LOCALHOST) || ip == IpAddr::from(Ipv6Addr::LOCALHOST)
}

impl ChainMatch {
    const STEPS: [fn(&Self, &Seen<'_>) -> Fit; 9] = [
        |m, s| asked(&m.destination_port, |p| *p == s.destination.port()),
        |m, s| networks(&m.prefix_ranges, s.destination.ip().to_canonical()),
        |m, s| names(&m.server_names, s.server_name),
        |m, s| asked(&m.transport_protocol, |t| *t == s.transport),
        |m, s| match m.application_protocols.is_empty() {
            true => Some(0),
            false => s.application_protocols.iter().any(|p| m.application_protocols.contains(p)).then_some(1),
        },
        |m, s| networks(&m.direct_source_prefix_ranges, s.direct_source.to_canonical()),
        |m, s| {
            let local = s.source.ip() == s.destination.ip() || is_loopback(s.source.ip());
            match m.source_type {
                SourceType::Any => Some(0),
                SourceType::SameIpOrLoopback => local.then_some(1),
                SourceType::External => (!local).then_some(1),
            }
        },
        |m, s| networks(&m.source_prefix_ranges, s.source.ip().to_canonical()),
        |m, s| match m.source_ports.is_empty() {
            true => Some(0),
            false => m.source_ports.contains(&s.source.port()).then_some(1),
        },
    ];
}

/// The chain of `chains` for a connection.
pub fn choose<'a>(chains: &'a [Arc<FilterChain>], seen: &Seen<'_>) -> Option<&'a Arc<FilterChain>> {
    choose_by(chains, |c| &c.matches, seen)
}

fn choose_by<'a, T>(items: &'a [T], matches: impl Fn(&T) -> &ChainMatch, seen: &Seen<'_>) -> Option<&'a T> {
    // One chain without criteria is what most listeners have.
    if let [only] = items
        && *matches(only) == ChainMatch::default()
    {
        return Some(only);
    }
    let mut left: Vec<&T> = items.iter().collect();
    for step in ChainMatch::STEPS {
        let best = left.iter().filter_map(|c| step(matches(c), seen)).max()?;
        left.retain(|c| step(matches(c), seen) == Some(best));
    }
    left.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<'a>(port: u16, name: Option<&'a str>, tls: bool, alpn: &'a [Vec<u8>]) -> Seen<'a> {
        Seen {
            destination: SocketAddr::from(([10, 0, 0, 1], port)),
            source: SocketAddr::from(([10, 0, 0, 9], 4000)),
            direct_source: IpAddr::from([10, 0, 0, 9]),
            transport: if tls { TransportProtocol::Tls } else { TransportProtocol::RawBuffer },
            server_name: name,
            application_protocols: alpn,
        }
    }

    fn pick(chains: &[(&'static str, ChainMatch)], seen: &Seen<'_>) -> Option<&'static str> {
        choose_by(chains, |c| &c.1, seen).map(|c| c.0)
    }

    fn alpn(names: &[&str]) -> Vec<Vec<u8>> {
        names.iter().map(|n| n.as_bytes().to_vec()).collect()
    }

    #[test]
    fn istios_permissive_chains_are_told_apart() {
        let of = |transport, protocols: &[&str]| ChainMatch {
            transport_protocol: Some(transport),
            application_protocols: alpn(protocols),
            ..ChainMatch::default()
        };
        let chains = [
            ("mtls http", of(TransportProtocol::Tls, &["istio-http/1.1", "istio-h2"])),
            ("plain http", of(TransportProtocol::RawBuffer, &["http/1.1", "h2c"])),
            ("mtls tcp", of(TransportProtocol::Tls, &["istio-peer-exchange", "istio"])),
            ("plain tcp", of(TransportProtocol::RawBuffer, &[])),
            ("tls through", of(TransportProtocol::Tls, &[])),
        ];
        assert_eq!(pick(&chains, &seen(80, None, true, &alpn(&["istio-h2", "h2"]))), Some("mtls http"));
        assert_eq!(pick(&chains, &seen(80, None, true, &alpn(&["istio"]))), Some("mtls tcp"));
        assert_eq!(pick(&chains, &seen(80, Some("a"), true, &alpn(&["h2"]))), Some("tls through"));
        assert_eq!(pick(&chains, &seen(80, None, false, &alpn(&["http/1.1"]))), Some("plain http"));
        assert_eq!(pick(&chains, &seen(80, None, false, &[])), Some("plain tcp"));
    }

    #[test]
    fn exact_names_beat_longer_wildcards_and_those_beat_shorter_ones() {
        let of = |name: &str| ChainMatch { server_names: vec![name.to_owned()], ..ChainMatch::default() };
        let chains = [
            ("any", ChainMatch::default()),
            ("short", of("*.com")),
            ("long", of("*.example.com")),
            ("exact", of("a.example.com")),
        ];
        for (name, expected) in [
            (Some("a.example.com"), "exact"),
            (Some("b.a.example.com"), "long"),
            (Some("example.com"), "short"),
            (Some("a.org"), "any"),
            (None, "any"),
        ] {
            assert_eq!(pick(&chains, &seen(443, name, true, &[])), Some(expected), "{name:?}");
        }
    }

    #[test]
    fn there_is_no_way_back_from_a_more_specific_step() {
        let chains = [
            (
                "port",
                ChainMatch {
                    destination_port: Some(80),
                    server_names: vec!["a".to_owned()],
                    ..ChainMatch::default()
                },
            ),
            ("any", ChainMatch::default()),
        ];
        // The port matches the first chain only, whose name then does not: Envoy closes, though a chain for anything is there.
        assert_eq!(pick(&chains, &seen(80, Some("b"), true, &[])), None);
        assert_eq!(pick(&chains, &seen(81, Some("b"), true, &[])), Some("any"));
    }

    #[test]
    fn a_destination_address_beats_the_application_protocol() {
        let chains = [
            (
                "address",
                ChainMatch { prefix_ranges: vec!["10.0.0.0/8".parse().unwrap()], ..ChainMatch::default() },
            ),
            ("protocol", ChainMatch { application_protocols: alpn(&["h2"]), ..ChainMatch::default() }),
        ];
        assert_eq!(pick(&chains, &seen(80, None, true, &alpn(&["h2"]))), Some("address"));
    }
}
