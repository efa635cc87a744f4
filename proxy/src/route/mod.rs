//! Match and rewrite: pure functions from a request's head to the route that decides its fate.
//!
//! A [`RouteConfig`] is compiled from `envoy.config.route.v3.RouteConfiguration`, lives in a slot, and is pinned by each
//! request for the time that the request needs it. Nothing here does IO or changes a request; the router and the
//! connection manager apply what they find here.

pub mod action;
pub mod config;
pub mod hash;
pub mod header_ops;
pub mod hosts;
pub mod matching;
pub mod rate_limit;
pub mod redirect;
pub mod retry;
pub mod rewrite;
pub mod stats;
pub mod template;
pub mod text;
pub mod values;

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderName;

pub use action::{Action, Forward, Target};
pub use header_ops::HeaderOps;
pub use matching::RouteMatch;

use self::hosts::Hosts;
use self::matching::{Chance, HeaderMatch};
use self::rate_limit::RateLimit;
use self::stats::RouteStats;
use crate::cluster::endpoint::Metadata;
use crate::codec::RequestHead;
use crate::filters::config::{PerFilter, PerRoute};
use crate::io::TlsInfo;
use crate::io::metadata::DynamicMetadata;
use crate::telemetry::trace::Words;

/// When plaintext requests are redirected to https.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequireTls {
    /// Never.
    #[default]
    None,
    /// Unless the request is internal.
    ExternalOnly,
    /// Always.
    All,
}

/// What a route is found by.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The request.
    pub head: &'a RequestHead,
    /// Decides fractions and weights.
    pub random: u64,
    /// The client came by https.
    pub secure: bool,
    /// The request is internal.
    pub internal: bool,
    /// What is known of the connection's peer by TLS.
    pub tls: Option<&'a TlsInfo>,
    /// What filters have said of the request.
    pub metadata: Option<&'a DynamicMetadata>,
    /// Where the request comes from, as far as that is known.
    pub client: Option<IpAddr>,
}

impl<'a> Asked<'a> {
    /// A request of which nothing else is known.
    pub fn new(head: &'a RequestHead) -> Self {
        Self { head, random: 0, secure: false, internal: false, tls: None, metadata: None, client: None }
    }
}

/// A group of requests that is counted for itself (`VirtualCluster`).
#[derive(Clone, Debug)]
pub struct VirtualCluster {
    /// The name.
    pub name: Arc<str>,
    /// The requests; all rules must hold.
    pub headers: Vec<HeaderMatch>,
    /// Its numbers.
    pub stats: Arc<RouteStats>,
}

/// The name that a route gives to its requests' spans (`Decorator`).
#[derive(Clone, Debug)]
pub struct Operation {
    /// The name.
    pub name: Arc<str>,
    /// The next hop is told.
    pub propagate: bool,
}

/// How a route's requests are traced (`envoy.config.route.v3.Tracing`).
#[derive(Debug)]
pub struct RouteTracing {
    /// The share of requests whose client wants a trace.
    pub client: Chance,
    /// That of all others.
    pub random: Chance,
    /// That of what was chosen so far.
    pub overall: Chance,
    /// Names and tags.
    pub words: Arc<Words>,
}

/// A rule and what it does.
#[derive(Clone, Debug)]
pub struct Route {
    /// The name in logs; may be empty.
    pub name: Arc<str>,
    /// Which requests.
    pub matching: RouteMatch,
    /// What becomes of them.
    pub action: Action,
    /// Changes of the request on its way upstream.
    pub request_headers: HeaderOps,
    /// Changes of the response.
    pub response_headers: HeaderOps,
    /// Filters' settings.
    pub per_filter: PerRoute,
    /// The name of the operation in traces.
    pub operation: Option<Operation>,
    /// How the route's requests are traced, in place of the connection manager's way.
    pub tracing: Option<Arc<RouteTracing>>,
    /// The route's own numbers, where it has a prefix for them.
    pub stats: Option<Arc<RouteStats>>,
    /// The most of a request that is kept for retries, in bytes.
    pub buffer_limit: Option<u64>,
    /// What the configuration says of the route to filters.
    pub metadata: Option<Arc<Metadata>>,
    /// What requests count as for rate limits.
    pub rate_limits: Vec<RateLimit>,
    /// They count as what the virtual host says, too.
    pub include_vh_rate_limits: bool,
}

