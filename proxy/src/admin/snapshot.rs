//! One reading of the metrics registry, with full names: what `/stats` in all its formats prints.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::stats::Filter;
use crate::cluster::{Cluster, ClusterStats, Quiet};
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

/// What is told of a cluster that nobody has called.
const OF_QUIET: [&str; 5] =
    ["membership_total", "membership_healthy", "membership_degraded", "membership_change", "update_success"];

/// So often groups are read again where a cluster was called meanwhile for the first time.
const AGAIN: usize = 3;

/// Reads all live groups, and adds clusters that nobody has called.
pub(super) fn read_with(clusters: Vec<Arc<Slot<Cluster>>>, zeros: Option<&Filter>) -> Vec<Sample> {
    let clusters: Vec<_> = clusters.into_iter().filter_map(|slot| slot.get()).collect();
    let quiet = || clusters.iter().filter_map(|cluster| cluster.kept_stats().quiet());
    let mut again = AGAIN;
    loop {
        let before = quiet().count();
        let mut samples = read();
        let now: Vec<_> = quiet().collect();
        // One that was called in between may be neither among the groups that were read nor among those.
        if now.len() == before || again == 0 {
            add_quiet(&mut samples, now, zeros);
            return samples;
        }
        again -= 1;
    }
}

/// Adds clusters that nobody has called: how many hosts they have, and with a filter all else that they would count, as far as it lets that
/// through. There may be ten thousand of them. Clusters of one name in statistics are one, called or not.
fn add_quiet(samples: &mut Vec<Sample>, clusters: Vec<(&Arc<str>, Quiet)>, zeros: Option<&Filter>) {
    let mut places: HashMap<(Arc<str>, &'static str), usize> = HashMap::new();
    for (place, sample) in samples.iter().enumerate().filter(|(_, sample)| sample.labels.is_empty()) {
        if let Some(name) = OF_QUIET.into_iter().find(|name| *name == sample.name) {
            places.insert((sample.prefix.clone(), name), place);
        }
    }
    for (prefix, quiet) in clusters {
        let is_first = !places.contains_key(&(prefix.clone(), OF_QUIET[0]));
        if is_first && let Some(filter) = zeros {
            add_zeros(samples, prefix, filter);
        }
        let [all, healthy, degraded] = quiet.hosts.map(Value::Gauge);
        let values = [all, healthy, degraded, Value::Counter(quiet.changes), Value::Counter(quiet.updates)];
        for (name, value) in OF_QUIET.into_iter().zip(values) {
            match places.entry((prefix.clone(), name)) {
                Entry::Occupied(place) => samples[*place.get()].value.add(&value),
                Entry::Vacant(place) => {
                    let labels = Labels::default();
                    let sample = Sample { prefix: prefix.clone(), name: name.into(), labels, value };
                    // By the first of them clusters are counted, and told from those that are not there yet.
                    if name == OF_QUIET[0] || zeros.is_none_or(|filter| filter.admits(&sample)) {
                        place.insert(samples.len());
                        samples.push(sample);
                    }
                }
            }
        }
    }
}

/// Adds all else that a cluster counts.
fn add_zeros(samples: &mut Vec<Sample>, prefix: &Arc<str>, filter: &Filter) {
    for entry in ClusterStats::all().iter().filter(|entry| OF_QUIET.iter().all(|name| *name != entry.name)) {
        let value = match entry.metric {
            Metric::Counter(_) => Value::Counter(0),
            Metric::Gauge(_) => Value::Gauge(0),
            Metric::Histogram(_) => Value::Histogram(Box::new([0; BUCKETS.len() + 1]), 0.0),
        };
        let (name, labels) = (entry.name.clone(), entry.labels.clone());
        let sample = Sample { prefix: prefix.clone(), name, labels, value };
        if filter.admits(&sample) {
            samples.push(sample);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ClusterConfig;
    use crate::state::CompileContext;

    fn cluster(name: &str, stat: &str, hosts: u16) -> Arc<Slot<Cluster>> {
        let host = |port: u16| serde_json::json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}});
        let hosts: Vec<_> = (1..=hosts).map(host).collect();
        let config = xds_protos::json::from_value(serde_json::json!({
            "name": name, "alt_stat_name": stat,
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]},
        }));
        let config = ClusterConfig::compile(&config.unwrap(), &CompileContext::for_tests()).unwrap();
        Slot::ready(name, Cluster::new(config))
    }

    #[test]
    fn clusters_of_one_name_in_statistics_are_told_as_one_called_or_not() {
        for called in [false, true] {
            for zeros in [None, Some(&Filter::default())] {
                // A name of its own for each: who reads meanwhile elsewhere keeps what is gone a little longer.
                let prefix = &format!("of-quiet-{called}-{}", zeros.is_some());
                let clusters =
                    vec![cluster("a", prefix, 1), cluster("b", prefix, 2), cluster("c", prefix, 4)];
                if called {
                    clusters[1].get().unwrap().stats().upstream_rq_total.inc();
                }
                let samples = read_with(clusters, zeros);
                let told = format!("{prefix}, zeros: {}", zeros.is_some());
                let prefix = format!("cluster.{prefix}");
                let of = |name: &str| -> Vec<_> {
                    let all = samples.iter().filter(|s| *s.prefix == *prefix && s.name == name);
                    all.map(|s| s.value.clone()).collect()
                };
                assert_eq!(of("membership_total"), [Value::Gauge(7)], "{told}");
                assert_eq!(of("membership_healthy"), [Value::Gauge(7)], "{told}");
                assert_eq!(of("membership_degraded"), [Value::Gauge(0)], "{told}");
                assert_eq!(of("membership_change"), [Value::Counter(3)], "{told}");
                assert_eq!(of("update_success"), [Value::Counter(3)], "{told}");
                let calls = of("upstream_rq_total");
                let expected = match (called, zeros) {
                    (true, _) => vec![Value::Counter(1)],
                    (false, Some(_)) => vec![Value::Counter(0)],
                    (false, None) => Vec::new(),
                };
                assert_eq!(calls, expected, "{told}");
            }
        }
    }

    #[test]
    fn a_cluster_that_is_called_while_it_is_read_is_told_once() {
        for round in 0..200 {
            let prefix = format!("of-called-meanwhile-{round}");
            let slot = cluster("a", &prefix, 2);
            let called = slot.get().unwrap();
            let calling = std::thread::spawn(move || called.stats().upstream_rq_total.inc());
            let samples = read_with(vec![slot.clone()], Some(&Filter::default()));
            calling.join().unwrap();
            let prefix = format!("cluster.{prefix}");
            for name in ["membership_total", "upstream_rq_total"] {
                let told = samples.iter().filter(|s| *s.prefix == *prefix && s.name == name).count();
                assert_eq!(told, 1, "{name}, round {round}");
            }
        }
    }
}
