//! Tries over a cluster: choose a host, get a connection, send.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::mem;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderName, StatusCode};
use prost_types::value::Kind;

use super::attempt::{Attempt, Event, Failure, Outcome, Seen, Upstreams, within};
use super::flow::{Expired, Flow};
use super::head::set_authority;
use super::{ForRouter, OwnMetadata, Scratch, tunnel};
use crate::cluster::balance::{TriedPriorities, candidate};
use crate::cluster::limits::Permit;
use crate::cluster::{
    self, AcquireError, Cluster, Host, HostId, HttpMode, NoHost, PickContext, Picked, RoutingPriority,
    Upstream, Want,
};
use crate::codec::headers::Of;
use crate::codec::{
    Headers, InformationalSink, Progress, Protocol, Reply, Request, RequestHead, ResetReason, UpstreamError,
};
use crate::io::{ConnectionInfo, Origin, TlsInfo};
use crate::route::Forward;
use crate::route::action::{HostRewrite, Priority};
use crate::state::Slot;
use crate::telemetry::istio::{Service, Workload};
use crate::telemetry::peer;
use crate::telemetry::record::{Candidate, Choice, Compared};

/// A host that says so with an answer gets nothing more until it passes its health checks again.
const IMMEDIATE_FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What is known of the callee.
#[derive(Default)]
struct Callee {
    host: Option<Arc<Host>>,
    service: Option<Arc<Service>>,
    tls: Option<Arc<TlsInfo>>,
    /// What is remembered of it on the connection that brought the answer.
    remembered: Option<Rc<peer::Callee>>,
}

/// Makes tries at one cluster for one request.
pub struct ClusterUpstreams {
    slot: Arc<Slot<Cluster>>,
    priority: RoutingPriority,
    /// The authority becomes the chosen host's name.
    auto_host: bool,
    append_forwarded_host: bool,
    /// The request's hash.
    pub hash: Option<u64>,
    wishes: ForRouter,
    connection: Arc<ConnectionInfo>,
    flow: Rc<Flow>,
    /// Where 1xx heads go; nowhere for mirrors.
    pub informational: Option<Rc<dyn InformationalSink>>,
    callee: RefCell<Callee>,
    /// The request is a tunnel that ends here.
    pub terminate: bool,
    /// The priorities that tries went to, where they are to be left out.
    priorities: Option<RefCell<TriedPriorities>>,
}

impl ClusterUpstreams {
    /// For one request of a route.
    pub fn new(
        slot: Arc<Slot<Cluster>>,
        forward: &Forward,
        wishes: ForRouter,
        connection: Arc<ConnectionInfo>,
        flow: Rc<Flow>,
    ) -> Self {
        Self {
            slot,
            priority: match forward.priority {
                Priority::Default => RoutingPriority::Default,
                Priority::High => RoutingPriority::High,
            },
            auto_host: matches!(forward.host_rewrite, HostRewrite::Auto),
            append_forwarded_host: forward.append_x_forwarded_host,
            hash: None,
            wishes,
            connection,
            flow,
            informational: None,
            callee: RefCell::default(),
            terminate: false,
            priorities: forward
                .retry
                .as_ref()
                .and_then(|r| r.priority_update)
                .map(|every| RefCell::new(TriedPriorities::new(every))),
        }
    }

    /// For one request of the proxy's own, which no route shapes.
    pub fn own(slot: Arc<Slot<Cluster>>, connection: Arc<ConnectionInfo>, flow: Rc<Flow>) -> Self {
        Self {
            slot,
            priority: RoutingPriority::Default,
            auto_host: false,
            append_forwarded_host: false,
            hash: None,
            wishes: ForRouter { config: Arc::default(), alpn: None, own_metadata: None },
            connection,
            flow,
            informational: None,
            callee: RefCell::default(),
            terminate: false,
            priorities: None,
        }
    }

    /// Leaves what is known of the callee for those who report on the request.
    pub fn leave(self, scratch: &mut Scratch) {
        let callee = self.callee.into_inner();
        scratch.service = callee.service;
        scratch.upstream_tls = callee.tls;
        if let Some(remembered) = callee.remembered {
            scratch.upstream_peer = remembered.workload().cloned();
            scratch.callee = Some(remembered);
        }
        if scratch.upstream_peer.is_none() {
            scratch.upstream_peer = callee.host.as_deref().and_then(workload_of);
        }
    }