/// A group of routes for some hosts.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// The name.
    pub name: Arc<str>,
    /// What the configuration says of it.
    pub metadata: Option<Arc<Metadata>>,
    /// Routes; the first that matches counts.
    pub routes: Vec<Route>,
    /// Redirect plaintext.
    pub require_tls: RequireTls,
    /// Changes of requests.
    pub request_headers: HeaderOps,
    /// Changes of responses.
    pub response_headers: HeaderOps,
    /// Filters' settings.
    pub per_filter: PerRoute,
    /// Groups of requests with numbers of their own; the first that matches counts, and the last is for all others.
    pub clusters: Vec<VirtualCluster>,
    /// What requests count as for rate limits.
    pub rate_limits: Vec<RateLimit>,
    /// Send `x-envoy-attempt-count` upstream.
    pub attempt_count_in_request: bool,
    /// Send it downstream.
    pub attempt_count_in_response: bool,
    /// Send `x-envoy-is-timeout-retry` with retries.
    pub timeout_retry_in_request: bool,
    /// The most of a request that is kept for retries, in bytes.
    pub buffer_limit: Option<u64>,
}

/// A compiled route configuration.
#[derive(Clone, Debug, Default)]
pub struct RouteConfig {
    /// The name, as in RDS.
    pub name: Arc<str>,
    /// Virtual hosts.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Domains to virtual hosts.
    pub hosts: Hosts,
    /// Ports do not count in host matching.
    pub ignore_port: bool,
    /// The virtual host is found by this field in place of the authority.
    pub host_header: Option<HeaderName>,
    /// What follows a semicolon does not count in path matching.
    pub ignore_path_parameters: bool,
    /// Changes of requests.
    pub request_headers: HeaderOps,
    /// Changes of responses.
    pub response_headers: HeaderOps,
    /// The configuration's changes come first and the route's last, so that the route's win.
    pub most_specific_wins: bool,
    /// Fields that only internal requests may bring.
    pub internal_only_headers: Vec<HeaderName>,
    /// Filters' settings.
    pub per_filter: PerRoute,
}

/// A route that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The virtual host.
    pub virtual_host: &'a VirtualHost,
    /// Its place in the configuration.
    pub host_index: u32,
    /// The route; none where the virtual host asks for TLS first.
    pub route: Option<(&'a Route, u32)>,
}

impl RouteConfig {
    /// The route of a request.
    pub fn find(&self, asked: &Asked<'_>) -> Option<Found<'_>> {
        let Asked { head, secure, internal, .. } = *asked;
        let named = match &self.host_header {
            None => &head.authority[..],
            Some(name) => head.headers.get(name)?.as_bytes(),
        };
        let host_index = self.hosts.find(named, self.ignore_port)?;
        let virtual_host = self.virtual_hosts.get(host_index as usize)?;
        let redirect = match virtual_host.require_tls {
            RequireTls::None => false,
            RequireTls::ExternalOnly => !secure && !internal,
            RequireTls::All => !secure,
        };
        if redirect {
            return Some(Found { virtual_host, host_index, route: None });
        }
        let (index, route) = virtual_host
            .routes
            .iter()
            .enumerate()
            .find(|(_, r)| r.matching.matches(asked, self.ignore_path_parameters))?;
        Some(Found { virtual_host, host_index, route: Some((route, index as u32)) })
    }
}

/// A route that a request keeps while it needs it: its configuration, pinned, and the place in it.
#[derive(Clone, Debug)]
pub struct Matched {
    config: Arc<RouteConfig>,
    host: u32,
    route: u32,
    /// The candidate that chance chose, for weighted clusters.
    weighted: Option<u32>,
}

impl Matched {
    /// Finds and pins. `Err(true)` where plaintext must be redirected to https, `Err(false)` where there is no route.
    pub fn find(config: &Arc<RouteConfig>, asked: &Asked<'_>) -> Result<Self, bool> {
        let found = config.find(asked).ok_or(false)?;
        let (route, index) = found.route.ok_or(true)?;
        let weighted = match &route.action {
            Action::Forward(forward) => match &forward.target {
                Target::Weighted { clusters, total, by } => {
                    let number = by.number(asked, &forward.hash).unwrap_or(asked.random);
                    Some(choose(clusters, *total, number))
                }
                _ => None,
            },
            _ => None,
        };
        Ok(Self { config: config.clone(), host: found.host_index, route: index, weighted })
    }

