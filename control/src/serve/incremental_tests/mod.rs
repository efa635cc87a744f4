//! After whatever was edited, proxies have what they would have if everything were made anew.
//!
//! A cluster is edited at random. Its state is made from the one before, proxies are rendered by what moved, and clients are sent
//! what differs; beside it, the state is made from all objects by somebody new, and everything is rendered. Both must come to the
//! same, byte by byte. A failure says the seed of its sequence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use fastrand::Rng;
use serde_json::{Value, json};
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use xds_protos::value::from_json;

use super::cache::{Place, RenderCache};
use super::session::{Session, Variant};
use crate::ingest::cluster::testing::Cluster;
use crate::model::traffic_management::{Share, Shares};
use crate::model::{Change, Trust, World};
use crate::queue::Revision;
use crate::render::{Memo, ProxyNode, ROOTS, Resources, render, roots};

mod edits;

use edits::{KINDS, LIVELY, edit, written};

fn nodes() -> Vec<ProxyNode> {
    let node = |kind: &str, ip: &str, namespace: &str, metadata: Value| {
        let Some(xds_protos::prost_types::value::Kind::StructValue(metadata)) = from_json(metadata).kind
        else {
            unreachable!("an object is a struct")
        };
        let id = format!("{kind}~{ip}~x.{namespace}~{namespace}.svc.cluster.local");
        ProxyNode::parse(&Node { id, metadata: Some(metadata), ..Node::default() }).unwrap()
    };
    vec![
        node("sidecar", "10.0.0.0", "a", json!({"LABELS": {"app": "s0"}, "WEFT_EXTENSIONS": "true"})),
        node("sidecar", "10.0.0.1", "b", json!({"DNS_CAPTURE": "true", "DNS_AUTO_ALLOCATE": "true"})),
        node(
            "sidecar",
            "10.9.9.9",
            "a",
            json!({"INTERCEPTION_MODE": "NONE", "LABELS": {"app": "s1",
            "topology.kubernetes.io/region": "eu"}, "NETWORK": "one"}),
        ),
        // Behind the second network's gateways, and knows of that one alone.
        node(
            "router",
            "10.9.9.8",
            "a",
            json!({"LABELS": {"istio": "ingress"}, "NETWORK": "two", "REQUESTED_NETWORK_VIEW": "two"}),
        ),
        node("router", "10.0.0.2", "a", json!({"LABELS": {"istio": "ingress"}, "SERVICE_ACCOUNT": "one"})),
        // Of the sort of the first, and with another account.
        node("sidecar", "10.0.0.0", "a", json!({"LABELS": {"app": "s0"}, "WEFT_EXTENSIONS": "true"})),
        node(
            "sidecar",
            "10.0.0.3",
            "a",
            json!({"LABELS": {"app": "s0"}, "WEFT_EXTENSIONS": "true", "SERVICE_ACCOUNT": "two"}),
        ),
    ]
}

/// A proxy that asks for everything and takes it.
struct Client {
    node: ProxyNode,
    place: Place,
    session: Session,
    /// The revision that it was last given.
    at: u64,
    holds: BTreeMap<ResourceType, BTreeMap<Arc<str>, Arc<str>>>,
    now: Instant,
}

fn versions(all: &Resources, kind: ResourceType) -> BTreeMap<Arc<str>, Arc<str>> {
    all.get(&kind).into_iter().flatten().map(|(name, r)| (name.clone(), r.version.clone())).collect()
}

impl Client {
    fn new(cache: &RenderCache, node: ProxyNode, revision: &Arc<Revision>) -> Self {
        let place = cache.place(&node, true);
        let now = Instant::now();
        let resources = cache.resources(revision, &place).1;
        let mut session = Session::new(Variant::Delta, 1, resources, revision.version.clone(), now);
        for kind in [ResourceType::Cluster, ResourceType::Listener] {
            session.delta(&DeltaDiscoveryRequest { type_url: kind.type_url().into(), ..Default::default() });
        }
        Self { node, place, session, at: revision.number, holds: BTreeMap::new(), now }
    }

