//! What a request leaves behind on its way: which filter decided what, which tries were made, and among which hosts was chosen.
//!
//! It hangs on the stream's record, in a box of its own: the record is moved a few times before it has its place, and with this in it
//! the stream's state would be larger than what the allocator gives by its short way (1 KiB). That box is all that a good request
//! allocates for it: decisions and the choice lie in place, and tries are only listed once one has failed.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::telemetry::flags::Flags;

/// A filter that decides about requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the filters'")]
pub enum By {
    Rbac,
    Jwt,
    ExtAuthz,
    Fault,
    LocalRateLimit,
    RateLimit,
    Other,
}

impl By {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rbac => "rbac",
            Self::Jwt => "jwt_authn",
            Self::ExtAuthz => "ext_authz",
            Self::Fault => "fault",
            Self::LocalRateLimit => "local_ratelimit",
            Self::RateLimit => "ratelimit",
            Self::Other => "filter",
        }
    }
}

/// What it decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request goes on.
    Allowed,
    /// It is answered here.
    Denied,
    /// It would go on, by rules that are only tried.
    WouldAllow,
    /// It would be answered here, by rules that are only tried.
    WouldDeny,
    /// It had to wait.
    Delayed,
}

impl Verdict {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::WouldAllow => "would allow",
            Self::WouldDeny => "would deny",
            Self::Delayed => "delayed",
        }
    }
}

/// A filter's decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Who decided.
    pub by: By,
    /// What.
    pub verdict: Verdict,
    /// The policy that did, or the filter where it has none.
    pub name: Option<Arc<str>>,
}

/// As many decisions lie in place; a chain with more of them allocates.
const IN_PLACE: usize = 4;

/// Decisions in their order.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    first: [Option<Decision>; IN_PLACE],
    more: Vec<Decision>,
}

impl Decisions {
    /// Adds one.
    pub fn push(&mut self, decision: Decision) {
        match self.first.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(decision),
            None => self.more.push(decision),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Decision> {
        self.first.iter().flatten().chain(&self.more)
    }
}

/// A host as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is; none for a UNIX socket.
    pub address: Option<SocketAddr>,
    /// Requests that were under way to it.
    pub active: u32,
    /// Why it is not to be used, in the cluster's bits.
    pub health: u32,
}

/// What a pick looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// The hosts that there were.
    pub hosts: u32,
    /// Those of them that were healthy.
    pub healthy: u32,
    /// The first two that were compared, where the policy compares hosts.
    pub candidates: [Option<Candidate>; 2],
}

/// How a host was chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The cluster's policy, in words.
    pub policy: &'static str,
    /// What was looked at.
    pub compared: Compared,
    /// Where none was chosen: the hosts that there were, as many as are told.
    pub refused: Vec<Candidate>,
}

/// A connection to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamLine {
    /// Its number, unique in this process, also among those from the downstream.
    pub id: u64,
    /// When it was begun.
    pub began: Instant,
    /// When it was there.
    pub connected: Instant,
    /// When TLS was, if it is TLS.
    pub secured: Option<Instant>,
}

/// A try that failed, or that was followed by another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// When it began.
    pub began: Instant,
    /// How long it took.
    pub took: Duration,
    /// The host, if one was chosen.
    pub host: Option<SocketAddr>,
    /// The number of the connection, if there was one.
    pub connection: Option<u64>,
    /// The status of its answer, if it brought one.
    pub status: Option<u16>,
    /// Why it brought none, in words.
    pub failure: Option<&'static str>,
    /// What the transport said.
    pub words: Option<Box<str>>,
    /// The flags of that.
    pub flags: Flags,
    /// How the host was chosen.
    pub choice: Option<Choice>,
    /// It was followed by another one, after this pause.
    pub pause: Option<Duration>,
}

/// What a request leaves behind.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    /// `x-request-id`, as it goes upstream.
    pub id: Option<HeaderValue>,
    /// The sender said that it had tried elsewhere before.
    pub again: bool,
    /// Filters' decisions.
    pub decisions: Decisions,
    /// When the last try began.
    pub began: Option<Instant>,
    /// When a connection's bytes had somewhere to go.
    pub connected: Option<Instant>,
    /// The connection of the last try.
    pub line: Option<Rc<UpstreamLine>>,
    /// When that was there for the last try; this and what follows only where somebody asks for it.
    pub ready: Option<Instant>,
    /// When the first of the answer's body came.
    pub body_began: Option<Instant>,
    /// When the whole answer had come.
    pub answer_came: Option<Instant>,
    /// When we began to answer.
    pub answering: Option<Instant>,
    /// How its host was chosen.
    pub choice: Option<Choice>,
    /// Tries before it, and the last one if it failed.
    pub tries: Vec<Try>,
}

impl Trail {
    /// A filter decided.
    pub fn decided(&mut self, by: By, verdict: Verdict, name: Option<Arc<str>>) {
        self.decisions.push(Decision { by, verdict, name });
    }

    /// A filter answered in the upstream's place; one that has said so itself has said it better.
    pub fn answered(&mut self, by: By, name: impl FnOnce() -> Arc<str>) {
        let told = self.decisions.iter().next_back();
        if told.is_none_or(|d| (d.by, d.verdict) != (by, Verdict::Denied)) {
            self.decided(by, Verdict::Denied, Some(name()));
        }
    }

    /// Names the pause after the last try.
    pub fn pause(&mut self, pause: Duration) {
        if let Some(last) = self.tries.last_mut() {
            last.pause = Some(pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_keep_their_order_beyond_the_room_in_place() {
        let mut trail = Trail::default();
        for number in 0..IN_PLACE + 2 {
            trail.decided(By::Rbac, Verdict::Allowed, Some(number.to_string().into()));
        }
        let names: Vec<_> = trail.decisions.iter().filter_map(|d| d.name.as_deref()).collect();
        assert_eq!(names, ["0", "1", "2", "3", "4", "5"]);
    }

    #[test]
    fn a_filter_that_named_its_policy_is_not_named_again() {
        let mut trail = Trail::default();
        trail.decided(By::Rbac, Verdict::Denied, Some("policy".into()));
        trail.answered(By::Rbac, || "filter".into());
        trail.answered(By::RateLimit, || "limits".into());
        let names: Vec<_> = trail.decisions.iter().filter_map(|d| d.name.as_deref()).collect();
        assert_eq!(names, ["policy", "limits"]);
    }
}
