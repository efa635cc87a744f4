//! Connections that outlive the policy under which they began: when their listener changes, those that a new policy denies are
//! closed, and those that it allows go on.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::{Guard, NetworkChain, Terminal};
use crate::http::{HcmConfig, Newest};
use crate::io::metadata::{Ruler, Ruling};
use crate::io::{Bell, ConnectionInfo};

/// Connections and streams that a new policy denies are closed.
static RECHECK: AtomicBool = AtomicBool::new(true);

/// Whether connections and streams that a new policy denies are closed; they are unless told otherwise.
pub fn set(on: bool) {
    RECHECK.store(on, Ordering::Relaxed);
}

pub(super) fn is_on() -> bool {
    RECHECK.load(Ordering::Relaxed)
}

/// What comes in the place of a connection's filter chain.
pub trait Successor {
    /// Tells when the listener changed.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The chain that the connection would get now, where that is another one than it has.
    fn chain(&self, info: &ConnectionInfo) -> Option<Arc<NetworkChain>>;
}

impl NetworkChain {
    /// Why the chain would not let this connection's bytes pass, if it would not.
    fn denies(&self, info: &ConnectionInfo) -> Option<Arc<str>> {
        self.guards.iter().find_map(|guard| match guard {
            Guard::Rbac(rbac) => rbac.denies(info),
            // A service is asked about a connection once.
            Guard::ExtAuthz(_) => None,
        })
    }
}

/// Ends a connection when a new chain denies it.
pub(super) async fn follow(successor: Rc<dyn Successor>, info: Rc<ConnectionInfo>, cut: Bell) {
    let mut changes = successor.changes();
    while changes.changed().await.is_ok() {
        let chain = successor.chain(&info);
        if let Some(details) = chain.and_then(|c| c.denies(&info)) {
            tracing::info!(remote = %info.remote, listener = %info.listener, %details, "a new policy ends a connection");
            crate::telemetry::events::connection(&info, &details);
            if let Some(notes) = &info.notes {
                notes.ruled(Ruling {
                    by: Ruler::Policy,
                    allowed: false,
                    tried: false,
                    name: Some(details.clone()),
                });
                *notes.termination.lock() = Some(details);
            }
            return cut.ring();
        }
    }
}

/// The same for the connection manager, which looks after its streams itself.
pub(super) struct OfHttp {
    pub successor: Rc<dyn Successor>,
    pub info: Rc<ConnectionInfo>,
}

impl Newest for OfHttp {
    fn changes(&self) -> watch::Receiver<u64> {
        self.successor.changes()
    }

    fn config(&self) -> Option<Arc<HcmConfig>> {
        match &self.successor.chain(&self.info)?.terminal {
            Terminal::Http(config) => Some(config.clone()),
            Terminal::Tcp(_) => None,
        }
    }
}
