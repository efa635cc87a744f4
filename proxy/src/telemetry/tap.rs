//! Live requests, for whoever watches (`weft tap`): each request that a watcher wants is told when it has ended.
//!
//! While nobody watches, a request pays one relaxed load. A watcher's queue is bounded: what it does not take in time is dropped
//! and counted, and no request waits. Values of fields that may be secrets never leave the worker.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use http::HeaderName;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::record::Entry;
use crate::codec::{Headers, RequestHead};

/// Requests that wait for one watcher.
const QUEUE: usize = 1024;
/// As many may watch one proxy at a time.
const WATCHERS: usize = 16;
/// As many fields of a message are told, and as much of a value.
const FIELDS: usize = 100;
const LONGEST: usize = 1024;

/// Fields whose values are never told.
const SECRET: [&str; 8] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "x-auth-token",
    "x-amz-security-token",
    "x-goog-iap-jwt-assertion",
];

/// Further ones.
static FURTHER: OnceLock<Vec<HeaderName>> = OnceLock::new();

/// Names further fields whose values are never told, before the first request.
pub fn hide(names: Vec<HeaderName>) {
    let _ = FURTHER.set(names);
}

/// Which requests a watcher wants: those for which all of it holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// The method.
    pub method: Option<String>,
    /// How the path begins.
    pub path: Option<String>,
    /// The status, or with its first digit alone its class.
    pub status: Option<u16>,
    /// Part of the caller's identity, or the name of its workload.
    pub from: Option<String>,
    /// Fields of the request, with a value or with any.
    pub headers: Vec<(HeaderName, Option<String>)>,
    /// `inbound` or `outbound`.
    pub direction: Option<String>,
}

impl Wanted {
    fn takes(&self, entry: &Entry, head: Option<&RequestHead>) -> bool {
        let status =
            |wanted: u16| if wanted < 10 { entry.status / 100 == wanted } else { entry.status == wanted };
        let from = |wanted: &String| {
            entry.peer.as_deref().is_some_and(|peer| peer.contains(wanted.as_str()))
                || entry.workloads.0.as_ref().is_some_and(|w| *w.name == **wanted)
        };
        let has = |(name, value): &(HeaderName, Option<String>)| {
            head.is_some_and(|head| {
                let mut all = head.headers.get_all(name);
                all.any(|own| value.as_ref().is_none_or(|value| own.as_bytes() == value.as_bytes()))
            })
        };
        self.method.as_ref().is_none_or(|method| entry.method.eq_ignore_ascii_case(method))
            && self.path.as_ref().is_none_or(|path| entry.path.starts_with(path.as_str()))
            && self.status.is_none_or(status)
            && self.from.as_ref().is_none_or(from)
            && self.direction.as_ref().is_none_or(|d| *d == entry.direction())
            && self.headers.iter().all(has)
    }
}

/// A request for a watcher.
#[derive(Debug)]
pub struct Tapped {
    entry: Arc<Entry>,
    request: Vec<(HeaderName, String)>,
    response: Vec<(HeaderName, String)>,
}

impl Tapped {
    /// As a line of JSON.
    pub fn json(&self) -> Value {
        let fields = |all: &[(HeaderName, String)]| -> Value {
            all.iter().map(|(name, value)| json!([name.as_str(), value])).collect()
        };
        let mut page = self.entry.json();
        page["requestHeaders"] = fields(&self.request);
        page["responseHeaders"] = fields(&self.response);
        page
    }
}

struct Watcher {
    wanted: Wanted,
    queue: mpsc::Sender<Tapped>,
    dropped: AtomicU64,
}

/// How many watch.
static WATCHED: AtomicUsize = AtomicUsize::new(0);
static WATCHERS_NOW: Mutex<Vec<Arc<Watcher>>> = Mutex::new(Vec::new());

/// Whether anybody watches.
#[inline]
pub fn is_on() -> bool {
    WATCHED.load(Relaxed) > 0
}

/// One who watches, until it is dropped.
pub struct Watch {
    watcher: Arc<Watcher>,
    queue: mpsc::Receiver<Tapped>,
}

impl Watch {
    /// Begins to watch; none where as many as may do already.
    pub fn begin(wanted: Wanted) -> Option<Self> {
        Self::with_room(wanted, QUEUE)
    }

    fn with_room(wanted: Wanted, room: usize) -> Option<Self> {
        let (sender, queue) = mpsc::channel(room);
        let watcher = Arc::new(Watcher { wanted, queue: sender, dropped: AtomicU64::new(0) });
        let mut all = WATCHERS_NOW.lock();
        if all.len() >= WATCHERS {
            return None;
        }
        all.push(watcher.clone());
        WATCHED.store(all.len(), Relaxed);
        Some(Self { watcher, queue })
    }

