//! Puts a connection of bytes that has ended into the record of requests, or tells those who watch; and connections of any kind that
//! ended before they had begun, by what their listener decided.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use crate::cluster::Cluster;
use crate::http::record::{origin, short, tries};
use crate::io::metadata::{Ruler, Ruling};
use crate::io::{ConnectionInfo, Direction};
use crate::telemetry::record::entry::{Kind, Onward};
use crate::telemetry::record::{self, By, Class, Decision, Entry, Settings, Verdict};
use crate::telemetry::{Details, Flag, StreamInfo, tap};

/// Told apart from those of other proxies, and of this one's before it was started anew.
static SALT: LazyLock<u32> = LazyLock::new(|| RandomState::new().hash_one(0u8) as u32);

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Who ended it, in words.
    pub by: &'static str,
    /// Words of the transport, where it is known what it said.
    pub words: Option<Box<str>>,
}

impl End {
    /// By whom.
    pub fn by(by: &'static str) -> Self {
        Self { by, words: None }
    }
}

/// A connection ended. `cluster`: the one that it was for.
pub fn ended(info: &ConnectionInfo, stream: &StreamInfo, cluster: Option<&Cluster>, end: End) {
    let class = class(info, stream, record::settings());
    let tapped = tap::is_on();
    if class.is_none() && !tapped {
        return;
    }
    let entry = Arc::new(entry(info, stream, cluster, class.unwrap_or(Class::Good), end));
    if tapped {
        tap::tell(&entry, None, None);
    }
    if class.is_some() {
        record::keep(entry);
    }
}

/// Why this connection is kept; none if it is not.
fn class(info: &ConnectionInfo, stream: &StreamInfo, settings: &Settings) -> Option<Class> {
    if settings.bytes == 0 {
        return None;
    }
    if is_refused(info, stream) {
        return Some(Class::Refused);
    }
    let mut flags = stream.flags;
    // It has lasted as long as it was to.
    flags.clear(Flag::DurationTimeout);
    if !flags.is_empty() {
        return Some(Class::Failed);
    }
    // It lasts as long as its ends want; slow is one whose server was reached late.
    let reached = stream.trail.connected.map(|at| at.saturating_duration_since(stream.start));
    if reached.is_some_and(|took| took >= settings.slow) || stream.attempts > 1 {
        return Some(Class::Slow);
    }
    // Both proxies of a hop know the address from which the one reached the other.
    let shared = if info.direction == Direction::Inbound { Some(info.remote) } else { stream.upstream_local };
    let id = shared.map(|address| address.to_string());
    record::sampled(id.as_ref().map(String::as_bytes), settings.sample).then_some(Class::Good)
}

/// Whether a policy, a limit or a service that was asked ended it.
fn is_refused(info: &ConnectionInfo, stream: &StreamInfo) -> bool {
    stream.flags.has(Flag::UnauthorizedExternalService)
        || stream.connection_termination_details.is_some()
        || rulings(info).iter().any(|ruling| !ruling.allowed && !ruling.tried)
}

fn rulings(info: &ConnectionInfo) -> Vec<Ruling> {
    info.notes.as_ref().map(|notes| notes.rulings.lock().clone()).unwrap_or_default()
}

fn decision(ruling: Ruling) -> Decision {
    let by = match ruling.by {
        Ruler::Policy => By::Rbac,
        Ruler::Service => By::ExtAuthz,
        Ruler::Limit => By::RateLimit,
    };
    let verdict = match (ruling.allowed, ruling.tried) {
        (true, false) => Verdict::Allowed,
        (false, false) => Verdict::Denied,
        (true, true) => Verdict::WouldAllow,
        (false, true) => Verdict::WouldDeny,
    };
    Decision { by, verdict, name: ruling.name }
}

fn entry(
    info: &ConnectionInfo,
    stream: &StreamInfo,
    cluster: Option<&Cluster>,
    class: Class,
    end: End,
) -> Entry {
    let of_cluster = cluster.and_then(|c| c.config().metadata.as_deref());
    let onward = stream.upstream_local.map(|local| Onward {
        local,
        peer: stream.upstream_tls.as_ref().and_then(|tls| tls.peer_id.clone()),
        tls: stream.upstream_tls.as_ref().map(|tls| tls.version),
    });
    Entry {
        kind: Kind::Connection,
        connection: info.id,
        onward,
        termination: stream.connection_termination_details.clone(),
        said: end.words,
        class,
        start: stream.start_time,
        took: stream.start.elapsed(),
        id: Some(id(info).into()),
        trace: None,
        method: "".into(),
        authority: "".into(),
        path: "".into(),
        protocol: "",
        listener: (info.listener.clone(), info.direction),
        chain: info.filter_chain.clone(),
        ends: (info.remote, info.local),
        sni: info.sni.as_deref().map(|name| short(name).into()),
        tls: info.tls.as_ref().map(|tls| tls.version),
        peer: info.peer_id().cloned(),
        workloads: (None, None),
        decisions: rulings(info).into_iter().map(decision).collect(),
        route: None,
        route_origin: None,
        cluster: stream.cluster.clone(),
        cluster_origin: (origin(of_cluster, "config"), origin(of_cluster, "subset")),
        tries: tries(stream, cluster, "connected"),
        moments: [None; 3],
        status: 0,
        grpc: None,
        flags: stream.flags,
        details: stream.details.clone(),
        bytes: (stream.bytes_received, stream.bytes_sent),
        ended: end.by,
    }
}

