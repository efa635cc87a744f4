//! Metrics of one's own (`stats.PluginConfig`'s `definitions`, with what Weft adds to them): labels and value are expressions over a
//! request that has ended.
//!
//! Clients choose what labels say, so a metric has a bound of series, beyond which they are counted together, and one that nobody
//! has counted for a while goes. Both need all workers to agree: the series of a metric stand behind one lock, which only requests
//! of listeners with such metrics take. A metric's series are the same for all listeners that count it, and outlive their updates.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use xds_protos::stats::{MetricDefinition, MetricType};

use super::changes::interned;
use crate::state::ConfigError;
use crate::telemetry::cel::{Expression, Seen, cut};
use crate::telemetry::registry::{Counter, Group, Metric};

/// What stands in the labels of what was counted together.
const OVERFLOW: &str = "overflow";

/// A metric, as one listener's configuration has it.
#[derive(Debug)]
pub(super) struct Custom {
    value: Expression,
    labels: Vec<Label>,
    store: Arc<Store>,
}

#[derive(Debug)]
struct Label {
    expression: Expression,
    otherwise: String,
    hash: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// What makes a metric the same as another listener's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shape {
    name: &'static str,
    kind: Kind,
    labels: Vec<&'static str>,
}

/// The series of a metric.
#[derive(Debug)]
struct Store {
    shape: Shape,
    bounds: Mutex<Bounds>,
    series: Mutex<HashMap<Vec<String>, Series>>,
    /// What was counted together, by metric.
    folded: (Arc<Group>, Counter),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    most: usize,
    /// None: for ever.
    idle: Option<Duration>,
}

/// One series: its cells go with it.
#[derive(Debug)]
struct Series {
    _group: Arc<Group>,
    metric: Metric,
    last: Instant,
    /// What a gauge was set to last.
    at: i64,
}

/// The stores that are there.
static STORES: LazyLock<Mutex<HashMap<Shape, Weak<Store>>>> = LazyLock::new(Mutex::default);

impl Custom {
    /// Compiles a definition.
    ///
    /// # Errors
    /// It is not one of Weft's, or what it says makes no metric.
    pub(super) fn compile(definition: &MetricDefinition) -> Result<Self, ConfigError> {
        if definition.max_series == 0 {
            let what = "a metric without a bound of its series; Weft counts those of its own control plane's MetricDefinitions";
            return Err(ConfigError::unsupported("max_series", what));
        }
        let name = &definition.name;
        let fits = |name: &str, more: &str| {
            let first = name.as_bytes().first().is_some_and(|first| !first.is_ascii_digit());
            first
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || more.as_bytes().contains(&b))
        };
        if !fits(name, ":") {
            return Err(ConfigError::new("name", format!("{name:?} is no name of a metric")));
        }
        let kind = match MetricType::try_from(definition.r#type) {
            Ok(MetricType::Counter) => Kind::Counter,
            Ok(MetricType::Gauge) => Kind::Gauge,
            Ok(MetricType::Histogram) => Kind::Histogram,
            Err(_) => return Err(ConfigError::new("type", "is none of COUNTER, GAUGE and HISTOGRAM")),
        };
        let value = Expression::compile(&definition.value).map_err(|e| ConfigError::new("value", e))?;
        let (mut labels, mut names) = (Vec::new(), Vec::new());
        for (index, dimension) in definition.dimensions.iter().enumerate() {
            let at =
                |field: &str, what: String| ConfigError::new(format!("dimensions[{index}].{field}"), what);
            if !fits(&dimension.name, "") || names.contains(&dimension.name.as_str()) {
                let what = format!("{:?} is no label of a metric, or is there twice", dimension.name);
                return Err(at("name", what));
            }
            let expression = Expression::compile(&dimension.value).map_err(|reason| at("value", reason))?;
            names.push(interned(&dimension.name));
            labels.push(Label { expression, otherwise: dimension.otherwise.clone(), hash: dimension.hash });
        }
        let idle = definition.idle_timeout.as_ref().map(|time| {
            Duration::new(u64::try_from(time.seconds).unwrap_or(0), u32::try_from(time.nanos).unwrap_or(0))
        });
        let bounds =
            Bounds { most: definition.max_series as usize, idle: idle.filter(|idle| !idle.is_zero()) };
        let store = Store::of(Shape { name: interned(name), kind, labels: names }, bounds);
        Ok(Self { value, labels, store })
    }

    pub(super) fn looks_at_requests(&self) -> bool {
        self.value.looks_at_request() || self.labels.iter().any(|label| label.expression.looks_at_request())
    }

    /// Counts a request that has ended; one whose value is no number does not count.
    pub(super) fn count(&self, seen: Seen<'_>) {
        let Some(value) = self.value.number(seen).filter(|value| value.abs() <= LARGEST) else { return };
        if self.store.shape.kind == Kind::Counter && value <= 0.0 {
            return;
        }
        let label = |label: &Label| match label.expression.whole(seen) {
            None => label.otherwise.clone(),
            Some(said) if label.hash => digest(&said),
            Some(said) => cut(said),
        };
        self.store.count(self.labels.iter().map(label).collect(), value, Instant::now());
    }
}

