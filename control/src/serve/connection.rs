//! One stream from its first request to its end: who it is, then requests, new states and deadlines, in whatever order they
//! come.

use std::sync::Arc;
use std::time::Instant;

use tonic::Status;
use weft_certs::spiffe::SpiffeId;
use weft_events::{Event, Kind, Outcome, Severity, emit};
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use xds_protos::prost::Message;

use super::ads::AdsService;
use super::cache::Place;
use super::dispatch::Wake;
use super::frames::Outlet;
use super::proxies::{Entry, Proxy};
use super::registration::{Asked, Registration};
use super::requests::Requests;
use super::session::{Heard, Session, Variant};
use super::spread::Member;
use super::transport::{GRACE, Leave};
use crate::queue::Revision;
use crate::render::ProxyNode;

/// Who calls.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) address: String,
    pub(super) identity: Option<SpiffeId>,
    /// Whether its connection is to end; none where nobody can say so.
    pub(super) leave: Option<Leave>,
}

/// A variant's requests.
pub(super) trait Wire: Message + Default + Send + 'static {
    const VARIANT: Variant;
    fn node(&self) -> Option<&Node>;
    fn type_url(&self) -> &str;
    fn error(&self) -> Option<&str>;
    fn hear(&self, session: &mut Session) -> Heard;
    /// gRPC's code of what is wrong with the last response, if something is.
    fn error_code(&self) -> i32;
}

impl Wire for DeltaDiscoveryRequest {
    const VARIANT: Variant = Variant::Delta;
    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }
    fn type_url(&self) -> &str {
        &self.type_url
    }
    fn error(&self) -> Option<&str> {
        self.error_detail.as_ref().map(|error| error.message.as_str())
    }
    fn hear(&self, session: &mut Session) -> Heard {
        session.delta(self)
    }
    fn error_code(&self) -> i32 {
        self.error_detail.as_ref().map_or(0, |error| error.code)
    }
}

impl Wire for DiscoveryRequest {
    const VARIANT: Variant = Variant::StateOfTheWorld;
    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }
    fn type_url(&self) -> &str {
        &self.type_url
    }
    fn error(&self) -> Option<&str> {
        self.error_detail.as_ref().map(|error| error.message.as_str())
    }
    fn hear(&self, session: &mut Session) -> Heard {
        session.sotw(self)
    }
    fn error_code(&self) -> i32 {
        self.error_detail.as_ref().map_or(0, |error| error.code)
    }
}

/// By requests of this type a proxy that entered its workload says how that is. Istio's agents may do so ahead of the first request,
/// which names no proxy yet.
const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";

/// Serves a stream until it ends.
pub(super) async fn run<W: Wire>(
    service: AdsService,
    caller: Caller,
    mut requests: Requests<W>,
    responses: Outlet,
) {
    let first = loop {
        match requests.message().await {
            Ok(Some(request)) if request.node().is_none() && request.type_url() == HEALTH => {}
            Ok(Some(request)) => break request,
            Ok(None) => return,
            Err(status) => return responses.send(Err(status)).await,
        }
    };
    match Connection::open(service, &caller, &first) {
        Ok(mut connection) => {
            tracing::info!(proxy = %connection.node.id, from = %caller.address, "proxy connected");
            connection.serve(first, requests, &responses).await;
        }
        Err(status) => {
            tracing::warn!(from = %caller.address, reason = status.message(), "stream refused");
            metrics::counter!("pilot_xds_stream_refusals").increment(1);
            responses.send(Err(status)).await;
        }
    }
}

struct Connection {
    service: AdsService,
    node: ProxyNode,
    place: Place,
    session: Session,
    revision: Arc<Revision>,
    /// The present revision has been measured as delivered.
    converged: bool,
    entry: Arc<Entry>,
    wake: Arc<Wake>,
    /// Its place among those that may be sent to another control plane.
    member: Option<Member>,
    /// Its workload is entered as long as it is connected.
    registration: Option<Registration>,
}

