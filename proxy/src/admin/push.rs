//! Pushes what is counted to collectors of OTLP (`envoy.stat_sinks.open_telemetry`): everything, at an interval, as it is since the
//! process began, and once more when it ends. Series that came later, or began anew, say so ([`Beginnings`]).
//!
//! A round that takes longer than the interval makes the next ones wait; nothing is kept for later. What a collector does not
//! take is counted, and comes again with the next round, for these are sums.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use xds_protos::envoy::config::bootstrap::v3::Bootstrap;
use xds_protos::envoy::config::metrics::v3::{StatsSink, stats_sink};
use xds_protos::envoy::extensions::stat_sinks::open_telemetry::v3::{SinkConfig, sink_config};
use xds_protos::opentelemetry::proto::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use xds_protos::opentelemetry::proto::common::v1::InstrumentationScope;
use xds_protos::opentelemetry::proto::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use xds_protos::opentelemetry::proto::resource::v1::Resource as ProtoResource;
use xds_protos::prost::Message;

use super::prometheus::{Tags, dotted};
use super::snapshot::{Sample, Value};
use super::{AdminState, pages};
use crate::router::call;
use crate::router::collector::{HttpCollector, Resource, TIMEOUT};
use crate::router::grpc::GrpcService;
use crate::state::error::{at, collect};
use crate::state::{CompileContext, ConfigError};
use crate::telemetry::access_log::otlp::pair;
use crate::telemetry::registry::{BUCKETS, Counter, Group};

type Errors = Vec<ConfigError>;

const METHOD: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
/// How often, where nobody says: Envoy's interval.
pub const EVERY: Duration = Duration::from_secs(5);
/// The most points of a message where nobody says.
const MOST: usize = 2000;
/// The most bytes of a message: collectors take 4 MiB at once.
const FULL: usize = 1024 * 1024;
/// A collector that has not answered by then never does, whatever its timeout.
const LATEST: Duration = Duration::from_secs(60);

/// Where metrics go.
#[derive(Debug)]
enum Target {
    Grpc(GrpcService),
    Http(HttpCollector),
}

/// A collector, and what it is told.
#[derive(Debug)]
pub struct Push {
    target: Target,
    resource: Resource,
    /// What stands before names.
    prefix: String,
    /// Names are without what is a tag.
    extracted: bool,
    /// Tags are attributes.
    tags: bool,
    most: usize,
    every: Duration,
}

/// What became of points.
struct Stats {
    _group: Arc<Group>,
    sent: Counter,
    dropped: Counter,
}

static STATS: LazyLock<Stats> = LazyLock::new(|| {
    let group = Group::new("stats_sinks.open_telemetry", Vec::new());
    Stats { sent: group.counter("points_sent"), dropped: group.counter("points_dropped"), _group: group }
});

/// The sinks of a bootstrap.
///
/// # Errors
/// Everything that is wrong in them.
pub fn sinks(bootstrap: &Bootstrap, context: &CompileContext) -> Result<Vec<Push>, Errors> {
    let mut errors = Vec::new();
    let every = bootstrap.stats_flush_interval.as_ref().and_then(xds_protos::duration::to_std);
    let every = every.filter(|every| !every.is_zero()).unwrap_or(EVERY);
    let each = bootstrap.stats_sinks.iter().enumerate();
    let all = each.filter_map(|(index, sink)| {
        collect(Push::compile(sink, every, context), format!("stats_sinks[{index}]"), &mut errors)
    });
    let all = all.collect();
    if errors.is_empty() { Ok(all) } else { Err(errors) }
}

impl Push {
    fn compile(sink: &StatsSink, every: Duration, context: &CompileContext) -> Result<Self, Errors> {
        let Some(stats_sink::ConfigType::TypedConfig(any)) = &sink.config_type else {
            return Err(ConfigError::missing("typed_config").into());
        };
        if !any.is::<SinkConfig>() {
            let what = format!("the sink {}; there is envoy.stat_sinks.open_telemetry", any.type_name());
            return Err(ConfigError::unsupported("typed_config", what).into());
        }
        let config: SinkConfig = any.unpack().map_err(|e| ConfigError::new("typed_config", e.to_string()))?;
        Self::of(&config, every, context).map_err(at("typed_config"))
    }

