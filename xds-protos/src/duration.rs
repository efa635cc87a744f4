//! Protobuf durations and Rust's: the former may be negative, or longer than any timer.

use std::time::Duration;

/// A protobuf duration as a span of time. Negative ones, and ones whose parts disagree, are none.
pub fn to_std(duration: &prost_types::Duration) -> Option<Duration> {
    let nanos = u32::try_from(duration.nanos).ok().filter(|n| *n < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(duration.seconds).ok()?, nanos))
}

/// The protobuf form; what does not fit (292 billion years) becomes the longest that does.
pub fn from_std(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        // Below 10^9, so it fits.
        nanos: duration.subsec_nanos() as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_cross_both_ways_and_negative_ones_do_not() {
        let d = Duration::from_millis(1500);
        assert_eq!(to_std(&from_std(d)), Some(d));
        assert_eq!(to_std(&prost_types::Duration { seconds: -1, nanos: 0 }), None);
        assert_eq!(to_std(&prost_types::Duration { seconds: 0, nanos: -1 }), None);
        assert_eq!(to_std(&prost_types::Duration { seconds: 0, nanos: 1_000_000_000 }), None);
    }
}
