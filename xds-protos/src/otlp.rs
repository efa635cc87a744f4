//! Numbers as OTLP tells them: points gathered into metrics, and metrics into messages that collectors take. Both halves push what
//! they count by it.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::opentelemetry::proto::collector::metrics::v1::ExportMetricsServiceRequest;
use crate::opentelemetry::proto::common::v1::any_value::Value;
use crate::opentelemetry::proto::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use crate::opentelemetry::proto::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use crate::opentelemetry::proto::resource::v1::Resource;

/// The method that takes metrics.
pub const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
/// The most bytes of a message: collectors take 4 MiB at once.
pub const FULL: usize = 1024 * 1024;

/// What a point says.
#[derive(Clone, Copy, Debug)]
pub enum Number<'a> {
    /// A count, which only grows.
    Sum(i64),
    /// What is now, in whole numbers.
    Gauge(i64),
    /// What is now.
    Level(f64),
    /// Counts of each bucket and of what is above the last, the buckets' upper bounds, and the sum of all.
    Histogram(&'a [u64], &'a [f64], f64),
}

/// A point of a series.
#[derive(Clone, Debug)]
pub struct Point<'a> {
    /// The metric.
    pub name: String,
    /// What tells it apart from the metric's others.
    pub attributes: Vec<(String, String)>,
    /// Since when it counts, in nanoseconds.
    pub began: u64,
    /// What it says.
    pub number: Number<'a>,
}

/// A text by its name.
pub fn text(key: impl Into<String>, value: impl Into<String>) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.into())) };
    KeyValue { key: key.into(), value: Some(value), ..KeyValue::default() }
}

/// A moment as OTLP has it.
pub fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The message of these points as they are `now`, from whom `resource` says.
pub fn metrics<'a>(
    resource: &[(String, String)],
    points: impl IntoIterator<Item = Point<'a>>,
    now: u64,
) -> ExportMetricsServiceRequest {
    let mut metrics: Vec<Metric> = Vec::new();
    let mut places: HashMap<(String, u8), usize> = HashMap::new();
    for Point { name, attributes, began, number } in points {
        let attributes = attributes.into_iter().map(|(key, value)| text(key, value)).collect();
        let kind = match number {
            Number::Sum(_) => 0,
            Number::Gauge(_) | Number::Level(_) => 1,
            Number::Histogram(..) => 2,
        };
        let place = *places.entry((name.clone(), kind)).or_insert_with(|| {
            metrics.push(Metric { name, data: Some(empty(kind)), ..Metric::default() });
            metrics.len() - 1
        });
        let point = |value, began| NumberDataPoint {
            attributes: Vec::new(),
            start_time_unix_nano: began,
            time_unix_nano: now,
            value: Some(value),
            flags: 0,
        };
        use number_data_point::Value::{AsDouble, AsInt};
        match (&mut metrics[place].data, number) {
            (Some(metric::Data::Sum(sum)), Number::Sum(count)) => {
                sum.data_points.push(NumberDataPoint { attributes, ..point(AsInt(count), began) });
            }
            (Some(metric::Data::Gauge(gauge)), Number::Gauge(value)) => {
                gauge.data_points.push(NumberDataPoint { attributes, ..point(AsInt(value), 0) });
            }
            (Some(metric::Data::Gauge(gauge)), Number::Level(value)) => {
                gauge.data_points.push(NumberDataPoint { attributes, ..point(AsDouble(value), 0) });
            }
            (Some(metric::Data::Histogram(histogram)), Number::Histogram(counts, bounds, sum)) => {
                histogram.data_points.push(HistogramDataPoint {
                    attributes,
                    start_time_unix_nano: began,
                    time_unix_nano: now,
                    count: counts.iter().sum(),
                    sum: Some(sum),
                    bucket_counts: counts.to_vec(),
                    explicit_bounds: bounds.to_vec(),
                    flags: 0,
                });
            }
            // A place is of the kind that it was made for.
            _ => {}
        }
    }
    let scope = InstrumentationScope {
        name: "weft".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let attributes = resource.iter().map(|(key, value)| text(key.as_str(), value.as_str())).collect();
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource { attributes, dropped_attributes_count: 0 }),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}

