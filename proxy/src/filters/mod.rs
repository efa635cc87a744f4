//! HTTP filters: a closed list of kinds, run in the configuration's order over a request and in reverse over its response.
//!
//! The connection manager builds an [`Exchange`] (a request with its route), [`FilterList::admit`] runs the filters over it,
//! and only what passed all of them becomes an [`Admitted`], which is what the router takes. A filter that need not wait
//! costs no future: it gives a [`Verdict`] at once.

pub mod compressor;
pub mod config;
pub mod cors;
pub mod credential_injector;
pub mod decide;
pub mod decompressor;
pub mod ext_authz;
pub mod fault;
pub mod grpc_stats;
pub mod header_mutation;
pub mod jwt_authn;
pub mod local_ratelimit;
pub mod peer_metadata;
mod question;
pub mod ratelimit;
pub mod rbac;
mod slow;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use http::header::ORIGIN;

use self::compressor::Compressor;
use self::config::PerFilter;
use self::cors::{CorsStats, Policies};
use self::credential_injector::CredentialInjector;
use self::decompressor::Decompressor;
use self::ext_authz::ExtAuthz;
use self::fault::{Fault, FaultStats};
use self::grpc_stats::{GrpcStats, Messages, count_messages};
use self::header_mutation::HeaderMutation;
use self::jwt_authn::JwtAuthn;
use self::local_ratelimit::LocalRateLimit;
use self::peer_metadata::PeerMetadata;
use self::ratelimit::GlobalRateLimit;
use self::rbac::Rbac;
use self::slow::Slow;
use crate::codec::{Body, ResponseHead};
use crate::io::ConnectionInfo;
use crate::route::Matched;
use crate::router::alpn::AlpnOverride;
use crate::router::{Admitted, Exchange, Flow, ForRouter, LocalReply, RouterConfig, Scratch};
use crate::telemetry::istio::{Far, Reporter};
use crate::telemetry::record::{self, By};
use crate::telemetry::{Flag, StreamInfo};

/// A filter.
#[derive(Clone)]
pub enum Filter {
    /// Delays and aborts.
    Fault(Arc<Fault>, Arc<FaultStats>),
    /// Cross-origin requests.
    Cors(Arc<CorsStats>),
    /// Application protocols to offer upstream.
    Alpn(Arc<AlpnOverride>),
    /// Workload metadata in header fields.
    PeerMetadata(Arc<PeerMetadata>),
    /// Istio's metrics.
    IstioStats(Arc<Reporter>),
    /// gRPC message counts.
    GrpcStats(Arc<GrpcStats>),
    /// Changes of header fields.
    HeaderMutation(Arc<HeaderMutation>),
    /// Who may do what.
    Rbac(Arc<Rbac>),
    /// Who has a token.
    JwtAuthn(Arc<JwtAuthn>),
    /// What another service says.
    ExtAuthz(Arc<ExtAuthz>),
    /// How often.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Answers in an encoding that the client takes.
    Compressor(Arc<Compressor>),
    /// Messages without the encoding that they came in.
    Decompressor(Arc<Decompressor>),
    /// How often, as a service says that counts for many proxies.
    GlobalRateLimit(Arc<GlobalRateLimit>),
    /// What proves us to the service that is called.
    CredentialInjector(Arc<CredentialInjector>),
}

/// A filter in a chain.
#[derive(Clone)]
pub struct Named {
    /// Its name, by which routes speak to it.
    pub name: Box<str>,
    /// Off unless a route turns it on.
    pub disabled: bool,
    /// What it does.
    pub filter: Filter,
}

/// The filters of a connection manager, the router at the end apart.
#[derive(Clone)]
pub struct FilterList {
    /// In the configuration's order.
    pub filters: Arc<[Named]>,
    /// The router's settings.
    pub router: Arc<RouterConfig>,
}

/// A filter's wait, and the reply it may end with (and the flag for logs).
pub type Waiting = Pin<Box<dyn Future<Output = Option<(Flag, LocalReply)>>>>;

