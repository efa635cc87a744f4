//! Pushes what the metrics port says to a collector of OTLP, by gRPC: everything, at an interval, and once more when the control
//! plane ends. The proxies' pushes are made of the same messages.
//!
//! To a collector that is named with `https://` it goes by TLS, checked by the roots of a file or the system's; a collector that asks
//! who comes is shown a certificate. The files are read anew when the collector has failed, so they may change.
//!
//! What is pushed is read from the page itself, so both say the same. A round that fails is not sent again: these are sums, and the
//! next round says all of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use http::uri::PathAndQuery;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use xds_protos::opentelemetry::proto::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use xds_protos::otlp::{self, Beginnings, Number, Point};

use super::Pages;
use crate::ca::http::SYSTEM_ROOTS;

/// The most points of a message.
const MOST: usize = 2000;
/// How long a collector may take for a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where metrics are pushed.
#[derive(Args, Clone, Debug)]
pub struct PushArgs {
    /// Push what is counted to this collector, by OTLP over gRPC, such as otel-collector.observability.svc.cluster.local:4317, with
    /// https:// before it for TLS; beside the metrics port, which says the same
    #[arg(long, value_name = "[https://]HOST:PORT", env = "WEFT_OTLP_METRICS")]
    pub otlp_metrics: Option<String>,
    /// The roots, in PEM, that vouch for the collector; without it the system's do
    #[arg(long, value_name = "FILE", requires = "otlp_metrics", env = "WEFT_OTLP_METRICS_CA")]
    pub otlp_metrics_ca: Option<PathBuf>,
    /// A certificate, in PEM, that the collector is shown
    #[arg(long, value_name = "FILE", requires = "otlp_metrics_key", env = "WEFT_OTLP_METRICS_CERT")]
    pub otlp_metrics_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "otlp_metrics_cert", env = "WEFT_OTLP_METRICS_KEY")]
    pub otlp_metrics_key: Option<PathBuf>,
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

/// A collector, and how it is reached.
struct Collector {
    /// As it was named.
    name: String,
    endpoint: Endpoint,
    /// By TLS.
    tls: Option<Files>,
}

/// What TLS is made of.
#[derive(Clone, Debug, Default)]
struct Files {
    roots: Option<PathBuf>,
    /// A certificate and its key.
    own: Option<(PathBuf, PathBuf)>,
}

impl Files {
    fn config(&self) -> anyhow::Result<ClientTlsConfig> {
        let read =
            |file: &Path| std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()));
        let roots = match &self.roots {
            Some(file) => read(file)?,
            None => SYSTEM_ROOTS
                .iter()
                .find_map(|file| std::fs::read(file).ok())
                .context("the system has no roots; name a file of them with --otlp-metrics-ca")?,
        };
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots));
        if let Some((certificate, key)) = &self.own {
            config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(config)
    }
}

impl Collector {
    fn new(args: &PushArgs, name: &str) -> anyhow::Result<Self> {
        let wrong = || format!("--otlp-metrics {name}: write HOST:PORT, or https://HOST:PORT for TLS");
        let (tls, url) = match name.split_once("://") {
            None => (false, format!("http://{name}")),
            Some(("https", _)) => (true, name.to_owned()),
            Some(("http", _)) => (false, name.to_owned()),
            Some(_) => anyhow::bail!(wrong()),
        };
        let endpoint = Endpoint::from_shared(url).ok().filter(|endpoint| {
            let uri = endpoint.uri();
            uri.port_u16().is_some() && matches!(uri.path(), "" | "/") && uri.query().is_none()
        });
        let endpoint = endpoint.with_context(wrong)?.connect_timeout(PATIENCE).timeout(PATIENCE);
        let own = args.otlp_metrics_cert.clone().zip(args.otlp_metrics_key.clone());
        let tls = match (tls, &args.otlp_metrics_ca, own) {
            (true, roots, own) => Some(Files { roots: roots.clone(), own }),
            (false, None, None) => None,
            (false, ..) => anyhow::bail!(
                "--otlp-metrics {name} is in plain text, for which --otlp-metrics-ca and --otlp-metrics-cert mean nothing; \
                 write https://{name}, or leave them out"
            ),
        };
        Ok(Self { name: name.to_owned(), endpoint, tls })
    }

