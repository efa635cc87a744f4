//! Live requests, for whoever watches (`weft tap`): each request that a watcher wants is told when it has ended.
//!
//! While nobody watches, a request pays one relaxed load. A watcher's queue is bounded in requests and in bytes: what it does not
//! take in time is dropped and counted, and no request waits. A watcher that takes nothing more gives up its place. Values of fields
//! that may be secrets never leave the worker, nor do queries.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::HeaderName;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::record::Entry;
use crate::codec::{Headers, RequestHead};

/// Requests that wait for one watcher, and the bytes that they may take.
const QUEUE: usize = 1024;
const BYTES: usize = 1 << 20;
/// Who has taken nothing for so long while its queue was full has stalled.
const STALLED: Duration = Duration::from_secs(30);
/// As many may watch one proxy at a time.
const WATCHERS: usize = 16;
/// As many fields of a message are told, and as much of a value.
const FIELDS: usize = 100;
const LONGEST: usize = 1024;

/// Fields with one of these in their names have values that are never told: nobody can list what all applications call their
/// credentials.
const SECRET: [&str; 9] =
    ["auth", "token", "secret", "cookie", "key", "jwt", "passw", "session", "credential"];

/// Fields that hold a URL: no query of it is told, and no fragment, which in an answer may hold a token.
const URLS: [&str; 7] = [
    "referer",
    "location",
    "content-location",
    "x-envoy-original-path",
    "x-original-url",
    "x-original-uri",
    "x-forwarded-uri",
];

/// Further ones whose values are never told.
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

    /// What it takes in memory, in bytes, with what the record may share with it.
    fn size(&self) -> usize {
        let field = |(name, value): &(HeaderName, String)| {
            size_of::<(HeaderName, String)>() + name.as_str().len() + value.len()
        };
        size_of::<Self>()
            + self.entry.size()
            + self.request.iter().chain(&self.response).map(field).sum::<usize>()
    }
}

struct Watcher {
    wanted: Wanted,
    /// Requests, and bytes of them, for which there is room.
    room: (usize, usize),
    queue: Mutex<Queue>,
    dropped: AtomicU64,
}

/// What waits for a watcher.
#[derive(Default)]
struct Queue {
    lines: VecDeque<(usize, Tapped)>,
    bytes: usize,
    /// Since when there is no room, and nothing was taken.
    full: Option<Instant>,
    /// The watcher has stalled; nothing more comes.
    ended: bool,
    waker: Option<Waker>,
}

impl Watcher {
    /// Puts a request into the queue, or counts that it has no room. False once the watcher is found to have stalled.
    fn offer(&self, tapped: Tapped, now: Instant) -> bool {
        let size = tapped.size();
        let mut queue = self.queue.lock();
        if queue.ended {
            return false;
        }
        if queue.lines.len() < self.room.0 && queue.bytes + size <= self.room.1 {
            queue.bytes += size;
            queue.lines.push_back((size, tapped));
            if let Some(waker) = queue.waker.take() {
                waker.wake();
            }
            return true;
        }
        self.dropped.fetch_add(1, Relaxed);
        let since = *queue.full.get_or_insert(now);
        now.saturating_duration_since(since) < STALLED
    }

    fn is_stalled(&self, now: Instant) -> bool {
        self.queue.lock().full.is_some_and(|since| now.saturating_duration_since(since) >= STALLED)
    }

