//! What a request counts as: which of the limits that stand in the filter, its route and its virtual host apply.

use xds_protos::envoy::extensions::common::ratelimit::v3::VhRateLimitsOptions;

use crate::route::rate_limit::{Descriptor, Facts, RateLimit};
use crate::router::Exchange;

/// Which limits a filter goes by.
pub struct Which<'a> {
    /// Only those of this stage.
    pub stage: u32,
    /// Those that a key of Envoy's runtime could turn off, too.
    pub with_disable_keys: bool,
    /// These in place of the route's, where there are any.
    pub own: &'a [RateLimit],
    /// When the virtual host's count beside the route's.
    pub virtual_host: VhRateLimitsOptions,
    /// Our own service cluster.
    pub service_cluster: &'a str,
}

impl Which<'_> {
    /// The descriptors of a request.
    pub fn descriptors(&self, exchange: &Exchange) -> Vec<Descriptor> {
        let mut made = Vec::new();
        let cluster = exchange.cluster_name();
        let route = exchange.matched.as_ref().filter(|m| m.forward().is_some());
        exchange.flow.info(|info| {
            let facts = Facts {
                head: &exchange.head,
                info,
                connection: &exchange.connection,
                service_cluster: self.service_cluster,
                cluster: cluster.as_deref(),
                route: route.and_then(|m| m.route().metadata.as_deref()),
            };
            let mut of = |limits: &[RateLimit]| {
                let counted = limits
                    .iter()
                    .filter(|l| l.stage == self.stage && (self.with_disable_keys || !l.disabled));
                made.extend(counted.filter_map(|l| l.descriptor(&facts)));
            };
            if !self.own.is_empty() {
                return of(self.own);
            }
            let Some(matched) = route else { return };
            let route = matched.route();
            of(&route.rate_limits);
            let hosts = match self.virtual_host {
                _ if route.include_vh_rate_limits => true,
                VhRateLimitsOptions::Include => true,
                VhRateLimitsOptions::Ignore => false,
                VhRateLimitsOptions::Override => route.rate_limits.is_empty(),
            };
            if hosts {
                of(&matched.virtual_host().rate_limits);
            }
        });
        made
    }
}
