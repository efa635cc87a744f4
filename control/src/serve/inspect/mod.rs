//! Proxies' admin interfaces, reached through the control plane.
//!
//! A proxy of ours opens a stream beside its ADS stream ([`service`]) and is asked on it for pages that only read; [`link`] is one
//! such stream with the questions that are under way. [`http`] answers operators, [`access`] says who of them may ask whom.

pub mod access;
pub mod http;
mod lately;
mod link;
mod places;
mod seldom;
mod service;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use clap::Args;
use parking_lot::Mutex;

pub use link::{Asked, Link, Refused};
pub use service::Inspection;

use super::Proxies;
use super::proxies::Proxy;

/// The flags.
#[derive(Args, Debug, Default)]
pub struct InspectArgs {
    /// Let who knows the token in this file read proxies' admin pages through this control plane: GET /proxies at the debug port, from
    /// this machine, and at the webhooks' port (docs/inspection.md). The file is read anew for each request. In a cluster those
    /// may do so, too, who may get proxies/admin (weft.dev) there
    #[arg(long, value_name = "FILE")]
    pub inspect_token_file: Option<PathBuf>,
    /// Ask proxies for pages that are connected in plain text (15010) from other machines, too: nobody has proven who they are,
    /// and whoever is on the way reads the pages. Those on this machine are asked anyway
    #[arg(long)]
    pub inspect_plaintext: bool,
}

/// Whose streams of answers are taken, beside those that have proven who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plaintext {
    /// Those of this machine.
    Local,
    /// Everybody's (--inspect-plaintext).
    All,
}

impl Plaintext {
    /// Whether a stream in plain text from this address (with its port) is taken.
    fn takes(self, from: &str) -> bool {
        let local = from.parse::<SocketAddr>().is_ok_and(|from| from.ip().to_canonical().is_loopback());
        self == Self::All || local
    }
}

/// By a proxy's id and address; with a number of its own.
type ById = HashMap<(String, String), (u64, Arc<Link>)>;

/// The streams of proxies that can be asked, by the proxy's id and its connection. Cloning it shares it.
#[derive(Clone, Debug, Default)]
pub struct Links {
    next: Arc<AtomicU64>,
    all: Arc<Mutex<ById>>,
}

/// A place among them; dropping it takes the link out, and ends what is asked on it.
struct Entry {
    number: u64,
    link: Arc<Link>,
    links: Links,
}

impl Links {
    /// A newer link takes the place of one on the same connection, which ends.
    fn enter(&self, link: Arc<Link>) -> Entry {
        let number = self.next.fetch_add(1, Relaxed);
        let older = self.all.lock().insert(link.key(), (number, link.clone()));
        if let Some((_, older)) = older {
            older.end();
        }
        Entry { number, link, links: self.clone() }
    }

    /// Gives each of these its link. It counts only on the very connection that xDS knows the proxy by.
    fn join(&self, all: &mut [There]) {
        let links = self.all.lock();
        for one in all {
            let key = (one.id.clone(), one.address.clone());
            one.link = links.get(&key).map(|(_, link)| link.clone());
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut all = self.links.all.lock();
        let key = self.link.key();
        if all.get(&key).is_some_and(|(number, _)| *number == self.number) {
            all.remove(&key);
        }
        drop(all);
        self.link.end();
    }
}

/// A connected proxy, for whoever asks for it.
#[derive(Clone, Debug)]
struct There {
    id: String,
    namespace: String,
    agent: String,
    address: String,
    /// It has proven its namespace.
    verified: bool,
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

/// Whether an id, which is self-given, names the namespace that its proxy is of.
fn is_named_rightly(id: &str, namespace: &str) -> bool {
    let name = short(id).strip_suffix(namespace).and_then(|rest| rest.strip_suffix('.'));
    name.is_some_and(|name| !name.is_empty()) && !namespace.is_empty()
}

/// Whether this id, or `NAME.NAMESPACE`, is a proxy's.
fn is_called(id: &str, name: &str) -> bool {
    id == name || short(id) == name
}

fn host(address: &str) -> &str {
    address
        .parse::<SocketAddr>()
        .map_or(address, |_| address.rsplit_once(':').map_or(address, |(host, _)| host))
}

/// Those of the connected proxies that are meant, each once for each of its streams.
fn there(proxies: &Proxies, links: &Links, mut is_meant: impl FnMut(&Proxy) -> bool) -> Vec<There> {
    let mut all = Vec::new();
    // Every xDS stream waits for this lock: under it no more is done than to copy what is needed of those that are meant.
    proxies.each(|proxy| {
        if is_meant(proxy) {
            all.push(There {
                id: proxy.node.id.clone(),
                namespace: proxy.node.namespace.clone(),
                agent: proxy.agent.clone(),
                address: proxy.address.clone(),
                verified: proxy.identity.is_some(),
                link: None,
            });
        }
    });
    links.join(&mut all);
    all
}

/// Which of those that are called alike are meant: none that says a namespace which is not its own, and none that has not proven who
/// it is where others have.
fn meant<'a>(all: impl IntoIterator<Item = &'a There>) -> Vec<&'a There> {
    let mut all: Vec<_> = all.into_iter().filter(|one| is_named_rightly(&one.id, &one.namespace)).collect();
    if all.iter().any(|one| one.verified) {
        all.retain(|one| one.verified);
    }
    all
}

