//! A connection held for one request.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Found, Idle, Line, Shared, with};
use crate::cluster::host::Host;
use crate::cluster::limits::Permit;
use crate::cluster::{Cluster, Picked};
use crate::codec::{InformationalSink, Meter, Protocol, Reply, Request, RequestHead, UpstreamError};
use crate::io::TlsInfo;
use crate::telemetry::peer::Callee;
use crate::telemetry::record::UpstreamLine;

/// What is held while a request is under way: its place in the breaker and in the host's count of active requests.
struct Held {
    _permit: Permit,
    picked: Picked,
    cluster: Arc<Cluster>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cluster.stats().upstream_rq_active.add(-1);
    }
}

/// A connection for one request.
pub struct Upstream {
    found: Found,
    held: Held,
    meter: Option<Rc<Meter>>,
}

impl Upstream {
    pub(super) fn new(found: Found, picked: Picked, permit: Permit, cluster: Arc<Cluster>) -> Self {
        cluster.stats().upstream_rq_total.inc();
        cluster.stats().upstream_rq_active.add(1);
        Self { found, held: Held { _permit: permit, picked, cluster }, meter: None }
    }

    /// The same, whose request and answer are counted.
    #[must_use]
    pub fn measured(self, meter: Option<Rc<Meter>>) -> Self {
        Self { meter, ..self }
    }

    fn line(&self) -> &Line {
        match &self.found {
            Found::One(idle) => &idle.line,
            Found::Share(shared) => &shared.line,
        }
    }

    /// The host.
    pub fn host(&self) -> &Arc<Host> {
        self.held.picked.host()
    }

    /// Our address on the connection.
    pub fn local(&self) -> Option<SocketAddr> {
        self.line().local
    }

    /// Its number and when it was made.
    pub fn facts(&self) -> &Rc<UpstreamLine> {
        &self.line().facts
    }

    /// What TLS established.
    pub fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.line().tls.as_ref()
    }

    /// What is remembered of the callee on the connection, where it may be.
    pub fn callee(&self) -> Option<&Rc<Callee>> {
        self.line().callee.as_ref()
    }

    /// The protocol that the request will go by.
    pub fn protocol(&self) -> Protocol {
        match &self.found {
            Found::One(_) => Protocol::Http11,
            Found::Share(_) => Protocol::Http2,
        }
    }

    /// Sends a request. The connection goes back to the pool, and the request's places are given back, when the reply's
    /// body has been read or dropped. `written` gets the request's head when its bytes are made; HTTP/2 uses it up.
    pub async fn send(
        self,
        request: Request,
        sink: Option<Rc<dyn InformationalSink>>,
        written: impl FnOnce(RequestHead),
    ) -> Result<Reply, UpstreamError> {
        let held = self.held;
        match self.found {
            Found::One(Idle { connection, line, .. }) => {
                let release = Box::new(move |back: Option<crate::codec::h1::client::Connection>| {
                    drop(held);
                    let Some(connection) = back else { return };
                    let now = Instant::now();
                    if !line.is_fresh(connection.requests(), now) {
                        line.count_if_used_up(connection.requests());
                        return;
                    }
                    let key = line.key.clone();
                    with(&key, |p| {
                        p.idle.push(Idle { connection, line, since: now });
                        p.wake();
                    });
                });
                connection.measured(self.meter).send(request, sink, release, written).await
            }
            Found::Share(shared) => {
                let handle = shared.connection.borrow().clone();
                shared.line.count_if_used_up(handle.requests() + 1);
                let done = Box::new(move || {
                    drop(held);
                    finished(&shared);
                });
                handle.measured(self.meter).send(request, sink, done).await
            }
        }
    }
}

fn finished(shared: &Rc<Shared>) {
    shared.used.set(Instant::now());
    super::wake(&shared.line.key);
}