/// What a connection is called: other proxies count theirs as this one does.
fn id(info: &ConnectionInfo) -> String {
    format!("tcp-{:08x}-{}", *SALT, info.id)
}

/// A connection ended before its bytes were anybody's: no chain is for it, or its handshake failed.
pub fn early(info: &ConnectionInfo, began: Instant, flag: Option<Flag>, details: Details, end: End) {
    let mut stream = StreamInfo::new(None);
    let ago = began.elapsed();
    (stream.start, stream.start_time) =
        (began, stream.start_time.checked_sub(ago).unwrap_or(stream.start_time));
    if let Some(flag) = flag {
        stream.flags.set(flag);
    }
    stream.details = Some(details);
    let tapped = tap::is_on();
    let kept = record::settings().bytes > 0;
    if !kept && !tapped {
        return;
    }
    // Whoever knocks at a wrong door, and often, is not to push out what failed.
    let entry = Arc::new(entry(info, &stream, None, Class::Refused, end));
    if tapped {
        tap::tell(&entry, None, None);
    }
    if kept {
        record::keep(entry);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;

    fn info() -> ConnectionInfo {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        ConnectionInfo::between(at("10.0.0.1:1000"), at("10.0.0.2:5432"))
    }

    fn kept(change: impl Fn(&mut ConnectionInfo, &mut StreamInfo)) -> Option<Class> {
        let (mut info, mut stream) = (info(), StreamInfo::new(None));
        stream.attempts = 1;
        stream.upstream_local = Some("10.0.0.1:2000".parse().unwrap());
        stream.trail.connected = Some(stream.start + Duration::from_millis(5));
        change(&mut info, &mut stream);
        class(&info, &stream, &Settings { sample: 0.0, ..Settings::default() })
    }

    #[test]
    fn a_connection_is_kept_for_what_became_of_it_and_not_for_how_long_it_lived() {
        assert_eq!(kept(|_, _| {}), None);
        let late =
            |stream: &mut StreamInfo| stream.trail.connected = Some(stream.start + Duration::from_secs(9));
        assert_eq!(kept(|_, stream| late(stream)), Some(Class::Slow));
        assert_eq!(kept(|_, stream| stream.attempts = 2), Some(Class::Slow));
        assert_eq!(kept(|_, s| s.flags.set(Flag::UpstreamConnectionFailure)), Some(Class::Failed));
        assert_eq!(kept(|_, s| s.flags.set(Flag::DownstreamConnectionTermination)), Some(Class::Failed));
        assert_eq!(kept(|_, s| s.flags.set(Flag::DurationTimeout)), None);
        assert_eq!(kept(|_, s| s.flags.set(Flag::UnauthorizedExternalService)), Some(Class::Refused));
        assert_eq!(kept(|_, s| s.connection_termination_details = Some("x".into())), Some(Class::Refused));
    }

    #[test]
    fn what_policies_and_services_decided_is_told_and_a_trial_refuses_nothing() {
        let ruling = |by, allowed, tried| Ruling { by, allowed, tried, name: Some("p".into()) };
        let with = |rulings: &[Ruling]| {
            kept(|info, _| {
                for one in rulings {
                    info.notes.get_or_insert_default().ruled(one.clone());
                }
            })
        };
        assert_eq!(with(&[ruling(Ruler::Policy, false, true)]), None);
        assert_eq!(with(&[ruling(Ruler::Policy, true, false)]), None);
        assert_eq!(with(&[ruling(Ruler::Policy, false, false)]), Some(Class::Refused));
        let mut info = info();
        let notes = info.notes.get_or_insert_default();
        // Asked for each piece of a connection, it is told once.
        (0..3).for_each(|_| notes.ruled(ruling(Ruler::Policy, true, false)));
        notes.ruled(ruling(Ruler::Service, false, false));
        let stream = StreamInfo::new(None);
        let page = entry(&info, &stream, None, Class::Refused, End::by("this proxy")).json();
        assert_eq!(
            page["decisions"],
            serde_json::json!([
                {"filter": "rbac", "verdict": "allowed", "name": "p"},
                {"filter": "ext_authz", "verdict": "denied", "name": "p"},
            ])
        );
        assert_eq!((&page["kind"], &page["endedBy"]), (&"connection".into(), &"this proxy".into()));
        assert!(page["id"].as_str().unwrap().ends_with("-0"), "{page}");
        for absent in ["method", "path", "authority", "status", "protocol", "route"] {
            assert!(page.get(absent).is_none(), "{absent}: {page}");
        }
    }
}
