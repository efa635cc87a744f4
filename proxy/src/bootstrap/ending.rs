//! How a proxy ends, from flags and from the environment variables by which Istio's agent is told.

use std::time::Duration;

use anyhow::Context;
use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args};
use xds_protos::duration::parse as duration;

/// Istio's default of the time to drain.
const DRAIN: Duration = Duration::from_secs(5);
/// Istio's default of the least time to drain.
const MINIMUM: Duration = Duration::from_secs(5);
/// Kubelet kills at the end of the grace period: so long before it, what is left is cut, and logs are written out.
const MARGIN: Duration = Duration::from_secs(2);

/// The flags.
#[derive(Args, Debug)]
pub struct EndingArgs {
    /// How long the proxy drains when it is told to end; by default the seconds of TERMINATION_DRAIN_DURATION_SECONDS, or 5s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub drain_time: Option<Duration>,
    /// The pod's terminationGracePeriodSeconds: the proxy ends when the application has, and 2s before kubelet kills it
    /// anyhow; takes the place of --drain-time
    #[arg(long, value_name = "DURATION", env = "TERMINATION_GRACE_PERIOD", value_parser = grace)]
    pub grace_period: Option<Duration>,
    /// End as soon as there are no connections; without --drain-time or --grace-period there is no deadline then
    #[arg(long, env = "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", action = ArgAction::SetTrue,
          value_parser = BoolishValueParser::new())]
    pub exit_on_zero_active_connections: bool,
    /// The least time to drain, before which the proxy does not end early
    #[arg(long, value_name = "DURATION", env = "MINIMUM_DRAIN_DURATION", value_parser = duration)]
    pub minimum_drain_time: Option<Duration>,
    /// End when the pod's other processes have, for jobs whose sidecar is no native one; needs shareProcessNamespace
    #[arg(long, env = "EXIT_WITH_APPLICATION", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub exit_with_application: bool,
}

/// What lets a proxy end before its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// Nothing.
    Never,
    /// There are no connections.
    NoConnections,
    /// There are none, and the application is gone.
    NoApplication,
}

/// How a proxy ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// How long it drains; none: until it may end early.
    limit: Option<Duration>,
    /// The least time to drain.
    pub minimum: Duration,
    /// What lets it end after that.
    pub early: Early,
    /// It ends by itself when the pod's other processes have.
    pub with_application: bool,
}

impl Ending {
    /// When, after it was told to end, what is left is cut.
    pub fn deadline(&self) -> Option<Duration> {
        self.limit
    }

    /// The same for a proxy whose application has ended: there is nothing to wait for but connections.
    pub fn without_application(self) -> Self {
        Self {
            limit: self.limit.or(Some(DRAIN)),
            minimum: Duration::ZERO,
            early: Early::NoConnections,
            ..self
        }
    }
}

impl EndingArgs {
    /// What flags and environment say.
    pub fn read(&self) -> anyhow::Result<Ending> {
        let seconds = std::env::var("TERMINATION_DRAIN_DURATION_SECONDS").ok();
        self.with(seconds.as_deref())
    }

    fn with(&self, seconds: Option<&str>) -> anyhow::Result<Ending> {
        let seconds = seconds.filter(|s| !s.is_empty()).map(|s| {
            let seconds = s.parse().map(Duration::from_secs);
            seconds
                .with_context(|| format!("TERMINATION_DRAIN_DURATION_SECONDS: {s:?} is no number of seconds"))
        });
        let drain = self.drain_time.map(Ok).or(seconds).transpose()?;
        let (limit, early) = match (self.grace_period, self.exit_on_zero_active_connections) {
            (Some(grace), zero) => {
                let limit = grace.saturating_sub(MARGIN).max(grace / 2);
                (Some(limit), if zero { Early::NoConnections } else { Early::NoApplication })
            }
            (None, true) => (drain, Early::NoConnections),
            (None, false) => (Some(drain.unwrap_or(DRAIN)), Early::Never),
        };
        let minimum = self.minimum_drain_time.unwrap_or(MINIMUM);
        Ok(Ending { limit, minimum, early, with_application: self.exit_with_application })
    }
}

/// A duration, or seconds as Kubernetes writes them.
fn grace(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => duration(text),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        ending: EndingArgs,
    }

    fn ending(words: &str, seconds: Option<&str>) -> anyhow::Result<Ending> {
        let words = std::iter::once("proxy").chain(words.split_whitespace());
        Cli::try_parse_from(words)?.ending.with(seconds)
    }

    #[test]
    fn there_is_one_deadline() {
        let s = Duration::from_secs;
        for (words, seconds, limit, early) in [
            ("", None, Some(s(5)), Early::Never),
            ("", Some("30"), Some(s(30)), Early::Never),
            ("--drain-time 7s", Some("30"), Some(s(7)), Early::Never),
            ("--exit-on-zero-active-connections", None, None, Early::NoConnections),
            ("--exit-on-zero-active-connections", Some("30"), Some(s(30)), Early::NoConnections),
            ("--grace-period 30", Some("50"), Some(s(28)), Early::NoApplication),
            ("--grace-period 1m --drain-time 5s", None, Some(s(58)), Early::NoApplication),
            (
                "--grace-period 3s --exit-on-zero-active-connections",
                None,
                Some(Duration::from_millis(1500)),
                Early::NoConnections,
            ),
        ] {
            let minimum = s(5);
            let with_application = false;
            let expected = Ending { limit, minimum, early, with_application };
            assert_eq!(ending(words, seconds).unwrap(), expected, "{words}");
        }
        assert_eq!(ending("--minimum-drain-time 0s", None).unwrap().minimum, s(0));
        for (words, seconds) in [("", Some("5s")), ("--grace-period soon", None), ("--drain-time 5", None)] {
            assert!(ending(words, seconds).is_err(), "{words}");
        }
    }
}
