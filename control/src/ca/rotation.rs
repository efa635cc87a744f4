//! Replacing the root without an outage: a pure state machine. Facts in, the next step out; whoever drives it does the step,
//! stores where it stands, and asks again. It can be interrupted anywhere, for nothing but the stored phase counts.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Where a replacement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Everyone is told to trust the new root beside the old one, which still issues.
    Distributing,
    /// The new root issues; the old one stays trusted until no leaf of it is alive.
    Draining,
    /// Everyone is told to forget the old root.
    Removing,
}

impl Phase {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Distributing, Self::Draining, Self::Removing];

    /// What it does, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Distributing => "add the new root to every bundle",
            Self::Draining => "issue by the new root, wait for the last leaf of the old one",
            Self::Removing => "remove the old root from every bundle",
        }
    }
}

/// How far the connected proxies are with the present bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Followers {
    /// Those that take bundles over xDS and have acknowledged the present one.
    pub acknowledged: usize,
    /// Those that take bundles over xDS and have not acknowledged it yet, or refused it.
    pub behind: usize,
    /// Those that learn of roots with their next certificate only (Istio's own agents).
    pub by_certificate: usize,
}

/// What is known at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The moment.
    pub now: OffsetDateTime,
    /// The proxies.
    pub followers: Followers,
    /// When the last leaf expires that was issued before this phase began, if one was.
    pub leaves_until: Option<OffsetDateTime>,
    /// Until then the control plane has been up too short a time to know who is connected.
    pub gathering_until: OffsetDateTime,
}

/// What keeps a phase from ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The control plane has just started, and its proxies are still coming back.
    Gathering(OffsetDateTime),
    /// So many connected proxies have not acknowledged the bundle.
    Proxies(usize),
    /// So many proxies do not take bundles over xDS; all certificates from before are renewed by then.
    Certificates(usize, OffsetDateTime),
    /// Leaves of the old root are alive until then.
    Leaves(OffsetDateTime),
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet.
    Wait(Wait),
    /// Enter this phase.
    Enter(Phase),
    /// It is done.
    Finish,
}

/// The next step of a replacement that stands at `phase`.
pub fn next(phase: Phase, facts: &Facts) -> Step {
    let alive = facts.leaves_until.filter(|until| facts.now <= *until);
    if phase != Phase::Draining && facts.now < facts.gathering_until {
        return Step::Wait(Wait::Gathering(facts.gathering_until));
    }
    match phase {
        Phase::Distributing => match (facts.followers, alive) {
            (Followers { behind, .. }, _) if behind > 0 => Step::Wait(Wait::Proxies(behind)),
            (Followers { by_certificate, .. }, Some(until)) if by_certificate > 0 => {
                Step::Wait(Wait::Certificates(by_certificate, until))
            }
            _ => Step::Enter(Phase::Draining),
        },
        Phase::Draining => match alive {
            Some(until) => Step::Wait(Wait::Leaves(until)),
            None => Step::Enter(Phase::Removing),
        },
        Phase::Removing => match facts.followers.behind {
            0 => Step::Finish,
            behind => Step::Wait(Wait::Proxies(behind)),
        },
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    fn facts(behind: usize, by_certificate: usize, left: Option<i64>) -> Facts {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let followers = Followers { acknowledged: 1, behind, by_certificate };
        Facts { now, followers, leaves_until: left.map(|s| now + Duration::seconds(s)), gathering_until: now }
    }

    #[test]
    fn who_has_not_come_back_yet_is_waited_for() {
        let mut facts = facts(0, 0, None);
        facts.gathering_until = facts.now + Duration::seconds(1);
        for phase in [Phase::Distributing, Phase::Removing] {
            assert_eq!(next(phase, &facts), Step::Wait(Wait::Gathering(facts.gathering_until)));
        }
        assert_eq!(next(Phase::Draining, &facts), Step::Enter(Phase::Removing), "leaves die without anybody");
    }

    #[test]
    fn the_new_root_issues_only_when_every_proxy_trusts_it() {
        let next = |f: Facts| next(Phase::Distributing, &f);
        assert_eq!(next(facts(2, 0, Some(60))), Step::Wait(Wait::Proxies(2)));
        // One that is told with its certificate only has been told when all certificates from before are over.
        let some = facts(0, 1, Some(60));
        assert_eq!(next(some), Step::Wait(Wait::Certificates(1, some.now + Duration::seconds(60))));
        assert_eq!(next(facts(2, 1, Some(-1))), Step::Wait(Wait::Proxies(2)));
        for ready in [facts(0, 0, Some(60)), facts(0, 1, Some(-1)), facts(0, 1, None), facts(0, 0, None)] {
            assert_eq!(next(ready), Step::Enter(Phase::Draining), "{ready:?}");
        }
    }

    #[test]
    fn the_old_root_is_trusted_until_its_last_leaf_is_over() {
        let next = |f: Facts| next(Phase::Draining, &f);
        let alive = facts(0, 0, Some(1));
        assert_eq!(next(alive), Step::Wait(Wait::Leaves(alive.now + Duration::seconds(1))));
        // The very last moment counts, and proxies that are behind change nothing here.
        assert!(matches!(next(facts(0, 0, Some(0))), Step::Wait(_)));
        for over in [facts(3, 1, Some(-1)), facts(0, 0, None)] {
            assert_eq!(next(over), Step::Enter(Phase::Removing));
        }
    }

    #[test]
    fn it_ends_when_the_old_root_is_forgotten_everywhere() {
        assert_eq!(next(Phase::Removing, &facts(1, 0, None)), Step::Wait(Wait::Proxies(1)));
        assert_eq!(next(Phase::Removing, &facts(0, 4, Some(60))), Step::Finish);
    }
}