/// Larger ones are no amounts, and would turn the sums over.
const LARGEST: f64 = 1e12;

/// What stands in the place of a value that is nobody's business: the same for the same value, everywhere.
fn digest(value: &str) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, value.as_bytes());
    digest.as_ref().iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Store {
    /// The one of this shape, with the latest bounds.
    fn of(shape: Shape, bounds: Bounds) -> Arc<Self> {
        let mut stores = STORES.lock();
        if let Some(known) = stores.get(&shape).and_then(Weak::upgrade) {
            *known.bounds.lock() = bounds;
            return known;
        }
        stores.retain(|_, store| store.strong_count() > 0);
        let group = Group::new("", Vec::new());
        let labels = vec![("metric", shape.name.to_owned())];
        let folded = group.counter_with("weft_metric_samples_folded_total", labels);
        let store = Arc::new(Self {
            shape: shape.clone(),
            bounds: Mutex::new(bounds),
            series: Mutex::default(),
            folded: (group, folded),
        });
        stores.insert(shape, Arc::downgrade(&store));
        store
    }

    fn count(&self, labels: Vec<String>, value: f64, now: Instant) {
        let bounds = *self.bounds.lock();
        let mut all = self.series.lock();
        let labels = if all.contains_key(&labels) || all.len() < bounds.most {
            labels
        } else {
            self.folded.1.inc();
            vec![OVERFLOW.to_owned(); labels.len() + 1]
        };
        let series = all.entry(labels).or_insert_with_key(|labels| self.make(labels, now));
        series.last = now;
        match series.metric {
            Metric::Counter(counter) => counter.add(value.round() as u64),
            // Under the lock, so one at a time, and nobody's cells have to be added up.
            Metric::Gauge(gauge) => {
                let now = value.round() as i64;
                gauge.add(now - std::mem::replace(&mut series.at, now));
            }
            Metric::Histogram(histogram) => histogram.record(value.max(0.0)),
        }
    }

    fn make(&self, values: &[String], now: Instant) -> Series {
        let group = Group::new("", Vec::new());
        let mut labels: Vec<_> = self.shape.labels.iter().copied().zip(values.iter().cloned()).collect();
        // Only what was counted together has one value more than labels.
        if values.len() > labels.len() {
            labels.push((OVERFLOW, "true".to_owned()));
        }
        let name = self.shape.name;
        let metric = match self.shape.kind {
            Kind::Counter => Metric::Counter(group.counter_with(name, labels)),
            Kind::Gauge => Metric::Gauge(group.gauge_with(name, labels)),
            Kind::Histogram => Metric::Histogram(group.histogram_with(name, labels)),
        };
        Series { _group: group, metric, last: now, at: 0 }
    }

    fn expire(&self, now: Instant) {
        let bounds = *self.bounds.lock();
        let Some(idle) = bounds.idle else { return };
        let is_idle = |series: &Series| now.saturating_duration_since(series.last) >= idle;
        let gone: Vec<_> = self.series.lock().extract_if(|_, series| is_idle(series)).collect();
        // Without the lock, for which requests wait: their cells are freed one by one.
        drop(gone);
    }
}

/// Lets series go that nobody has counted for as long as they may be idle. To be called often; it looks once in a while.
pub fn expire(now: Instant) {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    if !CALLS.fetch_add(1, Relaxed).is_multiple_of(10) {
        return;
    }
    let stores: Vec<_> = STORES.lock().values().filter_map(Weak::upgrade).collect();
    stores.iter().for_each(|store| store.expire(now));
}

#[cfg(test)]
mod tests {
    use xds_protos::stats::MetricDimension;

    use super::*;
    use crate::codec::{Protocol, RequestHead};
    use crate::io::ConnectionInfo;
    use crate::telemetry::StreamInfo;

    fn definition(name: &str, most: u32) -> MetricDefinition {
        let dimension = |name: &str, value: &str, otherwise: &str, hash: bool| MetricDimension {
            name: name.to_owned(),
            value: value.to_owned(),
            otherwise: otherwise.to_owned(),
            hash,
        };
        MetricDefinition {
            name: name.to_owned(),
            value: "1".to_owned(),
            dimensions: vec![
                dimension("kind", "request.headers['transaction-type']", "unknown", false),
                dimension("user", "request.headers['user-id']", "anonymous", true),
            ],
            max_series: most,
            ..MetricDefinition::default()
        }
    }

    fn count(custom: &Custom, headers: &[(&'static str, &'static str)]) {
        let address = "127.0.0.1:1".parse().unwrap();
        let connection = ConnectionInfo::between(address, address);
        let mut request = RequestHead::empty(Protocol::Http11);
        for (name, value) in headers {
            request
                .headers
                .append(http::HeaderName::from_static(name), http::HeaderValue::from_static(value));
        }
        let stream = StreamInfo::new(Some(Protocol::Http11));
        custom.count(Seen {
            stream: &stream,
            connection: &connection,
            request: Some(&request),
            response: None,
            trailers: None,
            far: None,
        });
    }

