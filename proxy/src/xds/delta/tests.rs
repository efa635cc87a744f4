use xds_protos::Any;

use super::*;
use crate::xds::testing::{Recorder, node};

use ResourceType::{Cluster, Endpoint, Listener, Route};

struct Bench {
    delta: Delta,
    wanted: Subscriptions,
    sink: Recorder,
    stats: Stats,
}

fn bench() -> Bench {
    let wanted = Subscriptions::new();
    let sink = Recorder { follow: Some(wanted.clone()), ..Default::default() };
    Bench { delta: Delta::new(node()), wanted, sink, stats: Stats::default() }
}

impl Bench {
    fn open(&mut self) -> Vec<String> {
        self.delta.open(&self.wanted).iter().map(show).collect()
    }

    fn respond(&mut self, response: DeltaDiscoveryResponse) -> Vec<String> {
        self.delta.response(response, &self.wanted, &mut self.sink, &self.stats).iter().map(show).collect()
    }
}

/// `cds +a -b held(c@1) nonce=n NACK(..) node`.
fn show(r: &DeltaDiscoveryRequest) -> String {
    let mut s = ResourceType::from_type_url(&r.type_url).unwrap().short().to_owned();
    for name in &r.resource_names_subscribe {
        s += &format!(" +{name}");
    }
    for name in &r.resource_names_unsubscribe {
        s += &format!(" -{name}");
    }
    let mut held: Vec<_> = r.initial_resource_versions.iter().map(|(n, v)| format!("{n}@{v}")).collect();
    held.sort();
    if !held.is_empty() {
        s += &format!(" held({})", held.join(" "));
    }
    if !r.response_nonce.is_empty() {
        s += &format!(" nonce={}", r.response_nonce);
    }
    if let Some(e) = &r.error_detail {
        s += &format!(" NACK({})", e.message);
    }
    s + if r.node.is_some() { " node" } else { "" }
}

fn response(
    kind: ResourceType,
    nonce: &str,
    resources: &[(&str, &str)],
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    let resources = resources.iter().map(|(name, version)| Resource {
        name: (*name).into(),
        version: (*version).into(),
        resource: Some(Any { type_url: kind.type_url().into(), value: Bytes::new() }),
        ..Default::default()
    });
    DeltaDiscoveryResponse {
        type_url: kind.type_url().into(),
        nonce: nonce.into(),
        system_version_info: "v".into(),
        resources: resources.collect(),
        removed_resources: removed.iter().map(|n| (*n).into()).collect(),
        ..Default::default()
    }
}

#[test]
fn a_stream_begins_with_everything_of_clusters_and_listeners_and_one_node() {
    assert_eq!(bench().open(), ["cds node", "lds"]);
}

#[test]
fn an_ack_comes_before_the_subscriptions_that_the_response_caused_and_carries_none() {
    let mut b = bench();
    b.open();
    assert_eq!(
        b.respond(response(Cluster, "1", &[("a", "v1"), ("b", "v1")], &[])),
        ["cds nonce=1", "eds +a +b"]
    );
    assert_eq!(b.respond(response(Cluster, "2", &[("c", "v1")], &["a"])), ["cds nonce=2", "eds +c -a"]);
    assert_eq!(b.sink.calls[1], (Cluster, vec!["+c@v1".to_owned(), "-a".to_owned()]));
    assert_eq!(b.stats.of(Cluster).success(), 2);
    assert_eq!(b.stats.of(Cluster).version(), "v");
}

#[test]
fn a_type_by_name_is_asked_for_when_there_is_a_name_and_given_up_by_name() {
    let mut b = bench();
    b.open();
    b.wanted.set(Route, ["80".to_owned()]);
    assert_eq!(b.delta.resubscribe(&b.wanted).iter().map(show).collect::<Vec<_>>(), ["rds +80"]);
    assert!(b.delta.resubscribe(&b.wanted).is_empty(), "nothing changed since");
    b.wanted.set(Route, []);
    assert_eq!(b.delta.resubscribe(&b.wanted).iter().map(show).collect::<Vec<_>>(), ["rds -80"]);
    // What was under way when it was given up is acknowledged and not applied.
    assert_eq!(b.respond(response(Route, "1", &[("80", "v1")], &[])), ["rds nonce=1"]);
    assert_eq!(b.sink.calls.last().unwrap().1, [""; 0]);
}

