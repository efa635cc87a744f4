//! Puts a request that has ended into the record of requests, or tells those who watch: what its stages left behind, in words.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::endpoint::Metadata;
use crate::cluster::{Cluster, Host};
use crate::codec::{Headers, RequestHead};
use crate::io::ConnectionInfo;
use crate::router::{Flow, Scratch};
use crate::telemetry::istio::Workload;
use crate::telemetry::record::entry::{Kind, LONGEST, Looked, Named};
use crate::telemetry::record::{self, Candidate, Choice, Class, Entry, Told};
use crate::telemetry::{Details, Flag, StreamInfo, tap};

/// The fields of a request and of its answer, where they are at hand.
#[derive(Clone, Copy, Default)]
pub struct Heads<'a> {
    /// The request as it went upstream.
    pub request: Option<&'a RequestHead>,
    /// The answer as it went to the client.
    pub response: Option<&'a Headers>,
}

/// A stream ended.
pub fn ended(
    connection: &ConnectionInfo,
    flow: &Flow,
    info: &StreamInfo,
    scratch: &Scratch,
    took: Duration,
    heads: Heads<'_>,
) {
    let class = record::class(info, took, record::settings());
    let tapped = tap::is_on();
    if class.is_none() && !tapped {
        return;
    }
    let of = (class.unwrap_or(Class::Good), took);
    let entry = Arc::new(entry(connection, flow, info, scratch, of, heads.request));
    if tapped {
        tap::tell(&entry, heads.request, heads.response);
    }
    if class.is_some() {
        record::keep(entry);
    }
}

fn entry(
    connection: &ConnectionInfo,
    flow: &Flow,
    info: &StreamInfo,
    scratch: &Scratch,
    (class, took): (Class, Duration),
    head: Option<&RequestHead>,
) -> Entry {
    let matched = flow.route.borrow();
    let cluster = flow.cluster.borrow().as_ref().and_then(|slot| slot.get());
    let of_cluster = cluster.as_ref().and_then(|c| c.config().metadata.as_deref());
    Entry {
        kind: Kind::Request,
        connection: connection.id,
        onward: None,
        termination: None,
        said: None,
        class,
        start: info.start_time,
        took,
        id: info.trail.id.as_ref().map(|id| text(id.as_bytes())),
        trace: info.trace_id(head).map(Into::into),
        method: info.method.as_ref().map(|m| short(m.as_str())).unwrap_or_default(),
        authority: text(&info.authority),
        path: path(info.original_path.as_ref().unwrap_or(&info.path)),
        protocol: info.protocol.map_or("", |p| p.as_str()),
        listener: (connection.listener.clone(), connection.direction),
        chain: connection.filter_chain.clone(),
        ends: (info.client.unwrap_or(connection.remote), connection.local),
        sni: connection.sni.clone(),
        tls: connection.tls.as_ref().map(|tls| tls.version),
        peer: connection.peer_id().cloned(),
        workloads: (named(scratch.downstream_peer.as_deref()), named(scratch.upstream_peer.as_deref())),
        decisions: info.trail.decisions.iter().cloned().collect(),
        route: matched
            .as_ref()
            .map(|m| [m.config().name.clone(), m.virtual_host().name.clone(), m.route().name.clone()]),
        route_origin: matched.as_ref().and_then(|m| origin(m.route().metadata.as_deref(), "config")),
        cluster: info.cluster.clone(),
        cluster_origin: (origin(of_cluster, "config"), origin(of_cluster, "subset")),
        tries: tries(info, cluster.as_deref(), "answered"),
        moments: [info.request_end, info.request_sent, info.upstream_first_byte]
            .map(|at| at.map(|at| at.saturating_duration_since(info.start))),
        status: info.status.map_or(0, |status| status.as_u16()),
        grpc: info.grpc_status,
        flags: info.flags,
        details: details(info),
        bytes: (info.bytes_received, info.bytes_sent),
        ended: ended_by(info),
    }
}

/// A peer as it is kept; what it says of itself nobody has verified.
fn named(workload: Option<&Workload>) -> Option<Named> {
    workload.map(|w| Named { name: short(&w.name), namespace: short(&w.namespace) })
}

