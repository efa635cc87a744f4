//! What the service has received, for an observer who wants to know what came out of the mesh.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::http::request::Parts;
use serde::Serialize;

/// So many requests are kept; all are counted.
const KEPT: usize = 5000;

/// A request as it came.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Received {
    /// From 1, in the order of coming.
    number: u64,
    /// Milliseconds since 1970.
    at: u64,
    method: String,
    /// Path and query.
    path: String,
    version: String,
    /// The Host header or the authority.
    host: String,
    /// All headers in their order.
    headers: Vec<(String, String)>,
}

/// All that is remembered.
#[derive(Debug, Serialize)]
pub(super) struct Recorded {
    total: u64,
    requests: Vec<Received>,
}

#[derive(Debug, Default)]
pub(super) struct Record(Mutex<(u64, VecDeque<Received>)>);

impl Record {
    fn with<T>(&self, f: impl FnOnce(&mut (u64, VecDeque<Received>)) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(super) fn add(&self, head: &Parts) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let text = |v: &hyper::header::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        let authority = head.uri.authority().map(ToString::to_string);
        let mut received = Received {
            number: 0,
            at: u64::try_from(at).unwrap_or_default(),
            method: head.method.to_string(),
            path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            version: format!("{:?}", head.version),
            host: head.headers.get("host").map(text).or(authority).unwrap_or_default(),
            headers: head.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect(),
        };
        self.with(|(total, kept)| {
            *total += 1;
            received.number = *total;
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(received);
        });
    }

    /// How many came, and the last of them, oldest first.
    pub(super) fn last(&self, n: usize) -> Recorded {
        self.with(|(total, kept)| Recorded {
            total: *total,
            requests: kept.iter().skip(kept.len().saturating_sub(n)).cloned().collect(),
        })
    }

    pub(super) fn forget(&self) {
        self.with(|state| *state = (0, VecDeque::new()));
    }
}
