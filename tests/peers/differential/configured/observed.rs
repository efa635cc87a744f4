//! What was seen of a case on one side, and how two sides are compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use super::pair::Side;
use super::spec::Case;
use super::upstream::Arrived;
use crate::differential::lines;
use crate::programs::get;

/// How often each first line came.
pub type Tally = BTreeMap<String, u32>;

/// Ends of the counters' names that are compared in every case, by their beginning.
const COUNTERS: &[(&str, &[&str])] = &[
    (
        "http.",
        &[
            "downstream_rq_total",
            "downstream_rq_completed",
            "downstream_rq_1xx",
            "downstream_rq_2xx",
            "downstream_rq_3xx",
            "downstream_rq_4xx",
            "downstream_rq_5xx",
            "downstream_rq_timeout",
            "downstream_rq_idle_timeout",
            "downstream_rq_too_large",
            "downstream_rq_non_relative_path",
            "downstream_rq_redirected_with_normalized_path",
            "downstream_cx_total",
            "downstream_cx_protocol_error",
            "downstream_cx_idle_timeout",
            "downstream_cx_max_duration_reached",
            "downstream_cx_upgrades_total",
            "no_route",
            "no_cluster",
            "rq_direct_response",
            "rq_redirect",
            "rq_total",
            "rs_too_large",
        ],
    ),
    (
        "cluster.",
        &[
            "upstream_rq_total",
            "upstream_rq_completed",
            "upstream_rq_1xx",
            "upstream_rq_2xx",
            "upstream_rq_3xx",
            "upstream_rq_4xx",
            "upstream_rq_5xx",
            "upstream_rq_retry",
            "upstream_rq_retry_success",
            "upstream_rq_retry_overflow",
            "upstream_rq_retry_limit_exceeded",
            "upstream_rq_timeout",
            "upstream_rq_per_try_timeout",
            "upstream_rq_pending_overflow",
            "upstream_rq_rx_reset",
            "upstream_cx_connect_fail",
            "upstream_cx_connect_timeout",
            "upstream_cx_overflow",
            "lb_healthy_panic",
            "outlier_detection.ejections_enforced_total",
            "outlier_detection.ejections_overflow",
        ],
    ),
    (
        "tcp.",
        &[
            "downstream_cx_total",
            "downstream_cx_no_route",
            "idle_timeout",
            "max_downstream_connection_duration",
        ],
    ),
    ("listener.", &["no_filter_chain_match", "downstream_pre_cx_timeout"]),
];

/// Everything seen of a case on one side.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub client: String,
    pub tallies: Vec<(Tally, f64)>,
    pub upstream: String,
    pub shares: BTreeMap<String, usize>,
    pub log: Vec<String>,
    /// The default lines.
    pub lines: Vec<String>,
    /// Hosts that were ejected.
    pub ejected: Vec<String>,
    pub counters: BTreeMap<String, u64>,
}

impl Observed {
    /// Everything as text.
    pub fn text(&self, case: &Case) -> String {
        let mut out = format!("what the client got:\n{}", self.client);
        if self.tallies.is_empty() {
            let _ = write!(out, "what the upstreams got:\n{}", self.upstream);
            if !case.no_log {
                out.push_str("the access log:\n");
                for line in &self.log {
                    let _ = writeln!(out, "{line}");
                }
            }
        }
        for line in &self.lines {
            let _ = writeln!(out, "as it is by default:\n{line}");
        }
        if !self.ejected.is_empty() && self.tallies.is_empty() {
            out.push_str("the ejections:\n");
            for line in &self.ejected {
                let _ = writeln!(out, "{line}");
            }
        }
        out.push_str("counters:\n");
        for (name, value) in &self.counters {
            let _ = writeln!(out, "{name}: {value}");
        }
        out
    }

    /// Whether the shares of what is only counted are as near as the case says.
    pub fn near(&self, other: &Self) -> Result<(), String> {
        for ((ours, within), (theirs, _)) in self.tallies.iter().zip(&other.tallies) {
            near("answers", ours, theirs, *within)?;
        }
        if let Some((_, within)) = self.tallies.first() {
            let counts =
                |o: &Self| o.shares.iter().map(|(k, v)| (k.clone(), u32::try_from(*v).unwrap())).collect();
            near("requests at the endpoints", &counts(self), &counts(other), *within)?;
        }
        Ok(())
    }
}

fn near(what: &str, ours: &Tally, theirs: &Tally, within: f64) -> Result<(), String> {
    let total = |t: &Tally| f64::from(t.values().sum::<u32>().max(1));
    for key in ours.keys().chain(theirs.keys()) {
        let share = |t: &Tally| f64::from(t.get(key).copied().unwrap_or(0)) / total(t);
        if (share(ours) - share(theirs)).abs() > within {
            return Err(format!("{what}: {key:?} differs by more than {within}: {ours:?} and {theirs:?}"));
        }
    }
    Ok(())
}