/// The identity must be the one that the node claims; on the plaintext port there is none to compare.
pub(super) fn check(node: &ProxyNode, identity: Option<&SpiffeId>) -> Result<(), Status> {
    let Some(identity) = identity else { return Ok(()) };
    let fits = identity.workload().is_some_and(|(namespace, account)| {
        namespace == node.namespace && (node.service_account.is_empty() || node.service_account == account)
    });
    if fits {
        return Ok(());
    }
    let (namespace, account) = (&node.namespace, &node.service_account);
    Err(Status::permission_denied(format!(
        "{identity} may not connect as a proxy of namespace {namespace:?}, service account {account:?}: the node's NAMESPACE \
         and SERVICE_ACCOUNT must be those of its certificate or token"
    )))
}

impl Connection {
    fn open<W: Wire>(mut service: AdsService, caller: &Caller, first: &W) -> Result<Self, Status> {
        let message = first.node().cloned().unwrap_or_default();
        let mut node = ProxyNode::parse(&message).map_err(|e| Status::invalid_argument(e.to_string()))?;
        check(&node, caller.identity.as_ref())?;
        let secrets = caller.identity.is_some();
        let revision = service.queue.latest();
        if let Some((_, account)) = caller.identity.as_ref().and_then(SpiffeId::workload) {
            // Who leaves it out has it all the same.
            account.clone_into(&mut node.service_account);
            if !revision.world.vouches(node.address(), &node.namespace, account) {
                tracing::warn!(
                    node = node.id,
                    address = node.address(),
                    account,
                    "no pod of this service account is known at this address: the proxy gets no credentials of gateways until one is"
                );
            }
        }
        let registration = match (Asked::read(&message), &service.registrar) {
            (None, _) => None,
            (Some(asked), Some(registrar)) => {
                Some(registrar.enter(&revision.world, &asked, &node, caller.identity.as_ref())?)
            }
            (Some(_), None) => {
                return Err(Status::failed_precondition(
                    "the proxy is to enter its workload (AUTO_REGISTER_GROUP), and this control plane lets nobody do so \
                     (--auto-registration false)",
                ));
            }
        };
        let place = service.cache.place(&node, secrets);
        let entry = Arc::new(service.proxies.enter(Proxy {
            node: node.clone(),
            agent: message.user_agent_name,
            variant: W::VARIANT,
            address: caller.address.clone(),
            identity: caller.identity.as_ref().map(ToString::to_string),
            connected: time::OffsetDateTime::now_utc(),
            revision: 0,
            types: Vec::new(),
        }));
        // Before the revision is asked for: none is missed in between.
        let wake = Arc::new(service.dispatch.wait(place.clone(), entry.clone()));
        let (revision, resources) = service.cache.resources(&service.queue.latest(), &place);
        let number = revision.number;
        metrics::counter!("pilot_push_triggers", "type" => "proxy").increment(1);
        wake.has(number);
        entry.update(|proxy| proxy.revision = proxy.revision.max(number));
        let stream = stream_number();
        let session = Session::new(W::VARIANT, stream, resources, revision.version.clone(), Instant::now());
        let member = caller.leave.clone().map(|leave| service.crowd.enter(leave, Instant::now()));
        Ok(Self {
            service,
            node,
            place,
            session,
            revision,
            converged: true,
            entry,
            wake,
            member,
            registration,
        })
    }