    fn shown(custom: &Custom) -> Vec<(String, u64)> {
        let all = custom.store.series.lock();
        let mut found: Vec<_> = all
            .iter()
            .map(|(labels, series)| match series.metric {
                Metric::Counter(counter) => (labels.join(","), counter.value()),
                Metric::Gauge(gauge) => (labels.join(","), gauge.value() as u64),
                Metric::Histogram(histogram) => (labels.join(","), histogram.value().1 as u64),
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn labels_are_what_requests_bring_with_defaults_and_beyond_the_bound_all_are_one() {
        let custom = Custom::compile(&definition("own_a", 2)).unwrap();
        assert!(custom.looks_at_requests());
        count(&custom, &[("transaction-type", "buy"), ("user-id", "anna")]);
        count(&custom, &[("transaction-type", "buy"), ("user-id", "anna")]);
        count(&custom, &[]);
        for kind in ["sell", "rent"] {
            count(&custom, &[("transaction-type", kind)]);
        }
        let anna = format!("buy,{}", digest("anna"));
        let rows = [(anna.as_str(), 2), ("overflow,overflow,overflow", 2), ("unknown,anonymous", 1)];
        assert_eq!(shown(&custom), rows.map(|(labels, n)| (labels.to_owned(), n)));
        assert!(!anna.contains("anna"));
        assert_eq!(custom.store.folded.1.value(), 2);
        // A digest is of all of a value, however long; a label has the beginning of it.
        let long = |end: &str| &*Box::leak(format!("{}{end}", "x".repeat(300)).into_boxed_str());
        let people = Custom::compile(&definition("own_long", 9)).unwrap();
        for end in ["anna", "berta"] {
            count(&people, &[("transaction-type", long("")), ("user-id", long(end))]);
        }
        let labels: Vec<String> = shown(&people).into_iter().map(|(labels, _)| labels).collect();
        assert_eq!(labels.len(), 2);
        assert!(
            labels.iter().all(|labels| labels.starts_with(&format!("{},", "x".repeat(256)))),
            "{labels:?}"
        );
        // Another listener, or an update, counts on.
        let again = Custom::compile(&definition("own_a", 5)).unwrap();
        count(&again, &[("transaction-type", "sell")]);
        assert_eq!(shown(&custom).len(), 4);
        // A metric with other labels is another one.
        let other = MetricDefinition { dimensions: Vec::new(), ..definition("own_a", 2) };
        assert_eq!(shown(&Custom::compile(&other).unwrap()), []);
    }

    #[test]
    fn a_value_is_what_the_expression_says_and_what_is_none_does_not_count() {
        let of = |name: &str, value: &str, kind: MetricType| {
            let dimensions = Vec::new();
            let value = value.to_owned();
            Custom::compile(&MetricDefinition {
                value,
                r#type: kind.into(),
                dimensions,
                ..definition(name, 1)
            })
            .unwrap()
        };
        let amount = "double(request.headers['amount'])";
        let sum = of("own_b", amount, MetricType::Histogram);
        count(&sum, &[("amount", "12.5")]);
        count(&sum, &[("amount", "many")]);
        // What would turn the sum over is no amount.
        for amount in ["1e30", "-1e30", "inf", "NaN"] {
            count(&sum, &[("amount", amount)]);
        }
        count(&sum, &[]);
        assert_eq!(shown(&sum), [(String::new(), 12)]);
        let last = of("own_c", amount, MetricType::Gauge);
        count(&last, &[("amount", "7")]);
        count(&last, &[("amount", "3")]);
        assert_eq!(shown(&last), [(String::new(), 3)]);
        let none = of("own_d", "0", MetricType::Counter);
        count(&none, &[]);
        assert_eq!(shown(&none), []);
    }

    #[test]
    fn a_series_that_nobody_counts_goes() {
        let idle_timeout = Some(xds_protos::prost_types::Duration { seconds: 60, nanos: 0 });
        let custom = Custom::compile(&MetricDefinition { idle_timeout, ..definition("own_e", 9) }).unwrap();
        count(&custom, &[]);
        custom.store.expire(Instant::now() + Duration::from_secs(59));
        assert_eq!(shown(&custom).len(), 1);
        custom.store.expire(Instant::now() + Duration::from_secs(61));
        assert_eq!(shown(&custom), []);
    }

    #[test]
    fn what_makes_no_metric_is_refused() {
        for (change, words) in [
            ((|d| d.max_series = 0) as fn(&mut MetricDefinition), "max_series"),
            (|d| d.name = "1a".to_owned(), "no name of a metric"),
            (|d| d.value = "1 +".to_owned(), "value"),
            (|d| d.dimensions[1].name = "kind".to_owned(), "dimensions[1].name"),
            (|d| d.dimensions[0].value = "nobody.knows".to_owned(), "dimensions[0].value"),
        ] {
            let mut wrong = definition("own_f", 1);
            change(&mut wrong);
            let error = Custom::compile(&wrong).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