    /// Asks for these of a kind, and for no others.
    fn ask(&mut self, kind: ResourceType, wanted: BTreeSet<Arc<str>>) {
        let held = self.holds.entry(kind).or_default();
        let gone: Vec<_> =
            held.keys().filter(|name| !wanted.contains(*name)).map(ToString::to_string).collect();
        let new: Vec<_> =
            wanted.iter().filter(|name| !held.contains_key(*name)).map(ToString::to_string).collect();
        held.retain(|name, _| wanted.contains(name));
        if !gone.is_empty() || !new.is_empty() {
            self.session.delta(&DeltaDiscoveryRequest {
                type_url: kind.type_url().into(),
                resource_names_subscribe: new,
                resource_names_unsubscribe: gone,
                ..Default::default()
            });
        }
    }

    /// Takes all that comes, and asks for what that refers to, until nothing more comes.
    fn settle(&mut self, expected: &Resources) {
        loop {
            while let Some(push) = self.session.next(self.now) {
                let held = self.holds.entry(push.kind).or_default();
                for (name, resource) in push.upserts {
                    held.insert(name, resource.version);
                }
                push.removed.iter().for_each(|name| drop(held.remove(name)));
                self.session.delta(&DeltaDiscoveryRequest {
                    type_url: push.kind.type_url().into(),
                    response_nonce: push.nonce.to_string(),
                    ..Default::default()
                });
            }
            let clusters = self.holds.entry(ResourceType::Cluster).or_default();
            let assigned = &expected[&ResourceType::Endpoint];
            let wanted = clusters.keys().filter(|name| assigned.contains_key(*name)).cloned().collect();
            self.ask(ResourceType::Endpoint, wanted);
            self.ask(ResourceType::Route, expected[&ResourceType::Route].keys().cloned().collect());
            if self.session.settled(self.now) {
                return;
            }
        }
    }
}

fn revision(world: World, number: u64) -> Arc<Revision> {
    Arc::new(Revision {
        world,
        trust: Arc::default(),
        number,
        generation: number,
        version: number.to_string().into(),
        read: Instant::now(),
    })
}

fn expected(world: &World, node: &ProxyNode, memo: &Memo) -> Resources {
    let mut all = render(world, node, true, memo);
    let roots = roots(&Trust::default()).unwrap();
    all.entry(ResourceType::Secret).or_default().insert(ROOTS.into(), roots);
    all
}

/// What trials may have come to.
fn decided(random: &mut Rng) -> Shares {
    let mut shares = Shares::default();
    for (namespace, name) in [("a", "tm0"), ("b", "tm1")] {
        let identity = format!("s{}.{namespace}.svc.cluster.local v1 v2", random.u32(..3));
        let share = Share { identity, canary: random.u32(..=100) };
        shares.0.insert((namespace.to_owned(), name.to_owned()), share);
    }
    shares
}

/// One sequence of edits. With `afresh` nothing is remembered by the oracle, not even what was rendered from equal inputs.
fn sequence(seed: u64, steps: u32, oracle: &Memo, afresh: bool) {
    let mut random = Rng::with_seed(seed);
    let mut cluster = Cluster::default();
    for kind in KINDS {
        let made = written(&mut random, kind);
        cluster.put(made);
    }
    let cache = RenderCache::new();
    let mut shares = Arc::default();
    let mut now = revision(cluster.next(), 1);
    let mut clients: Vec<Client> = nodes().into_iter().map(|node| Client::new(&cache, node, &now)).collect();
    for step in 0..steps {
        for _ in 0..=random.u32(..2) {
            edit(&mut random, &mut cluster);
        }
        if random.u32(..4) == 0 {
            shares = Arc::new(decided(&mut random));
        }
        now = revision(cluster.next().with_shares(Arc::clone(&shares)), now.number + 1);
        let anew = cluster.anew().with_shares(Arc::clone(&shares));
        assert_eq!(
            now.world.version(),
            anew.version(),
            "seed {seed}, step {step}: the state says something else"
        );
        // The others are too slow for this state.
        for client in random.choose_multiple(clients.iter_mut(), if step + 1 < steps { 1 } else { 2 }) {
            let of = format!("seed {seed}, step {step}, {}", client.node.id);
            let memo = Memo::default();
            let expected = expected(&anew, &client.node, if afresh { &memo } else { oracle });
            // As the dispatcher asks: another one of its sort may have been there before.
            let concerned = cache.concerns(&now, &client.place) || client.at < cache.changed(&client.place);
            if concerned {
                let resources = cache.resources(&now, &client.place).1;
                for (kind, all) in &expected {
                    let had: BTreeMap<_, _> = resources[kind].iter().collect();
                    let should: BTreeMap<_, _> = all.iter().collect();
                    assert!(had == should, "{of}: {kind} {had:#?} is not {should:#?}");
                }
                client.session.set(resources, now.version.clone(), client.now);
                client.at = now.number;
            }
            client.settle(&expected);
            for kind in
                [ResourceType::Cluster, ResourceType::Endpoint, ResourceType::Listener, ResourceType::Route]
            {
                let holds = &client.holds[&kind];
                assert_eq!(
                    holds,
                    &versions(&expected, kind),
                    "{of}, concerned {concerned}: {kind} of the client"
                );
            }
        }
    }
}

