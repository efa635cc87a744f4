//! Streams that outlive the policy under which they began: WebSockets and other upgrades, tunnels, gRPC, event streams. When the
//! listener changes, those that its new filters deny are reset, and those that they allow go on.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Method, header};
use tokio::sync::watch;

use super::HcmConfig;
use super::manager::Shared;
use crate::codec::{Body, BodyError, BodyStream, Frame, RequestHead, ResetReason};
use crate::filters::rbac::Subject;
use crate::io::{DynamicMetadata, FilterState};
use crate::route::Matched;
use crate::route::matching::is_grpc;
use crate::router::{Exchange, Flow};

/// The connection manager that new connections get.
pub trait Newest {
    /// Tells when the listener changed.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The connection manager that this connection would get now, where that is another one than it has.
    fn config(&self) -> Option<Arc<HcmConfig>>;
}

/// As much of a request as a decision over it needs.
pub struct Standing {
    head: RequestHead,
    metadata: DynamicMetadata,
    state: FilterState,
    client: IpAddr,
    matched: Option<Matched>,
}

impl Standing {
    /// Keeps what is needed of a request that passed the filters, if its stream may be a long one.
    pub fn keep(exchange: &Exchange) {
        let head = &exchange.head;
        let events = || {
            let accept = head.headers.get(&header::ACCEPT);
            accept.is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"))
        };
        let long = head.upgrade.is_some() || head.method == Method::CONNECT || is_grpc(head) || events();
        if !long {
            return;
        }
        let (metadata, state, client) =
            exchange.flow.info(|i| (i.metadata.clone(), i.filter_state.clone(), i.client));
        let standing = Self {
            head: head.clone(),
            metadata,
            state,
            client: client.unwrap_or(exchange.connection.remote).ip(),
            matched: exchange.matched.clone(),
        };
        *exchange.flow.standing.borrow_mut() = Some(Box::new(standing));
    }

    fn denied(&self, config: &HcmConfig, shared: &Shared) -> Option<Arc<str>> {
        let subject = Subject {
            connection: &shared.connection,
            head: Some(&self.head),
            client: self.client,
            metadata: &self.metadata,
            route: self.matched.as_ref().and_then(|m| m.route().metadata.as_deref()),
            state: Some(&self.state),
        };
        config.filters.denies(&subject, self.matched.as_ref())
    }
}

/// Done at the next change; it gives back what tells of the one after that.
type Change = Pin<Box<dyn Future<Output = Option<watch::Receiver<u64>>>>>;

/// An answer's body that ends when its request is allowed no longer.
pub struct Rechecked {
    inner: Body,
    standing: Box<Standing>,
    newest: Rc<dyn Newest>,
    shared: Rc<Shared>,
    flow: Rc<Flow>,
    /// The next change; none if there will be no other.
    change: Option<Change>,
}

async fn change(mut changes: watch::Receiver<u64>) -> Option<watch::Receiver<u64>> {
    changes.changed().await.is_ok().then_some(changes)
}

impl Rechecked {
    /// Wraps the body of an answer that is not whole yet, if something of its request was kept.
    pub fn wrap(body: Body, shared: &Rc<Shared>, flow: &Rc<Flow>) -> Body {
        let kept = flow.standing.borrow_mut().take().and_then(|kept| kept.downcast::<Standing>().ok());
        let (Some(standing), Some(newest), Body::Stream(_)) = (kept, &shared.newest, &body) else {
            return body;
        };
        let newest = newest.clone();
        let change = Some(Box::pin(change(newest.changes())) as _);
        Body::stream(Self {
            inner: body,
            standing,
            newest,
            shared: shared.clone(),
            flow: flow.clone(),
            change,
        })
    }
}

impl BodyStream for Rechecked {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        while let Some(Poll::Ready(changed)) = self.change.as_mut().map(|c| c.as_mut().poll(cx)) {
            self.change = changed.map(|changes| Box::pin(change(changes)) as _);
            let config = self.newest.config();
            if let Some(details) = config.and_then(|c| self.standing.denied(&c, &self.shared)) {
                self.flow.details(details);
                // The upstream's side ends with the body.
                self.inner = Body::Empty;
                self.change = None;
                let error = BodyError { reason: ResetReason::Local, details: "rbac_access_denied" };
                return Poll::Ready(Some(Err(error)));
            }
        }
        self.inner.poll_frame(cx)
    }

    fn remaining(&self) -> Option<u64> {
        self.inner.remaining()
    }
}
