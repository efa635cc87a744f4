//! `envoy.filters.listener.proxy_protocol`: the addresses that a load balancer in front of us says its client has.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::filters::listener::proxy_protocol::v3 as pb;

use super::{Accepted, Refusal};
use crate::io::Ahead;
use crate::io::proxy_header::{Parsed, Tlv, Version, parse};
use crate::state::ConfigError;
use crate::telemetry::registry::{Counter, Group};

/// The compiled filter.
#[derive(Debug)]
pub struct ProxyProtocol {
    /// Go on with a connection that begins without a header.
    optional: bool,
    disallowed: Vec<Version>,
    passed: PassedTlvs,
    stats: Arc<Stats>,
}

/// Which values go on to the upstream.
#[derive(Debug)]
enum PassedTlvs {
    None,
    All,
    Of(Vec<u8>),
}

impl PassedTlvs {
    fn take(&self, tlv: &Tlv) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Of(kinds) => kinds.contains(&tlv.kind),
        }
    }
}

#[derive(Debug)]
struct OfVersion {
    found: Counter,
    disallowed: Counter,
    error: Counter,
}

#[derive(Debug)]
struct Stats {
    _groups: [Arc<Group>; 3],
    not_found_allowed: Counter,
    not_found_disallowed: Counter,
    versions: [OfVersion; 2],
}

/// Filters with the same prefix count together, and go on counting when their listener is replaced.
static STATS: LazyLock<Mutex<HashMap<String, Weak<Stats>>>> = LazyLock::new(Mutex::default);

impl Stats {
    fn of(prefix: &str) -> Arc<Self> {
        let mut all = STATS.lock();
        if let Some(stats) = all.get(prefix).and_then(Weak::upgrade) {
            return stats;
        }
        let dot = if prefix.is_empty() { "" } else { "." };
        let group = |rest: &str| Group::new(format!("proxy_proto{dot}{prefix}{rest}"), Vec::new());
        let version = |group: &Group| OfVersion {
            found: group.counter("found"),
            disallowed: group.counter("disallowed"),
            error: group.counter("error"),
        };
        let groups = [group(""), group(".versions.v1"), group(".versions.v2")];
        let stats = Arc::new(Self {
            not_found_allowed: groups[0].counter("not_found_allowed"),
            not_found_disallowed: groups[0].counter("not_found_disallowed"),
            versions: [version(&groups[1]), version(&groups[2])],
            _groups: groups,
        });
        all.retain(|_, stats| stats.strong_count() > 0);
        all.insert(prefix.to_owned(), Arc::downgrade(&stats));
        stats
    }

    fn version(&self, version: Version) -> &OfVersion {
        &self.versions[usize::from(version == Version::V2)]
    }
}

impl ProxyProtocol {
    /// Compiles the message.
    pub fn compile(proto: &pb::ProxyProtocol) -> Result<Self, ConfigError> {
        use core::proxy_protocol_config::Version as Said;
        let disallowed: Vec<_> = proto
            .disallowed_versions()
            .map(|v| match v {
                Said::V1 => Version::V1,
                Said::V2 => Version::V2,
            })
            .collect();
        if disallowed.contains(&Version::V1) && disallowed.contains(&Version::V2) {
            return Err(ConfigError::new("disallowed_versions", "leave no version of the PROXY protocol"));
        }
        let passed = match &proto.pass_through_tlvs {
            None => PassedTlvs::None,
            Some(pass) => passed(pass).map_err(|e| e.at("pass_through_tlvs"))?,
        };
        Ok(Self {
            optional: proto.allow_requests_without_proxy_protocol,
            disallowed,
            passed,
            stats: Stats::of(&proto.stat_prefix),
        })
    }

    /// Reads the header and takes the connection's addresses from it.
    pub(super) async fn run(&self, connection: &mut Accepted) -> Result<(), Refusal> {
        let mut ahead = Ahead::of(&mut connection.io);
        loop {
            if ahead.more().await? == 0 {
                return Err(Refusal::RemoteClose);
            }
            match parse(ahead.bytes()) {
                Parsed::Incomplete => {}
                Parsed::Absent if self.optional => {
                    self.stats.not_found_allowed.inc();
                    return Ok(());
                }
                Parsed::Absent => {
                    self.stats.not_found_disallowed.inc();
                    return Err(Refusal::Filter);
                }
                Parsed::Bad(version) => {
                    self.stats.version(version).error.inc();
                    return Err(Refusal::Filter);
                }
                Parsed::Found(version, ..) if self.disallowed.contains(&version) => {
                    self.stats.version(version).disallowed.inc();
                    return Err(Refusal::Filter);
                }
                Parsed::Found(version, header, length) => {
                    self.stats.version(version).found.inc();
                    ahead.take(length);
                    if let Some((source, destination)) = header.addresses {
                        connection.remote = source;
                        if destination != connection.local {
                            connection.local = destination;
                            connection.restored = true;
                        }
                    }
                    let tlvs = header.tlvs.into_iter().filter(|t| self.passed.take(t));
                    connection.passed_on.tlvs.extend(tlvs);
                    return Ok(());
                }
            }
        }
    }
}

fn passed(proto: &core::ProxyProtocolPassThroughTlVs) -> Result<PassedTlvs, ConfigError> {
    use core::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType as Match;
    match proto.match_type() {
        Match::IncludeAll => Ok(PassedTlvs::All),
        Match::Include => {
            let kinds = proto.tlv_type.iter().enumerate().map(|(i, kind)| {
                let wrong = |_| ConfigError::new(format!("tlv_type[{i}]"), format!("{kind} is above 255"));
                u8::try_from(*kind).map_err(wrong)
            });
            Ok(PassedTlvs::Of(kinds.collect::<Result<_, _>>()?))
        }
    }
}
