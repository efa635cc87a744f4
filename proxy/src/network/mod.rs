//! Network filters: what runs on a connection's bytes, ending in the HTTP connection manager or the TCP proxy.
//!
//! The filters before the terminal one run in the configuration's order when the connection begins. Those of Istio that are
//! taken today (metadata exchange, stats) have their work done elsewhere: peers are known by their certificates, and the TCP
//! proxy reports connections itself, while they live and at their end. Envoy's for MongoDB, which istiod puts before the TCP proxy of
//! ports that are called so, only counts what is asked, and is taken without.

mod beside;
pub mod config;
pub mod decide;
mod ext_authz;
mod living;
pub mod rate_limit;
pub mod rbac;
pub mod recheck;
pub mod record;
pub mod tcp_proxy;

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use beside::beside;
pub use config::NetworkChain;
use ext_authz::{Asking, NetworkExtAuthz};
use rbac::NetworkRbac;

use crate::codec::Drain;
use crate::http::{HcmConfig, Newest};
use crate::io::{ConnectionInfo, Gate, Io, Pass};
use recheck::Successor;
use tcp_proxy::TcpProxyConfig;

/// What a chain ends in.
pub enum Terminal {
    /// HTTP.
    Http(Arc<HcmConfig>),
    /// Bytes.
    Tcp(Arc<TcpProxyConfig>),
}

/// Decides over a connection's bytes, before the terminal filter reads them.
#[derive(Clone)]
pub enum Guard {
    /// Who may send them.
    Rbac(Arc<NetworkRbac>),
    /// What another service says.
    ExtAuthz(Arc<NetworkExtAuthz>),
}

/// The filters of a chain that decide over bytes, for one connection.
struct Guards {
    /// Those that are to be asked, each with what it waits for; one that lets all pass from now on is dropped.
    asked: Vec<(Guard, Option<Asking>)>,
    info: Arc<ConnectionInfo>,
}

impl Gate for Guards {
    fn data(&mut self) -> Pass {
        let mut at = 0;
        while let Some((guard, asking)) = self.asked.get_mut(at) {
            let pass = match guard {
                Guard::Rbac(rbac) => rbac.data(&self.info),
                Guard::ExtAuthz(filter) => filter.data(&self.info, asking),
            };
            match pass {
                Pass::Always => drop(self.asked.remove(at)),
                Pass::Once => at += 1,
                ended => return ended,
            }
        }
        if self.asked.is_empty() { Pass::Always } else { Pass::Once }
    }

    fn refused(&mut self, bytes: u64) {
        if let Some(notes) = &self.info.notes {
            notes.refused.store(bytes, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

/// Whether a connection that has come may stay. One that may not is counted and logged as the end of its chain would have done.
pub async fn admits(info: &mut ConnectionInfo, chain: &NetworkChain) -> bool {
    if chain.admissions.is_empty() {
        return true;
    }
    info.notes.get_or_insert_default();
    for admission in &chain.admissions {
        if let Some(refusal) = admission.refuses(info).await {
            tracing::debug!(remote = %info.remote, listener = %info.listener, "a rate limit refuses a connection");
            match &chain.terminal {
                Terminal::Http(config) => config.stats.downstream_cx_total.inc(),
                Terminal::Tcp(config) => tcp_proxy::refused(info, config, refusal),
            }
            return false;
        }
    }
    true
}

/// Serves a connection until it ends, or until what comes in its chain's place denies it.
pub async fn serve(
    mut io: Io,
    mut info: Rc<ConnectionInfo>,
    chain: &NetworkChain,
    drain: Drain,
    successor: Rc<dyn Successor>,
) {
    let rechecked = recheck::is_on();
    if !chain.guards.is_empty() || (rechecked && matches!(chain.terminal, Terminal::Tcp(_))) {
        Rc::make_mut(&mut info).notes.get_or_insert_default();
    }
    if !chain.guards.is_empty() {
        let asked = chain.guards.iter().map(|g| (g.clone(), None)).collect();
        io.watch(Guards { asked, info: Arc::new((*info).clone()) });
    }
    if !rechecked {
        return terminal(io, &info, chain, drain, None).await;
    }
    let (cut, ear) = crate::io::bell();
    io.cut_by(ear);
    let newest: Rc<dyn Newest> =
        Rc::new(recheck::OfHttp { successor: successor.clone(), info: info.clone() });
    let follower = pin!(recheck::follow(successor, info.clone(), cut));
    let work = pin!(terminal(io, &info, chain, drain, Some(newest)));
    beside(work, follower).await;
}

async fn terminal(
    io: Io,
    info: &Rc<ConnectionInfo>,
    chain: &NetworkChain,
    drain: Drain,
    newest: Option<Rc<dyn Newest>>,
) {
    match &chain.terminal {
        Terminal::Http(config) => {
            crate::http::serve(io, config.clone(), Arc::new((**info).clone()), drain, newest).await;
        }
        // Boxed: an HTTP connection does not carry the room for it.
        Terminal::Tcp(config) => Box::pin(tcp_proxy::serve(io, info, config, drain)).await,
    }
}