/// The response code details as logs have them.
fn details(info: &StreamInfo) -> Option<Details> {
    match info.code_details()? {
        Cow::Borrowed(_) => info.details.clone(),
        Cow::Owned(words) => Some(Details::Made(words.into())),
    }
}

/// Who ended the stream.
fn ended_by(info: &StreamInfo) -> &'static str {
    let details = info.details.as_deref().unwrap_or_default();
    if info.flags.has(Flag::DownstreamConnectionTermination) {
        "the client, before the answer's end"
    } else if details == "via_upstream" {
        "the upstream, with its answer"
    } else if details.starts_with("upstream_reset_after") {
        "the upstream, in the middle of its answer"
    } else if info.upstream_first_byte.is_some() {
        "this proxy, in the middle of the answer"
    } else {
        "this proxy, with an answer of its own"
    }
}

/// What Istio says of the object that a route or a cluster was written in.
pub fn origin(metadata: Option<&Metadata>, key: &str) -> Option<Box<str>> {
    metadata.and_then(|m| m.get_str("istio", key)).map(short)
}

/// Tries that were listed, and the last one, which is not unless it failed. `good`: what one brought that did not.
pub fn tries(info: &StreamInfo, cluster: Option<&Cluster>, good: &'static str) -> Vec<Told> {
    let trail = &info.trail;
    let since = |at: Instant| at.saturating_duration_since(info.start);
    let mut all: Vec<Told> = trail
        .tries
        .iter()
        .map(|t| Told {
            began: since(t.began),
            took: Some(t.took),
            host: t.host,
            outcome: t.failure.unwrap_or(good).into(),
            status: t.status,
            words: t.words.clone(),
            flags: t.flags,
            pause: t.pause,
            ..choice(t.choice.as_ref(), cluster)
        })
        .collect();
    if let (Some(began), true) = (trail.began, all.len() < info.attempts as usize) {
        let answered = info.upstream_first_byte.or(trail.connected);
        all.push(Told {
            began: since(began),
            took: answered.map(|at| at.saturating_duration_since(began)),
            host: info.upstream_host,
            outcome: if answered.is_some() { good } else { "given up" }.into(),
            status: info.status.filter(|_| answered.is_some()).map(|status| status.as_u16()),
            ..choice(trail.choice.as_ref(), cluster)
        });
    }
    all
}

fn choice(choice: Option<&Choice>, cluster: Option<&Cluster>) -> Told {
    let Some(choice) = choice else { return Told::default() };
    let compared = choice.compared.candidates.iter().flatten();
    let candidates = compared.chain(&choice.refused).map(|one| looked(one, cluster)).collect();
    let hosts = (choice.compared.hosts, choice.compared.healthy);
    Told { policy: choice.policy, hosts, candidates, ..Told::default() }
}

fn looked(candidate: &Candidate, cluster: Option<&Cluster>) -> Looked {
    let place = |address: SocketAddr| {
        let set = cluster?.hosts();
        let host = set.hosts().find(|host| host.address().ip() == Some(address))?.clone();
        let facts = host.facts();
        let parts = [&*facts.locality.region, &*facts.locality.zone, &*facts.locality.sub_zone];
        Some(parts.join("/").trim_end_matches('/').into())
    };
    Looked {
        address: candidate.address,
        active: candidate.active,
        health: Host::text_of(candidate.health).into(),
        locality: candidate.address.and_then(place).unwrap_or_default(),
    }
}

/// Text, as much of it as is kept.
fn text(bytes: &[u8]) -> Box<str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into()
}

/// The same of what is text already.
pub fn short(text: &str) -> Box<str> {
    self::text(text.as_bytes())
}

/// A path without its query, where secrets stand: `/a?...`.
fn path(path: &[u8]) -> Box<str> {
    match path.iter().position(|byte| *byte == b'?') {
        None => text(path),
        Some(at) => format!("{}?...", text(&path[..at])).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_not_kept_nor_more_of_a_path_than_there_is_room_for() {
        assert_eq!(&*path(b"/a/b?token=secret"), "/a/b?...");
        assert_eq!(path(&[b'a'; 5000]).len(), LONGEST);
        let peer = Workload { name: "a".repeat(60_000), app: "b".repeat(60_000), ..Workload::default() };
        let kept = named(Some(&peer)).unwrap();
        assert_eq!((kept.name.len(), &*kept.namespace), (LONGEST, ""));
    }
}