    async fn serve<W: Wire>(&mut self, first: W, mut requests: Requests<W>, responses: &Outlet) {
        self.hear(&first);
        // The first request may name thousands of resources.
        drop(first);
        let wake = self.wake.clone();
        // When it was told to go.
        let mut told: Option<Instant> = None;
        loop {
            self.send(responses).await;
            self.settle();
            let now = Instant::now();
            // What is on its way is waited for, as far as the connection waits itself.
            if told.is_some_and(|told| self.session.settled(now) || now >= told + GRACE / 2) {
                return;
            }
            let deadline = self.session.deadline(now);
            let deadline = deadline.into_iter().chain(told.map(|told| told + GRACE / 2)).min();
            let deadline = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let told_to_go = self.member.as_ref().filter(|_| told.is_none());
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.hear(&request),
                    Ok(None) => return,
                    Err(status) => return responses.send(Err(status)).await,
                },
                () = wake.woken() => self.update().await,
                () = Member::told(told_to_go) => told = Some(Instant::now()),
                () = deadline => {}
            }
        }
    }

    fn hear<W: Wire>(&mut self, request: &W) {
        if request.type_url() == HEALTH {
            if let Some(registration) = &self.registration {
                registration.report(request.error().map(str::to_owned));
            }
            return;
        }
        match request.hear(&mut self.session) {
            Heard::Refused(kind, reason) => {
                metrics::counter!("pilot_total_xds_rejects", "type" => kind.short()).increment(1);
                let code = format!("{:?}", tonic::Code::from_i32(request.error_code()));
                let of_kind = format!("pilot_xds_{}_reject", kind.short());
                // Without the proxy's name, which is as it says itself: the log has it.
                metrics::gauge!(of_kind, "err" => code).increment(1.0);
                emit(Kind::ConfigRejected, || {
                    let words = format!("the proxy {} refused a push: {reason}", self.node.id);
                    Event::new(Kind::ConfigRejected, Outcome::Failed, Severity::Medium, "xds", words)
                        .with("proxy", self.node.id.to_string())
                        .with("resource_type", kind.type_url())
                        .with("reason", reason.to_string())
                        .with("operation", "push resources")
                });
                tracing::warn!(
                    proxy = %self.node.id, %kind, reason,
                    "proxy refused a push; it goes on with what it had"
                );
            }
            Heard::Subscribed(kind) => tracing::debug!(proxy = %self.node.id, %kind, "subscribed"),
            Heard::Acknowledged(_) => {}
            Heard::Expired(kind) => {
                metrics::counter!("pilot_xds_expired_nonce", "type" => kind.short()).increment(1);
            }
            Heard::Nothing if ResourceType::from_type_url(request.type_url()).is_none() => {
                tracing::debug!(proxy = %self.node.id, type_url = request.type_url(), "a type that is not served");
            }
            Heard::Nothing => {}
        }
    }

    /// Notes how far the client is.
    fn settle(&mut self) {
        if !self.converged && self.session.settled(Instant::now()) {
            self.converged = true;
            self.service.numbers.convergence.record(self.revision.read.elapsed().as_secs_f64());
        }
        if self.session.is_touched() {
            let (session, revision) = (&mut self.session, self.revision.number);
            self.entry.update(|proxy| {
                proxy.revision = proxy.revision.max(revision);
                session.tell(&mut proxy.types);
            });
        }
    }

    /// Takes the latest state.
    async fn update(&mut self) {
        let _permit = self.service.queue.permit().await;
        let revision = self.service.queue.latest();
        self.service.numbers.queue.record(revision.read.elapsed().as_secs_f64());
        let (revision, resources) = self.service.cache.resources(&revision, &self.place);
        self.session.set(resources, revision.version.clone(), Instant::now());
        let number = revision.number;
        self.wake.has(number);
        self.revision = revision;
        self.converged = false;
        if !self.session.is_touched() {
            self.entry.update(|proxy| proxy.revision = proxy.revision.max(number));
        }
    }

    async fn send(&mut self, responses: &Outlet) {
        let mut began = Instant::now();
        while let Some(push) = self.session.next(began) {
            let numbers = self.service.numbers.of(push.kind);
            numbers.pushes.increment(1);
            let bytes: usize = push.upserts.iter().map(|(_, resource)| resource.bytes.len()).sum();
            numbers.size.record(bytes as f64);
            tracing::debug!(
                proxy = %self.node.id, kind = %push.kind, resources = push.upserts.len(),
                removed = push.removed.len(), "push"
            );
            let sending = Instant::now();
            let unsent = Unsent(Some(push.kind));
            responses.send(Ok(push)).await;
            unsent.sent();
            let now = Instant::now();
            self.service.numbers.send.record((now - sending).as_secs_f64());
            numbers.time.record((now - began).as_secs_f64());
            began = now;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        tracing::info!(proxy = %self.node.id, "proxy disconnected");
    }
}

/// A response that its client has not made room for. If it goes before it does, that is counted.
struct Unsent(Option<ResourceType>);

impl Unsent {
    fn sent(mut self) {
        self.0 = None;
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(kind) = self.0 {
            metrics::counter!("pilot_xds_pushes", "type" => format!("{}_senderr", kind.short())).increment(1);
        }
    }
}

/// A number that no other stream has, for nonces.
fn stream_number() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
