//! A request in the record: what was decided, in words that outlive the configuration that decided it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Class, Decision};
use crate::io::Direction;
use crate::telemetry::details::Details;
use crate::telemetry::flags::Flags;

/// As much of a path, of an authority and of an id is kept.
pub const LONGEST: usize = 512;

/// A host that was compared, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// Where it is.
    pub address: Option<SocketAddr>,
    /// Requests that were under way to it.
    pub active: u32,
    /// `healthy`, or why not.
    pub health: Box<str>,
    /// Region, zone and sub-zone; empty if nobody says.
    pub locality: Box<str>,
}

/// A try, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// When it began, from the request's start.
    pub began: Duration,
    /// How long until it failed or its answer came.
    pub took: Option<Duration>,
    /// The host.
    pub host: Option<SocketAddr>,
    /// What it brought: `answered`, or why it did not.
    pub outcome: Box<str>,
    /// The status of its answer.
    pub status: Option<u16>,
    /// What the transport said.
    pub words: Option<Box<str>>,
    /// Its flags.
    pub flags: Flags,
    /// It was followed by another one, after this pause.
    pub pause: Option<Duration>,
    /// The cluster's policy.
    pub policy: &'static str,
    /// The hosts that there were, and those of them that were healthy.
    pub hosts: (u32, u32),
    /// Those that were compared, or that were all not to be used.
    pub candidates: Vec<Looked>,
}

/// A workload, as far as it is told: what else a peer says of itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Request,
    /// A connection of bytes, or one that never had a request.
    Connection,
}

impl Kind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Connection => "connection",
        }
    }
}

/// The connection that took a connection's bytes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onward {
    /// Our end of it, which the next proxy sees as its client.
    pub local: SocketAddr,
    /// The server's identity.
    pub peer: Option<Arc<str>>,
    /// The version of TLS.
    pub tls: Option<&'static str>,
}

/// A request, or a connection.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which of them.
    pub kind: Kind,
    /// The downstream connection's number in this proxy, as in its logs.
    pub connection: u64,
    /// Where a connection's bytes went on.
    pub onward: Option<Onward>,
    /// Envoy's connection termination details.
    pub termination: Option<Details>,
    /// What the transport said of a connection's end.
    pub said: Option<Box<str>>,
    /// Why it is kept.
    pub class: Class,
    /// When it came.
    pub start: SystemTime,
    /// Until its end.
    pub took: Duration,
    /// `x-request-id`.
    pub id: Option<Box<str>>,
    /// The trace's id.
    pub trace: Option<Box<str>>,
    /// The method.
    pub method: Box<str>,
    /// The authority.
    pub authority: Box<str>,
    /// The path as it came, without its query.
    pub path: Box<str>,
    /// The protocol.
    pub protocol: &'static str,
    /// The listener, and its direction.
    pub listener: (Arc<str>, Direction),
    /// The filter chain.
    pub chain: Arc<str>,
    /// The connection's other end, and the address that it dialled.
    pub ends: (SocketAddr, SocketAddr),
    /// The server name that was asked for.
    pub sni: Option<Arc<str>>,
    /// The version of TLS.
    pub tls: Option<&'static str>,
    /// The peer's identity.
    pub peer: Option<Arc<str>>,
    /// The caller's and the callee's workloads, as far as they told.
    pub workloads: (Option<Named>, Option<Named>),
    /// What filters decided.
    pub decisions: Vec<Decision>,
    /// The route configuration, the virtual host in it, and the route; its name may be empty.
    pub route: Option<[Arc<str>; 3]>,
    /// The object that the route was written in.
    pub route_origin: Option<Box<str>>,
    /// The cluster.
    pub cluster: Option<Arc<str>>,
    /// The object that the cluster was written in, and its subset.
    pub cluster_origin: (Option<Box<str>>, Option<Box<str>>),
    /// Tries at its hosts.
    pub tries: Vec<Told>,
    /// From the start: when the whole request had come, had gone upstream, and when the answer began.
    pub moments: [Option<Duration>; 3],
    /// The status that the client got; 0 for none.
    pub status: u16,
    /// gRPC's.
    pub grpc: Option<u32>,
    /// Flags.
    pub flags: Flags,
    /// Envoy's response code details.
    pub details: Option<Details>,
    /// Bytes of the bodies, of the request and of the answer; or those of the connection.
    pub bytes: (u64, u64),
    /// Who ended it.
    pub ended: &'static str,
}