/// A message's text with the fields of its head in order: their order among each other says nothing.
pub fn sorted(text: &str) -> String {
    let mut out = Vec::new();
    let mut fields: Vec<&str> = Vec::new();
    let mut in_head = false;
    for line in text.lines() {
        let first = line.starts_with("HTTP/") || line.ends_with(" HTTP/1.1") || line.ends_with(" HTTP/1.0");
        if in_head && !line.starts_with("  ") && !first {
            fields.push(line);
            continue;
        }
        fields.sort_unstable();
        out.append(&mut fields);
        out.push(line);
        in_head = first;
    }
    fields.sort_unstable();
    out.append(&mut fields);
    out.iter().map(|line| format!("{line}\n")).collect()
}

/// What came to a case's upstreams from a side, and how many requests each endpoint had.
pub fn arrived(case: &Case, book: &[Arrived], side: Side) -> (String, BTreeMap<String, usize>) {
    let mut of_side: Vec<_> = book.iter().filter(|a| a.side == side).cloned().collect();
    // Clusters and endpoints are asked at the same time; within one the order is kept.
    if case.any_endpoint {
        of_side.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    } else {
        of_side.sort_by(|a, b| (&a.cluster, a.endpoint).cmp(&(&b.cluster, b.endpoint)));
    }
    // Nor does the order of what is noted at its end: some end at one moment, and it is up to chance which is noted first.
    let at_end = |a: &&mut Arrived| a.text.starts_with("  span:") || a.text.starts_with("bytes:");
    let place = |a: &Arrived| (a.cluster.clone(), if case.any_endpoint { 0 } else { a.endpoint });
    let mut ended: Vec<_> = of_side.iter_mut().filter(at_end).map(|a| (place(a), a.text.clone())).collect();
    ended.sort();
    for (arrived, (_, text)) in of_side.iter_mut().filter(at_end).zip(ended) {
        arrived.text = text;
    }
    let (mut text, mut shares) = (String::new(), BTreeMap::new());
    for arrival in of_side {
        let place = format!("{}[{}]", arrival.cluster, arrival.endpoint);
        *shares.entry(place.clone()).or_default() += 1;
        let name = if case.any_endpoint { &arrival.cluster } else { &place };
        let _ = write!(text, "at {name}: {}", arrival.text);
    }
    (text, shares)
}

/// The lines of a case in an access log, without the case's name.
pub fn log(case: &Case, path: &Path) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    // Of thousands of lines only these are worth taking apart.
    let mark = format!("{:?}", case.name);
    let mut lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains(&mark))
        .filter_map(|line| {
            let mut fields: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).ok()?;
            (fields.remove("case")?.as_str() == Some(&case.name)).then(|| {
                if case.any_endpoint {
                    fields.remove("host");
                }
                // How two libraries word what is wrong with a certificate differs; that it is TLS's does not.
                if let Some(serde_json::Value::String(text)) = fields.get_mut("details")
                    && let Some(at) = text.find("TLS_error")
                {
                    text.truncate(at + "TLS_error".len());
                }
                // Of what is random or takes its time it is compared whether it is there, and how much.
                for (_, value) in fields.iter_mut().filter(|(name, _)| name.starts_with("any_")) {
                    match value {
                        serde_json::Value::String(text) => *text = format!("a text of {}", text.len()),
                        serde_json::Value::Number(_) => *value = "a number".into(),
                        _ => {}
                    }
                }
                let fields: Vec<_> =
                    fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| format!("{k}={v}")).collect();
                fields.join(" ")
            })
        })
        .collect();
    lines.sort();
    lines
}

/// The default lines of a case in an access log.
pub fn lines(case: &Case, path: &Path) -> Vec<String> {
    if !case.has_default_lines() {
        return Vec::new();
    }
    let text = std::fs::read(path).unwrap_or_default();
    lines::of_case(&String::from_utf8_lossy(&text), &case.name, case.any_endpoint)
}

/// The lines of a case's clusters in a log of outlier detection that say that a host was ejected, without their times.
pub fn ejected(case: &Case, path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let of_case = format!("\"cluster_name\":\"{}-", case.name);
    let mut lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains(&of_case) && line.contains("\"EJECT\""))
        .filter_map(|line| {
            let mut fields: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).ok()?;
            fields.remove("timestamp")?;
            fields.remove("secs_since_last_action");
            if case.any_endpoint {
                fields.remove("upstream_url");
            }
            Some(fields.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "))
        })
        .collect();
    lines.sort();
    lines
}

/// A side's counters of a case that are compared, as far as they are not zero.
pub fn counters(case: &Case, admin: SocketAddr) -> BTreeMap<String, u64> {
    let filter = format!("/stats?usedonly&filter=\\.{}[-.]", case.name);
    let (_, text) = get(admin, &filter).unwrap();
    let wanted = |name: &str| {
        !name.contains(".zone.")
            && (case.counters.iter().any(|end| name.ends_with(end.as_str()))
                || COUNTERS.iter().any(|(begin, ends)| {
                    name.starts_with(begin) && ends.iter().any(|end| name.ends_with(&format!(".{end}")))
                }))
            && !case.without.iter().any(|end| name.ends_with(end.as_str()))
    };
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let value: u64 = value.parse().ok()?;
            (value > 0 && wanted(name)).then(|| (name.to_owned(), value))
        })
        .collect()
}
