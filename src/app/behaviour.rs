//! How the service answers when it is told to be slow or to fail.

use std::sync::Mutex;
use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Behaviour {
    /// Wait so long before each answer.
    pub(super) delay_ms: u64,
    /// Answer with this status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fail_status: Option<u16>,
    /// But only every so many requests.
    pub(super) fail_every: u32,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { delay_ms: 0, fail_status: None, fail_every: 1 }
    }
}

impl Behaviour {
    /// Reads the body of a change.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let new: Self = serde_json::from_slice(body).map_err(|e| {
            format!("{e}; write for example {{\"delayMs\": 100, \"failStatus\": 503, \"failEvery\": 2}}")
        })?;
        match new.fail_status {
            Some(status) if !(200..600).contains(&status) => {
                return Err(format!("failStatus: {status} is not from 200 to 599"));
            }
            _ => {}
        }
        if new.fail_every == 0 {
            return Err("failEvery: must be at least 1".to_owned());
        }
        Ok(new)
    }
}

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) delay: Duration,
    pub(super) fail: Option<StatusCode>,
}

/// The behaviour now, and how many requests have come under it.
#[derive(Debug)]
pub(super) struct Behaving(Mutex<(Behaviour, u32)>);

impl Behaving {
    pub(super) fn new(behaviour: Behaviour) -> Self {
        Self(Mutex::new((behaviour, 0)))
    }

    fn with<T>(&self, f: impl FnOnce(&mut (Behaviour, u32)) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(super) fn get(&self) -> Behaviour {
        self.with(|(behaviour, _)| *behaviour)
    }

    /// Changes it; counting begins anew.
    pub(super) fn set(&self, behaviour: Behaviour) {
        self.with(|state| *state = (behaviour, 0));
    }

    /// Counts a request and says what becomes of it.
    pub(super) fn next(&self) -> Fate {
        self.with(|(behaviour, count)| {
            *count = count.wrapping_add(1);
            let fail = behaviour.fail_status.filter(|_| count.is_multiple_of(behaviour.fail_every.max(1)));
            Fate {
                delay: Duration::from_millis(behaviour.delay_ms),
                fail: fail.and_then(|s| StatusCode::from_u16(s).ok()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_third_request_fails() {
        let behaving = Behaving::new(Behaviour::default());
        assert_eq!(behaving.next().fail, None);
        behaving.set(Behaviour::parse(br#"{"failStatus": 503, "failEvery": 3, "delayMs": 5}"#).unwrap());
        let fates: Vec<_> = (0..6).map(|_| behaving.next()).collect();
        let failed: Vec<_> = fates.iter().map(|f| f.fail.map(|s| s.as_u16())).collect();
        assert_eq!(failed, [None, None, Some(503), None, None, Some(503)]);
        assert_eq!(fates[0].delay, Duration::from_millis(5));
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for wrong in [r#"{"slow": true}"#, r#"{"failStatus": 99}"#, r#"{"failEvery": 0}"#, "x"] {
            assert!(Behaviour::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(Behaviour::parse(b"{\"slow\": 1}").unwrap_err().contains("delayMs"));
    }
}
