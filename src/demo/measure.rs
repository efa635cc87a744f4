//! Rates, shares and percentiles per service, over the last seconds.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;
use time::OffsetDateTime;
use tokio::task::JoinSet;

use super::scrape::{Sample, sample};
use crate::up::Workload;

/// How far back rates look.
const WINDOW: Duration = Duration::from_secs(10);

/// What is shown of one service. Nothing stands for what cannot be said, such as a percentile of no requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    pub(super) service: String,
    /// Proxies that answer, and how many there should be.
    pub(super) up: usize,
    pub(super) instances: usize,
    pub(super) requests_per_second: f64,
    /// Share of answers below 500, in percent.
    pub(super) success: Option<f64>,
    /// Milliseconds.
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
    /// Share of requests that came by mutual TLS, in percent; nothing at a gateway, to which clients come from outside.
    pub(super) mutual_tls: Option<f64>,
    /// Share of requests that went to instances with label `version: canary`, in percent; nothing without such instances.
    pub(super) canary: Option<f64>,
    /// Seconds since the oldest certificate of an instance was issued.
    pub(super) certificate_age: Option<u64>,
}

struct Moment {
    at: Instant,
    samples: HashMap<String, Sample>,
}

/// The samples of the last seconds.
pub(super) struct Measure {
    workloads: Vec<Workload>,
    moments: VecDeque<Moment>,
}

impl Measure {
    pub(super) fn new(workloads: &[Workload]) -> Self {
        Self { workloads: workloads.to_vec(), moments: VecDeque::new() }
    }

    /// Asks all proxies.
    pub(super) async fn look(&mut self) {
        let mut asking = JoinSet::new();
        for workload in self.workloads.clone() {
            asking.spawn(async move { Some((workload.id.clone(), sample(&workload).await.ok()?)) });
        }
        let samples = asking.join_all().await.into_iter().flatten().collect();
        self.take(Instant::now(), samples);
    }

    fn take(&mut self, at: Instant, samples: HashMap<String, Sample>) {
        while self.moments.front().is_some_and(|m| at - m.at > WINDOW) {
            self.moments.pop_front();
        }
        self.moments.push_back(Moment { at, samples });
    }

    /// A row for each service, gateways first.
    pub(super) fn rows(&self, now: OffsetDateTime) -> Vec<Row> {
        let mut services: BTreeMap<(bool, &str), Vec<&Workload>> = BTreeMap::new();
        for workload in &self.workloads {
            services.entry((!workload.gateway, workload.service())).or_default().push(workload);
        }
        services.into_iter().map(|((_, name), workloads)| self.row(name, &workloads, now)).collect()
    }

    fn row(&self, service: &str, workloads: &[&Workload], now: OffsetDateTime) -> Row {
        let mut row = Row { service: service.to_owned(), instances: workloads.len(), ..Row::default() };
        let (Some(first), Some(last)) = (self.moments.front(), self.moments.back()) else { return row };
        let mut sum = Sample::default();
        let mut canary = 0.0;
        for workload in workloads {
            let Some(new) = last.samples.get(&workload.id) else { continue };
            row.up += 1;
            let age = new.issued.map(|t| (now - t).whole_seconds().max(0).cast_unsigned());
            row.certificate_age = row.certificate_age.max(age);
            let difference = subtract(new, first.samples.get(&workload.id));
            if workload.labels.get("version").is_some_and(|v| v == "canary") {
                canary += difference.requests;
            }
            add(&mut sum, &difference);
        }
        let seconds = (last.at - first.at).as_secs_f64();
        if seconds > 0.0 {
            row.requests_per_second = sum.requests / seconds;
        }
        let share = |part: f64| (sum.requests > 0.0).then(|| part / sum.requests * 100.0);
        row.success = share(sum.good);
        row.mutual_tls = share(sum.mutual).filter(|_| workloads.iter().any(|w| !w.gateway));
        let has_canary = workloads.iter().any(|w| w.labels.get("version").is_some_and(|v| v == "canary"));
        row.canary = share(canary).filter(|_| has_canary);
        row.p50 = quantile(&sum.buckets, 0.5);
        row.p99 = quantile(&sum.buckets, 0.99);
        row
    }
}