/// What a filter wants done with a request.
pub enum Verdict {
    /// Go on.
    Continue,
    /// Answer this; later filters and the router never see the request.
    Reply(LocalReply),
    /// The filter changed what routes match on: find the route again, then go on.
    Reroute,
    /// Go on when the future is done; it may give a reply after all.
    Wait(Waiting),
}

/// What the route says to a filter, the most specific first.
fn setting<'a>(exchange: &'a Exchange, name: &str) -> Option<&'a PerFilter> {
    exchange.matched.as_ref()?.setting(name)
}

impl Filter {
    /// What its decisions are recorded as.
    fn by(&self) -> By {
        match self {
            Self::Rbac(_) => By::Rbac,
            Self::JwtAuthn(_) => By::Jwt,
            Self::ExtAuthz(_) => By::ExtAuthz,
            Self::Fault(..) => By::Fault,
            Self::LocalRateLimit(_) => By::LocalRateLimit,
            Self::GlobalRateLimit(_) => By::RateLimit,
            _ => By::Other,
        }
    }
}

/// Records that somebody who was asked lets the request go on.
fn passed(exchange: &Exchange, named: &Named, verdict: &Verdict) {
    if matches!(verdict, Verdict::Continue | Verdict::Reroute) {
        let (by, name) = (named.filter.by(), Some((&*named.name).into()));
        exchange.flow.info(|i| i.trail.decided(by, record::Verdict::Allowed, name));
    }
}

