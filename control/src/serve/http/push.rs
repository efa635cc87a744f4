//! Pushes what the metrics port says to a collector of OTLP, by gRPC: everything, at an interval, and once more when the control
//! plane ends. The proxies' pushes are made of the same messages.
//!
//! What is pushed is read from the page itself, so both say the same. A round that fails is not sent again: these are sums, and the
//! next round says all of it.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use http::uri::PathAndQuery;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tonic::transport::{Channel, Endpoint};
use xds_protos::opentelemetry::proto::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use xds_protos::otlp::{self, Beginnings, Number, Point};

use super::Pages;

/// The most points of a message.
const MOST: usize = 2000;
/// How long a collector may take for a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where metrics are pushed.
#[derive(Args, Clone, Debug)]
pub struct PushArgs {
    /// Push what is counted to this collector, by OTLP (gRPC, in plain text), such as
    /// otel-collector.observability.svc.cluster.local:4317; beside the metrics port, which says the same
    #[arg(long, value_name = "HOST:PORT", env = "WEFT_OTLP_METRICS")]
    pub otlp_metrics: Option<String>,
    /// How often
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = interval, env = "WEFT_OTLP_METRICS_INTERVAL")]
    pub otlp_metrics_interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = xds_protos::duration::parse(text)?;
    if interval.is_zero() {
        Err("is no time; leave --otlp-metrics out to push nothing".to_owned())
    } else {
        Ok(interval)
    }
}

/// What pushes the numbers of a control plane.
pub struct Push {
    pages: Pages,
    collector: String,
    channel: Channel,
    resource: Vec<(String, String)>,
    every: Duration,
    beginnings: Beginnings,
    /// Why the collector does not take them, if it does not.
    failing: Option<String>,
}

impl PushArgs {
    /// Makes what pushes these pages' numbers, if that is wanted.
    ///
    /// # Errors
    /// The collector's address is none.
    pub fn push(&self, pages: &Pages, namespace: &str) -> anyhow::Result<Option<Push>> {
        let Some(collector) = self.otlp_metrics.clone() else { return Ok(None) };
        let endpoint = Endpoint::from_shared(format!("http://{collector}"));
        let endpoint = endpoint.ok().filter(|endpoint| endpoint.uri().port_u16().is_some());
        let endpoint = endpoint.with_context(|| format!("--otlp-metrics {collector}: write HOST:PORT"))?;
        let channel = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE).connect_lazy();
        let instance = std::env::var("POD_NAME").unwrap_or_else(|_| "weft-control".to_owned());
        let resource = [
            ("service.name", "weft-control"),
            ("service.instance.id", &*instance),
            ("k8s.namespace.name", namespace),
        ];
        let beginnings = Beginnings::new(otlp::nanos(SystemTime::now() - pages.began.elapsed()));
        Ok(Some(Push {
            pages: pages.clone(),
            collector,
            channel,
            resource: resource.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
            every: self.otlp_metrics_interval,
            beginnings,
            failing: None,
        }))
    }
}

impl Push {
    /// Pushes until `end`, and then once more.
    pub async fn run(mut self, mut end: oneshot::Receiver<()>) {
        let mut interval = tokio::time::interval(self.every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Little was counted at the first tick, which is at once.
        interval.tick().await;
        loop {
            tokio::select! {
                _ = interval.tick() => self.round().await,
                _ = &mut end => return self.round().await,
            }
        }
    }

    /// Pushes everything as it is now.
    async fn round(&mut self) {
        let now = otlp::nanos(SystemTime::now());
        let series = read(&self.pages.numbers());
        let named = series.iter().map(|one| ((&one.name, &one.labels), one.counted()));
        let began = self.beginnings.of(named, now);
        let points: Vec<(Series, u64)> = series.into_iter().zip(began).collect();
        let message = |points: &[(Series, u64)]| {
            otlp::metrics(&self.resource, points.iter().map(|(one, began)| one.point(*began)), now)
        };
        let mut parts: Vec<_> = points.rchunks(MOST).collect();
        while let Some((request, count)) = otlp::next(&mut parts, message) {
            match send(self.channel.clone(), request).await {
                Ok(refused) => {
                    let refused = u64::try_from(refused).unwrap_or(0).min(count);
                    metrics::counter!("weft_otlp_points_sent_total").increment(count - refused);
                    metrics::counter!("weft_otlp_points_dropped_total").increment(refused);
                    if self.failing.take().is_some() {
                        tracing::info!(collector = self.collector, "the collector takes metrics again");
                    }
                }
                Err(status) => {
                    // Nor would it take the others.
                    let others: usize = parts.iter().map(|part| part.len()).sum();
                    metrics::counter!("weft_otlp_points_dropped_total").increment(count + others as u64);
                    let why = format!("{:?}: {}", status.code(), status.message());
                    if self.failing.as_ref() != Some(&why) {
                        tracing::warn!(
                            collector = self.collector,
                            status = why,
                            "the collector does not take metrics (--otlp-metrics); is it there, and does it take OTLP by gRPC in plain text?"
                        );
                    }
                    self.failing = Some(why);
                    return;
                }
            }
        }
    }
}

/// Gives how many points were refused.
async fn send(channel: Channel, request: ExportMetricsServiceRequest) -> Result<i64, tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let codec =
        tonic_prost::ProstCodec::<ExportMetricsServiceRequest, ExportMetricsServiceResponse>::default();
    let method = PathAndQuery::from_static(otlp::METRICS);
    let answer = client.unary(tonic::Request::new(request), method, codec).await?.into_inner();
    Ok(answer.partial_success.unwrap_or_default().rejected_data_points)
}