    async fn send(&self, attempt: Attempt<'_>, seen: &mut Option<Seen>) -> Result<Reply, Failure> {
        let Attempt { request, tried, omit, repicks, timeout } = attempt;
        let cluster = self.slot.get().ok_or(Failure::NoCluster)?;
        self.callee.borrow_mut().service = cluster.config().service.clone();
        let tried: Vec<HostId> = tried.iter().map(|id| HostId(*id)).collect();
        let local = &self.connection;
        let header = cluster.config().original_dst.header.as_ref();
        let told = header.and_then(|name| request.head.headers.get_str(name)?.parse().ok());
        let compared = Cell::new(Compared::default());
        let picked = {
            let mut priorities = self.priorities.as_ref().map(RefCell::borrow_mut);
            let context = PickContext {
                hash: self.hash,
                tried: &tried,
                omit,
                load: priorities.as_mut().and_then(|p| p.load(&cluster.hosts())),
                repicks,
                original_dst: told.or(local.local_restored.then_some(local.local)),
                compared: Some(&compared),
            };
            let picked = cluster.pick(&context);
            let refused = if picked.is_ok() { Vec::new() } else { refused(&cluster) };
            let policy = cluster.config().balancing.policy.name();
            self.flow.info(|i| {
                i.trail.choice = Some(Choice { policy, compared: compared.get(), refused });
            });
            picked.map_err(|e| match e {
                NoHost::NoHealthyUpstream | NoHost::NoOriginalDestination => Failure::NoHost,
            })?
        };
        let host = picked.host().clone();
        if let Some(priorities) = &self.priorities {
            priorities.borrow_mut().add(host.priority());
        }
        *seen = Some(Seen {
            host: host.id().0,
            address: host.address().ip(),
            local: None,
            tls: None,
            line: None,
        });
        self.callee.borrow_mut().host = Some(host.clone());
        if self.terminate {
            let body = mem::take(&mut request.body);
            // Boxed: few requests are tunnels that end here, and all would carry the room for it.
            let meter = self.flow.upstream_meter().cloned();
            let opened = Box::pin(tunnel::open(&cluster, picked, self.priority, body, meter)).await?;
            if let Some(seen) = seen {
                (seen.local, seen.tls, seen.line) = (opened.local, opened.tls, Some(opened.line));
            }
            return Ok(opened.reply);
        }
        let want = self.shape(&mut request.head, &cluster, &picked);

        // A request that is given up in the middle of the try is logged with its host, too.
        let before = self.flow.info(|i| mem::replace(&mut i.upstream_host, host.address().ip()));
        let under_way = UnderWay::new(&cluster, &host, &self.flow);
        let upstream = match cluster::acquire(&cluster, picked, &want).await {
            Ok(upstream) => upstream,
            Err(AcquireError::TooManyRequests) => {
                under_way.end(None);
                return Err(Failure::Overflow);
            }
            Err(AcquireError::Overflow) => {
                under_way.end(None);
                // It was not so much as tried.
                *seen = None;
                self.flow.info(|i| i.upstream_host = before);
                return Err(Failure::Overflow);
            }
            Err(AcquireError::Connect(failure)) => {
                // While we tried to connect, the request's body went on coming; a downstream whose request is whole keeps
                // its connection.
                request.body.discard_ready().await;
                under_way.end(Some(cluster::Outcome::ConnectFailed));
                return Err(Failure::Connect { timeout: failure.timeout, reason: (&*failure.reason).into() });
            }
        };
        cluster.connected(&host);
        if let Some(seen) = seen {
            (seen.local, seen.tls) = (upstream.local(), upstream.tls().cloned());
            seen.line = Some(upstream.facts().clone());
        }
        {
            let mut callee = self.callee.borrow_mut();
            callee.tls = upstream.tls().cloned();
            callee.remembered = None;
        }
        let remembered = self.describe(&mut request.head.headers, &cluster, &upstream);
        let described = remembered.is_some();
        // A request that is given up in the middle of the try is logged with its connection, too.
        self.flow.info(|i| {
            i.upstream_local = upstream.local();
            i.trail.line = Some(upstream.facts().clone());
        });
        self.flow.sending(upstream.protocol());
        if let Some(charge) = &*self.flow.charge.borrow() {
            charge.began();
        }
        if self.flow.scheme_of_upstream.get() {
            let scheme: &[u8] = if upstream.tls().is_some() { b"https" } else { b"http" };
            request.head.scheme = bytes::Bytes::from_static(scheme);
        }
        if upstream.protocol() == Protocol::Http2 {
            self.flow.keep_copy(&request.head);
        }
        let request = Request {
            head: mem::replace(&mut request.head, RequestHead::empty(Protocol::Http11)),
            body: mem::take(&mut request.body),
        };
        let written = |mut head: RequestHead| {
            // Who reads of the request reads as if every request had brought its description, and never what is between the two
            // ends of a connection alone.
            if let (Some(own), true) = (&self.wishes.own_metadata, described) {
                match self.flow.keeps_description() {
                    true => own.write(&mut head.headers),
                    false => OwnMetadata::remove(&mut head.headers),
                }
            }
            self.flow.keep_sent(head);
        };
        let upstream = upstream.measured(self.flow.upstream_meter().cloned());
        let sending = pin!(upstream.send(request, self.informational.clone(), written));
        match within(&self.flow, timeout, sending).await {
            Ok(Ok(mut reply)) => {
                if cluster.health().is_some() && reply.head.headers.contains(&IMMEDIATE_FAIL) {
                    cluster.told_unhealthy(&host);
                }
                if let Some(remembered) = remembered {
                    remembered.answered(&mut reply.head.headers);
                    self.callee.borrow_mut().remembered = Some(remembered);
                }
                reply.head.headers.join_singular(Of::Response);
                under_way.end(Some(cluster::Outcome::Answered(status_of(&reply))));
                Ok(reply)
            }
            Ok(Err(error)) => match self.flow.broken() {
                Some(broken) => {
                    under_way.end(None);
                    Err(Failure::Downstream(broken))
                }
                None => {
                    if matches!(error.reason, ResetReason::Remote | ResetReason::RemoteRefused) {
                        cluster.stats().upstream_rq_rx_reset.inc();
                    }
                    under_way.end(Some(cluster::Outcome::Reset));
                    Err(reset(error))
                }
            },
            Err(failure) => {
                cluster.stats().upstream_rq_per_try_timeout.inc();
                under_way.end(Some(cluster::Outcome::TimedOut));
                Err(failure)
            }
        }
    }