/// What came since; a proxy that was started anew counts from zero.
fn subtract(new: &Sample, old: Option<&Sample>) -> Sample {
    let nothing = Sample::default();
    let old = old.filter(|o| o.requests <= new.requests).unwrap_or(&nothing);
    let before = |bound: f64| old.buckets.iter().find(|(b, _)| *b == bound).map_or(0.0, |(_, n)| *n);
    Sample {
        requests: new.requests - old.requests,
        good: new.good - old.good,
        mutual: new.mutual - old.mutual,
        buckets: new.buckets.iter().map(|(b, n)| (*b, n - before(*b))).collect(),
        issued: None,
    }
}

fn add(sum: &mut Sample, more: &Sample) {
    sum.requests += more.requests;
    sum.good += more.good;
    sum.mutual += more.mutual;
    if sum.buckets.is_empty() {
        sum.buckets.clone_from(&more.buckets);
    } else {
        for ((_, total), (_, n)) in sum.buckets.iter_mut().zip(&more.buckets) {
            *total += n;
        }
    }
}

/// A quantile of cumulative buckets, interpolated within its bucket as Prometheus' `histogram_quantile` does.
fn quantile(buckets: &[(f64, f64)], q: f64) -> Option<f64> {
    let total = buckets.last().map(|(_, n)| *n).filter(|n| *n > 0.0)?;
    let rank = q * total;
    let at = buckets.iter().position(|(_, n)| *n >= rank)?;
    let (low, below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
    let (high, count) = buckets[at];
    // Beyond the last bound nothing more is known.
    if high.is_infinite() { Some(low) } else { Some(low + (high - low) * (rank - below) / (count - below)) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap as Map;

    use super::*;

    fn workload(id: &str, version: &str) -> Workload {
        Workload {
            id: id.to_owned(),
            name: id.to_owned(),
            namespace: "n".to_owned(),
            address: "127.0.0.1".parse().unwrap(),
            service_account: "s".to_owned(),
            labels: Map::from([
                ("app".to_owned(), "user".to_owned()),
                ("version".to_owned(), version.to_owned()),
            ]),
            gateway: false,
            command: Vec::new(),
            application: None,
            http_proxy: None,
            inbound: Vec::new(),
            listeners: Vec::new(),
            routes: Vec::new(),
            proxy: crate::up::plan::ProxySettings::default(),
        }
    }

    fn counted(requests: f64, good: f64, mutual: f64) -> Sample {
        let buckets = vec![(10.0, requests * 0.5), (20.0, requests), (f64::INFINITY, requests)];
        Sample { requests, good, mutual, buckets, issued: None }
    }

    #[test]
    fn a_service_is_the_sum_of_its_instances_since_the_window_began() {
        let mut measure =
            Measure::new(&[workload("a", "stable"), workload("b", "canary"), workload("c", "stable")]);
        let now = OffsetDateTime::now_utc();
        let began = Instant::now();
        let samples =
            [("a".to_owned(), counted(100.0, 100.0, 100.0)), ("b".to_owned(), counted(500.0, 0.0, 0.0))];
        measure.take(began, samples.into());
        // b was started anew meanwhile; c does not answer.
        let aged = Sample { issued: Some(now - time::Duration::seconds(30)), ..counted(180.0, 160.0, 180.0) };
        let samples = [("a".to_owned(), aged), ("b".to_owned(), counted(20.0, 20.0, 20.0))];
        measure.take(began + Duration::from_secs(5), samples.into());
        let rows = measure.rows(now);
        let row = &rows[0];
        assert_eq!((row.up, row.instances, row.requests_per_second), (2, 3, 20.0));
        assert_eq!((row.success, row.mutual_tls, row.canary), (Some(80.0), Some(100.0), Some(20.0)));
        assert_eq!((row.p50, row.certificate_age), (Some(10.0), Some(30)));
    }

    #[test]
    fn no_requests_have_no_shares_and_no_percentiles() {
        let mut measure = Measure::new(&[workload("a", "stable")]);
        measure.take(Instant::now(), [("a".to_owned(), Sample::default())].into());
        let row = &measure.rows(OffsetDateTime::now_utc())[0];
        assert_eq!((row.success, row.p99, row.mutual_tls, row.canary), (None, None, None, None));
    }

    #[test]
    fn quantiles_interpolate_within_a_bucket() {
        let buckets = [(1.0, 0.0), (5.0, 50.0), (10.0, 100.0), (f64::INFINITY, 110.0)];
        assert_eq!(quantile(&buckets, 0.25), Some(1.0 + 4.0 * 27.5 / 50.0));
        assert_eq!(quantile(&buckets, 0.99), Some(10.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