impl FilterList {
    /// Runs the filters over a request. `reroute` finds its route anew. A reply comes back with what the filters remember,
    /// for their part in the response.
    ///
    /// # Errors
    /// A filter answered in the upstream's place.
    pub async fn admit(
        &self,
        mut exchange: Box<Exchange>,
        reroute: impl Fn(&mut Exchange),
    ) -> Result<Admitted, (LocalReply, Box<Exchange>)> {
        let (mut alpn, mut own_metadata) = (None, None);
        for named in self.filters.iter() {
            let setting = self::setting(&exchange, &named.name);
            if matches!(setting, Some(PerFilter::Disabled)) || (named.disabled && setting.is_none()) {
                continue;
            }
            let verdict = match &named.filter {
                Filter::Fault(own, stats) => {
                    let fault = match setting {
                        Some(PerFilter::Fault(of_route)) => of_route.clone(),
                        _ => own.clone(),
                    };
                    fault.request_head(&mut exchange, stats)
                }
                // Only requests that tell their origin are looked at.
                Filter::Cors(stats) if exchange.head.headers.get(&ORIGIN).is_some() => {
                    match exchange.matched.clone() {
                        Some(matched) => {
                            Policies::new(&matched, &named.name).request_head(&mut exchange, stats)
                        }
                        None => Verdict::Continue,
                    }
                }
                Filter::Cors(_) => Verdict::Continue,
                Filter::Alpn(names) => {
                    alpn = Some(names.clone());
                    Verdict::Continue
                }
                Filter::PeerMetadata(filter) => {
                    filter.request_head(&mut exchange);
                    own_metadata = filter.for_requests().cloned();
                    Verdict::Continue
                }
                Filter::Rbac(rbac) => {
                    let of_route = match setting {
                        Some(PerFilter::Rbac(rules)) => Some(rules),
                        _ => None,
                    };
                    rbac.request_head(&exchange, of_route)
                }
                Filter::JwtAuthn(filter) => {
                    let of_route = match setting {
                        Some(PerFilter::JwtAuthn(of_route)) => Some(of_route.clone()),
                        _ => None,
                    };
                    match filter.request_head(&mut exchange, of_route.as_deref(), &[]) {
                        Ok(verdict) => verdict,
                        Err(keys) => {
                            Box::pin(filter.with_keys(&mut exchange, of_route.as_deref(), keys)).await
                        }
                    }
                }
                Filter::ExtAuthz(filter) => {
                    let of_route = match setting {
                        Some(PerFilter::ExtAuthz(of_route)) => Some(&**of_route),
                        _ => None,
                    };
                    match filter.request_head(&exchange, of_route) {
                        Some(verdict) => verdict,
                        None => {
                            let verdict = Box::pin(filter.check(&mut exchange, &named.name)).await;
                            passed(&exchange, named, &verdict);
                            verdict
                        }
                    }
                }
                Filter::LocalRateLimit(filter) => {
                    let of_route = match setting {
                        Some(PerFilter::LocalRateLimit(limits)) => Some(limits.clone()),
                        _ => None,
                    };
                    filter.request_head(&mut exchange, of_route.as_ref())
                }
                Filter::Compressor(filter) => {
                    let setting = setting.cloned();
                    filter.request_head(&mut exchange, setting);
                    Verdict::Continue
                }
                Filter::GlobalRateLimit(filter) => {
                    let of_route = match setting {
                        Some(PerFilter::GlobalRateLimit(of_route)) => Some(&**of_route),
                        _ => None,
                    };
                    match filter.request_head(&exchange, of_route) {
                        None => Verdict::Continue,
                        Some(asking) => {
                            let verdict = Box::pin(filter.ask(&mut exchange, asking)).await;
                            passed(&exchange, named, &verdict);
                            verdict
                        }
                    }
                }
                Filter::Decompressor(filter) => {
                    filter.request_head(&mut exchange);
                    Verdict::Continue
                }
                Filter::GrpcStats(stats) => {
                    stats.request_head(&mut exchange);
                    Verdict::Continue
                }
                Filter::HeaderMutation(filter) => {
                    filter.request_head(&mut exchange, &named.name);
                    Verdict::Continue
                }
                Filter::CredentialInjector(filter) => filter.request_head(&mut exchange.head.headers),
                Filter::IstioStats(reporter) => {
                    count_messages(&mut exchange);
                    if reporter.looks_at_requests() {
                        let head = Box::new(exchange.head.clone());
                        exchange.scratch.later().noted = Some(head);
                    }
                    Verdict::Continue
                }
            };
            let by = named.filter.by();
            let answered = |exchange: &Exchange| {
                exchange.flow.info(|i| i.trail.answered(by, || (&*named.name).into()));
            };
            match verdict {
                Verdict::Continue => {}
                Verdict::Reroute => reroute(&mut exchange),
                Verdict::Reply(reply) => {
                    answered(&exchange);
                    return Err((reply, exchange));
                }
                Verdict::Wait(future) => {
                    let name = Some((&*named.name).into());
                    exchange.flow.info(|i| i.trail.decided(by, record::Verdict::Delayed, name));
                    if let Some((flag, reply)) = future.await {
                        exchange.flow.flag(flag);
                        answered(&exchange);
                        return Err((reply, exchange));
                    }
                }
            }
        }
        let wishes = ForRouter { config: self.router.clone(), alpn, own_metadata };
        Ok(Admitted::new(exchange, wishes))
    }

    /// Why a request that has been let in under another policy may not go on under these filters, if it may not. `matched` is
    /// the route that it had.
    pub fn denies(&self, subject: &rbac::Subject<'_>, matched: Option<&Matched>) -> Option<Arc<str>> {
        self.filters.iter().find_map(|named| {
            let Filter::Rbac(rbac) = &named.filter else { return None };
            let setting = matched.and_then(|m| m.setting(&named.name));
            match setting {
                Some(PerFilter::Disabled) => None,
                None if named.disabled => None,
                Some(PerFilter::Rbac(rules)) => rbac.denies(subject, Some(rules)),
                _ => rbac.denies(subject, None),
            }
        })
    }