#[test]
fn good_resources_of_a_response_apply_and_the_refused_ones_are_not_held() {
    let mut b = bench();
    b.open();
    b.sink.refuse = vec!["bad"];
    let acks = b.respond(response(Listener, "1", &[("bad", "v1"), ("good", "v1")], &[]));
    assert_eq!(acks, ["lds nonce=1 NACK(bad: is refused)"]);
    assert_eq!((b.stats.of(Listener).rejected(), b.stats.of(Listener).success()), (1, 0));
    assert_eq!(b.stats.of(Listener).last_rejection()[0].name, "bad");
    assert_eq!(b.open(), ["cds node", "lds held(good@v1)"]);
}

#[test]
fn a_refused_update_leaves_the_version_that_is_held() {
    let mut b = bench();
    b.open();
    b.respond(response(Listener, "1", &[("l", "v1")], &[]));
    b.sink.refuse = vec!["l"];
    b.respond(response(Listener, "2", &[("l", "v2")], &[]));
    assert_eq!(b.open(), ["cds node", "lds held(l@v1)"]);
}

#[test]
fn a_new_stream_says_what_is_held_and_asks_for_all_names_again() {
    let mut b = bench();
    b.open();
    b.respond(response(Cluster, "1", &[("a", "1"), ("b", "1")], &[]));
    b.respond(response(Endpoint, "2", &[("a", "7"), ("b", "7")], &[]));
    b.respond(response(Cluster, "3", &[], &["b"]));
    let calls = b.sink.calls.len();
    assert_eq!(b.open(), ["cds held(a@1) node", "eds +a held(a@7)", "lds"]);
    assert_eq!(b.sink.calls.len(), calls, "losing a stream changes nothing that works");
}

#[test]
fn removal_of_a_resource_forgets_it_and_tells_the_sink() {
    let mut b = bench();
    b.open();
    b.wanted.set(Route, ["80".to_owned()]);
    b.delta.resubscribe(&b.wanted);
    b.respond(response(Route, "1", &[("80", "v1")], &[]));
    assert_eq!(b.respond(response(Route, "2", &[], &["80", "other"])), ["rds nonce=2"]);
    assert_eq!(b.sink.calls.last().unwrap(), &(Route, vec!["-80".to_owned()]));
    assert_eq!(b.open(), ["cds node", "lds", "rds +80"]);
}

#[test]
fn a_resource_of_another_type_or_twice_is_refused_and_a_heartbeat_is_not_applied() {
    let mut b = bench();
    b.open();
    let mut r = response(Cluster, "1", &[("a", "1"), ("a", "2"), ("l", "1"), ("beat", "1")], &[]);
    r.resources[2].resource = Some(Any { type_url: Listener.type_url().into(), value: Bytes::new() });
    r.resources[3].resource = None;
    let acks = b.respond(r);
    assert!(acks[0].contains("a: is in the response twice") && acks[0].contains("l: has type"), "{acks:?}");
    assert_eq!(b.sink.calls[0].1, ["+a@1"]);
}

#[test]
fn a_type_that_was_not_asked_for_is_not_answered() {
    let mut b = bench();
    b.open();
    assert_eq!(b.respond(response(Route, "1", &[("80", "v1")], &[])), [""; 0]);
    let names =
        DeltaDiscoveryResponse { type_url: "type.googleapis.com/x.NameTable".into(), ..Default::default() };
    assert_eq!(b.respond(names), [""; 0]);
    assert!(b.sink.calls.is_empty());
}

#[test]
fn a_name_given_up_and_wanted_again_is_sent_again() {
    let mut b = bench();
    b.open();
    b.wanted.set(Route, ["80".to_owned(), "81".to_owned()]);
    b.delta.resubscribe(&b.wanted);
    b.respond(response(Route, "1", &[("80", "v1"), ("81", "v1")], &[]));
    b.wanted.set(Route, ["81".to_owned()]);
    b.wanted.set(Route, ["80".to_owned(), "81".to_owned()]);
    assert_eq!(b.delta.resubscribe(&b.wanted).iter().map(show).collect::<Vec<_>>(), ["rds -80", "rds +80"]);
    // Without a stream, too: what was dropped is not told to be held.
    b.wanted.set(Route, ["80".to_owned()]);
    b.wanted.set(Route, ["80".to_owned(), "81".to_owned()]);
    assert_eq!(b.open(), ["cds node", "lds", "rds +80 +81"]);
}
