//! Token buckets, shared by all workers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use xds_protos::envoy::r#type::v3::TokenBucket as Proto;

use crate::route::rate_limit::Descriptor;
use crate::state::ConfigError;

/// A bucket that fills steadily, as Envoy's does: not in steps of the fill interval.
#[derive(Debug)]
pub struct Bucket {
    max: u64,
    /// Nanoseconds for one token.
    period: u64,
    origin: Instant,
    /// When the bucket was last empty, as if it had filled ever since, in nanoseconds after the origin. The origin lies so
    /// far back that the bucket is full at first.
    empty_at: AtomicU64,
}

/// A bucket's settings.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    max: u64,
    period: u64,
}

impl Rate {
    /// Compiles the settings.
    ///
    /// # Errors
    /// An interval below Envoy's least one, 50 ms; a bucket that never holds a token.
    pub fn compile(bucket: &Proto) -> Result<Self, ConfigError> {
        let interval =
            bucket.fill_interval.as_ref().and_then(xds_protos::duration::to_std).unwrap_or_default();
        if interval < Duration::from_millis(50) {
            return Err(ConfigError::new("fill_interval", "must be 50 ms or more"));
        }
        if bucket.max_tokens == 0 {
            return Err(ConfigError::new("max_tokens", "must be more than zero"));
        }
        let tokens = bucket.tokens_per_fill.unwrap_or(1);
        if tokens == 0 {
            return Err(ConfigError::new("tokens_per_fill", "must be more than zero"));
        }
        let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX / 2);
        Ok(Self { max: u64::from(bucket.max_tokens), period: (nanos / u64::from(tokens)).max(1) })
    }
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        Self { max: rate.max, period: rate.period, origin: Instant::now(), empty_at: AtomicU64::new(0) }
    }

    /// Nanoseconds since the bucket began, which was when it was empty.
    fn now(&self) -> u64 {
        let age = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX / 2);
        age.saturating_add(self.max.saturating_mul(self.period))
    }

    /// Takes so many tokens, if there are as many. Who asks for none gets none, and does not pass, as in Envoy.
    pub fn take(&self, tokens: u64) -> bool {
        if tokens == 0 {
            return false;
        }
        let now = self.now();
        let full = now.saturating_sub(self.max.saturating_mul(self.period));
        let time = self.period.saturating_mul(tokens);
        let taken = self.empty_at.fetch_update(Relaxed, Relaxed, |empty_at| {
            let empty_at = empty_at.max(full);
            (now.saturating_sub(empty_at) >= time).then(|| empty_at + time)
        });
        taken.is_ok()
    }

    /// The most tokens.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The tokens there are.
    pub fn left(&self) -> u64 {
        (self.now().saturating_sub(self.empty_at.load(Relaxed)) / self.period).min(self.max)
    }

    /// Seconds until there is a token, rounded up; zero where there is one.
    pub fn reset(&self) -> u64 {
        if self.left() > 0 {
            return 0;
        }
        let since = self.now().saturating_sub(self.empty_at.load(Relaxed));
        self.period.saturating_sub(since).div_ceil(1_000_000_000)
    }
}

/// A bucket for requests of a descriptor.
#[derive(Debug)]
struct Described {
    /// Keys, and values; one that is empty stands for any.
    entries: Vec<(Arc<str>, Option<Box<str>>)>,
    rate: Rate,
    /// The one bucket, where no value is left open.
    fixed: Option<Arc<Bucket>>,
    /// A bucket for each combination of values that came, and when it last did.
    open: Mutex<Dynamic>,
}

/// Buckets by values, and the values by when they last came: the oldest is found without a look at all.
#[derive(Debug, Default)]
struct Dynamic {
    buckets: HashMap<Arc<[String]>, (Arc<Bucket>, u64)>,
    ages: BTreeMap<u64, Arc<[String]>>,
    tick: u64,
}

impl Dynamic {
    /// The bucket of these values, a new one if need be; of more than `most` the oldest is forgotten.
    fn bucket(&mut self, values: Vec<String>, most: usize, rate: Rate) -> Arc<Bucket> {
        self.tick += 1;
        let tick = self.tick;
        if let Some((bucket, used)) = self.buckets.get_mut(&*values) {
            if let Some(values) = self.ages.remove(used) {
                self.ages.insert(tick, values);
            }
            *used = tick;
            return bucket.clone();
        }
        if self.buckets.len() >= most.max(1)
            && let Some((_, oldest)) = self.ages.pop_first()
        {
            self.buckets.remove(&oldest);
        }
        let (bucket, values): (_, Arc<[String]>) = (Arc::new(Bucket::new(rate)), values.into());
        self.ages.insert(tick, values.clone());
        self.buckets.insert(values, (bucket.clone(), tick));
        bucket
    }
}

/// All buckets of a filter.
#[derive(Debug)]
pub struct Buckets {
    default: Option<Arc<Bucket>>,
    /// The strictest first, so that a request which is refused by one took no token of a wider one.
    described: Vec<Described>,
    always_default: bool,
    most_dynamic: usize,
}

/// What a filter's buckets say of a request.
pub struct Answer {
    /// It passes.
    pub allowed: bool,
    /// The bucket that decided, for what the client is told of it.
    pub bucket: Option<Arc<Bucket>>,
    /// Whether the descriptor that decided says that the client is told, or not.
    pub told: Option<bool>,
}