/// The proxy that these are, who are [`meant`].
fn find(meant: &[&There]) -> Result<Arc<Link>, Missing> {
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
    use crate::render::ProxyNode;
    use crate::serve::proxies::Entry as Connected;
    use crate::serve::session::Variant;

    fn one(id: &str, address: &str, linked: bool) -> There {
        let link = linked.then(|| Link::new(id.to_owned(), address.to_owned()).0);
        There {
            id: id.to_owned(),
            namespace: "shop".into(),
            agent: "weft 1".into(),
            address: address.into(),
            verified: false,
            link,
        }
    }

    /// Whoever is asked under a name.
    fn found(all: &[There], name: &str) -> Result<(String, String), Missing> {
        find(&meant(all.iter().filter(|one| is_called(&one.id, name)))).map(|link| link.key())
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
            assert_eq!(found(&all, name).unwrap().1, "10.0.0.1:2");
        }
        assert_eq!(found(&all, "b.shop").unwrap_err(), Missing::Closed("weft 1".into()));
        assert_eq!(found(&all, "c.shop").unwrap_err(), Missing::Unknown);
        // A replica that says it is another.
        let rogue = [one(id, "10.0.0.1:1", true), one(id, "10.0.0.9:1", true)];
        let Missing::Several(who) = found(&rogue, "a.shop").unwrap_err() else {
            panic!("one of both was asked")
        };
        assert_eq!(who, [format!("{id} from 10.0.0.1"), format!("{id} from 10.0.0.9")]);
    }

    #[test]
    fn nobody_answers_under_the_name_of_another_namespaces_proxy() {
        let id = "sidecar~10.0.0.1~a.shop~d";
        let mut all = [one(id, "10.0.0.1:1", true), one(id, "10.0.0.9:1", true)];
        all[1].namespace = "dev".into();
        for name in [id, "a.shop"] {
            assert_eq!(found(&all, name).unwrap().1, "10.0.0.1:1");
            assert_eq!(found(&all[1..], name).unwrap_err(), Missing::Unknown, "the right one is gone");
        }
        for (name, namespace, right) in [
            ("a.shop", "shop", true),
            ("a.b.shop", "shop", true),
            ("a.shop", "hop", false),
            (".shop", "shop", false),
            ("shop", "shop", false),
            ("a.", "", false),
        ] {
            assert_eq!(is_named_rightly(&format!("sidecar~10.0.0.1~{name}~d"), namespace), right, "{name}");
        }
    }

    #[test]
    fn who_has_proven_it_is_asked_and_not_who_only_says_so() {
        let (id, other) = ("sidecar~10.0.0.1~a.shop~d", "sidecar~10.0.0.9~a.shop~d");
        let mut all = [one(id, "10.0.0.1:1", true), one(other, "10.0.0.9:1", true)];
        assert!(matches!(found(&all, "a.shop"), Err(Missing::Several(_))));
        all[0].verified = true;
        assert_eq!(found(&all, "a.shop").unwrap().0, id);
        // Also where it cannot be asked.
        all[0].link = None;
        assert!(matches!(found(&all, "a.shop"), Err(Missing::Closed(_))));
    }

    fn connected(proxies: &Proxies, id: &str, address: &str) -> Connected {
        let node = xds_protos::envoy::config::core::v3::Node { id: id.into(), ..Default::default() };
        proxies.enter(Proxy {
            node: ProxyNode::parse(&node).unwrap(),
            agent: String::new(),
            variant: Variant::Delta,
            address: address.into(),
            identity: None,
            connected: time::OffsetDateTime::UNIX_EPOCH,
            revision: 0,
            types: Vec::new(),
        })
    }

    #[tokio::test]
    async fn a_newer_link_takes_the_place_of_an_older_on_its_connection() {
        let (proxies, links) = (Proxies::default(), Links::default());
        let id = |name: &str| format!("sidecar~10.0.0.1~{name}.shop~shop.svc.cluster.local");
        let _all = ["a", "b"].map(|name| connected(&proxies, &id(name), "10.0.0.1:1"));
        let linked = || -> Vec<_> {
            let all = there(&proxies, &links, |_| true);
            all.into_iter().map(|one| (short(&one.id).to_owned(), one.link)).collect()
        };
        let (first, _first) = Link::new(id("a"), "10.0.0.1:1".into());
        let (second, _second) = Link::new(id("a"), "10.0.0.1:1".into());
        let (elsewhere, _elsewhere) = Link::new(id("b"), "10.0.0.1:2".into());
        let _other = links.enter(elsewhere);
        let older = links.enter(first.clone());
        let newer = links.enter(second.clone());
        assert_eq!(first.ask("/", "").await.unwrap_err(), Refused::Gone);
        drop(older);
        let all = linked();
        assert!(all[0].1.as_ref().is_some_and(|link| Arc::ptr_eq(link, &second)), "{all:?}");
        assert!(all[1].1.is_none(), "a link of another connection");
        drop(newer);
        assert!(linked()[0].1.is_none());
        let only = there(&proxies, &links, |proxy| is_called(&proxy.node.id, "b.shop"));
        assert_eq!(only.len(), 1, "no more is looked at than what is meant");
    }

    #[test]
    fn in_plain_text_only_who_is_on_this_machine_is_taken_unless_everybody_is() {
        for (from, local) in [
            ("127.0.0.1:9", true),
            ("[::1]:9", true),
            ("[::ffff:127.0.0.2]:9", true),
            ("10.0.0.1:9", false),
            ("[fd00::1]:9", false),
            ("", false),
        ] {
            assert_eq!((Plaintext::Local.takes(from), Plaintext::All.takes(from)), (local, true), "{from}");
        }
    }
}
