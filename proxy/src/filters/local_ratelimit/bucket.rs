//! Token buckets, shared by all workers.

use std::collections::HashMap;
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

    /// Takes a token, if there is one.
    pub fn take(&self) -> bool {
        let now = self.now();
        let full = now.saturating_sub(self.max.saturating_mul(self.period));
        let taken = self.empty_at.fetch_update(Relaxed, Relaxed, |empty_at| {
            let empty_at = empty_at.max(full);
            (now.saturating_sub(empty_at) >= self.period).then_some(empty_at + self.period)
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

#[derive(Debug, Default)]
struct Dynamic {
    buckets: HashMap<Vec<String>, (Arc<Bucket>, u64)>,
    tick: u64,
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
                matched.push((described.rate.period, described.bucket(descriptor, self.most_dynamic)));
            }
        }
        matched.sort_by_key(|(period, _)| std::cmp::Reverse(*period));
        let first = matched.first().map(|(_, bucket)| bucket.clone());
        for (_, bucket) in matched {
            if !bucket.take() {
                return Answer { allowed: false, bucket: Some(bucket) };
            }
        }
        if let (Some(default), true) = (&self.default, first.is_none() || self.always_default) {
            let allowed = default.take();
            if !allowed || first.is_none() {
                return Answer { allowed, bucket: Some(default.clone()) };
            }
        }
        Answer { allowed: true, bucket: first }
    }
}

impl Described {
    fn matches(&self, descriptor: &Descriptor) -> bool {
        self.entries.len() == descriptor.len()
            && self
                .entries
                .iter()
                .zip(descriptor)
                .all(|((key, value), (k, v))| key == k && value.as_deref().is_none_or(|value| value == v))
    }

    fn bucket(&self, descriptor: &Descriptor, most: usize) -> Arc<Bucket> {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let values: Vec<_> = descriptor.iter().map(|(_, v)| v.clone()).collect();
        let mut open = self.open.lock();
        open.tick += 1;
        let tick = open.tick;
        if let Some((bucket, used)) = open.buckets.get_mut(&values) {
            *used = tick;
            return bucket.clone();
        }
        if open.buckets.len() >= most.max(1)
            && let Some(oldest) =
                open.buckets.iter().min_by_key(|(_, (_, used))| *used).map(|(k, _)| k.clone())
        {
            open.buckets.remove(&oldest);
        }
        let bucket = Arc::new(Bucket::new(self.rate));
        open.buckets.insert(values, (bucket.clone(), tick));
        bucket
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
        assert!(bucket.take() && bucket.take() && !bucket.take());
        assert_eq!((bucket.left(), bucket.reset()), (0, 5));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(bucket.take() && !bucket.take());
        tokio::time::advance(Duration::from_secs(100)).await;
        assert!(bucket.take() && bucket.take() && !bucket.take());
    }

    #[tokio::test(start_paused = true)]
    async fn threads_take_no_more_than_there_is() {
        let bucket = Bucket::new(rate(1000, 1, Duration::from_secs(3600)));
        let taken = |bucket: &Bucket| (0..400).filter(|_| bucket.take()).count();
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
        let ask = |v: &str| buckets.take(&[vec![("u".into(), v.to_owned())]]).allowed;
        assert!(ask("a") && !ask("a"));
        assert!(ask("b") && ask("b") && !ask("b"));
        assert!(ask("c") && ask("d"), "each value has its own");
        assert!(ask("b"), "b was forgotten for d");
        assert!(buckets.take(&[]).allowed);
        let default = buckets.default.as_ref().unwrap();
        assert_eq!(default.left(), 100 - 7, "what a descriptor refused took no token of the default");
    }
}