    /// Lets go what waits.
    fn end(&self) {
        let mut queue = self.queue.lock();
        let lines = std::mem::take(&mut queue.lines);
        (queue.bytes, queue.ended) = (0, true);
        let waker = queue.waker.take();
        drop(queue);
        self.dropped.fetch_add(lines.len() as u64, Relaxed);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Tapped>> {
        let mut queue = self.queue.lock();
        if let Some((size, tapped)) = queue.lines.pop_front() {
            queue.bytes -= size;
            queue.full = None;
            return Poll::Ready(Some(tapped));
        }
        if queue.ended {
            return Poll::Ready(None);
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }
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
}

impl Watch {
    /// Begins to watch; none where as many as may do already.
    pub fn begin(wanted: Wanted) -> Option<Self> {
        Self::with_room(wanted, (QUEUE, BYTES))
    }

    fn with_room(wanted: Wanted, room: (usize, usize)) -> Option<Self> {
        // Its place is free for this one.
        let now = Instant::now();
        let stalled: Vec<_> = WATCHERS_NOW.lock().iter().filter(|w| w.is_stalled(now)).cloned().collect();
        for one in &stalled {
            leave(one);
        }
        let watcher = Arc::new(Watcher { wanted, room, queue: Mutex::default(), dropped: AtomicU64::new(0) });
        let mut all = WATCHERS_NOW.lock();
        if all.len() >= WATCHERS {
            return None;
        }
        all.push(watcher.clone());
        WATCHED.store(all.len(), Relaxed);
        Some(Self { watcher })
    }

    /// The next request; none after the last, when the watcher had stalled.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Tapped>> {
        self.watcher.poll(cx)
    }

    /// How many were dropped since this was asked last.
    pub fn dropped(&self) -> u64 {
        self.watcher.dropped.swap(0, Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        leave(&self.watcher);
    }
}

/// Gives up a watcher's place.
fn leave(watcher: &Arc<Watcher>) {
    let mut all = WATCHERS_NOW.lock();
    all.retain(|one| !Arc::ptr_eq(one, watcher));
    WATCHED.store(all.len(), Relaxed);
    drop(all);
    watcher.end();
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
        if !watcher.offer(tapped, Instant::now()) {
            leave(&watcher);
        }
    }
}

fn is_secret(name: &HeaderName) -> bool {
    SECRET.iter().any(|part| name.as_str().contains(part))
        || FURTHER.get().is_some_and(|further| further.contains(name))
}

/// A URL without its query and its fragment: `/a?...`.
fn without_query(mut url: String) -> String {
    if let Some(at) = url.find(['?', '#']) {
        url.truncate(at + 1);
        url.push_str("...");
    }
    url
}

/// Fields as they are told.
fn told(headers: &Headers) -> Vec<(HeaderName, String)> {
    let value = |name: &HeaderName, value: &http::HeaderValue| {
        if is_secret(name) {
            return "(redacted)".to_owned();
        }
        let bytes = value.as_bytes();
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned();
        if URLS.contains(&name.as_str()) { without_query(text) } else { text }
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
        let watch = Watch::with_room(wanted, (2, BYTES)).unwrap();
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
        let line = take(&watch.watcher).unwrap().json();
        assert!(!line.to_string().contains("abc"), "{line}");
        assert_eq!(line["requestHeaders"][2], json!(["accept", "*/*"]));
        assert_eq!(line["responseHeaders"][0], json!(["set-cookie", "(redacted)"]));
        assert!(take(&watch.watcher).is_some() && take(&watch.watcher).is_none());
        assert_eq!((watch.dropped(), watch.dropped()), (3, 0));
    }

    #[test]
    fn no_credential_and_no_query_is_told() {
        let head = head(&[
            ("x-vault-token", "s3cret"),
            ("x-client-secret", "s3cret"),
            ("ocp-apim-subscription-key", "s3cret"),
            ("x-jwt-payload", "s3cret"),
            ("x-db-password", "s3cret"),
            ("x-session-id", "s3cret"),
            ("x-credentials", "s3cret"),
            ("x-forwarded-authorization", "s3cret"),
            ("referer", "https://a/b?token=s3cret"),
            ("location", "https://a/b#access_token=s3cret"),
            ("content-location", "/c?s3cret"),
            ("x-envoy-original-path", "/d?s3cret"),
            ("x-original-url", "/e?s3cret"),
            ("x-forwarded-uri", "/f?s3cret"),
            ("accept", "a?b"),
        ]);
        let fields = told(&head.headers);
        assert_eq!(fields.len(), 15);
        assert!(fields.iter().all(|(_, value)| !value.contains("s3cret")), "{fields:?}");
        let values: Vec<_> = fields[8..].iter().map(|(_, value)| value.as_str()).collect();
        let left = ["https://a/b?...", "https://a/b#...", "/c?...", "/d?...", "/e?...", "/f?...", "a?b"];
        assert_eq!(values, left);
    }

    fn watcher(room: (usize, usize)) -> Watcher {
        let wanted = Wanted::default();
        Watcher { wanted, room, queue: Mutex::default(), dropped: AtomicU64::new(0) }
    }

    fn line(value: usize) -> Tapped {
        let request = vec![(HeaderName::from_static("a"), "b".repeat(value))];
        Tapped { entry: Arc::new(entry(Class::Good, "1")), request, response: Vec::new() }
    }

    fn take(watcher: &Watcher) -> Option<Tapped> {
        match watcher.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(line) => line,
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_queue_is_bounded_in_bytes_and_has_room_again_when_a_line_is_taken() {
        let one = line(1000).size();
        assert!(one > 1000);
        let (watcher, now) = (watcher((10, 2 * one)), Instant::now());
        for _ in 0..3 {
            assert!(watcher.offer(line(1000), now));
        }
        assert_eq!(watcher.dropped.swap(0, Relaxed), 1);
        assert!(take(&watcher).is_some() && watcher.offer(line(1000), now));
        assert_eq!(watcher.dropped.load(Relaxed), 0);
        assert!(take(&watcher).is_some() && take(&watcher).is_some() && take(&watcher).is_none());
        assert_eq!(watcher.queue.lock().bytes, 0);
    }

    #[test]
    fn whoever_takes_nothing_while_its_queue_is_full_is_ended() {
        let (watcher, start) = (watcher((1, BYTES)), Instant::now());
        assert!(watcher.offer(line(1), start) && watcher.offer(line(1), start));
        assert!(watcher.offer(line(1), start + STALLED / 2) && !watcher.is_stalled(start + STALLED / 2));
        // Whoever takes one begins anew.
        assert!(take(&watcher).is_some() && watcher.offer(line(1), start + STALLED));
        assert!(watcher.offer(line(1), start + STALLED));
        assert!(watcher.is_stalled(start + STALLED * 2) && !watcher.offer(line(1), start + STALLED * 2));
        watcher.end();
        assert!(watcher.queue.lock().lines.is_empty() && !watcher.offer(line(1), start));
        let polled = watcher.poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(None)));
    }
}
