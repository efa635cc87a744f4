//! Durations as people read them; [`xds_protos::duration::parse`] reads what they write.

use std::time::Duration;

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
    fn the_short_form_takes_the_largest_fitting_unit() {
        let shorts = [8, 125, 86_399, 86_400 * 89].map(|s| short(Duration::from_secs(s)));
        assert_eq!(shorts, ["8s", "2m", "23h", "89d"]);
    }
}