    fn of(config: &SinkConfig, every: Duration, context: &CompileContext) -> Result<Self, Errors> {
        let target = match &config.protocol_specifier {
            Some(sink_config::ProtocolSpecifier::GrpcService(service)) => {
                GrpcService::compile(service, TIMEOUT, context)
                    .map(Target::Grpc)
                    .map_err(at("grpc_service"))?
            }
            Some(sink_config::ProtocolSpecifier::HttpService(service)) => {
                HttpCollector::compile(service, context).map(Target::Http).map_err(at("http_service"))?
            }
            None => return Err(ConfigError::missing("grpc_service or http_service").into()),
        };
        let mut resource = Resource::default();
        resource.detect(&config.resource_detectors)?;
        let most = config.max_data_points_per_request as usize;
        Ok(Self {
            target,
            resource,
            prefix: config.prefix.clone(),
            extracted: config.use_tag_extracted_name.unwrap_or(true),
            tags: config.emit_tags_as_attributes.unwrap_or(true),
            most: if most == 0 { MOST } else { most },
            every,
        })
    }

    /// A collector at a port of a service of the mesh, by gRPC, by the cluster that sidecars have for it.
    pub fn to_service(host: &str, port: u16, every: Duration, context: &CompileContext) -> Self {
        let service = GrpcService {
            cluster: context.clusters.slot(&format!("outbound|{port}||{host}")),
            authority: Bytes::from(host.to_owned()),
            timeout: TIMEOUT,
            metadata: Vec::new(),
        };
        let mut resource = Resource::default();
        resource.say("service.name", &context.node.cluster);
        resource.say("service.instance.id", &context.node.id);
        let namespace = context.node.meta("NAMESPACE");
        if !namespace.is_empty() {
            resource.say("k8s.namespace.name", namespace);
        }
        Self {
            target: Target::Grpc(service),
            resource,
            prefix: String::new(),
            extracted: true,
            tags: true,
            most: MOST,
            every,
        }
    }