    /// Describes our workload to the callee, unless it remembers. Gives what is remembered on the connection where either side
    /// remembers anything.
    fn describe(
        &self,
        headers: &mut Headers,
        cluster: &Cluster,
        upstream: &Upstream,
    ) -> Option<Rc<peer::Callee>> {
        let own = self.wishes.own_metadata.as_ref()?;
        if own.skip_external && is_external(cluster) {
            return None;
        }
        let callee = upstream.callee().filter(|_| own.remembers).cloned();
        match &callee {
            // What an application says of itself is not ours to tell.
            Some(callee) if callee.workload().is_some() => OwnMetadata::remove(headers),
            Some(callee) => match callee.ask() {
                Some(number) => own.ask(number, headers),
                None => own.write(headers),
            },
            None => own.write(headers),
        }
        callee
    }

    /// What depends on the cluster and the host: authority, the protocols to offer.
    fn shape(&self, head: &mut RequestHead, cluster: &Cluster, picked: &Picked) -> Want {
        let config = cluster.config();
        let name = picked.host().hostname();
        if self.auto_host && !name.is_empty() {
            let envoy_headers = !self.wishes.config.suppress_envoy_headers;
            set_authority(head, name.to_string().into(), self.append_forwarded_host, envoy_headers);
        }
        let metadata = config.metadata.as_deref();
        let protocol = match config.http {
            HttpMode::Http1 => Protocol::Http11,
            HttpMode::Http2 => Protocol::Http2,
            HttpMode::Downstream | HttpMode::Auto => head.protocol,
        };
        let overridable = metadata.and_then(|m| m.get_str("istio", "alpn_override")) != Some("false");
        let alpn = self.wishes.alpn.as_ref().filter(|_| overridable).and_then(|a| a.names(protocol));
        let named = config.auto_sni || config.auto_san;
        Want {
            protocol: head.protocol,
            alpn: alpn.cloned(),
            authority: named.then(|| String::from_utf8_lossy(&head.authority).into()),
            origin: Origin::of(
                &self.connection,
                config.transport(picked.host()).is_some_and(|t| t.proxy.is_some()),
            )
            .map(Arc::new),
            priority: self.priority,
        }
    }
}

/// Whether a cluster is outside of the mesh.
fn is_external(cluster: &Cluster) -> bool {
    let metadata = cluster.config().metadata.as_deref();
    metadata
        .and_then(|m| m.namespace("istio")?.fields.get("external")?.kind.as_ref())
        .is_some_and(|kind| matches!(kind, Kind::BoolValue(true)))
}

