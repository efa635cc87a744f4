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
use crate::model::{Change, Trust, World};
use crate::queue::Revision;
use crate::render::{Memo, ProxyNode, ROOTS, Resources, render, roots};

const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
const PODS: u32 = 5;

fn pick<'t>(random: &mut Rng, from: &[&'t str]) -> &'t str {
    from[random.usize(..from.len())]
}

fn object(group: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": group, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn service_host(random: &mut Rng) -> String {
    let (service, namespace) = (random.u32(..3), pick(random, &["a", "b"]));
    format!("s{service}.{namespace}.svc.cluster.local")
}

/// An object of a kind, as it may be written.
fn written(random: &mut Rng, kind: &str) -> Value {
    let namespace = pick(random, &["a", "b"]);
    let anywhere = pick(random, &NAMESPACES);
    let number = random.u32(..3);
    match kind {
        "Service" => {
            let name = format!("s{number}");
            let ip = if random.u32(..4) == 0 { "None".to_owned() } else { format!("10.96.{number}.1") };
            let port = pick(random, &["http", "tcp", "https", "web"]);
            let mut made = object(
                "v1",
                kind,
                namespace,
                &name,
                json!({
                    "clusterIP": ip, "selector": {"app": name}, "ports": [
                        {"name": port, "port": 80, "targetPort": "http", "protocol": "TCP"},
                        {"name": "grpc", "port": 81 + random.u32(..2), "protocol": "TCP"}],
                }),
            );
            if random.u32(..4) == 0 {
                made["metadata"]["annotations"] =
                    json!({"networking.istio.io/exportTo": pick(random, &[".", "b", "*"])});
            }
            made
        }
        "Pod" => pod(random),
        "EndpointSlice" => {
            let service = format!("s{number}");
            let there: Vec<u32> = (0..PODS).filter(|_| random.bool()).collect();
            let endpoints: Vec<_> = there
                .into_iter()
                .map(|n| {
                    json!({"addresses": [format!("10.0.0.{n}")],
                        "conditions": {"ready": random.u32(..4) > 0, "serving": random.bool(), "terminating": random.bool()},
                        "targetRef": {"kind": "Pod", "name": format!("p{n}"), "namespace": namespace}})
                })
                .collect();
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": kind, "addressType": "IPv4",
                "metadata": {"name": format!("{service}-{}", random.u32(..2)), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": service}},
                "endpoints": endpoints, "ports": [
                    {"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "grpc", "port": 9090, "protocol": "TCP"}]})
        }
        "WorkloadEntry" => object(
            "networking.istio.io/v1",
            kind,
            namespace,
            &format!("we{number}"),
            json!({
                "address": format!("10.0.0.{}", random.u32(..8)), "ports": {"http": 8080 + random.u32(..2)},
                "labels": {"app": format!("s{}", random.u32(..3)), "version": pick(random, &["v1", "v2"])},
                "serviceAccount": pick(random, &["", "one", "two"]),
                "locality": pick(random, &["", "eu/1", "us/1"]), "weight": 1 + random.u32(..3),
            }),
        ),
        "ServiceEntry" => {
            let host = match random.u32(..4) {
                0 => service_host(random),
                1 => "*.wild.example".to_owned(),
                _ => format!("e{number}.example"),
            };
            let wild = host.starts_with('*');
            let resolution = if wild { "NONE" } else { pick(random, &["STATIC", "DNS"]) };
            let mut spec = json!({
                "hosts": [host], "resolution": resolution, "location": pick(random, &["MESH_EXTERNAL", "MESH_INTERNAL"]),
                "ports": [{"number": 80, "name": pick(random, &["http", "tcp"]), "protocol": pick(random, &["HTTP", "TCP"])}],
            });
            if resolution == "STATIC" {
                match random.u32(..3) {
                    0 => spec["endpoints"] = json!([{"address": format!("10.1.0.{number}")}]),
                    n => {
                        let app = format!("s{}", n - 1);
                        spec["workloadSelector"] = json!({"labels": {"app": app}});
                    }
                }
            }
            if random.bool() {
                spec["addresses"] = json!([format!("10.97.0.{number}")]);
            }
            if random.u32(..4) == 0 {
                spec["exportTo"] = json!([pick(random, &[".", "*"])]);
            }
            object("networking.istio.io/v1", kind, namespace, &format!("se{number}"), spec)
        }
        "VirtualService" => {
            let host = service_host(random);
            let mut route = json!({"route": [{"destination": {"host": service_host(random)}}]});
            if random.bool() {
                route["match"] = json!([{"headers": {"x": {"exact": format!("{number}")}}}]);
            }
            if random.u32(..3) == 0 {
                route["match"] = json!([{"sourceLabels": {"app": format!("s{number}")}}]);
            }
            if random.bool() {
                route["timeout"] = json!(format!("{}s", 1 + random.u32(..3)));
            }
            let mut spec = json!({"hosts": [host], "http": [route]});
            if random.u32(..3) == 0 {
                spec["gateways"] = json!(["mesh", "a/gw"]);
            }
            if random.u32(..4) == 0 {
                spec["exportTo"] = json!([pick(random, &[".", "b", "*"])]);
            }
            object("networking.istio.io/v1", kind, namespace, &format!("vs{number}"), spec)
        }
        "DestinationRule" => {
            let host = if random.u32(..4) == 0 { "*.cluster.local".to_owned() } else { service_host(random) };
            let mut spec = json!({"host": host});
            if random.bool() {
                spec["subsets"] = json!([{"name": "v1", "labels": {"version": "v1"}}]);
            }
            match random.u32(..4) {
                0 => {
                    spec["trafficPolicy"] =
                        json!({"tls": {"mode": pick(random, &["DISABLE", "ISTIO_MUTUAL"])}})
                }
                1 => {
                    spec["trafficPolicy"] =
                        json!({"loadBalancer": {"simple": pick(random, &["ROUND_ROBIN", "PASSTHROUGH"])}});
                }
                2 => {
                    spec["trafficPolicy"] = json!({"outlierDetection": {"consecutive5xxErrors": 3},
                        "loadBalancer": {"localityLbSetting": {"enabled": true}}});
                }
                _ => {}
            }
            if random.u32(..4) == 0 {
                spec["workloadSelector"] = json!({"matchLabels": {"app": format!("s{number}")}});
            }
            object("networking.istio.io/v1", kind, anywhere, &format!("dr{number}"), spec)
        }
        "Sidecar" => {
            let hosts = match random.u32(..3) {
                0 => json!(["./*"]),
                1 => json!(["./*", "b/s1.b.svc.cluster.local"]),
                _ => json!(["*/*"]),
            };
            let mut spec = json!({"egress": [{"hosts": hosts}]});
            if random.u32(..3) == 0 {
                spec["workloadSelector"] = json!({"labels": {"app": format!("s{number}")}});
            }
            if random.u32(..3) == 0 {
                spec["outboundTrafficPolicy"] = json!({"mode": "REGISTRY_ONLY"});
            }
            object("networking.istio.io/v1", kind, namespace, &format!("sc{number}"), spec)
        }
        "Gateway" => object(
            "networking.istio.io/v1",
            kind,
            "a",
            "gw",
            json!({
                "selector": {"istio": "ingress"},
                "servers": [{"port": {"number": 80 + number, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}],
            }),
        ),
        "PeerAuthentication" => {
            let mut spec = json!({"mtls": {"mode": pick(random, &["STRICT", "PERMISSIVE", "DISABLE"])}});
            if anywhere != "istio-system" && random.bool() {
                spec["selector"] = json!({"matchLabels": {"app": format!("s{number}")}});
            }
            object("security.istio.io/v1", kind, anywhere, &format!("pa{number}"), spec)
        }
        "AuthorizationPolicy" => object(
            "security.istio.io/v1",
            kind,
            anywhere,
            &format!("ap{number}"),
            json!({
                "action": pick(random, &["ALLOW", "DENY"]),
                "selector": {"matchLabels": {"app": format!("s{number}")}},
                "rules": [{"from": [{"source": {"namespaces": [namespace]}}]}],
            }),
        ),
        _ => json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": format!("outboundTrafficPolicy: {{mode: {}}}\ndefaultServiceExportTo: [\"{}\"]\n",
                pick(random, &["ALLOW_ANY", "REGISTRY_ONLY"]), pick(random, &["*", "."]))}}),
    }
}

fn pod(random: &mut Rng) -> Value {
    let n = random.u32(..PODS);
    let namespace = pick(random, &["a", "b"]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{n}"), "namespace": namespace, "labels": {
            "app": format!("s{}", random.u32(..3)), "version": pick(random, &["v1", "v2"]),
            "istio": pick(random, &["ingress", "none"]),
            "security.istio.io/tlsMode": pick(random, &["istio", "disabled"])}},
        "spec": {"serviceAccountName": pick(random, &["one", "two"]), "hostNetwork": random.u32(..6) == 0,
            "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": format!("10.0.0.{n}"),
            "conditions": [{"type": "Ready", "status": pick(random, &["True", "True", "False"])}]},
    })
}