fn empty(kind: u8) -> metric::Data {
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    match kind {
        0 => metric::Data::Sum(Sum { data_points: Vec::new(), aggregation_temporality, is_monotonic: true }),
        1 => metric::Data::Gauge(Gauge::default()),
        _ => metric::Data::Histogram(Histogram { data_points: Vec::new(), aggregation_temporality }),
    }
}

/// The next message of these parts, which are in reverse, and how many points are in it: not longer than it may be, unless a point
/// alone is.
pub fn next<T>(
    parts: &mut Vec<&[T]>,
    message: impl Fn(&[T]) -> ExportMetricsServiceRequest,
) -> Option<(ExportMetricsServiceRequest, u64)> {
    loop {
        let part = parts.pop()?;
        let request = message(part);
        if part.len() < 2 || request.encoded_len() <= FULL {
            return Some((request, part.len() as u64));
        }
        let (first, second) = part.split_at(part.len() / 2);
        parts.extend([second, first]);
    }
}

/// Since when series count: metrics go with what they are of, or when they were idle, and begin anew at zero.
#[derive(Debug)]
pub struct Beginnings {
    /// By a hash of what a series is called: what it said, and since when it counts.
    known: HashMap<u64, (u64, u64)>,
    hasher: RandomState,
    /// When they were last looked at: what was not there then began after it.
    looked: u64,
}

impl Beginnings {
    /// Of a process that began then.
    pub fn new(began: u64) -> Self {
        Self { known: HashMap::new(), hasher: RandomState::new(), looked: began }
    }

    /// Looks at all series `now`: each by what it is called, with what it has counted so far, or nothing where it says what is now.
    /// Gives since when each counts.
    pub fn of<K: Hash>(&mut self, series: impl Iterator<Item = (K, Option<u64>)>, now: u64) -> Vec<u64> {
        let mut seen = HashMap::with_capacity(self.known.len());
        let began = |(name, counted): (K, Option<u64>)| {
            let Some(count) = counted else { return self.looked };
            let key = self.hasher.hash_one(name);
            let began = match self.known.get(&key) {
                Some((said, began)) if *said <= count => *began,
                _ => self.looked,
            };
            seen.insert(key, (count, began));
            began
        };
        let all = series.map(began).collect();
        (self.known, self.looked) = (seen, now);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(name: &str, number: Number<'static>) -> Point<'static> {
        Point { name: name.to_owned(), attributes: Vec::new(), began: 1, number }
    }

    #[test]
    fn points_of_one_metric_stand_together_and_kinds_apart() {
        let points = [
            point("a", Number::Sum(1)),
            point("b", Number::Gauge(-1)),
            point("a", Number::Sum(2)),
            point("b", Number::Level(0.5)),
            point("a", Number::Gauge(3)),
            point("h", Number::Histogram(&[1, 2], &[0.5], 2.0)),
        ];
        let request = metrics(&[("who".to_owned(), "me".to_owned())], points, 9);
        let shown = crate::json::to_value(&request);
        assert_eq!(shown["resource_metrics"][0]["resource"]["attributes"][0]["key"], "who");
        let all = &request.resource_metrics[0].scope_metrics[0].metrics;
        let shape: Vec<_> = all
            .iter()
            .map(|metric| {
                let points = match metric.data.as_ref().unwrap() {
                    metric::Data::Sum(sum) => sum.data_points.len(),
                    metric::Data::Gauge(gauge) => gauge.data_points.len(),
                    metric::Data::Histogram(histogram) => histogram.data_points.len(),
                };
                format!("{} {points}", metric.name)
            })
            .collect();
        assert_eq!(shape, ["a 2", "b 2", "a 1", "h 1"]);
    }

    #[test]
    fn long_messages_are_cut_in_two_until_they_are_taken() {
        let long = "long".repeat(FULL / 16);
        let all: Vec<usize> = (0..28).collect();
        let message = |part: &[usize]| {
            let of = |number: &usize| point(&format!("{number}{long}"), Number::Sum(1));
            metrics(&[], part.iter().map(of), 1)
        };
        let (mut parts, mut counts) = (vec![&all[..]], Vec::new());
        while let Some((request, count)) = next(&mut parts, message) {
            assert!(count == 1 || request.encoded_len() <= FULL);
            counts.push(count);
        }
        assert!(counts.iter().sum::<u64>() == 28 && counts.len() > 1, "{counts:?}");
    }
}