    /// Pushes for the life of the process; on the control thread. Told of the end, it makes a last round, which is over by the
    /// time that it is told.
    pub async fn run(self, state: Arc<AdminState>, mut end: watch::Receiver<Option<Instant>>) {
        let began = nanos(SystemTime::now() - state.started.elapsed());
        let beginnings = Arc::new(Mutex::new(Beginnings::new(began)));
        let mut interval = tokio::time::interval(self.every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Nothing was counted at the first tick, which is at once.
        interval.tick().await;
        let rounds = async {
            loop {
                interval.tick().await;
                self.round(&state, &beginnings, None).await;
            }
        };
        // A round that has begun is left: the last one says all of it, and more.
        let last = tokio::select! {
            () = rounds => return,
            last = end.wait_for(Option::is_some) => last.ok().and_then(|last| *last),
        };
        if let Some(last) = last {
            self.round(&state, &beginnings, Some(last)).await;
        }
    }

    async fn round(
        &self,
        state: &Arc<AdminState>,
        beginnings: &Arc<Mutex<Beginnings>>,
        end: Option<Instant>,
    ) {
        let (of, beginnings) = (state.clone(), beginnings.clone());
        // There may be many, and this thread has more urgent work.
        let read = tokio::task::spawn_blocking(move || {
            let now = nanos(SystemTime::now());
            let mut samples = pages::samples(&of);
            samples.sort_by(|a, b| (&a.prefix, &a.name).cmp(&(&b.prefix, &b.name)));
            (beginnings.lock().of(samples, now), now)
        });
        let Ok((points, now)) = read.await else { return };
        self.push(&points, state.tags, now, end).await;
    }

    async fn push(&self, points: &[Point], tags: Tags, now: u64, end: Option<Instant>) {
        let mut parts: Vec<&[Point]> = points.rchunks(self.most).collect();
        while let Some((request, count)) = self.next(&mut parts, tags, now) {
            let latest = Instant::now() + LATEST;
            let latest = end.map_or(latest, |end| end.min(latest));
            match tokio::time::timeout_at(latest, self.send(&request)).await.ok().flatten() {
                Some(refused) => {
                    let refused = refused.min(count);
                    STATS.sent.add(count - refused);
                    STATS.dropped.add(refused);
                }
                // Nor would it take the others.
                None => {
                    let others: usize = parts.iter().map(|part| part.len()).sum();
                    return STATS.dropped.add(count + others as u64);
                }
            }
        }
    }

    /// The next message, not longer than it may be, and how many points are in it; `parts` are in reverse.
    fn next(
        &self,
        parts: &mut Vec<&[Point]>,
        tags: Tags,
        now: u64,
    ) -> Option<(ExportMetricsServiceRequest, u64)> {
        loop {
            let part = parts.pop()?;
            let request = self.request(part, tags, now);
            if part.len() < 2 || request.encoded_len() <= FULL {
                return Some((request, part.len() as u64));
            }
            let (first, second) = part.split_at(part.len() / 2);
            parts.extend([second, first]);
        }
    }

    /// Gives how many points were refused; none if there was no answer.
    async fn send(&self, request: &ExportMetricsServiceRequest) -> Option<u64> {
        let connection = call::nobody();
        match &self.target {
            Target::Grpc(service) => {
                let answer: Option<ExportMetricsServiceResponse> =
                    service.ask(METHOD, request, &connection).await;
                let refused = answer?.partial_success.unwrap_or_default().rejected_data_points;
                Some(u64::try_from(refused).unwrap_or(0))
            }
            Target::Http(collector) => {
                let body = request.encode_to_vec();
                let status = collector.post("application/x-protobuf", body, &connection).await;
                // Not this message; the others are not the same.
                status.map(|status| if status.is_success() { 0 } else { u64::MAX })
            }
        }
    }

    fn request(&self, points: &[Point], tags: Tags, now: u64) -> ExportMetricsServiceRequest {
        let mut metrics: Vec<Metric> = Vec::new();
        let mut places: HashMap<(String, u8), usize> = HashMap::new();
        for (sample, began) in points {
            let began = *began;
            let (name, labels) = self.name(sample, tags);
            let attributes = labels.into_iter().map(|(key, value)| pair(key, value)).collect();
            let number = |value| NumberDataPoint {
                attributes: Vec::new(),
                start_time_unix_nano: began,
                time_unix_nano: now,
                value: Some(number_data_point::Value::AsInt(value)),
                flags: 0,
            };
            let kind = match sample.value {
                Value::Counter(_) => 0,
                Value::Gauge(_) => 1,
                Value::Histogram(..) => 2,
            };
            let place = *places.entry((name.clone(), kind)).or_insert_with(|| {
                metrics.push(Metric { name, ..Metric::default() });
                metrics.len() - 1
            });
            let data = &mut metrics[place].data;
            match &sample.value {
                Value::Counter(count) => {
                    let sum = data.get_or_insert_with(|| {
                        metric::Data::Sum(Sum {
                            data_points: Vec::new(),
                            aggregation_temporality: AggregationTemporality::Cumulative.into(),
                            is_monotonic: true,
                        })
                    });
                    if let metric::Data::Sum(sum) = sum {
                        let point = number(i64::try_from(*count).unwrap_or(i64::MAX));
                        sum.data_points.push(NumberDataPoint { attributes, ..point });
                    }
                }
                Value::Gauge(value) => {
                    let gauge = data.get_or_insert_with(|| metric::Data::Gauge(Gauge::default()));
                    if let metric::Data::Gauge(gauge) = gauge {
                        let point = number(*value);
                        gauge.data_points.push(NumberDataPoint {
                            attributes,
                            start_time_unix_nano: 0,
                            ..point
                        });
                    }
                }
                Value::Histogram(buckets, sum) => {
                    let histogram = data.get_or_insert_with(|| {
                        metric::Data::Histogram(Histogram {
                            data_points: Vec::new(),
                            aggregation_temporality: AggregationTemporality::Cumulative.into(),
                        })
                    });
                    if let metric::Data::Histogram(histogram) = histogram {
                        histogram.data_points.push(HistogramDataPoint {
                            attributes,
                            start_time_unix_nano: began,
                            time_unix_nano: now,
                            count: buckets.iter().sum(),
                            sum: Some(*sum),
                            bucket_counts: buckets.to_vec(),
                            explicit_bounds: BUCKETS.to_vec(),
                            flags: 0,
                        });
                    }
                }
            }
        }
        let scope = InstrumentationScope {
            name: "weft".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let attributes = self.resource.0.iter().map(|(key, value)| pair(key.as_str(), value.as_str()));
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(ProtoResource {
                    attributes: attributes.collect(),
                    dropped_attributes_count: 0,
                }),
                scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() }],
                schema_url: String::new(),
            }],
        }
    }

    /// What a metric is called, and its labels.
    fn name(&self, sample: &Sample, tags: Tags) -> (String, Vec<(String, String)>) {
        let own = || sample.labels.iter().map(|(key, value)| ((*key).to_owned(), value.to_string()));
        let (name, labels) = match (sample.prefix.is_empty(), self.extracted) {
            // Istio's are whole.
            (true, _) => (sample.name.to_string(), own().collect()),
            (false, false) => (format!("{}.{}", sample.prefix, sample.name), own().collect()),
            (false, true) => {
                let (name, labels) = dotted(sample, tags);
                // Envoy's tags have dots where Prometheus has underscores.
                let key =
                    |key: &str| key.strip_prefix("envoy_").map_or(key.to_owned(), |k| format!("envoy.{k}"));
                (name, labels.into_iter().map(|(k, v)| (key(k), v)).collect())
            }
        };
        let name = if self.prefix.is_empty() { name } else { format!("{}.{name}", self.prefix) };
        (name, if self.tags { labels } else { Vec::new() })
    }
}