/// Milliseconds, to the microsecond.
fn millis(time: Duration) -> Value {
    (time.as_micros() as f64 / 1000.0).into()
}

impl Entry {
    /// What it takes in memory, in bytes. What it shares with others is counted as its own: the others may go first.
    pub fn size(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |t| t.len());
        let shared = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |t| t.len());
        let named = |w: &Option<Named>| w.as_ref().map_or(0, |w| w.name.len() + w.namespace.len());
        let looked = |l: &Looked| size_of::<Looked>() + l.health.len() + l.locality.len();
        let tries = self.tries.iter().map(|t| {
            size_of::<Told>()
                + t.outcome.len()
                + text(&t.words)
                + t.candidates.iter().map(looked).sum::<usize>()
        });
        let decisions = self.decisions.iter().map(|d| size_of::<Decision>() + shared(&d.name));
        size_of::<Self>()
            // The counts of the pointer, and its place in the queue.
            + 32
            + text(&self.id)
            + text(&self.trace)
            + self.method.len()
            + self.authority.len()
            + self.path.len()
            + self.listener.0.len()
            + self.chain.len()
            + shared(&self.peer)
            + shared(&self.sni)
            + named(&self.workloads.0)
            + named(&self.workloads.1)
            + self.route.iter().flatten().map(|t| t.len()).sum::<usize>()
            + text(&self.route_origin)
            + shared(&self.cluster)
            + text(&self.cluster_origin.0)
            + text(&self.cluster_origin.1)
            + self.details.as_ref().map_or(0, |d| d.len())
            + self.termination.as_ref().map_or(0, |d| d.len())
            + text(&self.said)
            + self.onward.as_ref().map_or(0, |o| shared(&o.peer))
            + tries.sum::<usize>()
            + decisions.sum::<usize>()
    }

    /// The listener's direction.
    pub fn direction(&self) -> &'static str {
        match self.listener.1 {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
            Direction::Unspecified => "unspecified",
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let start = OffsetDateTime::from(self.start).format(&Rfc3339).unwrap_or_default();
        let workload = |workload: &Option<Named>| {
            workload.as_ref().map(|w| json!({"name": w.name, "namespace": w.namespace}))
        };
        let decisions: Vec<_> = self
            .decisions
            .iter()
            .map(|d| json!({"filter": d.by.as_str(), "verdict": d.verdict.as_str(), "name": d.name.as_deref()}))
            .collect();
        let route = self.route.as_ref().map(|[config, host, route]| {
            json!({"configuration": &**config, "virtualHost": &**host, "name": &**route, "origin": self.route_origin})
        });
        let request = self.kind == Kind::Request;
        let of_request = |text: &str| request.then(|| text.to_owned());
        let [received, sent, answered] = self.moments.map(|moment| moment.map(millis));
        let mut page = json!({
            "kind": self.kind.as_str(),
            "connectionId": self.connection,
            "class": self.class.as_str(),
            "start": start,
            "durationMs": millis(self.took),
            "id": self.id,
            "traceId": self.trace,
            "method": of_request(&self.method),
            "authority": of_request(&self.authority),
            "path": of_request(&self.path),
            "protocol": of_request(self.protocol),
            "listener": &*self.listener.0,
            "direction": self.direction(),
            "filterChain": &*self.chain,
            "remote": self.ends.0,
            "local": self.ends.1,
            "serverName": self.sni.as_deref(),
            "tls": self.tls,
            "peer": self.peer.as_deref(),
            "caller": workload(&self.workloads.0),
            "callee": workload(&self.workloads.1),
            "decisions": decisions,
            "route": route,
            "cluster": self.cluster.as_deref(),
            "subset": self.cluster_origin.1,
            "clusterOrigin": self.cluster_origin.0,
            "attempts": self.tries.iter().map(Told::json).collect::<Vec<_>>(),
            "receivedMs": received,
            "sentUpstreamMs": sent,
            "answerBeganMs": answered,
            "status": request.then_some(self.status),
            "grpcStatus": self.grpc,
            "flags": self.flags.to_string(),
            "details": self.details.as_deref(),
            "bytesReceived": self.bytes.0,
            "bytesSent": self.bytes.1,
            "endedBy": self.ended,
        });
        if !request && let Some(fields) = page.as_object_mut() {
            fields.extend(self.of_connection());
        }
        prune(&mut page);
        page
    }

    /// What there is of a connection alone.
    fn of_connection(&self) -> Map<String, Value> {
        let onward = self.onward.as_ref();
        let all = [
            ("termination", json!(self.termination.as_deref())),
            ("said", json!(self.said)),
            ("upstreamLocal", json!(onward.map(|o| o.local))),
            ("upstreamPeer", json!(onward.and_then(|o| o.peer.as_deref()))),
            ("upstreamTls", json!(onward.and_then(|o| o.tls))),
        ];
        all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl Told {
    fn json(&self) -> Value {
        let candidates = self.candidates.iter().map(|c| {
            let locality = Some(&c.locality).filter(|l| !l.is_empty());
            let mut page = json!({"address": c.address, "activeRequests": c.active, "health": c.health, "locality": locality});
            prune(&mut page);
            page
        });
        let mut page = json!({
            "host": self.host,
            "beganMs": millis(self.began),
            "tookMs": self.took.map(millis),
            "outcome": self.outcome,
            "status": self.status,
            "said": self.words,
            "flags": Some(self.flags).filter(|f| !f.is_empty()).map(|f| f.to_string()),
            "retriedAfterMs": self.pause.map(millis),
            "policy": Some(self.policy).filter(|p| !p.is_empty()),
            "hosts": self.hosts.0,
            "healthy": self.hosts.1,
            "candidates": candidates.collect::<Vec<_>>(),
        });
        prune(&mut page);
        page
    }
}

/// Leaves out what is not there.
fn prune(page: &mut Value) {
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    if let Some(fields) = page.as_object_mut() {
        let kept: Map<_, _> = std::mem::take(fields).into_iter().filter(|(_, value)| !empty(value)).collect();
        *fields = kept;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::telemetry::record::{By, Verdict};

    pub(crate) fn entry(class: Class, id: &str) -> Entry {
        let address = "127.0.0.1:80".parse().unwrap();
        Entry {
            kind: Kind::Request,
            connection: 7,
            onward: None,
            termination: None,
            said: None,
            class,
            start: SystemTime::UNIX_EPOCH,
            took: Duration::from_micros(1500),
            id: Some(id.into()),
            trace: None,
            method: "GET".into(),
            authority: "a".into(),
            path: "/".into(),
            protocol: "HTTP/1.1",
            listener: ("l".into(), Direction::Inbound),
            chain: "".into(),
            ends: (address, address),
            sni: None,
            tls: None,
            peer: None,
            workloads: (None, None),
            decisions: Vec::new(),
            route: None,
            route_origin: None,
            cluster: None,
            cluster_origin: (None, None),
            tries: Vec::new(),
            moments: [None; 3],
            status: 200,
            grpc: None,
            flags: Flags::default(),
            details: None,
            bytes: (0, 0),
            ended: "the answer's end",
        }
    }

    #[test]
    fn an_entry_says_what_there_is_and_leaves_out_what_there_is_not() {
        let mut entry = entry(Class::Refused, "x");
        let plain = entry.size();
        entry.decisions.push(Decision {
            by: By::Rbac,
            verdict: Verdict::Denied,
            name: Some("ns[shop]-policy[readers]-rule[0]".into()),
        });
        assert!(entry.size() > plain + 32);
        let before = entry.size();
        entry.workloads.1 = Some(Named { name: "cart".into(), namespace: "shop".into() });
        assert_eq!(entry.size(), before + 8);
        let page = entry.json();
        assert_eq!(page["start"], "1970-01-01T00:00:00Z");
        assert_eq!((&page["durationMs"], &page["direction"]), (&1.5.into(), &"inbound".into()));
        let told =
            json!([{"filter": "rbac", "verdict": "denied", "name": "ns[shop]-policy[readers]-rule[0]"}]);
        assert_eq!(page["decisions"], told);
        assert_eq!(page["callee"], json!({"name": "cart", "namespace": "shop"}));
        assert!(page.get("cluster").is_none() && page.get("attempts").is_none(), "{page}");
    }
}
