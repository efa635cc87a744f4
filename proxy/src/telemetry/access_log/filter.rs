//! Which streams an access log takes (`envoy.config.accesslog.v3.AccessLogFilter`).

use super::LogContext;
use crate::telemetry::flags::Flags;

/// How a number is compared with a configured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Equal to it.
    Equal(u32),
    /// At least it.
    AtLeast(u32),
    /// At most it.
    AtMost(u32),
    /// Different from it.
    NotEqual(u32),
}

impl Comparison {
    fn holds(self, n: u64) -> bool {
        match self {
            Self::Equal(m) => n == u64::from(m),
            Self::AtLeast(m) => n >= u64::from(m),
            Self::AtMost(m) => n <= u64::from(m),
            Self::NotEqual(m) => n != u64::from(m),
        }
    }
}

/// A compiled filter.
#[derive(Clone, Debug)]
pub enum Filter {
    /// The response status, 0 where there is none.
    Status(Comparison),
    /// The stream's duration in milliseconds.
    Duration(Comparison),
    /// Any of these response flags; any flag at all if the set is empty.
    ResponseFlags(Flags),
    /// All of these.
    And(Vec<Filter>),
    /// One of these.
    Or(Vec<Filter>),
}

impl Filter {
    /// Whether the stream is to be logged.
    pub fn matches(&self, context: &LogContext<'_>) -> bool {
        let stream = context.stream;
        match self {
            Self::Status(c) => c.holds(stream.status.map_or(0, |s| u64::from(s.as_u16()))),
            Self::Duration(c) => c.holds(stream.start.elapsed().as_millis() as u64),
            Self::ResponseFlags(wanted) => {
                if wanted.is_empty() {
                    !stream.flags.is_empty()
                } else {
                    stream.flags.intersects(*wanted)
                }
            }
            Self::And(all) => all.iter().all(|f| f.matches(context)),
            Self::Or(any) => any.iter().any(|f| f.matches(context)),
        }
    }
}