    /// Runs the filters in reverse over a response's head. `ends` with it are answers that have no body.
    pub fn response_head(
        &self,
        (head, ends): (&mut ResponseHead, bool),
        scratch: &mut Scratch,
        matched: Option<&Matched>,
        context: (&Flow, &ConnectionInfo),
    ) {
        let answer = compressor::Answer { status: head.status, ends };
        let headers = &mut head.headers;
        for named in self.filters.iter().rev() {
            match &named.filter {
                Filter::Cors(_) => {
                    let origin = scratch.later.as_ref().and_then(|l| l.cors_origin.as_ref());
                    if let (Some(origin), Some(matched)) = (origin, matched) {
                        Policies::new(matched, &named.name).response_head(origin, headers);
                    }
                }
                Filter::PeerMetadata(filter) => filter.response_head(headers, scratch),
                Filter::HeaderMutation(filter) => {
                    filter.response_head(headers, matched, &named.name, context)
                }
                Filter::Compressor(filter) => {
                    let of_route = |name: &str| matched.and_then(|m| m.setting(name));
                    let on = |named: &Named| match of_route(&named.name) {
                        Some(PerFilter::Disabled) => false,
                        setting => !named.disabled || setting.is_some(),
                    };
                    if !on(named) {
                        continue;
                    }
                    let offered = self.filters.iter().filter(|other| on(other));
                    let offered = offered.filter_map(|other| match &other.filter {
                        Filter::Compressor(other_filter) => {
                            Some((&**other_filter, other_filter.library(of_route(&other.name))))
                        }
                        _ => None,
                    });
                    let offered: Vec<_> = offered.collect();
                    let later = scratch.later.as_deref_mut();
                    filter.response_head(headers, answer, later, of_route(&named.name), &offered);
                }
                Filter::Decompressor(filter) => {
                    let setting = matched.and_then(|m| m.setting(&named.name));
                    let off =
                        matches!(setting, Some(PerFilter::Disabled)) || (named.disabled && setting.is_none());
                    if !off {
                        filter.response_head(headers, ends, scratch);
                    }
                }
                Filter::LocalRateLimit(_) | Filter::GlobalRateLimit(_) | Filter::ExtAuthz(_) => {
                    if let Some(tell) = scratch.later.as_mut().and_then(|l| l.tells.pop()) {
                        tell(headers);
                    }
                }
                Filter::Fault(..)
                | Filter::Alpn(_)
                | Filter::IstioStats(_)
                | Filter::GrpcStats(_)
                | Filter::JwtAuthn(_)
                | Filter::CredentialInjector(_)
                | Filter::Rbac(_) => {}
            }
        }
    }

    /// Gives filters the response's body, which most leave alone.
    pub fn response_body(&self, body: Body, scratch: &mut Scratch, flow: &Rc<Flow>) -> Body {
        let Some(later) = &mut scratch.later else { return body };
        let body = if later.counts_messages { Messages::wrap(body, flow, false) } else { body };
        let body = later.encode.drain(..).fold(body, |body, encode| encode(body));
        match later.slow.take() {
            Some(rate) => Slow::wrap(body, rate),
            None => body,
        }
    }

    /// Tells the filters that the stream ended.
    pub fn done(&self, info: &StreamInfo, connection: &ConnectionInfo, scratch: &mut Scratch) {
        if let Some(later) = &mut scratch.later {
            later.at_end.drain(..).for_each(|tell| tell(info));
        }
        for named in self.filters.iter() {
            if let Filter::IstioStats(reporter) = &named.filter {
                let far = match connection.direction {
                    crate::io::Direction::Inbound => Far {
                        workload: scratch.downstream_peer.as_ref(),
                        service: scratch.service.as_ref(),
                        source_principal: connection.peer_id(),
                        destination_principal: connection.tls.as_ref().and_then(|t| t.local_id.as_ref()),
                    },
                    _ => Far {
                        workload: scratch.upstream_peer.as_ref(),
                        service: scratch.service.as_ref(),
                        source_principal: scratch.upstream_tls.as_ref().and_then(|t| t.local_id.as_ref()),
                        destination_principal: scratch.upstream_tls.as_ref().and_then(|t| t.peer_id.as_ref()),
                    },
                };
                let noted = scratch.later.as_ref().and_then(|later| later.noted.as_deref());
                reporter.request(info, connection, noted, far);
            }
        }
    }
}

#[cfg(test)]
mod tests;
