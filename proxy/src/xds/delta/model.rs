//! The client against a model of a server, with everything that can happen in any order: resources change, names come and
//! go, messages are under way, streams are lost. When it is quiet, the sink must hold what the server has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use xds_protos::Any;

use super::*;
use crate::xds::testing::node;

const KINDS: [ResourceType; 2] = [ResourceType::Cluster, ResourceType::Route];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

type Versions = BTreeMap<String, String>;

/// One stream's view of one type, in the server.
#[derive(Default)]
struct Watch {
    names: BTreeSet<String>,
    sent: Versions,
}

#[derive(Default)]
struct Server {
    has: [Versions; 2],
    watches: [Option<Watch>; 2],
    nonce: u32,
    out: VecDeque<DeltaDiscoveryResponse>,
}

impl Server {
    fn receive(&mut self, request: &DeltaDiscoveryRequest) {
        let kind = KINDS.into_iter().position(|k| k.type_url() == request.type_url);
        // Listeners are asked for; there are none.
        let Some(kind) = kind else { return };
        if !request.response_nonce.is_empty() {
            assert!(
                request.resource_names_subscribe.is_empty() && request.resource_names_unsubscribe.is_empty()
            );
            return;
        }
        let first = self.watches[kind].is_none();
        assert!(
            !first || KINDS[kind].wildcard() || !request.resource_names_subscribe.is_empty(),
            "a first request without names asks for everything"
        );
        let watch = self.watches[kind].get_or_insert_with(Watch::default);
        watch.sent.extend(request.initial_resource_versions.clone());
        for name in &request.resource_names_unsubscribe {
            watch.names.remove(name);
            watch.sent.remove(name);
        }
        watch.names.extend(request.resource_names_subscribe.iter().cloned());
        // What is asked for and does not exist is answered as removed: one that existed may be under way.
        watch.sent.extend(request.resource_names_subscribe.iter().map(|n| (n.clone(), String::new())));
        self.push(kind, first || !request.resource_names_subscribe.is_empty());
    }

    /// Sends what is new to the stream; a server that believes the client to hold a resource does not repeat it.
    fn push(&mut self, kind: usize, always: bool) {
        let Some(watch) = &mut self.watches[kind] else { return };
        let wanted = |name: &String| KINDS[kind].wildcard() || watch.names.contains(name);
        let new: Vec<_> = self.has[kind]
            .iter()
            .filter(|(name, version)| wanted(name) && watch.sent.get(*name) != Some(version))
            .map(|(name, version)| (name.clone(), version.clone()))
            .collect();
        let removed: Vec<_> =
            watch.sent.keys().filter(|name| !self.has[kind].contains_key(*name)).cloned().collect();
        if new.is_empty() && removed.is_empty() && !always {
            return;
        }
        watch.sent.retain(|name, _| !removed.contains(name));
        watch.sent.extend(new.iter().cloned());
        self.nonce += 1;
        self.out.push_back(DeltaDiscoveryResponse {
            type_url: KINDS[kind].type_url().into(),
            nonce: self.nonce.to_string(),
            removed_resources: removed,
            resources: new
                .into_iter()
                .map(|(name, version)| Resource {
                    name,
                    version,
                    resource: Some(Any { type_url: KINDS[kind].type_url().into(), value: Bytes::new() }),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        });
    }
}

/// What the proxy holds.
#[derive(Default)]
struct Holder {
    has: [Versions; 2],
}

impl ResourceSink for Holder {
    fn apply(
        &mut self,
        kind: ResourceType,
        upserts: Vec<(String, String, Bytes)>,
        removed: Vec<String>,
        _: bool,
    ) -> Vec<Rejection> {
        let has = &mut self.has[KINDS.into_iter().position(|k| k == kind).unwrap()];
        has.retain(|name, _| !removed.contains(name));
        has.extend(upserts.into_iter().map(|(name, version, _)| (name, version)));
        Vec::new()
    }
}

struct World {
    random: fastrand::Rng,
    server: Server,
    client: Delta,
    wanted: Subscriptions,
    names: BTreeSet<String>,
    sink: Holder,
    /// What the client sent and the server has not read; none without a stream.
    sent: Option<VecDeque<DeltaDiscoveryRequest>>,
}

impl World {
    fn step(&mut self) {
        match self.random.u8(..8) {
            0 | 1 => self.change_a_resource(),
            2 => self.change_wanted(),
            3 if self.sent.is_some() && self.random.u8(..4) == 0 => {
                self.sent = None;
                self.server.out.clear();
                self.server.watches = Default::default();
            }
            3 if self.sent.is_none() => self.open(),
            4 => {
                let more = self.client.resubscribe(&self.wanted);
                self.send(more);
            }
            5 => {
                self.server_reads();
            }
            _ => {
                self.client_reads();
            }
        }
    }

    fn open(&mut self) {
        let first = self.client.open(&self.wanted);
        self.sent = Some(first.into());
    }

    fn send(&mut self, requests: Vec<DeltaDiscoveryRequest>) {
        if let Some(sent) = &mut self.sent {
            sent.extend(requests);
        }
    }

    fn change_a_resource(&mut self) {
        let (kind, name) = (self.random.usize(..2), NAMES[self.random.usize(..4)].to_owned());
        match self.random.u8(..3) {
            0 => drop(self.server.has[kind].remove(&name)),
            _ => drop(self.server.has[kind].insert(name, self.random.u16(..).to_string())),
        }
        self.server.push(kind, false);
    }

    fn change_wanted(&mut self) {
        let name = NAMES[self.random.usize(..4)].to_owned();
        if !self.names.remove(&name) {
            self.names.insert(name);
        }
        self.wanted.set(ResourceType::Route, self.names.clone());
        // Who gives a name up drops what it holds of it.
        self.sink.has[1].retain(|name, _| self.names.contains(name));
    }

    fn server_reads(&mut self) -> bool {
        let request = self.sent.as_mut().and_then(VecDeque::pop_front);
        request.as_ref().map(|r| self.server.receive(r)).is_some()
    }

    fn client_reads(&mut self) -> bool {
        let Some(response) = self.server.out.pop_front() else { return false };
        let requests = self.client.response(response, &self.wanted, &mut self.sink, &Stats::default());
        self.send(requests);
        true
    }

    fn settle(&mut self) {
        if self.sent.is_none() {
            self.open();
        }
        let more = self.client.resubscribe(&self.wanted);
        self.send(more);
        while self.server_reads() || self.client_reads() {}
    }
}

#[test]
fn whatever_happens_the_sink_ends_with_what_the_server_has() {
    for seed in 0..2000 {
        let mut world = World {
            random: fastrand::Rng::with_seed(seed),
            server: Server::default(),
            client: Delta::new(node()),
            wanted: Subscriptions::new(),
            names: BTreeSet::new(),
            sink: Holder::default(),
            sent: None,
        };
        for _ in 0..200 {
            world.step();
        }
        world.settle();
        assert_eq!(world.sink.has[0], world.server.has[0], "clusters, seed {seed}");
        let mut routes = world.server.has[1].clone();
        routes.retain(|name, _| world.names.contains(name));
        assert_eq!(world.sink.has[1], routes, "routes, seed {seed}");
    }
}
