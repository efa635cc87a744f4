//! The rows as text: for the screen's table, for plain lines, and as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use super::measure::Row;
use crate::cli::short_duration;

/// Column titles, and how wide each is.
pub(super) const COLUMNS: [(&str, u16); 9] = [
    ("service", 22),
    ("up", 5),
    ("req/s", 7),
    ("success", 8),
    ("p50", 8),
    ("p99", 8),
    ("mTLS", 6),
    ("canary", 7),
    ("cert age", 8),
];

/// The cells of a row.
pub(super) fn cells(row: &Row) -> [String; 9] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let time = |ms: f64| if ms < 100.0 { format!("{ms:.1}ms") } else { format!("{ms:.0}ms") };
    [
        row.service.clone(),
        format!("{}/{}", row.up, row.instances),
        format!("{:.1}", row.requests_per_second),
        or_dash(row.success.map(|s| format!("{s:.1}%"))),
        or_dash(row.p50.map(time)),
        or_dash(row.p99.map(time)),
        or_dash(row.mutual_tls.map(|share| match share {
            100.0 => "yes".to_owned(),
            0.0 => "NO".to_owned(),
            share => format!("{share:.0}%"),
        })),
        or_dash(row.canary.map(|c| format!("{c:.0}%"))),
        or_dash(row.certificate_age.map(|s| short_duration(Duration::from_secs(s)))),
    ]
}

/// A line of cells under their titles.
pub(super) fn line(cells: &[String; 9]) -> String {
    let padded = cells.iter().zip(COLUMNS).enumerate().map(|(i, (cell, (_, width)))| {
        let width = usize::from(width);
        if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    });
    padded.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

/// What the client has seen, in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Client {
    pub(super) sent: u64,
    pub(super) fine: u64,
    pub(super) failed: u64,
}

/// One look at everything as an object.
pub(super) fn json(elapsed: Duration, client: Client, rows: &[Row]) -> Value {
    json!({
        "seconds": elapsed.as_secs(),
        "client": {"sent": client.sent, "answered": client.fine, "failed": client.failed},
        "services": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_said_is_a_dash() {
        let row = Row { service: "user".to_owned(), instances: 2, ..Row::default() };
        assert_eq!(cells(&row), ["user", "0/2", "0.0", "-", "-", "-", "-", "-", "-"]);
        let row = Row {
            up: 2,
            success: Some(99.95),
            p50: Some(4.25),
            p99: Some(120.4),
            mutual_tls: Some(100.0),
            canary: Some(33.3),
            certificate_age: Some(7300),
            requests_per_second: 12.34,
            ..row
        };
        let expected = ["user", "2/2", "12.3", "100.0%", "4.2ms", "120ms", "yes", "33%", "2h"];
        assert_eq!(cells(&row), expected);
        assert_eq!(cells(&Row { mutual_tls: Some(0.0), ..row.clone() })[6], "NO");
        let titles = line(&COLUMNS.map(|(title, _)| title.to_owned()));
        assert_eq!(line(&cells(&row)).find("yes").map(|at| at + 3), titles.find("mTLS").map(|at| at + 4));
    }
}
