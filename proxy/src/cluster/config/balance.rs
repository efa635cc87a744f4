//! How a cluster chooses hosts: `lb_policy` with its settings, or `load_balancing_policy`, compiled to the same.

use std::time::Duration;

use prost_types::value::Kind;
use xds_protos::envoy::config::cluster::v3 as pb;
use xds_protos::envoy::config::cluster::v3::cluster as cl;
use xds_protos::envoy::config::core::v3::RuntimeDouble;
use xds_protos::envoy::extensions::load_balancing_policies as ext;
use xds_protos::envoy::r#type::v3::Percent;

use super::{Discovery, duration};
use crate::cluster::balance::ramp::{Ramp, Ramps};
use crate::cluster::balance::{Hashing, LeastRequest, Maglev, Policy, RingHash};
use crate::cluster::endpoint::Metadata;
use crate::state::ConfigError;

/// How hosts are chosen, whichever way it was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Balancing {
    /// The policy.
    pub policy: Policy,
    /// Localities have weights.
    pub locality_weighted: bool,
    /// Refuse requests in panic in place of ignoring health.
    pub fail_on_panic: bool,
    /// How new and returning hosts get their share.
    pub ramps: Ramps,
}

impl Balancing {
    fn new(policy: Policy) -> Self {
        Self { policy, locality_weighted: false, fail_on_panic: false, ramps: Ramps::default() }
    }

    fn start(mut self, ramp: Option<Ramp>) -> Self {
        self.ramps.start = ramp;
        self
    }
}

/// Compiles it. What replaces `lb_policy` makes it count for nothing, as in Envoy.
pub(super) fn balancing(
    proto: &pb::Cluster,
    discovery: Option<&Discovery>,
) -> Result<Balancing, Vec<ConfigError>> {
    let mut balancing = match &proto.load_balancing_policy {
        Some(list) => typed(list).map_err(|e| e.at("load_balancing_policy"))?,
        None => legacy(proto)?,
    };
    let original = matches!(discovery, Some(Discovery::OriginalDst));
    if original != (balancing.policy == Policy::OriginalDst) {
        let field = if proto.load_balancing_policy.is_some() { "load_balancing_policy" } else { "lb_policy" };
        let message = "CLUSTER_PROVIDED goes with the type ORIGINAL_DST, and only with it";
        return Err(ConfigError::new(field, message).into());
    }
    balancing.ramps.back = return_ramp(proto)?;
    Ok(balancing)
}

fn legacy(proto: &pb::Cluster) -> Result<Balancing, ConfigError> {
    let kind = cl::LbPolicy::try_from(proto.lb_policy)
        .map_err(|_| ConfigError::new("lb_policy", format!("there is no policy {}", proto.lb_policy)))?;
    let common = proto.common_lb_config.as_ref();
    let hashing = common
        .and_then(|c| c.consistent_hashing_lb_config.as_ref())
        .map(|c| Hashing { use_hostname: c.use_hostname_for_hashing, balance_factor: c.hash_balance_factor });
    let hashing = hashing.unwrap_or_default();
    let mut balancing = match kind {
        cl::LbPolicy::RoundRobin => {
            let slow = match &proto.lb_config {
                Some(cl::LbConfig::RoundRobinLbConfig(c)) => c.slow_start_config.as_ref(),
                _ => None,
            };
            let ramp = slow.map(legacy_slow_start).transpose();
            Balancing::new(Policy::RoundRobin)
                .start(ramp.map_err(|e| e.at("round_robin_lb_config.slow_start_config"))?.flatten())
        }
        cl::LbPolicy::Random => Balancing::new(Policy::Random),
        cl::LbPolicy::LeastRequest => match &proto.lb_config {
            Some(cl::LbConfig::LeastRequestLbConfig(c)) => {
                let parameters = least_request(c.choice_count, c.active_request_bias.as_ref());
                let ramp = c.slow_start_config.as_ref().map(legacy_slow_start).transpose();
                Balancing::new(Policy::LeastRequest(parameters))
                    .start(ramp.map_err(|e| e.at("least_request_lb_config.slow_start_config"))?.flatten())
            }
            _ => Balancing::new(Policy::LeastRequest(LeastRequest::default())),
        },
        cl::LbPolicy::RingHash => {
            let (mut sizes, mut murmur) = ((None, None), false);
            if let Some(cl::LbConfig::RingHashLbConfig(c)) = &proto.lb_config {
                sizes = (c.minimum_ring_size, c.maximum_ring_size);
                murmur = c.hash_function() == cl::ring_hash_lb_config::HashFunction::MurmurHash2;
            }
            let ring = ring_hash(sizes, murmur, hashing).map_err(|e| e.at("ring_hash_lb_config"))?;
            Balancing::new(Policy::RingHash(ring))
        }
        cl::LbPolicy::Maglev => {
            let size = match &proto.lb_config {
                Some(cl::LbConfig::MaglevLbConfig(c)) => c.table_size,
                _ => None,
            };
            let table = maglev(size, hashing).map_err(|e| e.at("maglev_lb_config"))?;
            Balancing::new(Policy::Maglev(table))
        }
        cl::LbPolicy::ClusterProvided => Balancing::new(Policy::OriginalDst),
        cl::LbPolicy::LoadBalancingPolicyConfig => {
            return Err(ConfigError::missing("load_balancing_policy"));
        }
    };
    match common.and_then(|c| c.locality_config_specifier.as_ref()) {
        Some(cl::common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            balancing.locality_weighted = true;
        }
        Some(cl::common_lb_config::LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            balancing.fail_on_panic = zone.fail_traffic_on_panic;
        }
        None => {}
    }
    Ok(balancing)
}

