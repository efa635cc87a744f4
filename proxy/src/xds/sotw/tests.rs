use super::*;
use crate::xds::testing::{Recorder, node};

use ResourceType::{Cluster, Endpoint, Listener, Route};

struct Bench {
    sotw: Sotw,
    wanted: Subscriptions,
    sink: Recorder,
    stats: Stats,
}

fn bench() -> Bench {
    let wanted = Subscriptions::new();
    let sink = Recorder { follow: Some(wanted.clone()), ..Default::default() };
    Bench { sotw: Sotw::new(node()), wanted, sink, stats: Stats::default() }
}

impl Bench {
    fn open(&mut self) -> Vec<String> {
        self.sotw.open(&self.wanted).iter().map(show).collect()
    }

    fn respond(&mut self, response: DiscoveryResponse) -> Vec<String> {
        self.sotw.response(response, &self.wanted, &mut self.sink, &self.stats).iter().map(show).collect()
    }
}

/// `eds v1 [a b] nonce=n NACK(..) node`.
fn show(r: &DiscoveryRequest) -> String {
    let mut s = ResourceType::from_type_url(&r.type_url).unwrap().short().to_owned();
    if !r.version_info.is_empty() {
        s += &format!(" {}", r.version_info);
    }
    if !r.resource_names.is_empty() {
        s += &format!(" [{}]", r.resource_names.join(" "));
    }
    if !r.response_nonce.is_empty() {
        s += &format!(" nonce={}", r.response_nonce);
    }
    if let Some(e) = &r.error_detail {
        s += &format!(" NACK({})", e.message);
    }
    s + if r.node.is_some() { " node" } else { "" }
}

fn response(kind: ResourceType, version: &str, nonce: &str, names: &[&str]) -> DiscoveryResponse {
    let resources = names.iter().map(|name| Any {
        type_url: kind.type_url().into(),
        value: Named { name: (*name).into() }.encode_to_vec().into(),
    });
    DiscoveryResponse {
        version_info: version.into(),
        nonce: nonce.into(),
        type_url: kind.type_url().into(),
        resources: resources.collect(),
        ..Default::default()
    }
}

#[test]
fn requests_name_everything_wanted_and_acks_carry_version_and_nonce() {
    let mut b = bench();
    assert_eq!(b.open(), ["cds node", "lds"]);
    assert_eq!(b.respond(response(Cluster, "v1", "1", &["a", "b"])), ["cds v1 nonce=1", "eds [a b]"]);
    assert_eq!(b.respond(response(Endpoint, "v1", "2", &["a", "b"])), ["eds v1 [a b] nonce=2"]);
    // Names that come and go are told with the last nonce, which acknowledges nothing new.
    assert_eq!(
        b.respond(response(Cluster, "v2", "3", &["b", "c"])),
        ["cds v2 nonce=3", "eds v1 [b c] nonce=2"]
    );
}

#[test]
fn a_full_set_removes_what_it_lacks_and_a_partial_one_nothing() {
    let mut b = bench();
    b.open();
    b.respond(response(Cluster, "v1", "1", &["a", "b"]));
    b.respond(response(Cluster, "v2", "2", &["b"]));
    assert_eq!(b.sink.calls[1].1, ["+b@v2", "-a", "="]);
    b.wanted.set(Route, ["80".to_owned(), "81".to_owned()]);
    b.sotw.resubscribe(&b.wanted);
    b.respond(response(Route, "v1", "3", &["80", "81"]));
    b.respond(response(Route, "v2", "4", &["81", "unwanted"]));
    assert_eq!(b.sink.calls.last().unwrap(), &(Route, vec!["+81@v2".to_owned()]));
}

#[test]
fn a_nack_keeps_the_last_good_version_and_the_good_resources() {
    let mut b = bench();
    b.open();
    b.respond(response(Listener, "v1", "1", &["l"]));
    b.sink.refuse = vec!["bad"];
    let nack = b.respond(response(Listener, "v2", "2", &["l", "bad"]));
    assert_eq!(nack, ["lds v1 nonce=2 NACK(bad: is refused)"]);
    assert_eq!(b.sink.calls[1].1, ["+l@v2", "+bad@v2", "="]);
}

#[test]
fn a_new_stream_tells_versions_and_names_and_no_nonce() {
    let mut b = bench();
    b.open();
    b.respond(response(Cluster, "v1", "1", &["a"]));
    b.respond(response(Endpoint, "v1", "2", &["a"]));
    assert_eq!(b.open(), ["cds v1 node", "eds v1 [a]", "lds"]);
    // What went away meanwhile is seen against what was there before the stream was lost.
    b.respond(response(Cluster, "v2", "1", &[]));
    assert_eq!(b.sink.calls.last().unwrap().1, ["-a", "="]);
}

#[test]
fn the_last_name_given_up_is_told_once() {
    let mut b = bench();
    b.open();
    b.wanted.set(Route, ["80".to_owned()]);
    b.sotw.resubscribe(&b.wanted);
    b.wanted.set(Route, []);
    assert_eq!(b.sotw.resubscribe(&b.wanted).iter().map(show).collect::<Vec<_>>(), ["rds"]);
    assert!(b.sotw.resubscribe(&b.wanted).is_empty());
}

#[test]
fn wrapped_resources_are_unwrapped_and_strange_ones_refused() {
    let mut b = bench();
    b.open();
    let mut r = response(Cluster, "v1", "1", &["a", "b", "a"]);
    r.resources[0] = Any::pack(&Resource {
        name: "w".into(),
        resource: Some(r.resources[0].clone()),
        ..Default::default()
    });
    r.resources.push(Any { type_url: "type.googleapis.com/x.Y".into(), value: Bytes::new() });
    r.resources.push(Any { type_url: Cluster.type_url().into(), value: Bytes::from_static(&[0x0a, 0x09]) });
    let nack = b.respond(r).remove(0);
    assert!(nack.contains("has type type.googleapis.com/x.Y") && nack.contains("does not decode"), "{nack}");
    assert_eq!(b.sink.calls[0].1, ["+w@v1", "+b@v1", "+a@v1", "="]);
}

#[test]
fn a_name_given_up_and_wanted_again_leaves_the_list_once() {
    let mut b = bench();
    b.open();
    b.wanted.set(Route, ["80".to_owned(), "81".to_owned()]);
    b.sotw.resubscribe(&b.wanted);
    b.respond(response(Route, "v1", "1", &["80", "81"]));
    b.wanted.set(Route, ["81".to_owned()]);
    b.wanted.set(Route, ["80".to_owned(), "81".to_owned()]);
    let sent: Vec<_> = b.sotw.resubscribe(&b.wanted).iter().map(show).collect();
    assert_eq!(sent, ["rds v1 [81] nonce=1", "rds v1 [80 81] nonce=1"]);
}
