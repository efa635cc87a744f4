//! RateLimit: how many requests a workload or a gateway takes, by rule and by key (weft.dev).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::gateway::Gateway;
use super::meta::Object;
use super::values::{Labels, StringMatch, Timespan, WorkloadSelector};
use super::world::World;

/// As many values of its keys as a rule remembers where it does not say.
pub const REMEMBERED: u32 = 10_000;
/// As many keys as a rule may have: a request without one of them falls into a bucket of its own, so each doubles them.
pub const MOST_KEYS: usize = 3;

/// The specification of a RateLimit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RateLimit {
    /// Workloads, sidecars and gateways, to which it applies; absent for all of the namespace, or of the mesh in the root
    /// namespace.
    pub selector: Option<WorkloadSelector>,
    /// A Gateway of the namespace, in place of a selector: what its servers' hosts are asked for.
    pub gateway: String,
    /// Who counts for rules that are global.
    pub service: Option<RateLimitService>,
    /// Clients are told limits and what is left of them.
    pub tell_clients: bool,
    /// Nothing is refused; what would be is counted.
    pub dry_run: bool,
    /// Each counts by itself.
    pub rules: Vec<RateLimitRule>,
}

/// A service of `envoy.service.ratelimit.v3`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RateLimitService {
    /// Its host, as the mesh knows it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The domain by which it knows these limits.
    pub domain: String,
    /// How long it is waited for.
    pub timeout: Option<Timespan>,
    /// What becomes of requests when it does not answer.
    pub failure_policy: FailurePolicy,
}

/// What becomes of requests when nobody answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum FailurePolicy {
    /// They pass.
    #[default]
    Open,
    /// They do not.
    Closed,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RateLimitRule {
    /// Its name, which refusals are told with.
    pub name: String,
    /// Which requests; absent for all.
    #[serde(rename = "match")]
    pub matches: Option<RateLimitMatch>,
    /// It counts connections, not requests.
    pub connections: Option<ConnectionMatch>,
    /// What has a bucket of its own each.
    pub by: Vec<RateLimitKey>,
    /// A bucket in each proxy.
    pub local: Option<LocalLimit>,
    /// The service is asked.
    pub global: Option<GlobalLimit>,
}

/// Which requests a rule counts: those that obey everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RateLimitMatch {
    /// Hosts, one of them.
    pub hosts: Vec<String>,
    /// Paths without their query, one of them.
    pub paths: Vec<StringMatch>,
    /// Methods, one of them.
    pub methods: Vec<String>,
    /// Header fields, all of them.
    pub headers: BTreeMap<String, StringMatch>,
    /// The name of a VirtualService's HTTP route, at gateways.
    pub route: String,
}

/// Which connections a rule counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConnectionMatch {
    /// Those to these ports of the workload, or of the Gateway's servers; absent for all.
    pub ports: Vec<u16>,
}

/// What has a bucket of its own each: one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RateLimitKey {
    /// The client's address.
    pub client_address: Option<ClientAddress>,
    /// A header field's value.
    pub header: String,
    /// A query parameter's value.
    pub query_parameter: String,
    /// A claim of the token, which is a text.
    pub claim: String,
}

/// The client by its network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientAddress {
    /// Bits of an IPv4 address that count; all by default.
    pub ipv4_prefix: Option<u8>,
    /// Bits of an IPv6 address that count; 64 by default, for that is what one subscriber gets.
    pub ipv6_prefix: Option<u8>,
}

/// A bucket in each proxy: it holds `burst` tokens, and `requests` flow in over `per`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LocalLimit {
    /// Requests in that time.
    pub requests: u32,
    /// The time.
    pub per: Option<Timespan>,
    /// Requests at once; as many as `requests` by default.
    pub burst: Option<u32>,
    /// As many values of the rule's keys as are remembered.
    pub max_keys: Option<u32>,
}

/// The service is asked; its configuration has the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GlobalLimit {
    /// For how many requests one counts; 1 by default.
    pub hits: Option<u32>,
}

impl LocalLimit {
    /// Tokens that the bucket holds.
    pub fn most(&self) -> u32 {
        self.burst.unwrap_or(self.requests)
    }
}

impl RateLimitRule {
    /// The route that its requests have, where it names one.
    pub fn route(&self) -> Option<&str> {
        self.matches.as_ref().map(|m| m.route.as_str()).filter(|route| !route.is_empty())
    }
}

impl Object<RateLimit> {
    /// How refusals by a rule are told: `NAMESPACE/NAME/RULE`.
    pub fn bucket(&self, rule: &RateLimitRule) -> String {
        format!("{}/{}/{}", self.meta.namespace, self.meta.name, rule.name)
    }
}

impl World {
    /// Those that hold at a proxy, with the Gateway that each is bound to: those of the root namespace, then those of its own,
    /// then those of Gateways; each oldest first.
    pub fn rate_limits_at<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a Labels,
    ) -> impl Iterator<Item = (&'a Arc<Object<RateLimit>>, Option<&'a Arc<Object<Gateway>>>)> {
        let root = self.mesh().root_namespace.as_str();
        let of = move |wanted: &'a str| {
            self.rate_limits().iter().filter(move |object| {
                let selects = |selector: &WorkloadSelector| selector.selects(labels);
                object.meta.namespace == wanted
                    && object.spec.gateway.is_empty()
                    && object.spec.selector.as_ref().is_none_or(selects)
            })
        };
        let own = (namespace != root).then(|| of(namespace)).into_iter().flatten();
        let bound = self.rate_limits().iter().filter_map(move |object| {
            let gateway = self.gateway_of(object)?;
            let here = WorkloadSelector { labels: gateway.spec.selector.clone() };
            here.selects(labels).then_some((object, Some(gateway)))
        });
        of(root).chain(own).map(|object| (object, None)).chain(bound)
    }

    /// The Gateway that one is bound to, if it is there.
    pub fn gateway_of(&self, object: &Object<RateLimit>) -> Option<&Arc<Object<Gateway>>> {
        let (namespace, name) = (&object.meta.namespace, &object.spec.gateway);
        let mut named = self.gateways().iter().filter(|g| g.meta.namespace == *namespace);
        named.find(|g| !name.is_empty() && g.meta.name == *name)
    }
}
