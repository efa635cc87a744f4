//! Where DNS clusters' hosts come from: the old fields of a cluster, or the cluster type `envoy.clusters.dns`.

use std::time::Duration;

use xds_protos::envoy::config::cluster::v3 as pb;
use xds_protos::envoy::config::cluster::v3::cluster as cl;
use xds_protos::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as TypedFamily;
use xds_protos::envoy::extensions::clusters::dns::v3 as typed;

use super::{Discovery, dns_name, duration, timeout};
use crate::state::ConfigError;

/// When names are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DnsTimes {
    /// The time between two look-ups.
    pub refresh: Duration,
    /// The answer's own time takes its place,
    pub respect_ttl: bool,
    /// if that is not less than this.
    pub least: Duration,
    /// Every time is longer by a random part of this.
    pub jitter: Duration,
    /// After failures the time grows from the first to the second, at random; the usual time if there are none.
    pub failure: Option<(Duration, Duration)>,
}

const REFRESH: Duration = Duration::from_secs(5);

/// STRICT_DNS and LOGICAL_DNS.
#[allow(deprecated, reason = "control planes still send these")]
pub(super) fn legacy(proto: &pb::Cluster, logical: bool) -> Result<Discovery, ConfigError> {
    let failure = proto.dns_failure_refresh_rate.as_ref();
    let times = DnsTimes {
        refresh: timeout(proto.dns_refresh_rate.as_ref(), None).unwrap_or(REFRESH),
        respect_ttl: proto.respect_dns_ttl,
        least: Duration::ZERO,
        jitter: duration(proto.dns_jitter.as_ref(), "dns_jitter")?.unwrap_or_default(),
        failure: failure
            .map(|f| backoff(f.base_interval.as_ref(), f.max_interval.as_ref()))
            .transpose()
            .map_err(|e| e.at("dns_failure_refresh_rate"))?,
    };
    names(proto, logical, times, proto.dns_lookup_family())
}

/// The cluster type.
pub(super) fn extension(
    proto: &pb::Cluster,
    config: &cl::CustomClusterType,
) -> Result<Discovery, ConfigError> {
    let any =
        config.typed_config.as_ref().ok_or_else(|| ConfigError::missing("cluster_type.typed_config"))?;
    if !any.is::<typed::DnsCluster>() {
        return Err(ConfigError::unsupported("cluster_type", format!("the cluster type {}", config.name)));
    }
    let dns: typed::DnsCluster =
        any.unpack().map_err(|e| ConfigError::new("cluster_type.typed_config", e.to_string()))?;
    let of = |e: ConfigError| e.at("cluster_type.typed_config");
    let failure = dns.dns_failure_refresh_rate.as_ref();
    let times = DnsTimes {
        refresh: timeout(dns.dns_refresh_rate.as_ref(), None).unwrap_or(REFRESH),
        respect_ttl: dns.respect_dns_ttl,
        least: duration(dns.dns_min_refresh_rate.as_ref(), "dns_min_refresh_rate")
            .map_err(of)?
            .unwrap_or_default(),
        jitter: duration(dns.dns_jitter.as_ref(), "dns_jitter").map_err(of)?.unwrap_or_default(),
        failure: failure
            .map(|f| backoff(f.base_interval.as_ref(), f.max_interval.as_ref()))
            .transpose()
            .map_err(|e| of(e.at("dns_failure_refresh_rate")))?,
    };
    let family = match dns.dns_lookup_family() {
        TypedFamily::Unspecified | TypedFamily::Auto => cl::DnsLookupFamily::Auto,
        TypedFamily::V4Only => cl::DnsLookupFamily::V4Only,
        TypedFamily::V6Only => cl::DnsLookupFamily::V6Only,
        TypedFamily::V4Preferred => cl::DnsLookupFamily::V4Preferred,
        TypedFamily::All => cl::DnsLookupFamily::All,
    };
    names(proto, dns.all_addresses_in_single_endpoint, times, family)
}

fn backoff(
    base: Option<&prost_types::Duration>,
    max: Option<&prost_types::Duration>,
) -> Result<(Duration, Duration), ConfigError> {
    let base = duration(base, "base_interval")?
        .filter(|d| !d.is_zero())
        .ok_or_else(|| ConfigError::missing("base_interval"))?;
    let max = duration(max, "max_interval")?.unwrap_or(base * 10);
    if max < base {
        return Err(ConfigError::new("max_interval", "must not be less than base_interval"));
    }
    Ok((base, max))
}

fn names(
    proto: &pb::Cluster,
    logical: bool,
    times: DnsTimes,
    family: cl::DnsLookupFamily,
) -> Result<Discovery, ConfigError> {
    let mut names = Vec::new();
    for (i, locality) in proto.load_assignment.iter().flat_map(|a| &a.endpoints).enumerate() {
        for (j, endpoint) in locality.lb_endpoints.iter().enumerate() {
            let path = format!("load_assignment.endpoints[{i}].lb_endpoints[{j}]");
            names.push(dns_name(endpoint).map_err(|e| e.at(path))?);
        }
    }
    // One that resolves each of its names may have none, as in Envoy: it has no endpoints.
    if logical && names.len() != 1 {
        return Err(ConfigError::new("load_assignment", "a logical DNS cluster has one name, as in Envoy"));
    }
    Ok(Discovery::Dns { names, logical, times, family })
}
