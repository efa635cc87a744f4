//! What a check says, and how it is printed.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// One statement about the mesh: what should be, what an observer saw.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Part of the journey and what is looked at, as `retries: the client sees no error`.
    pub name: String,
    /// What should be seen.
    pub expected: String,
    /// What was seen.
    pub seen: String,
    /// Whether it is what should be.
    pub ok: bool,
}

/// All checks of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// In the order of the journey.
    pub checks: Vec<Check>,
    /// From the start of the mesh to the last check.
    pub seconds: f64,
}

impl Check {
    /// A check whose verdict was reached by the observer.
    pub fn new(
        name: impl Into<String>,
        expected: impl Into<String>,
        seen: impl Into<String>,
        ok: bool,
    ) -> Self {
        Self { name: name.into(), expected: expected.into(), seen: seen.into(), ok }
    }

    /// A check that holds when what was seen is what was expected, word for word.
    pub fn equal(name: impl Into<String>, expected: impl fmt::Display, seen: impl fmt::Display) -> Self {
        let (expected, seen) = (expected.to_string(), seen.to_string());
        let ok = expected == seen;
        Self { name: name.into(), expected, seen, ok }
    }

    /// A check that could not be carried out: that, too, is a failure.
    pub fn impossible(name: impl Into<String>, error: &anyhow::Error) -> Self {
        Self::new(name, "the check can be carried out", format!("{error:#}"), false)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.ok { "ok" } else { "FAILED" };
        write!(f, "{verdict:<6}  {}: expected {}; seen {}", self.name, self.expected, self.seen)
    }
}

impl Report {
    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| !c.ok)
    }

    /// The last line: how many checks there were, and how many failed.
    pub fn total(&self) -> String {
        let (all, failed) = (self.checks.len(), self.failed().count());
        format!("{all} checks, {} ok, {failed} FAILED, in {:.1} s", all - failed, self.seconds)
    }

    /// All of it as JSON.
    pub fn json(&self) -> serde_json::Value {
        let failed = self.failed().count();
        serde_json::json!({
            "checks": self.checks,
            "total": self.checks.len(),
            "failed": failed,
            "seconds": self.seconds,
        })
    }

    /// A report of these checks, which took this long.
    pub fn new(checks: Vec<Check>, took: Duration) -> Self {
        Self { checks, seconds: (took.as_secs_f64() * 10.0).round() / 10.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_a_line_for_each_check_and_a_total() {
        let checks = vec![
            Check::equal("ingress: /api/users", 200, 200),
            Check::equal("ingress: unknown host", 404, 200),
            Check::impossible("retries", &anyhow::anyhow!("nobody there").context("the client's sidecar")),
        ];
        let report = Report::new(checks, Duration::from_millis(1234));
        let mut lines: Vec<String> = report.checks.iter().map(ToString::to_string).collect();
        lines.push(report.total());
        assert_eq!(
            lines.join("\n"),
            "ok      ingress: /api/users: expected 200; seen 200\n\
             FAILED  ingress: unknown host: expected 404; seen 200\n\
             FAILED  retries: expected the check can be carried out; seen the client's sidecar: nobody there\n\
             3 checks, 1 ok, 2 FAILED, in 1.2 s"
        );
        let json = report.json();
        assert_eq!((&json["total"], &json["failed"]), (&3.into(), &2.into()));
        assert_eq!(json["checks"][1]["seen"], "200");
    }
}