    /// A way to it that is opened when something is sent.
    fn channel(&self) -> anyhow::Result<Channel> {
        let endpoint = match &self.tls {
            None => self.endpoint.clone(),
            Some(files) => self.endpoint.clone().tls_config(files.config()?)?,
        };
        Ok(endpoint.connect_lazy())
    }

    fn way(&self) -> &'static str {
        if self.tls.is_some() { "by TLS" } else { "in plain text" }
    }
}

/// What pushes the numbers of a control plane.
pub struct Push {
    pages: Pages,
    collector: Collector,
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
    /// The collector's address is none, or what TLS is made of cannot be read.
    pub fn push(&self, pages: &Pages, namespace: &str) -> anyhow::Result<Option<Push>> {
        let Some(name) = &self.otlp_metrics else { return Ok(None) };
        let collector = Collector::new(self, name)?;
        let channel = collector.channel().with_context(|| format!("--otlp-metrics {name}"))?;
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
                        tracing::info!(collector = self.collector.name, "the collector takes metrics again");
                    }
                }
                Err(status) => {
                    // Nor would it take the others.
                    let others: usize = parts.iter().map(|part| part.len()).sum();
                    metrics::counter!("weft_otlp_points_dropped_total").increment(count + others as u64);
                    let why = format!("{:?}: {}", status.code(), status.message());
                    if self.failing.as_ref() != Some(&why) {
                        tracing::warn!(
                            collector = self.collector.name,
                            status = why,
                            "the collector does not take metrics (--otlp-metrics); is it there, and does it take OTLP by gRPC {}?",
                            self.collector.way()
                        );
                    }
                    self.failing = Some(why);
                    self.reach_anew();
                    return;
                }
            }
        }
    }
}

impl Push {
    /// What TLS is made of may be another by now.
    fn reach_anew(&mut self) {
        if self.collector.tls.is_none() {
            return;
        }
        match self.collector.channel() {
            Ok(channel) => self.channel = channel,
            Err(error) => tracing::warn!(
                collector = self.collector.name,
                error = format!("{error:#}"),
                "what is said to the collector is checked as before (--otlp-metrics-ca, --otlp-metrics-cert)"
            ),
        }
    }
}

/// Gives how many points were refused.
async fn send(channel: Channel, request: ExportMetricsServiceRequest) -> Result<i64, tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| tonic::Status::unavailable(reason(&error)))?;
    let codec =
        tonic_prost::ProstCodec::<ExportMetricsServiceRequest, ExportMetricsServiceResponse>::default();
    let method = PathAndQuery::from_static(otlp::METRICS);
    let answer = client.unary(tonic::Request::new(request), method, codec).await?.into_inner();
    Ok(answer.partial_success.unwrap_or_default().rejected_data_points)
}

/// What an error says, with the reasons below it.
fn reason(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        words = format!("{words}: {error}");
        below = error.source();
    }
    words
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
    fn a_collector_is_named_by_host_and_port_and_tls_by_its_scheme() {
        let args = |name: &str, roots: Option<&str>| PushArgs {
            otlp_metrics: Some(name.to_owned()),
            otlp_metrics_ca: roots.map(PathBuf::from),
            otlp_metrics_cert: None,
            otlp_metrics_key: None,
            otlp_metrics_interval: Duration::from_secs(1),
        };
        let made = |name: &str, roots| Collector::new(&args(name, roots), name).map_err(|e| e.to_string());
        assert!(made("otel.example:4317", None).unwrap().tls.is_none());
        assert!(made("http://otel.example:4317", None).unwrap().tls.is_none());
        assert!(made("https://otel.example:4317", Some("/ca.pem")).unwrap().tls.is_some());
        for (name, roots, words) in [
            ("otel.example", None, "write HOST:PORT"),
            ("https://otel.example", None, "write HOST:PORT"),
            ("https://otel.example:1/path", None, "write HOST:PORT"),
            ("unix://a:1", None, "write HOST:PORT"),
            ("otel.example:4317", Some("/ca.pem"), "write https://otel.example:4317"),
        ] {
            let why = made(name, roots).err().unwrap_or_default();
            assert!(why.contains(words), "{name}: {why}");
        }
        let unread = made("https://otel.example:4317", Some("/no/such/ca.pem")).unwrap();
        let why = format!("{:#}", unread.tls.unwrap().config().unwrap_err());
        assert!(why.contains("/no/such/ca.pem cannot be read"), "{why}");
    }

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
