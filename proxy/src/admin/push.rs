//! Pushes what is counted to collectors of OTLP (`envoy.stat_sinks.open_telemetry`): everything, at an interval, as it is since the
//! process began, and once more when it ends. Series that came later, or began anew, say so ([`Beginnings`]).
//!
//! A round that takes longer than the interval makes the next ones wait; nothing is kept for later. What a collector does not
//! take is counted, and comes again with the next round, for these are sums.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

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
use xds_protos::otlp::{self, Beginnings, Number};
use xds_protos::prost::Message;

use super::prometheus::{Tags, dotted};
use super::snapshot::{Sample, Value};
use super::{AdminState, pages};
use crate::router::call;
use crate::router::collector::{Fate, FateCounts, HttpCollector, Resource, TIMEOUT};
use crate::router::grpc::{CallError, GrpcService};
use crate::state::error::{at, collect};
use crate::state::{CompileContext, ConfigError};
use crate::telemetry::registry::{BUCKETS, Counter, Group};

type Errors = Vec<ConfigError>;

/// What is pushed, in words.
const WHAT: &str = "metrics";
/// How often, where nobody says: Envoy's interval.
pub const EVERY: Duration = Duration::from_secs(5);
/// The most points of a message where nobody says.
const MOST: usize = 2000;
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
    fate: Fate,
}

/// What became of points.
struct Stats {
    _group: Arc<Group>,
    sent: Counter,
    dropped: Counter,
    exports: FateCounts,
}

static STATS: LazyLock<Stats> = LazyLock::new(|| {
    let group = Group::new("stats_sinks.open_telemetry", Vec::new());
    Stats {
        sent: group.counter("points_sent"),
        dropped: group.counter("points_dropped"),
        exports: FateCounts::of(&group),
        _group: group,
    }
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
            fate: Fate::new(WHAT, STATS.exports),
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
            fate: Fate::new(WHAT, STATS.exports),
        }
    }

    /// Pushes for the life of the process; on the control thread. Told of the end, it makes a last round, which is over by the
    /// time that it is told.
    pub async fn run(self, state: Arc<AdminState>, mut end: watch::Receiver<Option<Instant>>) {
        let began = otlp::nanos(SystemTime::now() - state.started.elapsed());
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
            let now = otlp::nanos(SystemTime::now());
            let mut samples = pages::samples(&of);
            samples.sort_by(|a, b| (&a.prefix, &a.name).cmp(&(&b.prefix, &b.name)));
            (since(&mut beginnings.lock(), samples, now), now)
        });
        let Ok((points, now)) = read.await else { return };
        self.push(&points, state.tags, now, end).await;
    }

    async fn push(&self, points: &[Point], tags: Tags, now: u64, end: Option<Instant>) {
        let mut parts: Vec<&[Point]> = points.rchunks(self.most).collect();
        let message = |part: &[Point]| self.request(part, tags, now);
        while let Some((request, count)) = otlp::next(&mut parts, message) {
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

    /// Gives how many points were refused; none if there is nobody who would take the others.
    async fn send(&self, request: &ExportMetricsServiceRequest) -> Option<u64> {
        let connection = call::nobody();
        match &self.target {
            Target::Grpc(service) => {
                let answer =
                    service.ask::<ExportMetricsServiceResponse>(otlp::METRICS, request, &connection).await;
                self.fate.note(service.cluster.name(), &answer);
                match answer {
                    Ok(answer) => {
                        let refused = answer.partial_success.unwrap_or_default().rejected_data_points;
                        Some(u64::try_from(refused).unwrap_or(0))
                    }
                    Err(error) => refused(&error),
                }
            }
            Target::Http(collector) => {
                let body = request.encode_to_vec();
                let answer = collector.export(body, &connection).await;
                self.fate.note(collector.cluster.name(), &answer);
                answer.map_or_else(|error| refused(&error), |()| Some(0))
            }
        }
    }

    fn request(&self, points: &[Point], tags: Tags, now: u64) -> ExportMetricsServiceRequest {
        let points = points.iter().map(|(sample, began)| {
            let (name, attributes) = self.name(sample, tags);
            let number = match &sample.value {
                Value::Counter(count) => Number::Sum(i64::try_from(*count).unwrap_or(i64::MAX)),
                Value::Gauge(value) => Number::Gauge(*value),
                Value::Histogram(buckets, sum) => Number::Histogram(&buckets[..], &BUCKETS, *sum),
            };
            otlp::Point { name, attributes, began: *began, number }
        });
        otlp::metrics(&self.resource.0, points, now)
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

/// Samples with since when each counts.
fn since(beginnings: &mut Beginnings, samples: Vec<Sample>, now: u64) -> Vec<Point> {
    let named = samples.iter().map(|sample| {
        let counted = match &sample.value {
            Value::Counter(count) => Some(*count),
            Value::Histogram(buckets, _) => Some(buckets.iter().sum()),
            // Says what is now.
            Value::Gauge(_) => None,
        };
        ((&sample.prefix, &sample.name, &sample.labels), counted)
    });
    let began = beginnings.of(named, now);
    samples.into_iter().zip(began).collect()
}

/// All of a message, where somebody does not take this one: the others are not the same.
fn refused(error: &CallError) -> Option<u64> {
    error.is_answer().then_some(u64::MAX)
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
    fn a_series_that_began_anew_or_later_counts_since_the_round_before() {
        let mut beginnings = Beginnings::new(1);
        let counter = |at: usize, count| Sample { value: Value::Counter(count), ..samples().remove(at) };
        let mut began = |samples: Vec<Sample>, now| -> Vec<u64> {
            since(&mut beginnings, samples, now).into_iter().map(|(_, began)| began).collect()
        };
        assert_eq!(began(vec![counter(0, 4)], 10), [1]);
        assert_eq!(began(vec![counter(0, 4), counter(1, 1)], 20), [1, 10]);
        assert_eq!(began(vec![counter(0, 3), counter(1, 2)], 30), [20, 10]);
        assert_eq!(began(vec![counter(0, 5)], 40), [20]);
        assert_eq!(began(vec![counter(0, 5), counter(1, 9)], 50), [20, 40]);
    }
}
