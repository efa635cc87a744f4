//! One reading of the metrics registry, with full names: what `/stats` in all its formats prints.

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::stats::Filter;
use crate::cluster::{Cluster, ClusterStats};
use crate::state::Slot;
use crate::telemetry::registry::{self, BUCKETS, Labels, Metric, Reading};

/// A metric's reading.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Only grows.
    Counter(u64),
    /// Goes up and down.
    Gauge(i64),
    /// Counts per bucket of [`BUCKETS`] and above, and the sum.
    Histogram(Box<[u64; BUCKETS.len() + 1]>, f64),
}

/// A named reading.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The group's dotted prefix; empty for metrics whose name is whole (Istio's).
    pub prefix: Arc<str>,
    /// The name within the prefix.
    pub name: Cow<'static, str>,
    /// Labels.
    pub labels: Labels,
    /// The reading.
    pub value: Value,
}

impl Sample {
    /// The dotted name that `/stats` prints; labels follow the name, as Istio's metrics have them and Envoy's do not.
    pub fn full_name(&self) -> String {
        let mut name = if self.prefix.is_empty() {
            self.name.to_string()
        } else {
            format!("{}.{}", self.prefix, self.name)
        };
        for (i, (key, value)) in self.labels.iter().enumerate() {
            name.push_str(if i == 0 { "{" } else { "," });
            name.push_str(&format!("{key}={value:?}"));
        }
        if !self.labels.is_empty() {
            name.push('}');
        }
        name
    }

    /// Whether anything was ever counted (`?usedonly`).
    pub fn used(&self) -> bool {
        match &self.value {
            Value::Counter(n) => *n != 0,
            // The server's own are set from its start; zero is what its state most often is.
            Value::Gauge(n) => *n != 0 || &*self.prefix == "server",
            Value::Histogram(buckets, _) => buckets.iter().any(|n| *n != 0),
        }
    }
}

impl Value {
    /// Adds a reading of the same metric.
    fn add(&mut self, other: &Self) {
        match (self, other) {
            (Self::Counter(n), Self::Counter(m)) => *n += m,
            (Self::Gauge(n), Self::Gauge(m)) => *n += m,
            (Self::Histogram(buckets, sum), Self::Histogram(more, added)) => {
                buckets.iter_mut().zip(more.iter()).for_each(|(n, m)| *n += m);
                *sum += added;
            }
            _ => {}
        }
    }
}

/// Reads all live groups. What goes by one name is one metric: filter chains share a `stat_prefix`, a listener that is
/// replaced still has connections, and each of a port's listeners reports for itself.
pub fn read() -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut places: HashMap<(Arc<str>, Cow<'static, str>, Labels), usize> = HashMap::new();
    let reading = Reading::begin();
    for group in registry::groups() {
        for entry in group.entries() {
            let value = match entry.metric {
                Metric::Counter(c) => Value::Counter(reading.counter(c)),
                Metric::Gauge(g) => Value::Gauge(reading.gauge(g)),
                Metric::Histogram(h) => {
                    let (buckets, sum) = reading.histogram(h);
                    Value::Histogram(Box::new(buckets), sum)
                }
            };
            let labels = match (group.labels.is_empty(), entry.labels.is_empty()) {
                (true, _) => entry.labels,
                (false, true) => group.labels.clone(),
                (false, false) => group.labels.iter().chain(&*entry.labels).cloned().collect(),
            };
            match places.entry((group.prefix.clone(), entry.name.clone(), labels.clone())) {
                Entry::Occupied(place) => samples[*place.get()].value.add(&value),
                Entry::Vacant(place) => {
                    place.insert(samples.len());
                    samples.push(Sample { prefix: group.prefix.clone(), name: entry.name, labels, value });
                }
            }
        }
    }
    samples
}

/// Adds clusters that nobody has called: how many hosts they have, and with a filter all else that they would count, as far as it lets that
/// through. There may be ten thousand of them.
pub(super) fn add_quiet(
    samples: &mut Vec<Sample>,
    clusters: Vec<Arc<Slot<Cluster>>>,
    zeros: Option<&Filter>,
) {
    let told = samples.iter().filter(|sample| sample.name == "membership_total");
    let told: HashSet<Arc<str>> = told.map(|sample| sample.prefix.clone()).collect();
    for cluster in clusters.into_iter().filter_map(|slot| slot.get()) {
        let Some((prefix, quiet)) = cluster.kept_stats().quiet() else { continue };
        if told.contains(prefix) {
            continue;
        }
        let mut add = |name: &Cow<'static, str>, labels: &Labels, value: Value| {
            let (name, labels) = (name.clone(), labels.clone());
            let sample = Sample { prefix: prefix.clone(), name, labels, value };
            if zeros.is_none_or(|filter| filter.admits(&sample) || sample.name == "membership_total") {
                samples.push(sample);
            }
        };
        let [all, healthy, degraded] = quiet.hosts.map(Value::Gauge);
        let known = [
            ("membership_total", all),
            ("membership_healthy", healthy),
            ("membership_degraded", degraded),
            ("membership_change", Value::Counter(quiet.changes)),
            ("update_success", Value::Counter(quiet.updates)),
        ];
        if zeros.is_some() {
            for entry in ClusterStats::all().iter().filter(|e| known.iter().all(|(name, _)| *name != e.name))
            {
                let value = match entry.metric {
                    Metric::Counter(_) => Value::Counter(0),
                    Metric::Gauge(_) => Value::Gauge(0),
                    Metric::Histogram(_) => Value::Histogram(Box::new([0; BUCKETS.len() + 1]), 0.0),
                };
                add(&entry.name, &entry.labels, value);
            }
        }
        for (name, value) in known {
            add(&name.into(), &Labels::default(), value);
        }
    }
}

/// The value below which a share `q` of what was recorded lies, interpolated within its bucket; none if nothing was.
pub fn quantile(buckets: &[u64], q: f64) -> Option<f64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    let target = q * total as f64;
    let mut seen = 0.0;
    for (i, count) in buckets.iter().enumerate() {
        let count = *count as f64;
        if count > 0.0 && seen + count >= target {
            let low = if i == 0 { 0.0 } else { BUCKETS[i - 1] };
            let high = BUCKETS.get(i).copied().unwrap_or(low);
            return Some(low + (high - low) * ((target - seen) / count).clamp(0.0, 1.0));
        }
        seen += count;
    }
    BUCKETS.last().copied()
}
