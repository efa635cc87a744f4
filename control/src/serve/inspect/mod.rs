//! Proxies' admin interfaces, reached through the control plane.
//!
//! A proxy of ours opens a stream beside its ADS stream ([`service`]) and is asked on it for pages that only read; [`link`] is one
//! such stream with the questions that are under way. [`http`] answers operators, [`access`] says who of them may ask whom.

pub mod access;
pub mod http;
mod link;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use clap::Args;
use parking_lot::Mutex;

pub use link::{Asked, Link, Refused};
pub use service::Inspection;

use super::Proxies;

/// The flags.
#[derive(Args, Debug, Default)]
pub struct InspectArgs {
    /// Let who knows the token in this file read proxies' admin pages through this control plane: GET /proxies at the debug port, from
    /// this machine, and at the webhooks' port (docs/inspection.md). The file is read anew for each request. In a cluster those
    /// may do so, too, who may get proxies/admin (weft.dev) there
    #[arg(long, value_name = "FILE")]
    pub inspect_token_file: Option<PathBuf>,
}

/// The streams of proxies that can be asked. Cloning it shares it.
#[derive(Clone, Debug, Default)]
pub struct Links {
    next: Arc<AtomicU64>,
    all: Arc<Mutex<BTreeMap<u64, Arc<Link>>>>,
}

/// A place among them; dropping it takes the link out, and ends what is asked on it.
struct Entry {
    number: u64,
    links: Links,
}

impl Links {
    fn enter(&self, link: Arc<Link>) -> Entry {
        let number = self.next.fetch_add(1, Relaxed);
        self.all.lock().insert(number, link);
        Entry { number, links: self.clone() }
    }

    /// In the order in which they came.
    fn list(&self) -> Vec<Arc<Link>> {
        self.all.lock().values().cloned().collect()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let link = self.links.all.lock().remove(&self.number);
        if let Some(link) = link {
            link.end();
        }
    }
}

/// A connected proxy, for whoever asks for it.
#[derive(Clone, Debug)]
struct There {
    id: String,
    namespace: String,
    agent: String,
    address: String,
    /// How it is asked; none if it cannot be.
    link: Option<Arc<Link>>,
}

/// Why a proxy cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Missing {
    /// It is not connected here.
    Unknown,
    /// It has no stream for it.
    Closed(String),
    /// Several say that they are it.
    Several(Vec<String>),
}

/// `NAME.NAMESPACE` of `KIND~IP~NAME.NAMESPACE~DOMAIN`.
fn short(id: &str) -> &str {
    id.split('~').nth(2).unwrap_or(id)
}

fn host(address: &str) -> &str {
    address
        .parse::<SocketAddr>()
        .map_or(address, |_| address.rsplit_once(':').map_or(address, |(host, _)| host))
}

/// Who is connected, each once for each of its streams.
fn there(proxies: &Proxies, links: &Links) -> Vec<There> {
    let links = links.list();
    let mut all = Vec::new();
    proxies.each(|proxy| {
        // A link counts only on the very connection that xDS knows the proxy by.
        let is_its = |link: &&Arc<Link>| link.is_of(&proxy.node.id, &proxy.address);
        all.push(There {
            id: proxy.node.id.clone(),
            namespace: proxy.node.namespace.clone(),
            agent: proxy.agent.clone(),
            address: proxy.address.clone(),
            link: links.iter().rev().find(is_its).cloned(),
        });
    });
    all
}

/// The proxy of this id, or `NAME.NAMESPACE`.
fn find(all: &[There], name: &str) -> Result<Arc<Link>, Missing> {
    let meant: Vec<_> = all.iter().filter(|one| one.id == name || short(&one.id) == name).collect();
    let Some(last) = meant.last() else { return Err(Missing::Unknown) };
    let linked: Vec<_> = meant.iter().filter_map(|one| Some((*one, one.link.clone()?))).collect();
    // One that came back may be there twice for a while, from one host; two hosts are two proxies.
    let whom: BTreeSet<_> = linked.iter().map(|(one, _)| (one.id.as_str(), host(&one.address))).collect();
    if whom.len() > 1 {
        let who = whom.into_iter().map(|(id, host)| format!("{id} from {host}"));
        return Err(Missing::Several(who.collect()));
    }
    match linked.last() {
        Some((_, link)) => Ok(link.clone()),
        None => Err(Missing::Closed(last.agent.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(id: &str, address: &str, linked: bool) -> There {
        let link = linked.then(|| Link::new(id.to_owned(), address.to_owned()).0);
        There {
            id: id.to_owned(),
            namespace: "shop".into(),
            agent: "weft 1".into(),
            address: address.into(),
            link,
        }
    }

    #[test]
    fn whoever_came_last_from_a_host_is_asked_and_two_hosts_are_told_apart() {
        let id = "sidecar~10.0.0.1~a.shop~d";
        let all = [
            one(id, "10.0.0.1:1", true),
            one(id, "10.0.0.1:2", true),
            one("sidecar~10.0.0.2~b.shop~d", "10.0.0.2:1", false),
        ];
        for name in [id, "a.shop"] {
            assert!(find(&all, name).unwrap().is_of(id, "10.0.0.1:2"));
        }
        assert_eq!(find(&all, "b.shop").unwrap_err(), Missing::Closed("weft 1".into()));
        assert_eq!(find(&all, "c.shop").unwrap_err(), Missing::Unknown);
        // A replica that says it is another.
        let rogue = [one(id, "10.0.0.1:1", true), one(id, "10.0.0.9:1", true)];
        let Missing::Several(who) = find(&rogue, "a.shop").unwrap_err() else {
            panic!("one of both was asked")
        };
        assert_eq!(who, [format!("{id} from 10.0.0.1"), format!("{id} from 10.0.0.9")]);
    }
}
