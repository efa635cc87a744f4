//! What outlier detection is told.

use std::time::Duration;

/// Why a host is ejected, in Envoy's kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// 5xx in a row.
    Consecutive5xx,
    /// 502, 503, 504 in a row.
    ConsecutiveGateway,
    /// Failures of our own in a row, when they are split.
    ConsecutiveLocal,
    /// Fewer successes than the others have.
    SuccessRate,
    /// Fewer connections made than the others have, when they are split.
    SuccessRateLocal,
    /// Too large a part of the answers are failures.
    FailurePercentage,
    /// Too large a part of the connections failed, when they are split.
    FailurePercentageLocal,
}

impl Kind {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// Its name in events (`OutlierEjectionType`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "CONSECUTIVE_5XX",
            Self::ConsecutiveGateway => "CONSECUTIVE_GATEWAY_FAILURE",
            Self::ConsecutiveLocal => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
            Self::SuccessRate => "SUCCESS_RATE",
            Self::SuccessRateLocal => "SUCCESS_RATE_LOCAL_ORIGIN",
            Self::FailurePercentage => "FAILURE_PERCENTAGE",
            Self::FailurePercentageLocal => "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
        }
    }
}

/// The settings, with Envoy's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierConfig {
    /// How many in a row eject: 5xx, gateway failures, failures of our own. 0 for never.
    pub consecutive: [u32; 3],
    /// The chance in percent that detection ejects, by [`Kind`].
    pub enforcing: [u32; Kind::COUNT],
    /// Count failures of our own apart from the upstream's answers.
    pub split: bool,
    /// Time between sweeps.
    pub interval: Duration,
    /// How long the first ejection lasts; the nth lasts n times as long.
    pub base_ejection: Duration,
    /// The longest ejection.
    pub max_ejection: Duration,
    /// An ejection lasts longer by a random part of this.
    pub max_jitter: Duration,
    /// The most of the hosts that may be out at once, in percent.
    pub max_percent: u32,
    /// Eject one host even if that is more than the percentage.
    pub always_one: bool,
    /// A passed active health check ends an ejection.
    pub health_check_ends: bool,
    /// Success rates are compared among so many hosts at least.
    pub success_rate_hosts: u32,
    /// A host's success rate counts from so many requests in an interval.
    pub success_rate_requests: u32,
    /// By how many thousandths of the standard deviation a success rate may be under the average.
    pub success_rate_factor: u32,
    /// The percentage of failures that ejects.
    pub failure_threshold: u32,
    /// Failure percentages count among so many hosts at least.
    pub failure_hosts: u32,
    /// A host's failure percentage counts from so many requests in an interval.
    pub failure_requests: u32,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        Self {
            consecutive: [5; 3],
            enforcing: [100, 0, 100, 100, 100, 0, 0],
            split: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_jitter: Duration::ZERO,
            max_percent: 10,
            always_one: false,
            health_check_ends: true,
            success_rate_hosts: 5,
            success_rate_requests: 100,
            success_rate_factor: 1900,
            failure_threshold: 85,
            failure_hosts: 5,
            failure_requests: 50,
        }
    }
}
