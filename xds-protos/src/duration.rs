//! Protobuf durations and Rust's: the former may be negative, or longer than any timer. And durations as people write them, so
//! that every command line takes the same.

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

/// Reads a number with ms, s, m, h or d: 500ms, 90s, 10m, 24h, 7d.
///
/// # Errors
/// What is wrong with the text, for a command line's error message.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 =
        digits.parse().map_err(|_| format!("{text:?} is not a duration such as 90s, 10m or 24h"))?;
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        "" => return Err(format!("{text:?} has no unit; write {text}s for seconds")),
        other => return Err(format!("{other:?} is not a unit of time; there are ms, s, m, h and d")),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|e| format!("{text:?}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood_and_demanded() {
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse("7d"), Ok(Duration::from_secs(604_800)));
        for (wrong, says) in [("5", "5s"), ("5w", "unit"), ("h", "not a duration"), ("-1s", "negative")] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }

    #[test]
    fn durations_cross_both_ways_and_negative_ones_do_not() {
        let d = Duration::from_millis(1500);
        assert_eq!(to_std(&from_std(d)), Some(d));
        assert_eq!(to_std(&prost_types::Duration { seconds: -1, nanos: 0 }), None);
        assert_eq!(to_std(&prost_types::Duration { seconds: 0, nanos: -1 }), None);
        assert_eq!(to_std(&prost_types::Duration { seconds: 0, nanos: 1_000_000_000 }), None);
    }
}