const KINDS: [&str; 12] = [
    "Service",
    "Pod",
    "EndpointSlice",
    "WorkloadEntry",
    "ServiceEntry",
    "VirtualService",
    "DestinationRule",
    "Sidecar",
    "Gateway",
    "PeerAuthentication",
    "AuthorizationPolicy",
    "ConfigMap",
];

/// What changes most: what stands behind services.
const LIVELY: [&str; 4] = ["Pod", "EndpointSlice", "EndpointSlice", "WorkloadEntry"];

fn edit(random: &mut Rng, cluster: &mut Cluster) {
    let kind = if random.bool() { pick(random, &LIVELY) } else { pick(random, &KINDS) };
    if random.u32(..4) == 0 {
        cluster.delete(kind, random);
    } else {
        let made = written(random, kind);
        cluster.put(made);
    }
}

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
            "topology.kubernetes.io/region": "eu"}}),
        ),
        node("router", "10.0.0.2", "a", json!({"LABELS": {"istio": "ingress"}})),
    ]
}

/// A proxy that asks for everything and takes it.
struct Client {
    node: ProxyNode,
    place: Place,
    session: Session,
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
        Self { node, place, session, holds: BTreeMap::new(), now }
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

/// One sequence of edits. With `afresh` nothing is remembered by the oracle, not even what was rendered from equal inputs.
fn sequence(seed: u64, steps: u32, oracle: &Memo, afresh: bool) {
    let mut random = Rng::with_seed(seed);
    let mut cluster = Cluster::default();
    for kind in KINDS {
        let made = written(&mut random, kind);
        cluster.put(made);
    }
    let cache = RenderCache::new();
    let mut now = revision(cluster.next(), 1);
    let mut clients: Vec<Client> = nodes().into_iter().map(|node| Client::new(&cache, node, &now)).collect();
    for step in 0..steps {
        for _ in 0..=random.u32(..2) {
            edit(&mut random, &mut cluster);
        }
        now = revision(cluster.next(), now.number + 1);
        let anew = cluster.anew();
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
            let concerned = cache.concerns(&now, &client.place);
            if concerned {
                let resources = cache.resources(&now, &client.place).1;
                for (kind, all) in &expected {
                    let had: BTreeMap<_, _> = resources[kind].iter().collect();
                    let should: BTreeMap<_, _> = all.iter().collect();
                    assert!(had == should, "{of}: {kind} {had:#?} is not {should:#?}");
                }
                client.session.set(resources, now.version.clone(), client.now);
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