/// Reports how a try ended. Dropped in the middle of one, it reports a timeout if that is why the request is given up, and
/// nothing if the downstream went away.
struct UnderWay<'a> {
    cluster: &'a Arc<Cluster>,
    host: &'a Arc<Host>,
    flow: &'a Flow,
    ended: Cell<bool>,
}

impl<'a> UnderWay<'a> {
    fn new(cluster: &'a Arc<Cluster>, host: &'a Arc<Host>, flow: &'a Flow) -> Self {
        Self { cluster, host, flow, ended: Cell::new(false) }
    }

    fn end(self, outcome: Option<cluster::Outcome>) {
        self.ended.set(true);
        if let Some(outcome) = outcome {
            self.cluster.report(self.host, outcome);
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.ended.get() && matches!(self.flow.expired(), Some(Expired::Route | Expired::TryIdle)) {
            self.cluster.report(self.host, cluster::Outcome::TimedOut);
        }
    }
}

impl Upstreams for ClusterUpstreams {
    type Permit = Option<Permit>;

    async fn attempt(&self, attempt: Attempt<'_>) -> Outcome {
        let mut seen = None;
        let result = self.send(attempt, &mut seen).await;
        Outcome { seen, result }
    }

    fn retry_permit(&self) -> Option<Self::Permit> {
        match self.slot.get() {
            Some(cluster) => cluster.limits(self.priority).retries.try_acquire().map(Some),
            // The next try will say that the cluster is gone.
            None => Some(None),
        }
    }

    fn count(&self, event: Event) {
        if let Some(charge) = &*self.flow.charge.borrow() {
            charge.event(event);
        }
    }

    fn abandoned(&self) -> Box<dyn FnOnce()> {
        let slot = self.slot.clone();
        Box::new(move || {
            if let Some(cluster) = slot.get() {
                cluster.stats().retry_or_shadow_abandoned.inc();
            }
        })
    }
}

fn reset(error: UpstreamError) -> Failure {
    Failure::Reset { reason: error.reason, head_sent: error.progress > Progress::Unsent, text: None }
}

/// So many hosts are told of a cluster where none may be used.
const TOLD: usize = 16;

/// The hosts of a cluster, none of which may be used.
pub fn refused(cluster: &Cluster) -> Vec<Candidate> {
    cluster.hosts().hosts().take(TOLD).map(|host| candidate(host)).collect()
}

/// The status by which a host is judged: a gRPC answer's own, in HTTP's terms.
fn status_of(reply: &Reply) -> StatusCode {
    let grpc = reply.head.headers.get_str(&GRPC_STATUS).and_then(|s| s.parse::<u32>().ok());
    let code = match grpc {
        None | Some(0) => return reply.head.status,
        Some(1) => 499,
        Some(3 | 9 | 11) => 400,
        Some(4) => 504,
        Some(5) => 404,
        Some(6 | 10) => 409,
        Some(7) => 403,
        Some(8) => 429,
        Some(12) => 501,
        Some(14) => 503,
        Some(16) => 401,
        Some(_) => 500,
    };
    StatusCode::from_u16(code).unwrap_or(reply.head.status)
}

/// Workloads by host that a worker remembers; more than a mesh's endpoints that one worker calls.
const REMEMBERED: usize = 10_000;

/// By host: the text and what it says.
type Workloads = HashMap<u64, (Box<str>, Arc<Workload>)>;

thread_local! {
    static WORKLOADS: RefCell<Workloads> = RefCell::default();
}

/// The workload behind a host, as the control plane describes it in the endpoint's metadata:
/// `name;namespace;canonical name;canonical revision;cluster`.
fn workload_of(host: &Host) -> Option<Arc<Workload>> {
    let facts = host.facts();
    let text = facts.metadata.as_deref()?.get_str("istio", "workload")?;
    WORKLOADS.with_borrow_mut(|known| {
        if let Some((of, workload)) = known.get(&host.id().0)
            && **of == *text
        {
            return Some(workload.clone());
        }
        let mut parts = text.split(';').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let workload = Arc::new(Workload {
            name: next(),
            namespace: next(),
            canonical_service: next(),
            canonical_revision: next(),
            cluster: next(),
            ..Workload::default()
        });
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(host.id().0, (text.into(), workload.clone()));
        Some(workload)
    })
}
