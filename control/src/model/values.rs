//! Small value types that Istio's resources share: periods of time, string matches, selectors and host names.
//!
//! Each parses from YAML by itself and refuses what it cannot express, so that everything behind it holds proof.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Labels or annotations of an object, sorted by key.
pub type Labels = BTreeMap<String, String>;

/// Whether every pair of `selector` is among `labels`. An empty selector selects everything.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A period of time, written as Go writes durations: `30s`, `1m30s`, `250ms`, `1.5h`.
///
/// Never negative; nanosecond precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timespan(pub Duration);

/// Why a text is no [`Timespan`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimespanError {
    /// The text is not a sequence of numbers with units.
    #[error("{0:?} is not a duration; write a number with a unit, such as \"30s\", \"250ms\" or \"1m30s\"")]
    Malformed(String),
    /// A number stands without its unit.
    #[error("the duration {0:?} lacks a unit; write \"{0}s\" for seconds")]
    NoUnit(String),
    /// The duration is below zero.
    #[error("the duration {0:?} is negative; durations count forward only")]
    Negative(String),
    /// More than fits.
    #[error("the duration {0:?} is too long")]
    TooLong(String),
}

impl Timespan {
    /// A period of whole seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// A period of milliseconds.
    pub const fn millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// The period as the standard library's type.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Parses Go's notation: one or more numbers, each with a unit of `ns`, `us`, `ms`, `s`, `m` or `h`; or a bare `0`.
    pub fn parse(text: &str) -> Result<Self, TimespanError> {
        let malformed = || TimespanError::Malformed(text.to_owned());
        if text == "0" {
            return Ok(Self::default());
        }
        if text.starts_with('-') {
            return Err(TimespanError::Negative(text.to_owned()));
        }
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest.is_empty() {
            return Err(malformed());
        }
        let mut total: u128 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, after) = rest.split_at(digits);
            let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_end);
            let scale: u128 = match unit {
                "ns" => 1,
                "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                "" if !number.is_empty() => return Err(TimespanError::NoUnit(text.to_owned())),
                _ => return Err(malformed()),
            };
            let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
            if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
                return Err(malformed());
            }
            let too_long = || TimespanError::TooLong(text.to_owned());
            if !whole.is_empty() {
                let whole: u64 = whole.parse().map_err(|_| too_long())?;
                total = total.checked_add(u128::from(whole) * scale).ok_or_else(too_long)?;
            }
            let mut place = scale;
            for digit in fraction.bytes() {
                place /= 10;
                total += u128::from(digit - b'0') * place;
            }
            rest = after;
        }
        let nanos = u64::try_from(total).map_err(|_| TimespanError::TooLong(text.to_owned()))?;
        Ok(Self(Duration::from_nanos(nanos)))
    }
}

impl From<Timespan> for Duration {
    fn from(span: Timespan) -> Self {
        span.0
    }
}

impl fmt::Display for Timespan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.subsec_nanos();
        if nanos == 0 {
            write!(f, "{}s", self.0.as_secs())
        } else {
            let fraction = format!("{nanos:09}");
            write!(f, "{}.{}s", self.0.as_secs(), fraction.trim_end_matches('0'))
        }
    }
}

impl<'de> Deserialize<'de> for Timespan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Timespan;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"30s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timespan, E> {
                Timespan::parse(text).map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Timespan, E> {
                if number == 0 {
                    return Ok(Timespan::default());
                }
                Err(E::custom(TimespanError::NoUnit(number.to_string())))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl Serialize for Timespan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How a text must look (Istio's `StringMatch`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// Equal to this.
    Exact(String),
    /// Beginning with this.
    Prefix(String),
    /// Wholly matched by this regular expression (RE2 syntax).
    Regex(String),
    /// Anything, as long as it is there: an empty match.
    Present,
}

impl<'de> Deserialize<'de> for StringMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize, Default)]
        #[serde(default, rename_all = "camelCase")]
        struct Form {
            exact: Option<String>,
            prefix: Option<String>,
            regex: Option<String>,
        }
        let form = Form::deserialize(deserializer)?;
        match (form.exact, form.prefix, form.regex) {
            (Some(text), None, None) => Ok(Self::Exact(text)),
            (None, Some(text), None) => Ok(Self::Prefix(text)),
            (None, None, Some(text)) => Ok(Self::Regex(text)),
            (None, None, None) => Ok(Self::Present),
            _ => Err(de::Error::custom("only one of exact, prefix and regex may be given; keep one of them")),
        }
    }
}

/// A percentage between 0 and 100 (Istio's `Percent`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Percent {
    /// 0.0 to 100.0.
    pub value: f64,
}

/// Selects workloads by label, in the form of networking.istio.io (`labels`) and of security.istio.io (`matchLabels`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// Labels that a workload must carry.
    #[serde(alias = "matchLabels")]
    pub labels: Labels,
}

impl WorkloadSelector {
    /// Whether it selects a workload with these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        selects(&self.labels, labels)
    }
}

/// Where a workload runs: region, zone and sub-zone, from wide to narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// Region, such as `eu-central`.
    pub region: String,
    /// Zone within the region; may be empty.
    pub zone: String,
    /// Sub-zone within the zone; may be empty.
    pub sub_zone: String,
}

impl Locality {
    /// Parses Istio's `region/zone/subzone`; missing parts stay empty.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), sub_zone: next() }
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}/{}/{}", self.region, self.zone, self.sub_zone);
        f.write_str(text.trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_go_notation() {
        let cases = [
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("250ms", 250),
            ("1.5h", 5_400_000),
            ("0", 0),
            ("0.5s", 500),
        ];
        for (text, millis) in cases {
            assert_eq!(Timespan::parse(text), Ok(Timespan::millis(millis)), "{text}");
        }
        assert_eq!(Timespan::parse("7us").map(|t| t.get().as_nanos()), Ok(7_000));
    }

    #[test]
    fn a_malformed_duration_says_what_to_write() {
        assert_eq!(Timespan::parse("30"), Err(TimespanError::NoUnit("30".into())));
        assert!(matches!(Timespan::parse("-1s"), Err(TimespanError::Negative(_))));
        assert!(matches!(Timespan::parse("99999999999h"), Err(TimespanError::TooLong(_))));
        for text in ["", "s", "1 s", "1d", "1..5s", ".s", "ten"] {
            assert!(matches!(Timespan::parse(text), Err(TimespanError::Malformed(_))), "{text:?}");
        }
    }

    #[test]
    fn a_duration_prints_what_it_parses() {
        for text in ["30s", "0.25s", "5400s"] {
            assert_eq!(Timespan::parse(text).map(|t| t.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_selector_needs_all_its_labels() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Labels>()
        };
        let pod = labels(&[("app", "user"), ("version", "stable")]);
        assert!(selects(&labels(&[]), &pod));
        assert!(selects(&labels(&[("app", "user")]), &pod));
        assert!(!selects(&labels(&[("app", "user"), ("version", "canary")]), &pod));
    }

    #[test]
    fn a_locality_may_be_partial() {
        assert_eq!(Locality::parse("eu/a/1").to_string(), "eu/a/1");
        assert_eq!(Locality::parse("eu").to_string(), "eu");
    }
}
