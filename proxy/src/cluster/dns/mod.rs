//! Hosts from DNS, asked for on the control thread. A failure keeps the last answers: a resolver that is away breaks no
//! traffic that flows. What is asked for, and how often, is up to [`Names`], which all clusters of a proxy share.

mod names;
mod resolver;
mod times;

use std::future::{Future, pending, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::watch;

pub use self::names::{Known, Names};
use super::Cluster;
use super::config::{Discovery, DnsName};
use super::endpoint::{Endpoint, HostAddress, LoadAssignment};

/// Assigns a DNS cluster its hosts at once if all of its names are addresses, about which there is nobody to ask. Says whether
/// it did.
pub fn assign_addresses(cluster: &Cluster) -> bool {
    let Discovery::Dns { names, logical, .. } = &cluster.config().discovery else { return false };
    let addresses: Option<Vec<Vec<IpAddr>>> =
        names.iter().map(|name| Some(vec![name.host.parse().ok()?])).collect();
    let Some(addresses) = addresses else { return false };
    cluster.assign(&assignment(names, &addresses, *logical));
    true
}

/// What the answers about each name come to.
fn assignment(names: &[DnsName], known: &[Vec<IpAddr>], logical: bool) -> LoadAssignment {
    let mut endpoints: Vec<Endpoint> = names
        .iter()
        .zip(known)
        .flat_map(|(name, addresses)| {
            addresses.iter().map(|ip| Endpoint {
                address: HostAddress::Ip(SocketAddr::new(*ip, name.port)),
                hostname: match &*name.endpoint.hostname {
                    "" => name.host.as_str().into(),
                    _ => name.endpoint.hostname.clone(),
                },
                ..name.endpoint.clone()
            })
        })
        .collect();
    if logical {
        endpoints.truncate(1);
    }
    LoadAssignment::flat(endpoints)
}

/// Where the addresses of one name of a cluster come from.
enum Source {
    /// It is one.
    Itself(IpAddr),
    /// DNS.
    Asked(watch::Receiver<Option<Known>>),
}

/// Gives a DNS cluster its hosts for as long as it lives; does nothing for other clusters.
pub async fn run(cluster: Arc<Cluster>, shared: Names) {
    let Discovery::Dns { names, logical, times, family } = cluster.config().discovery.clone() else {
        return;
    };
    let weak = Arc::downgrade(&cluster);
    drop(cluster);
    let source = |name: &DnsName| match name.host.parse() {
        Ok(address) => Source::Itself(address),
        Err(_) => Source::Asked(shared.follow(&name.host, family, times)),
    };
    let mut sources: Vec<Source> = names.iter().map(source).collect();
    for source in &mut sources {
        if let Source::Asked(answers) = source {
            // It ends with the process alone.
            let _ = answers.wait_for(Option::is_some).await;
        }
    }
    loop {
        let mut fresh = false;
        let known: Vec<Vec<IpAddr>> = sources
            .iter_mut()
            .map(|source| match source {
                Source::Itself(address) => vec![*address],
                Source::Asked(answers) => {
                    let known = answers.borrow_and_update().clone().unwrap_or_default();
                    fresh |= known.answered;
                    known.addresses.to_vec()
                }
            })
            .collect();
        let Some(cluster) = weak.upgrade() else { return };
        if fresh || !cluster.is_assigned() {
            cluster.assign(&assignment(&names, &known, logical));
        }
        drop(cluster);
        changed(&mut sources).await;
    }
}

/// Resolves when somebody has looked one of them up again.
async fn changed(sources: &mut [Source]) {
    let mut waits: Vec<_> = sources
        .iter_mut()
        .filter_map(|source| match source {
            Source::Itself(_) => None,
            Source::Asked(answers) => Some(answers),
        })
        .map(|answers| {
            Box::pin(async {
                if answers.changed().await.is_err() {
                    pending::<()>().await;
                }
            })
        })
        .collect();
    poll_fn(|context| match waits.iter_mut().any(|wait| wait.as_mut().poll(context).is_ready()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}
