//! How many certificates one identity may ask for in a time: a bucket of permits each, so that a workload that asks in a loop
//! hurts nobody but itself.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;

/// So many identities are remembered before those are dropped that have their permits back anyway.
const REMEMBERED: usize = 10_000;

/// The limit. Full buckets are not kept.
#[derive(Debug)]
pub struct RateLimit {
    /// Permits for each minute, and at most at once; 0 is no limit.
    per_minute: u32,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    permits: f64,
    at: Instant,
}

impl RateLimit {
    /// So many requests a minute for each identity; 0 is no limit.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, buckets: Mutex::default() }
    }

    /// Takes a permit of `identity` at `now`; without one, says in how many seconds there will be.
    pub fn take(&self, identity: &str, now: Instant) -> Result<(), u64> {
        if self.per_minute == 0 {
            return Ok(());
        }
        let (full, rate) = (f64::from(self.per_minute), f64::from(self.per_minute) / 60.0);
        let refilled =
            |b: &Bucket| (b.permits + now.saturating_duration_since(b.at).as_secs_f64() * rate).min(full);
        let mut buckets = self.buckets.lock();
        if buckets.len() >= REMEMBERED && !buckets.contains_key(identity) {
            buckets.retain(|_, b| refilled(b) < full);
        }
        let bucket = buckets.entry(identity.to_owned()).or_insert(Bucket { permits: full, at: now });
        let permits = refilled(bucket);
        *bucket = Bucket { permits, at: now };
        if permits < 1.0 {
            return Err(((1.0 - permits) / rate).ceil() as u64);
        }
        bucket.permits -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_identity_gets_its_share_and_takes_nobody_elses() {
        let (limit, start) = (RateLimit::new(6), Instant::now());
        for _ in 0..6 {
            limit.take("a", start).unwrap();
        }
        assert_eq!(limit.take("a", start), Err(10));
        limit.take("b", start).unwrap();
        // One comes back each ten seconds, and no more than six are saved up.
        assert_eq!(limit.take("a", start + Duration::from_secs(9)), Err(1));
        limit.take("a", start + Duration::from_secs(10)).unwrap();
        let later = start + Duration::from_secs(3600);
        for _ in 0..6 {
            limit.take("a", later).unwrap();
        }
        assert!(limit.take("a", later).is_err());
        let none = RateLimit::new(0);
        assert!((0..1000).all(|_| none.take("a", start).is_ok()));
    }

    #[test]
    fn who_asks_once_is_not_remembered_for_ever() {
        let (limit, start) = (RateLimit::new(60), Instant::now());
        for i in 0..3 * REMEMBERED {
            limit.take(&i.to_string(), start + Duration::from_millis(i as u64)).unwrap();
        }
        assert!(limit.buckets.lock().len() <= REMEMBERED);
    }
}