/// A sample, and since when it counts.
type Point = (Sample, u64);

/// Since when series count: metrics go with what they are of, or when they were idle, and begin anew at zero.
struct Beginnings {
    /// By a hash of what a series is called: what it said, and since when it counts.
    known: HashMap<u64, (u64, u64)>,
    hasher: RandomState,
    /// When they were last looked at: what was not there then began after it.
    looked: u64,
}

impl Beginnings {
    fn new(began: u64) -> Self {
        Self { known: HashMap::new(), hasher: RandomState::new(), looked: began }
    }

    fn of(&mut self, samples: Vec<Sample>, now: u64) -> Vec<Point> {
        let mut seen = HashMap::with_capacity(samples.len());
        let point = |sample: Sample| {
            let count = match &sample.value {
                Value::Counter(count) => *count,
                Value::Histogram(buckets, _) => buckets.iter().sum(),
                // Says what is now.
                Value::Gauge(_) => return (sample, self.looked),
            };
            let key = self.hasher.hash_one((&sample.prefix, &sample.name, &sample.labels));
            let began = match self.known.get(&key) {
                Some((said, began)) if *said <= count => *began,
                _ => self.looked,
            };
            seen.insert(key, (count, began));
            (sample, began)
        };
        let points = samples.into_iter().map(point).collect();
        (self.known, self.looked) = (seen, now);
        points
    }
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::telemetry::registry::Labels;

    fn push(config: Json) -> Result<Push, String> {
        let mut config = config;
        config["@type"] =
            "type.googleapis.com/envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig".into();
        let sink = xds_protos::json::from_value(json!({"name": "otlp", "typed_config": config})).unwrap();
        let context = CompileContext::for_tests();
        Push::compile(&sink, EVERY, &context).map_err(|errors| crate::state::error::join(&errors))
    }