/// A series of the page.
#[derive(Debug, PartialEq)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
    says: Says,
}

#[derive(Debug, PartialEq)]
enum Says {
    Counter(f64),
    Gauge(f64),
    /// Upper bounds, counts of each bucket and of what is above, and the sum.
    Histogram(Vec<f64>, Vec<u64>, f64),
}

impl Series {
    /// What it has counted; nothing where it says what is now.
    fn counted(&self) -> Option<u64> {
        match &self.says {
            Says::Counter(count) => Some(*count as u64),
            Says::Histogram(_, counts, _) => Some(counts.iter().sum()),
            Says::Gauge(_) => None,
        }
    }

    fn point(&self, began: u64) -> Point<'_> {
        let number = match &self.says {
            Says::Counter(count) => Number::Sum(*count as i64),
            Says::Gauge(value) => Number::Level(*value),
            Says::Histogram(bounds, counts, sum) => Number::Histogram(counts, bounds, *sum),
        };
        Point { name: self.name.clone(), attributes: self.labels.clone(), began, number }
    }
}

/// The series of a page of our own.
fn read(page: &str) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    let (mut family, mut kind) = ("", "");
    for line in page.lines() {
        if let Some(said) = line.strip_prefix("# TYPE ") {
            (family, kind) = said.split_once(' ').unwrap_or_default();
            continue;
        }
        let Some((name, mut labels, value)) = sample(line) else { continue };
        match kind {
            "counter" => all.push(Series { name: name.to_owned(), labels, says: Says::Counter(value) }),
            "gauge" => all.push(Series { name: name.to_owned(), labels, says: Says::Gauge(value) }),
            "histogram" => {
                let bound = labels.iter().position(|(key, _)| key == "le").map(|at| labels.remove(at).1);
                // Lines of one series follow each other.
                let is_next = all.last().is_none_or(|last| last.name != family || last.labels != labels);
                if is_next {
                    let says = Says::Histogram(Vec::new(), Vec::new(), 0.0);
                    all.push(Series { name: family.to_owned(), labels, says });
                }
                let Some(Series { says: Says::Histogram(bounds, counts, sum), .. }) = all.last_mut() else {
                    continue;
                };
                match (name.strip_prefix(family), bound) {
                    (Some("_bucket"), Some(bound)) => {
                        // The page counts what is below each bound.
                        counts.push((value as u64).saturating_sub(counts.iter().sum()));
                        bounds.extend(bound.parse().ok().filter(|bound: &f64| bound.is_finite()));
                    }
                    (Some("_sum"), _) => *sum = value,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    all
}

type Sample<'a> = (&'a str, Vec<(String, String)>, f64);

/// Name, labels and value of a line; none of a line that is no sample.
fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(['{', ' ']).filter(|_| !line.starts_with('#'))?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, value) = rest.split_once("=\"")?;
            let (value, behind) = quoted(value)?;
            labels.push((key.trim_start_matches(',').to_owned(), value));
            rest = behind;
        }
        rest = &rest[1..];
    }
    Some((name, labels, rest.trim().parse().ok()?))
}

/// A text up to its closing quote, and what is behind that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => out.push('\n'),
                other => out.push(other),
            },
            other => out.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_read_as_it_was_meant() {
        let page = "# HELP a_total Some.\n# TYPE a_total counter\na_total 3\na_total{type=\"x\",why=\"a \\\"b\\\", {c}\\n\"} 4\n\n\
                    # TYPE g gauge\ng 0.5\n\
                    # TYPE t histogram\nt_bucket{type=\"x\",le=\"0.1\"} 1\nt_bucket{type=\"x\",le=\"1\"} 3\n\
                    t_bucket{type=\"x\",le=\"+Inf\"} 6\nt_sum{type=\"x\"} 7.5\nt_count{type=\"x\"} 6\n\
                    t_bucket{le=\"0.1\"} 0\nt_bucket{le=\"+Inf\"} 1\nt_sum 2\nt_count 1\n";
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let x = vec![label("type", "x")];
        let series = |name: &str, labels, says| Series { name: name.to_owned(), labels, says };
        assert_eq!(
            read(page),
            [
                series("a_total", vec![], Says::Counter(3.0)),
                series(
                    "a_total",
                    vec![label("type", "x"), label("why", "a \"b\", {c}\n")],
                    Says::Counter(4.0)
                ),
                series("g", vec![], Says::Gauge(0.5)),
                series("t", x, Says::Histogram(vec![0.1, 1.0], vec![1, 2, 3], 7.5)),
                series("t", vec![], Says::Histogram(vec![0.1], vec![0, 1], 2.0)),
            ]
        );
    }

    #[test]
    fn what_a_recorder_of_ours_writes_is_read_whole() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new();
        let recorder = recorder.set_buckets(&[0.1, 1.0]).unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("c", "k" => "v\"w").increment(2);
            metrics::gauge!("g").set(-1.5);
            for time in [0.05, 0.5, 9.0] {
                metrics::histogram!("h").record(time);
            }
        });
        handle.run_upkeep();
        let mut all = read(&handle.render());
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let says: Vec<_> = all.iter().map(|one| &one.says).collect();
        let histogram = Says::Histogram(vec![0.1, 1.0], vec![1, 1, 1], 9.55);
        assert_eq!(says, [&Says::Counter(2.0), &Says::Gauge(-1.5), &histogram]);
        assert_eq!(all[0].labels, [("k".to_owned(), "v\"w".to_owned())]);
    }
}
