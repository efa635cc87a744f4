//! What a check's end does to a host, by Envoy's rules: the first check decides at once, later ones by thresholds.

use crate::cluster::host::{HealthFlag, Host};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Healthy {
        /// The host says that it is degraded.
        degraded: bool,
    },
    /// Not.
    Unhealthy {
        /// Why.
        reason: Reason,
        /// It may pass: it counts towards the threshold, as what the network did.
        retriable: bool,
        /// Take it out of the account of its priority's health (`x-envoy-immediate-health-check-fail`).
        exclude: bool,
    },
}

impl Verdict {
    /// A failure for this reason.
    pub const fn failed(reason: Reason) -> Self {
        Self::Unhealthy { reason, retriable: false, exclude: false }
    }
}

/// Why a host is unhealthy (`HealthCheckFailureType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It said so, or answered wrongly.
    Active,
    /// It said so in an answer to a request that was no check.
    Passive,
    /// No connection, or it broke.
    Network,
    /// It took too long.
    NetworkTimeout,
}

impl Reason {
    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Passive => "PASSIVE",
            Self::Network => "NETWORK",
            Self::NetworkTimeout => "NETWORK_TIMEOUT",
        }
    }

    /// Whether a single one may be chance.
    pub fn is_network(self) -> bool {
        matches!(self, Self::Network | Self::NetworkTimeout)
    }
}

/// What a verdict did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Nothing.
    Unchanged,
    /// The host has another health now.
    Changed,
    /// It will, if more of them follow.
    Pending,
}

/// What is remembered from check to check.
#[derive(Debug)]
pub struct State {
    /// No check has come to an end yet.
    pub first: bool,
    healthy: u32,
    unhealthy: u32,
}

impl Default for State {
    fn default() -> Self {
        Self { first: true, healthy: 0, unhealthy: 0 }
    }
}

impl State {
    /// Takes a verdict into account and sets the host's flags.
    pub fn apply(
        &mut self,
        host: &Host,
        verdict: Verdict,
        healthy_threshold: u32,
        unhealthy_threshold: u32,
    ) -> Transition {
        let transition = match verdict {
            Verdict::Healthy { degraded } => self.succeeded(host, degraded, healthy_threshold),
            Verdict::Unhealthy { reason, retriable, exclude } => {
                if exclude {
                    host.set_flag(HealthFlag::ExcludedViaImmediateHcFail, true);
                }
                self.failed(host, reason, retriable, unhealthy_threshold)
            }
        };
        self.first = false;
        transition
    }

    fn succeeded(&mut self, host: &Host, degraded: bool, threshold: u32) -> Transition {
        self.unhealthy = 0;
        let mut transition = Transition::Unchanged;
        if host.has_flag(HealthFlag::FailedActiveHc) {
            self.healthy += 1;
            if self.first || self.healthy >= threshold {
                self.healthy = 0;
                for flag in [
                    HealthFlag::ActiveHcTimeout,
                    HealthFlag::ExcludedViaImmediateHcFail,
                    HealthFlag::FailedActiveHc,
                ] {
                    host.set_flag(flag, false);
                }
                transition = Transition::Changed;
            } else {
                transition = Transition::Pending;
            }
        } else {
            self.healthy = 0;
        }
        if host.set_flag(HealthFlag::PendingActiveHc, false) {
            transition = Transition::Changed;
        }
        if host.set_flag(HealthFlag::DegradedActiveHc, degraded) && transition == Transition::Unchanged {
            transition = Transition::Changed;
        }
        transition
    }