#[test]
fn whatever_is_edited_proxies_have_what_they_would_have_if_all_were_made_anew() {
    let oracle = Memo::default();
    for seed in 0..40 {
        sequence(seed, 5, &oracle, false);
    }
    for seed in 1000..1006 {
        sequence(seed, 3, &oracle, true);
    }
}

#[test]
fn whatever_is_edited_a_state_is_what_it_would_be_if_it_were_made_anew() {
    for seed in 0..2500 {
        let mut random = Rng::with_seed(seed);
        let mut cluster = Cluster::default();
        for kind in KINDS.iter().chain(&LIVELY).chain(&["Service", "ServiceEntry"]) {
            let made = written(&mut random, kind);
            cluster.put(made);
        }
        let mut before = cluster.next();
        for step in 0..4 {
            for _ in 0..=random.u32(..2) {
                edit(&mut random, &mut cluster);
            }
            let (now, anew) = cluster.next_and_whole();
            let differing = now.differing(&anew);
            assert_eq!(differing, None, "seed {seed}, step {step}");
            if let Change::Endpoints(moved) = now.since(&before) {
                // Whatever is not said to have moved has not.
                for (index, (was, is)) in before.services().iter().zip(now.services()).enumerate() {
                    let same = was.versions == is.versions && was.waiting == is.waiting;
                    assert!(
                        same || moved.services.contains(&index),
                        "seed {seed}, step {step}: {}",
                        is.hostname
                    );
                }
                for address in (0..8).map(|n| format!("10.0.0.{n}")) {
                    let at = |world: &World| {
                        let served: Vec<_> =
                            world.served_at(&address).map(|(s, e)| (s.hostname.clone(), e.clone())).collect();
                        (world.workload_at(&address).cloned(), served)
                    };
                    assert!(
                        at(&before) == at(&now) || moved.addresses.contains(address.as_str()),
                        "seed {seed}, step {step}: {address}"
                    );
                }
            }
            before = now;
        }
    }
}

/// Two connections of one sort, as after a reconnect that overlaps: one of them, or somebody who looks, is at a new state first.
#[test]
fn who_is_not_first_of_its_sort_is_told_all_the_same() {
    let at = |policies: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s0, namespace: a}}\nspec: {{selector: {{app: s0}}, ports: [{{name: http, port: 80}}]}}\n{policies}"
        );
        crate::ingest::load_str("x.yaml", &text).into_result().unwrap()
    };
    let denied = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: d, namespace: a}\nspec: {action: DENY, rules: [{}]}\n";
    let cache = RenderCache::new();
    let node = nodes().remove(0);
    let (one, other) = (cache.place(&node, true), cache.place(&node, true));
    let (first, second) = (revision(at(""), 1), revision(at(denied), 2));
    cache.resources(&first, &one);
    assert_eq!(cache.changed(&one), 1);
    cache.resources(&second, &other);
    assert!(!cache.concerns(&second, &one), "for the place nothing is new");
    assert_eq!(cache.changed(&one), 2, "for a connection at 1 it is");
    // A state that changes nothing for them leaves it so.
    let third = revision(at(denied), 3);
    cache.resources(&third, &one);
    assert_eq!(cache.changed(&one), 2);
}