    fn samples() -> Vec<Sample> {
        let mut buckets = [0; BUCKETS.len() + 1];
        buckets[1] = 3;
        let sample = |prefix: &str, name: &'static str, labels: Labels, value| Sample {
            prefix: prefix.into(),
            name: name.into(),
            labels,
            value,
        };
        let labels: Labels = [("reporter", "source".into())].into_iter().collect();
        vec![
            sample("cluster.a;", "upstream_rq_2xx", Labels::default(), Value::Counter(4)),
            sample("cluster.b", "upstream_rq_2xx", Labels::default(), Value::Counter(5)),
            sample("cluster.a;", "membership_total", Labels::default(), Value::Gauge(-1)),
            sample("", "istio_request_bytes", labels, Value::Histogram(Box::new(buckets), 7.5)),
        ]
    }

    fn points() -> Vec<Point> {
        samples().into_iter().map(|sample| (sample, 1)).collect()
    }

    fn service() -> Json {
        json!({"envoy_grpc": {"cluster_name": "collector"}})
    }

    #[test]
    fn counters_are_sums_gauges_are_gauges_and_tags_are_attributes() {
        let push = push(json!({"grpc_service": service(), "prefix": "weft"})).unwrap();
        let request = push.request(&points(), Tags::Envoy, 2);
        let metrics =
            xds_protos::json::to_value(&request)["resource_metrics"][0]["scope_metrics"][0]["metrics"]
                .clone();
        let names: Vec<_> = metrics.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            ["weft.cluster.upstream_rq_xx", "weft.cluster.membership_total", "weft.istio_request_bytes"]
        );
        let sum = &metrics[0]["sum"];
        assert_eq!(
            (&sum["is_monotonic"], &sum["aggregation_temporality"]),
            (&json!(true), &json!("AGGREGATION_TEMPORALITY_CUMULATIVE"))
        );
        let of = |point: &Json| {
            point["attributes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|a| {
                    format!("{}={}", a["key"].as_str().unwrap(), a["value"]["string_value"].as_str().unwrap())
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&sum["data_points"][0]), ["envoy.response_code_class=2", "envoy.cluster_name=a"]);
        let numbers = |at: usize| {
            (sum["data_points"][at]["as_int"].clone(), sum["data_points"][at]["start_time_unix_nano"].clone())
        };
        assert_eq!(numbers(0).0.to_string().trim_matches('"'), "4");
        assert_eq!(numbers(1).1.to_string().trim_matches('"'), "1");
        assert_eq!(metrics[1]["gauge"]["data_points"][0]["as_int"].to_string().trim_matches('"'), "-1");
        let histogram = &metrics[2]["histogram"]["data_points"][0];
        assert_eq!((histogram["count"].to_string().trim_matches('"'), &histogram["sum"]), ("3", &json!(7.5)));
        assert_eq!(histogram["bucket_counts"].as_array().unwrap().len(), BUCKETS.len() + 1);
        assert_eq!(of(histogram), ["reporter=source"]);
    }

    #[test]
    fn whole_names_and_no_attributes_on_request_and_what_is_not_honoured_is_refused() {
        let bare = push(
            json!({"grpc_service": service(), "use_tag_extracted_name": false, "emit_tags_as_attributes": false}),
        );
        let (name, labels) = bare.unwrap().name(&samples()[0], Tags::Envoy);
        assert_eq!((name.as_str(), labels.len()), ("cluster.a;.upstream_rq_2xx", 0));
        assert!(push(json!({})).unwrap_err().contains("typed_config.grpc_service or http_service"));
        let statsd = json!({"name": "s", "typed_config": {
            "@type": "type.googleapis.com/envoy.config.metrics.v3.StatsdSink", "prefix": "p"}});
        let sink = xds_protos::json::from_value(statsd).unwrap();
        let errors = Push::compile(&sink, EVERY, &CompileContext::for_tests()).unwrap_err();
        assert!(errors[0].to_string().contains("StatsdSink"), "{}", errors[0]);
    }

    #[tokio::test]
    async fn a_collector_that_is_away_takes_nothing() {
        let push = push(json!({"grpc_service": service()})).unwrap();
        assert_eq!(push.send(&push.request(&points(), Tags::Envoy, 2)).await, None);
        // Nobody is asked for the second half of them, but it is counted.
        let push = Push { most: 2, ..push };
        let dropped = STATS.dropped.value();
        push.push(&points(), Tags::Envoy, 2, None).await;
        assert_eq!(STATS.dropped.value() - dropped, 4);
    }

    #[test]
    fn messages_are_not_longer_than_collectors_take_and_all_points_are_in_them() {
        let push = push(json!({"grpc_service": service()})).unwrap();
        let long = "long".repeat(FULL / 16);
        let long: Vec<Point> = (0..28)
            .map(|at: usize| {
                let (sample, began) = points().remove(at % 4);
                (Sample { prefix: format!("{at}{long}").into(), ..sample }, began)
            })
            .collect();
        let (mut parts, mut counts) = (vec![&long[..]], Vec::new());
        while let Some((request, count)) = push.next(&mut parts, Tags::Envoy, 2) {
            assert!(count == 1 || request.encoded_len() <= FULL);
            counts.push(count);
        }
        assert_eq!(counts.iter().sum::<u64>(), 28);
        assert!(counts.len() > 1, "{counts:?}");
    }

    #[test]
    fn a_series_that_began_anew_or_later_counts_since_the_round_before() {
        let mut beginnings = Beginnings::new(1);
        let counter = |at: usize, count| Sample { value: Value::Counter(count), ..samples().remove(at) };
        let mut began = |samples: Vec<Sample>, now| -> Vec<u64> {
            beginnings.of(samples, now).into_iter().map(|(_, began)| began).collect()
        };
        assert_eq!(began(vec![counter(0, 4)], 10), [1]);
        assert_eq!(began(vec![counter(0, 4), counter(1, 1)], 20), [1, 10]);
        assert_eq!(began(vec![counter(0, 3), counter(1, 2)], 30), [20, 10]);
        assert_eq!(began(vec![counter(0, 5)], 40), [20]);
        assert_eq!(began(vec![counter(0, 5), counter(1, 9)], 50), [20, 40]);
    }
}