    /// The next request.
    pub fn poll(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Tapped>> {
        self.queue.poll_recv(cx)
    }

    /// How many were dropped since this was asked last.
    pub fn dropped(&self) -> u64 {
        self.watcher.dropped.swap(0, Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut all = WATCHERS_NOW.lock();
        all.retain(|one| !Arc::ptr_eq(one, &self.watcher));
        WATCHED.store(all.len(), Relaxed);
    }
}

/// Tells those who want it that a request has ended.
pub fn tell(entry: &Arc<Entry>, request: Option<&RequestHead>, response: Option<&Headers>) {
    // Copied out, so that workers that tell do not wait for each other longer than that takes.
    let all: Vec<_> =
        WATCHERS_NOW.lock().iter().filter(|w| w.wanted.takes(entry, request)).cloned().collect();
    for watcher in all {
        let tapped = Tapped {
            entry: entry.clone(),
            request: request.map(|head| told(&head.headers)).unwrap_or_default(),
            response: response.map(told).unwrap_or_default(),
        };
        if watcher.queue.try_send(tapped).is_err() {
            watcher.dropped.fetch_add(1, Relaxed);
        }
    }
}

fn is_secret(name: &HeaderName) -> bool {
    SECRET.contains(&name.as_str()) || FURTHER.get().is_some_and(|further| further.contains(name))
}

/// Fields as they are told.
fn told(headers: &Headers) -> Vec<(HeaderName, String)> {
    let value = |name: &HeaderName, value: &http::HeaderValue| {
        if is_secret(name) {
            return "(redacted)".to_owned();
        }
        let bytes = value.as_bytes();
        String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned()
    };
    headers.iter().take(FIELDS).map(|(name, own)| (name.clone(), value(name, own))).collect()
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method};

    use super::super::record::Class;
    use super::super::record::entry::tests::entry;
    use super::*;
    use crate::codec::Protocol;

    fn head(fields: &[(&'static str, &'static str)]) -> RequestHead {
        let mut head = RequestHead::empty(Protocol::Http11);
        head.method = Method::GET;
        for (name, value) in fields {
            head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        head
    }

    #[test]
    fn a_watcher_gets_what_it_wants() {
        let mut one = entry(Class::Good, "1");
        (one.path, one.status) = ("/api/users/7".into(), 404);
        one.peer = Some("spiffe://cluster.local/ns/shop/sa/web".into());
        let head = head(&[("canary", "true")]);
        let takes = |change: fn(&mut Wanted)| {
            let mut wanted = Wanted::default();
            change(&mut wanted);
            wanted.takes(&one, Some(&head))
        };
        assert!(takes(|_| {}));
        assert!(takes(|w| w.method = Some("get".into())) && !takes(|w| w.method = Some("POST".into())));
        assert!(takes(|w| w.path = Some("/api".into())) && !takes(|w| w.path = Some("/users".into())));
        assert!(takes(|w| w.status = Some(4)) && takes(|w| w.status = Some(404)));
        assert!(!takes(|w| w.status = Some(5)) && !takes(|w| w.status = Some(403)));
        assert!(takes(|w| w.from = Some("sa/web".into())) && !takes(|w| w.from = Some("sa/cart".into())));
        assert!(takes(|w| w.direction = Some("inbound".into())));
        assert!(!takes(|w| w.direction = Some("outbound".into())));
        let canary = HeaderName::from_static("canary");
        let with = |value: Option<&str>| {
            let headers = vec![(canary.clone(), value.map(str::to_owned))];
            Wanted { headers, ..Wanted::default() }.takes(&one, Some(&head))
        };
        assert!(with(None) && with(Some("true")) && !with(Some("false")));
    }

    #[test]
    fn secrets_stay_and_a_watcher_that_is_slow_loses_what_it_has_no_room_for() {
        let wanted = Wanted { path: Some("/only-this-test".into()), ..Wanted::default() };
        let mut watch = Watch::with_room(wanted, 2).unwrap();
        assert!(is_on());
        let mut one = entry(Class::Good, "1");
        one.path = "/only-this-test/a".into();
        let one = Arc::new(one);
        let head = head(&[("authorization", "Bearer abc"), ("cookie", "abc"), ("accept", "*/*")]);
        let mut answer = Headers::new();
        answer.append(HeaderName::from_static("set-cookie"), HeaderValue::from_static("abc"));
        for _ in 0..5 {
            tell(&one, Some(&head), Some(&answer));
        }
        let line = watch.queue.try_recv().unwrap().json();
        assert!(!line.to_string().contains("abc"), "{line}");
        assert_eq!(line["requestHeaders"][2], json!(["accept", "*/*"]));
        assert_eq!(line["responseHeaders"][0], json!(["set-cookie", "(redacted)"]));
        assert!(watch.queue.try_recv().is_ok() && watch.queue.try_recv().is_err());
        assert_eq!((watch.dropped(), watch.dropped()), (3, 0));
    }
}