/// A bucket that a request is for.
struct Asked {
    period: u64,
    bucket: Arc<Bucket>,
    hits: u64,
    told: Option<bool>,
}

impl Buckets {
    /// `described` has each descriptor's entries (an empty value stands for any) and its rate.
    pub fn new(
        default: Option<Rate>,
        described: Vec<(Vec<(String, String)>, Rate)>,
        always_default: bool,
        most_dynamic: usize,
    ) -> Self {
        let mut described: Vec<_> = described
            .into_iter()
            .map(|(entries, rate)| {
                let open = entries.iter().any(|(_, value)| value.is_empty());
                Described {
                    entries: entries
                        .into_iter()
                        .map(|(k, v)| (k.into(), (!v.is_empty()).then(|| v.into())))
                        .collect(),
                    rate,
                    fixed: (!open).then(|| Arc::new(Bucket::new(rate))),
                    open: Mutex::default(),
                }
            })
            .collect();
        described.sort_by_key(|d| std::cmp::Reverse(d.rate.period));
        let default = default.map(|rate| Arc::new(Bucket::new(rate)));
        Self { default, described, always_default, most_dynamic }
    }

    /// Takes a token of every bucket that the request is for.
    pub fn take(&self, descriptors: &[Descriptor]) -> Answer {
        let mut matched = Vec::new();
        for descriptor in descriptors {
            // One that names the values goes before one that leaves them open.
            let exact = self.described.iter().find(|d| d.fixed.is_some() && d.matches(descriptor));
            let found = exact.or_else(|| self.described.iter().find(|d| d.matches(descriptor)));
            if let Some(described) = found {
                matched.push(Asked {
                    period: described.rate.period,
                    bucket: described.bucket(descriptor, self.most_dynamic),
                    hits: descriptor.hits.unwrap_or(1),
                    told: descriptor.told,
                });
            }
        }
        matched.sort_by_key(|asked| std::cmp::Reverse(asked.period));
        let (first, told) = match matched.first() {
            Some(asked) => (Some(asked.bucket.clone()), asked.told),
            None => (None, None),
        };
        for asked in matched {
            if !asked.bucket.take(asked.hits) {
                return Answer { allowed: false, bucket: Some(asked.bucket), told: asked.told };
            }
        }
        if let (Some(default), true) = (&self.default, first.is_none() || self.always_default) {
            let allowed = default.take(1);
            if !allowed || first.is_none() {
                return Answer { allowed, bucket: Some(default.clone()), told: None };
            }
        }
        Answer { allowed: true, bucket: first, told }
    }
}

impl Described {
    fn matches(&self, descriptor: &Descriptor) -> bool {
        self.entries.len() == descriptor.entries.len()
            && self
                .entries
                .iter()
                .zip(&descriptor.entries)
                .all(|((key, value), (k, v))| key == k && value.as_deref().is_none_or(|value| value == v))
    }

    fn bucket(&self, descriptor: &Descriptor, most: usize) -> Arc<Bucket> {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let values = descriptor.entries.iter().map(|(_, v)| v.clone()).collect();
        self.open.lock().bucket(values, most, self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(max: u32, tokens: u32, interval: Duration) -> Rate {
        let interval = prost_types::Duration {
            seconds: interval.as_secs() as i64,
            nanos: interval.subsec_nanos() as i32,
        };
        Rate::compile(&Proto {
            max_tokens: max,
            tokens_per_fill: Some(tokens),
            fill_interval: Some(interval),
        })
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_fills_steadily_and_never_over_its_brim() {
        let bucket = Bucket::new(rate(2, 2, Duration::from_secs(10)));
        assert_eq!((bucket.left(), bucket.reset()), (2, 0));
        assert!(bucket.take(1) && bucket.take(1) && !bucket.take(1));
        assert_eq!((bucket.left(), bucket.reset()), (0, 5));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(bucket.take(1) && !bucket.take(1));
        tokio::time::advance(Duration::from_secs(100)).await;
        assert!(bucket.take(1) && bucket.take(1) && !bucket.take(1));
    }

    #[tokio::test(start_paused = true)]
    async fn threads_take_no_more_than_there_is() {
        let bucket = Bucket::new(rate(1000, 1, Duration::from_secs(3600)));
        let taken = |bucket: &Bucket| (0..400).filter(|_| bucket.take(1)).count();
        let all: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| taken(&bucket))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(all, 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn descriptors_have_buckets_of_their_own_and_old_values_are_forgotten() {
        let hour = Duration::from_secs(3600);
        let entries = |v: &str| vec![("u".to_owned(), v.to_owned())];
        let buckets = Buckets::new(
            Some(rate(100, 1, hour)),
            vec![(entries("a"), rate(1, 1, hour)), (entries(""), rate(2, 1, hour))],
            true,
            2,
        );
        let descriptor =
            |v: &str| Descriptor { entries: vec![("u".into(), v.to_owned())], ..Descriptor::default() };
        let ask = |v: &str| buckets.take(&[descriptor(v)]).allowed;
        assert!(ask("a") && !ask("a"));
        assert!(ask("b") && ask("b") && !ask("b"));
        assert!(ask("c") && ask("d"), "each value has its own");
        assert!(ask("b"), "b was forgotten for d");
        assert!(buckets.take(&[]).allowed);
        let default = buckets.default.as_ref().unwrap();
        assert_eq!(default.left(), 100 - 7, "what a descriptor refused took no token of the default");
    }
}