/// The first policy of the list; those after it are for proxies that don't know it.
fn typed(list: &pb::LoadBalancingPolicy) -> Result<Balancing, ConfigError> {
    let config = list.policies.first().and_then(|p| p.typed_extension_config.as_ref());
    let any = config.and_then(|c| c.typed_config.as_ref());
    let path = "policies[0].typed_extension_config";
    let any = any.ok_or_else(|| ConfigError::missing(format!("{path}.typed_config")))?;
    let resolved = xds_protos::typed_struct::resolve(any)
        .map_err(|e| ConfigError::new(format!("{path}.typed_config"), e.to_string()))?;
    one(&resolved).map_err(|e| e.at(format!("{path}.typed_config")))
}

fn one(any: &xds_protos::Any) -> Result<Balancing, ConfigError> {
    fn unpack<T: xds_protos::prost::Message + xds_protos::prost::Name + Default>(
        any: &xds_protos::Any,
    ) -> Result<T, ConfigError> {
        any.unpack().map_err(|e| ConfigError::new("", e.to_string()))
    }
    if any.is::<ext::round_robin::v3::RoundRobin>() {
        let c: ext::round_robin::v3::RoundRobin = unpack(any)?;
        let ramp = slow_start(c.slow_start_config.as_ref())?;
        return located(Balancing::new(Policy::RoundRobin).start(ramp), c.locality_lb_config.as_ref());
    }
    if any.is::<ext::least_request::v3::LeastRequest>() {
        use ext::least_request::v3::least_request::SelectionMethod;
        let c: ext::least_request::v3::LeastRequest = unpack(any)?;
        let mut parameters = least_request(c.choice_count, c.active_request_bias.as_ref());
        #[allow(deprecated, reason = "control planes may still send it")]
        let asked = c.enable_full_scan.unwrap_or(false);
        parameters.full_scan = asked || c.selection_method() == SelectionMethod::FullScan;
        let ramp = slow_start(c.slow_start_config.as_ref())?;
        let balancing = Balancing::new(Policy::LeastRequest(parameters)).start(ramp);
        return located(balancing, c.locality_lb_config.as_ref());
    }
    if any.is::<ext::random::v3::Random>() {
        let c: ext::random::v3::Random = unpack(any)?;
        return located(Balancing::new(Policy::Random), c.locality_lb_config.as_ref());
    }
    if any.is::<ext::ring_hash::v3::RingHash>() {
        let c: ext::ring_hash::v3::RingHash = unpack(any)?;
        #[allow(deprecated, reason = "control planes may still send it")]
        let own = Hashing { use_hostname: c.use_hostname_for_hashing, balance_factor: c.hash_balance_factor };
        let hashing = c.consistent_hashing_lb_config.as_ref().map_or(own, hashing);
        let murmur = c.hash_function() == ext::ring_hash::v3::ring_hash::HashFunction::MurmurHash2;
        let ring = ring_hash((c.minimum_ring_size, c.maximum_ring_size), murmur, hashing)?;
        let mut balancing = Balancing::new(Policy::RingHash(ring));
        balancing.locality_weighted = c.locality_weighted_lb_config.is_some();
        return Ok(balancing);
    }
    if any.is::<ext::maglev::v3::Maglev>() {
        let c: ext::maglev::v3::Maglev = unpack(any)?;
        let hashing = c.consistent_hashing_lb_config.as_ref().map(hashing).unwrap_or_default();
        let mut balancing = Balancing::new(Policy::Maglev(maglev(c.table_size, hashing)?));
        balancing.locality_weighted = c.locality_weighted_lb_config.is_some();
        return Ok(balancing);
    }
    if any.is::<ext::cluster_provided::v3::ClusterProvided>() {
        return Ok(Balancing::new(Policy::OriginalDst));
    }
    if any.is::<ext::wrr_locality::v3::WrrLocality>() {
        let c: ext::wrr_locality::v3::WrrLocality = unpack(any)?;
        let inner = c.endpoint_picking_policy.as_ref();
        let inner = inner.ok_or_else(|| ConfigError::missing("endpoint_picking_policy"))?;
        let mut balancing = typed(inner).map_err(|e| e.at("endpoint_picking_policy"))?;
        balancing.locality_weighted = true;
        return Ok(balancing);
    }
    Err(ConfigError::unsupported("", format!("the policy {}", any.type_name())))
}

