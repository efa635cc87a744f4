//! Envoy's response flags: why a stream ended as it did, in the letters that operators know.

use std::fmt;

/// One response flag; see Envoy's access log documentation, `%RESPONSE_FLAGS%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flag {
    /// `LH`: local service failed its health check.
    FailedLocalHealthCheck,
    /// `UH`: no healthy upstream host.
    NoHealthyUpstream,
    /// `UT`: upstream request timeout.
    UpstreamRequestTimeout,
    /// `LR`: local reset.
    LocalReset,
    /// `UR`: upstream remote reset.
    UpstreamRemoteReset,
    /// `UF`: upstream connection failure.
    UpstreamConnectionFailure,
    /// `UC`: upstream connection termination.
    UpstreamConnectionTermination,
    /// `UO`: upstream overflow (circuit breaker).
    UpstreamOverflow,
    /// `NR`: no route found.
    NoRouteFound,
    /// `DI`: delay injected.
    DelayInjected,
    /// `FI`: fault injected.
    FaultInjected,
    /// `RL`: rate limited.
    RateLimited,
    /// `UAEX`: denied by the external authorization service.
    UnauthorizedExternalService,
    /// `RLSE`: rate limit service error.
    RateLimitServiceError,
    /// `DC`: downstream connection termination.
    DownstreamConnectionTermination,
    /// `URX`: upstream retry limit (or TCP connect attempts) exceeded.
    UpstreamRetryLimitExceeded,
    /// `SI`: stream idle timeout.
    StreamIdleTimeout,
    /// `IH`: invalid Envoy request headers.
    InvalidEnvoyRequestHeaders,
    /// `DPE`: downstream protocol error.
    DownstreamProtocolError,
    /// `UMSDR`: upstream max stream duration reached.
    UpstreamMaxStreamDurationReached,
    /// `NFCF`: no filter config found.
    NoFilterConfigFound,
    /// `DT`: duration timeout (max connection or stream duration).
    DurationTimeout,
    /// `UPE`: upstream protocol error.
    UpstreamProtocolError,
    /// `NC`: no cluster found.
    NoClusterFound,
    /// `OM`: overload manager.
    OverloadManager,
    /// `DF`: DNS resolution failure.
    DnsResolutionFailed,
    /// `DR`: downstream remote reset.
    DownstreamRemoteReset,
    /// `UDO`: unconditional drop overload.
    UnconditionalDropOverload,
}

const ALL: [(Flag, &str); 28] = [
    (Flag::FailedLocalHealthCheck, "LH"),
    (Flag::NoHealthyUpstream, "UH"),
    (Flag::UpstreamRequestTimeout, "UT"),
    (Flag::LocalReset, "LR"),
    (Flag::UpstreamRemoteReset, "UR"),
    (Flag::UpstreamConnectionFailure, "UF"),
    (Flag::UpstreamConnectionTermination, "UC"),
    (Flag::UpstreamOverflow, "UO"),
    (Flag::NoRouteFound, "NR"),
    (Flag::DelayInjected, "DI"),
    (Flag::FaultInjected, "FI"),
    (Flag::RateLimited, "RL"),
    (Flag::UnauthorizedExternalService, "UAEX"),
    (Flag::RateLimitServiceError, "RLSE"),
    (Flag::DownstreamConnectionTermination, "DC"),
    (Flag::UpstreamRetryLimitExceeded, "URX"),
    (Flag::StreamIdleTimeout, "SI"),
    (Flag::InvalidEnvoyRequestHeaders, "IH"),
    (Flag::DownstreamProtocolError, "DPE"),
    (Flag::UpstreamMaxStreamDurationReached, "UMSDR"),
    (Flag::NoFilterConfigFound, "NFCF"),
    (Flag::DurationTimeout, "DT"),
    (Flag::UpstreamProtocolError, "UPE"),
    (Flag::NoClusterFound, "NC"),
    (Flag::OverloadManager, "OM"),
    (Flag::DnsResolutionFailed, "DF"),
    (Flag::DownstreamRemoteReset, "DR"),
    (Flag::UnconditionalDropOverload, "UDO"),
];

/// A set of flags. Displays as Envoy writes them: `URX,UF`, or `-` when there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u32);

/// A bit that is no flag's: the limit of tries was found to be reached after the failure, not before it.
const LIMIT_LAST: u32 = 1 << 31;

impl Flags {
    /// Adds one.
    pub fn set(&mut self, flag: Flag) {
        self.0 |= 1 << flag as u8;
    }

    /// Adds `URX` after what is there: a TCP proxy counts its attempts when one has failed, a router before it says so.
    pub fn set_limit_last(&mut self) {
        self.set(Flag::UpstreamRetryLimitExceeded);
        self.0 |= LIMIT_LAST;
    }

    /// Takes one away.
    pub fn clear(&mut self, flag: Flag) {
        self.0 &= !(1 << flag as u8);
    }

    /// Whether it is there.
    pub fn has(self, flag: Flag) -> bool {
        self.0 & (1 << flag as u8) != 0
    }

    /// Whether both sets share one.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The flag of these letters.
    pub fn parse(letters: &str) -> Option<Flag> {
        ALL.iter().find(|(_, l)| *l == letters).map(|(flag, _)| *flag)
    }

    /// The flags as Envoy numbers them: one bit each.
    pub fn bits(self) -> u32 {
        self.0 & !LIMIT_LAST
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Flags by their long names (`%RESPONSE_FLAGS_LONG%`).
pub struct Long(Flags);

impl fmt::Display for Long {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, |flag, _, f| match flag {
            Flag::OverloadManager => f.write_str("OverloadManagerTerminated"),
            other => write!(f, "{other:?}"),
        })
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        self.write(f, |_, letters, f| f.write_str(letters))
    }
}

impl Flags {
    /// The long names.
    pub fn long(self) -> Long {
        Long(self)
    }

    fn write(
        self,
        f: &mut fmt::Formatter<'_>,
        one: impl Fn(Flag, &str, &mut fmt::Formatter<'_>) -> fmt::Result,
    ) -> fmt::Result {
        // Envoy prints flags in the order they were set; these are set before the failure that ends the stream.
        let is_first = |flag: Flag| match flag {
            Flag::DelayInjected | Flag::UpstreamOverflow => true,
            Flag::UpstreamRetryLimitExceeded => self.0 & LIMIT_LAST == 0,
            _ => false,
        };
        let first = ALL.iter().filter(|(flag, _)| is_first(*flag));
        let others = ALL.iter().filter(|(flag, _)| !is_first(*flag));
        let mut separator = "";
        for (flag, letters) in first.chain(others) {
            if self.has(*flag) {
                f.write_str(separator)?;
                one(*flag, letters, f)?;
                separator = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_as_envoy_prints_them() {
        let mut flags = Flags::default();
        assert_eq!(flags.to_string(), "-");
        flags.set(Flag::UpstreamRetryLimitExceeded);
        flags.set(Flag::UpstreamConnectionFailure);
        assert_eq!(flags.to_string(), "URX,UF");
        assert_eq!(flags.long().to_string(), "UpstreamRetryLimitExceeded,UpstreamConnectionFailure");
        let mut flags = Flags::default();
        flags.set(Flag::UpstreamConnectionFailure);
        flags.set_limit_last();
        assert_eq!(flags.to_string(), "UF,URX");
        assert!(ALL.iter().enumerate().all(|(i, (flag, _))| *flag as usize == i));
    }
}