    /// The configuration.
    pub fn config(&self) -> &RouteConfig {
        &self.config
    }

    /// The virtual host.
    pub fn virtual_host(&self) -> &VirtualHost {
        &self.config.virtual_hosts[self.host as usize]
    }

    /// The route.
    pub fn route(&self) -> &Route {
        &self.virtual_host().routes[self.route as usize]
    }

    /// The route's forwarding, if it forwards.
    pub fn forward(&self) -> Option<&Forward> {
        match &self.route().action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        }
    }

    /// The chosen candidate of a weighted choice.
    pub fn weighted(&self) -> Option<&action::WeightedCluster> {
        match (&self.forward()?.target, self.weighted) {
            (Target::Weighted { clusters, .. }, Some(index)) => clusters.get(index as usize),
            _ => None,
        }
    }

    /// The numbers of the request's virtual cluster.
    pub fn virtual_cluster(&self, head: &RequestHead) -> Option<&VirtualCluster> {
        self.virtual_host().clusters.iter().find(|c| c.headers.iter().all(|h| h.matches(head)))
    }

    /// The changes of requests (or responses) in the order to apply them.
    pub fn header_ops(&self, request: bool) -> impl Iterator<Item = &HeaderOps> {
        // As in Envoy the weighted cluster's come first, whatever wins.
        let weighted =
            self.weighted().map(|w| if request { &w.request_headers } else { &w.response_headers });
        weighted.into_iter().filter(|ops| !ops.is_empty()).chain(self.level_ops(request))
    }

    /// Those of the route and the levels above it.
    pub fn level_ops(&self, request: bool) -> impl Iterator<Item = &HeaderOps> {
        let pick = |request_ops, response_ops| if request { request_ops } else { response_ops };
        let (host, route) = (self.virtual_host(), self.route());
        let mut all = [
            pick(&route.request_headers, &route.response_headers),
            pick(&host.request_headers, &host.response_headers),
            pick(&self.config.request_headers, &self.config.response_headers),
        ];
        if self.config.most_specific_wins {
            all.reverse();
        }
        all.into_iter().filter(|ops| !ops.is_empty())
    }

    /// What the most specific level that speaks of a filter says to it.
    pub fn setting(&self, name: &str) -> Option<&PerFilter> {
        let host = self.virtual_host();
        let route = &host.routes[self.route as usize];
        // Each request asks for each filter, and mostly nobody says anything.
        let weighted = self.weighted.and_then(|_| self.weighted()).and_then(|w| w.per_filter.get(name));
        weighted
            .or_else(|| route.per_filter.get(name))
            .or_else(|| host.per_filter.get(name))
            .or_else(|| self.config.per_filter.get(name))
    }

    /// Filters' settings, the most specific first.
    pub fn per_filter(&self) -> impl Iterator<Item = &PerRoute> {
        let weighted = self.weighted().map(|w| &w.per_filter);
        weighted.into_iter().chain([
            &self.route().per_filter,
            &self.virtual_host().per_filter,
            &self.config.per_filter,
        ])
    }
}

fn choose(clusters: &[action::WeightedCluster], total: u64, random: u64) -> u32 {
    let mut left = random % total.max(1);
    for (index, cluster) in clusters.iter().enumerate() {
        if left < u64::from(cluster.weight) {
            return index as u32;
        }
        left -= u64::from(cluster.weight);
    }
    clusters.len().saturating_sub(1) as u32
}

#[cfg(test)]
mod tests;