    fn failed(&mut self, host: &Host, reason: Reason, retriable: bool, threshold: u32) -> Transition {
        self.healthy = 0;
        let mut transition = Transition::Unchanged;
        if !host.has_flag(HealthFlag::FailedActiveHc) {
            self.unhealthy += 1;
            if (!reason.is_network() && !retriable) || self.unhealthy >= threshold {
                self.unhealthy = 0;
                host.set_flag(HealthFlag::FailedActiveHc, true);
                transition = Transition::Changed;
            } else {
                transition = Transition::Pending;
            }
        }
        let timed_out = reason == Reason::NetworkTimeout && host.has_flag(HealthFlag::FailedActiveHc);
        host.set_flag(HealthFlag::ActiveHcTimeout, timed_out);
        if host.set_flag(HealthFlag::PendingActiveHc, false) {
            transition = Transition::Changed;
        }
        transition
    }
}

#[cfg(test)]
mod tests {
    use super::Transition::{Changed, Pending, Unchanged};
    use super::*;
    use crate::cluster::endpoint::Endpoint;
    use crate::cluster::host::Facts;
    use std::sync::Arc;

    const UP: Verdict = Verdict::Healthy { degraded: false };
    const DOWN: Verdict = Verdict::failed(Reason::Active);
    const AWAY: Verdict = Verdict::failed(Reason::Network);

    fn host(failed: bool) -> Arc<Host> {
        let facts =
            Facts { locality: Arc::default(), metadata: None, transport: 0, check: Default::default() };
        let host = Host::new(&Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], 1))), 0, facts);
        host.set_flag(HealthFlag::FailedActiveHc, failed);
        host
    }

    fn run(host: &Host, state: &mut State, verdicts: &[Verdict]) -> Vec<Transition> {
        verdicts.iter().map(|v| state.apply(host, *v, 2, 3)).collect()
    }

    #[test]
    fn the_first_success_is_enough_and_later_ones_need_the_threshold() {
        let host = host(true);
        let mut state = State::default();
        assert_eq!(run(&host, &mut state, &[UP, UP]), [Changed, Unchanged]);
        assert_eq!(run(&host, &mut state, &[DOWN, UP, UP]), [Changed, Pending, Changed]);
        assert_eq!(
            run(&host, &mut state, &[DOWN, UP, DOWN, UP, UP]),
            [Changed, Pending, Unchanged, Pending, Changed]
        );
    }

    #[test]
    fn what_the_network_does_counts_to_the_threshold_and_a_wrong_answer_at_once() {
        let (host, mut state) = (host(true), State::default());
        run(&host, &mut state, &[UP]);
        assert_eq!(run(&host, &mut state, &[AWAY, AWAY, UP]), [Pending, Pending, Unchanged]);
        assert_eq!(run(&host, &mut state, &[AWAY, AWAY, AWAY, AWAY]), [Pending, Pending, Changed, Unchanged]);
        run(&host, &mut state, &[UP, UP]);
        let retriable = Verdict::Unhealthy { reason: Reason::Active, retriable: true, exclude: false };
        assert_eq!(run(&host, &mut state, &[retriable, retriable, retriable]), [Pending, Pending, Changed]);
    }

    #[test]
    fn flags_say_whether_it_timed_out_is_degraded_or_excluded() {
        let (host, mut state) = (host(true), State::default());
        run(&host, &mut state, &[UP, Verdict::Healthy { degraded: true }]);
        assert_eq!(host.health_text(), "/degraded_active_hc");
        run(&host, &mut state, &[UP]);
        assert_eq!(host.health_text(), "healthy");
        run(&host, &mut state, &[Verdict::failed(Reason::NetworkTimeout); 3]);
        assert_eq!(host.health_text(), "/failed_active_hc/active_hc_timeout");
        run(&host, &mut state, &[AWAY]);
        assert_eq!(host.health_text(), "/failed_active_hc");
        run(
            &host,
            &mut state,
            &[Verdict::Unhealthy { reason: Reason::Active, retriable: false, exclude: true }],
        );
        assert!(host.has_flag(HealthFlag::ExcludedViaImmediateHcFail));
        run(&host, &mut state, &[UP, UP]);
        assert_eq!(host.health_text(), "healthy");
    }
}
