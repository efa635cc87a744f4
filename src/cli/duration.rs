//! Durations as people write them: 500ms, 90s, 10m, 24h, 7d.

use std::time::Duration;

/// Reads a number with ms, s, m, h or d.
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

/// A duration in its largest fitting unit, for tables: `8s`, `12m`, `23h`, `89d`.
pub fn short(duration: Duration) -> String {
    match duration.as_secs() {
        s if s < 120 => format!("{s}s"),
        s if s < 7200 => format!("{}m", s / 60),
        s if s < 172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
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
    fn the_short_form_takes_the_largest_fitting_unit() {
        let shorts = [8, 125, 86_399, 86_400 * 89].map(|s| short(Duration::from_secs(s)));
        assert_eq!(shorts, ["8s", "2m", "23h", "89d"]);
    }
}
