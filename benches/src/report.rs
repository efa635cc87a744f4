//! What was measured, as a table and as JSON.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::contender::BARE;

/// Everything of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine, in words.
    pub machine: String,
    /// Seconds of one measurement.
    pub seconds: f64,
    /// Rounds of each row.
    pub rounds: usize,
    /// The rows.
    pub rows: Vec<Part>,
    /// Memory without load; empty where it was not asked for.
    pub idle: Vec<Idle>,
}

/// A row.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// Its name.
    pub row: String,
    /// What it is.
    pub what: String,
    /// What is counted.
    pub unit: String,
    /// One line for each proxy that can do it.
    pub lines: Vec<Line>,
}

/// A proxy's numbers in a row.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Whose.
    pub proxy: String,
    /// Microseconds of processor time per unit.
    pub cpu: Spread,
    /// Of these in the program.
    pub user: f64,
    /// Of these in the kernel.
    pub system: f64,
    /// Units per second.
    pub rate: f64,
    /// Median latency.
    pub p50_ms: f64,
    /// 99th percentile of latency.
    pub p99_ms: f64,
    /// Resident memory after the last round.
    pub resident_kb: u64,
}

/// A proxy's memory without load.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    /// Whose.
    pub proxy: String,
    /// Resident memory with two workers and no connection.
    pub resident_kb: u64,
    /// What an idle connection adds to it.
    pub per_connection_bytes: f64,
}

/// The middle of several measurements, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of these.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        let end = |v: Option<&f64>| v.copied().unwrap_or(f64::NAN);
        Self { median, min: end(values.first()), max: end(values.last()) }
    }
}

impl Part {
    /// How many times less processor time than `other` a proxy uses.
    fn less_than(&self, other: &str, line: &Line) -> Option<f64> {
        // Who observes nothing is compared with who does neither.
        let other = if line.proxy.ends_with(BARE) { format!("{other}{BARE}") } else { other.to_owned() };
        self.lines.iter().find(|l| l.proxy == other).map(|o| o.cpu.median / line.cpu.median)
    }

    /// Who was measured with nothing observed as well, what observing costs it in microseconds, and as a share of what it costs to
    /// observe nothing.
    pub fn observing(&self) -> impl Iterator<Item = (&str, f64, f64)> {
        self.lines.iter().filter_map(|bare| {
            let name = bare.proxy.strip_suffix(BARE)?;
            let full = self.lines.iter().find(|l| l.proxy == name)?;
            let more = full.cpu.median - bare.cpu.median;
            Some((name, more, more / bare.cpu.median))
        })
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}: {}", self.row, self.what)?;
        writeln!(
            f,
            "  {:<12} {:>8} {:>15} {:>6} {:>6} {:>9} {:>8} {:>8} {:>9} {:>9} {:>7}",
            "proxy",
            "CPU us",
            "[min - max]",
            "user",
            "sys",
            format!("{}/s", self.unit.split(' ').next().unwrap_or_default()),
            "p50 ms",
            "p99 ms",
            "resident",
            "Envoy/it",
            "it/null"
        )?;
        for line in &self.lines {
            let ratio = |r: Option<f64>| r.map_or("-".to_owned(), |r| format!("{r:.2}"));
            writeln!(
                f,
                "  {:<12} {:>8.2} {:>15} {:>6.1} {:>6.1} {:>9.0} {:>8.2} {:>8.2} {:>6.1}MiB {:>9} {:>7}",
                line.proxy,
                line.cpu.median,
                format!("[{:.1} - {:.1}]", line.cpu.min, line.cpu.max),
                line.user,
                line.system,
                line.rate,
                line.p50_ms,
                line.p99_ms,
                line.resident_kb as f64 / 1024.0,
                ratio(self.less_than("envoy", line)),
                ratio(self.less_than("null", line).map(f64::recip)),
            )?;
        }
        for (name, more, share) in self.observing() {
            writeln!(f, "  observing costs {name} {more:.1} us, {:.1}%", share * 100.0)?;
        }
        Ok(())
    }
}

impl Display for Idle {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (mib, kib) = (self.resident_kb as f64 / 1024.0, self.per_connection_bytes / 1024.0);
        write!(f, "  {:<12} {mib:>8.1} MiB idle {kib:>8.1} KiB per idle connection", self.proxy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_odd_and_an_even_number() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0]).median, 2.5);
    }

    fn line(proxy: &str, cpu: f64) -> Line {
        Line {
            proxy: proxy.to_owned(),
            cpu: Spread::of(vec![cpu]),
            user: 0.0,
            system: 0.0,
            rate: 1.0,
            p50_ms: 0.0,
            p99_ms: 0.0,
            resident_kb: 0,
        }
    }

    #[test]
    fn what_observing_costs_is_told_of_each_that_was_measured_without() {
        let lines = vec![
            line("weft", 55.0),
            line("weft-bare", 50.0),
            line("envoy", 150.0),
            line("envoy-bare", 100.0),
        ];
        let part = Part { row: "r".into(), what: "w".into(), unit: "request".into(), lines };
        let told: Vec<_> = part.observing().collect();
        assert_eq!(told, [("weft", 5.0, 0.1), ("envoy", 50.0, 0.5)]);
        assert_eq!(part.less_than("envoy", &part.lines[1]), Some(2.0), "bare beside bare");
    }
}