fn located(
    mut balancing: Balancing,
    config: Option<&ext::common::v3::LocalityLbConfig>,
) -> Result<Balancing, ConfigError> {
    use ext::common::v3::locality_lb_config::LocalityConfigSpecifier as L;
    match config.map(|c| &c.locality_config_specifier) {
        None => {}
        Some(Some(L::LocalityWeightedLbConfig(_))) => balancing.locality_weighted = true,
        Some(Some(L::ZoneAwareLbConfig(zone))) => balancing.fail_on_panic = zone.fail_traffic_on_panic,
        Some(None) => {
            return Err(ConfigError::new(
                "locality_lb_config",
                "needs zone_aware_lb_config or locality_weighted_lb_config",
            ));
        }
    }
    Ok(balancing)
}

fn hashing(config: &ext::common::v3::ConsistentHashingLbConfig) -> Hashing {
    Hashing { use_hostname: config.use_hostname_for_hashing, balance_factor: config.hash_balance_factor }
}

fn least_request(choices: Option<u32>, bias: Option<&RuntimeDouble>) -> LeastRequest {
    // Envoy takes a negative bias for its default.
    let bias = bias.map_or(1.0, |b| if b.default_value >= 0.0 { b.default_value } else { 1.0 });
    LeastRequest { choices: choices.unwrap_or(2).max(2), full_scan: false, bias }
}

fn ring_hash(
    (minimum, maximum): (Option<u64>, Option<u64>),
    murmur: bool,
    hashing: Hashing,
) -> Result<RingHash, ConfigError> {
    let (minimum_size, maximum_size) = (minimum.unwrap_or(1024), maximum.unwrap_or(8 * 1024 * 1024));
    if minimum_size > maximum_size {
        return Err(ConfigError::new("", "minimum_ring_size is more than maximum_ring_size"));
    }
    Ok(RingHash { minimum_size, maximum_size, murmur, hashing })
}

fn maglev(size: Option<u64>, hashing: Hashing) -> Result<Maglev, ConfigError> {
    let table_size = size.unwrap_or(65_537);
    let is_prime = table_size > 1
        && (2..).take_while(|d: &u64| d * d <= table_size).all(|d| !table_size.is_multiple_of(d));
    if !is_prime {
        return Err(ConfigError::new("table_size", format!("{table_size} is not a prime number")));
    }
    Ok(Maglev { table_size, hashing })
}

fn legacy_slow_start(proto: &cl::SlowStartConfig) -> Result<Option<Ramp>, ConfigError> {
    ramp(proto.slow_start_window.as_ref(), proto.aggression.as_ref(), proto.min_weight_percent.as_ref())
}

fn slow_start(proto: Option<&ext::common::v3::SlowStartConfig>) -> Result<Option<Ramp>, ConfigError> {
    let Some(proto) = proto else { return Ok(None) };
    ramp(proto.slow_start_window.as_ref(), proto.aggression.as_ref(), proto.min_weight_percent.as_ref())
        .map_err(|e| e.at("slow_start_config"))
}

/// A window of nothing is no slow start, as in Envoy.
fn ramp(
    window: Option<&prost_types::Duration>,
    aggression: Option<&RuntimeDouble>,
    least: Option<&Percent>,
) -> Result<Option<Ramp>, ConfigError> {
    let window = duration(window, "slow_start_window")?.unwrap_or_default();
    // What is no sensible aggression counts as the default: in Envoy a runtime could mend it.
    let aggression = aggression.map_or(1.0, |a| a.default_value);
    let aggression = if aggression > 0.0 { aggression } else { 1.0 };
    let least = least.map_or(0.1, |p| p.value / 100.0);
    Ok((!window.is_zero()).then_some(Ramp { window, aggression, least }))
}

/// The share that a returning host begins with.
const RETURN_SHARE: f64 = 0.1;

/// `metadata.filter_metadata["weft.dev"].return_window`, which only a control plane of ours sets.
fn return_ramp(proto: &pb::Cluster) -> Result<Option<Ramp>, ConfigError> {
    const PATH: &str = "metadata.filter_metadata[weft.dev].return_window";
    let metadata = proto.metadata.clone().and_then(|m| Metadata::new(m.filter_metadata));
    let Some(value) = metadata.as_deref().and_then(|m| m.namespace("weft.dev")?.fields.get("return_window"))
    else {
        return Ok(None);
    };
    let text = match &value.kind {
        Some(Kind::StringValue(text)) => text.as_str(),
        _ => return Err(ConfigError::new(PATH, "must be a text such as \"10s\"")),
    };
    let window: Option<Duration> = xds_protos::duration::parse(text).ok();
    match window {
        Some(window) if !window.is_zero() => Ok(Some(Ramp { window, aggression: 1.0, least: RETURN_SHARE })),
        _ => {
            let message = format!("{text:?} is not a duration of more than zero, such as \"10s\"");
            Err(ConfigError::new(PATH, message))
        }
    }
}
