//! The record of requests: the last ones that failed, that were refused, that were slow, and a sample of good ones, with what
//! was decided about each. `weft explain REQUEST_ID` reads it, so that a request of last night is explained by what happened to
//! it, and not by what would happen now.
//!
//! Each worker keeps what it has served ([`store`]) under a lock that only a reader ever shares. Memory is bounded in bytes;
//! the oldest of a kind goes first, and that is counted. Which good requests are kept follows from their id, so that all proxies
//! that a request passes keep the same ones.

pub mod entry;
pub mod store;
pub mod trail;

use std::cell::RefCell;
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;

pub use entry::{Entry, Told};
pub use store::Store;
pub use trail::{By, Candidate, Choice, Compared, Decision, Trail, Try, UpstreamLine, Verdict};

use super::flags::{Flag, Flags};
use super::registry::{Counter, Gauge, Group};
use super::stream::StreamInfo;

/// Why a request is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// An error of a server's, no answer, or an answer that broke off.
    Failed,
    /// An error of the client's, as who answers sees it: refused, not found, too much.
    Refused,
    /// It took long, or needed more than one try.
    Slow,
    /// One of the sample.
    Good,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Failed, Self::Refused, Self::Slow, Self::Good];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Slow => "slow",
            Self::Good => "good",
        }
    }
}

/// What is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// From here on a request is slow.
    pub slow: Duration,
    /// The share of good requests that is kept, from 0 to 1.
    pub sample: f64,
    /// The most memory for it, in bytes, over all workers; 0 keeps nothing.
    pub bytes: usize,
    /// The workers that share it.
    pub workers: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { slow: Duration::from_secs(1), sample: 0.01, bytes: 2 << 20, workers: 1 }
    }
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

/// Says what is kept, before the first request.
pub fn set(settings: Settings) {
    let _ = SETTINGS.set(settings);
}

/// What is kept.
pub fn settings() -> &'static Settings {
    SETTINGS.get_or_init(Settings::default)
}

/// What is counted of the record itself.
pub struct Numbers {
    _group: Arc<Group>,
    /// Requests that were kept.
    pub kept: Counter,
    /// Those of them that went again, for newer ones.
    pub pushed_out: Counter,
    /// What they take, in bytes.
    pub bytes: Gauge,
}

static NUMBERS: LazyLock<Numbers> = LazyLock::new(|| {
    let group = Group::new("request_record", Vec::new());
    Numbers {
        kept: group.counter("kept"),
        pushed_out: group.counter("pushed_out"),
        bytes: group.gauge("bytes"),
        _group: group,
    }
});

/// The record's own numbers.
pub fn numbers() -> &'static Numbers {
    &NUMBERS
}

type Shared = Arc<Mutex<Store>>;

/// The stores of all workers.
static STORES: Mutex<Vec<Weak<Mutex<Store>>>> = Mutex::new(Vec::new());

thread_local! {
    static STORE: RefCell<Option<Shared>> = const { RefCell::new(None) };
}

/// Why this request is kept; none if it is not.
pub fn class(info: &StreamInfo, took: Duration, settings: &Settings) -> Option<Class> {
    if settings.bytes == 0 {
        return None;
    }
    let status = info.status.map_or(0, |status| status.as_u16());
    if !(100..500).contains(&status) || !plain(info.flags) || info.grpc_status.is_some_and(is_servers) {
        // What was limited or denied was so on purpose; its flag says by whom.
        let refused = (400..500).contains(&status) && on_purpose(info.flags);
        return Some(if refused { Class::Refused } else { Class::Failed });
    }
    if status >= 400 || info.grpc_status.is_some_and(|code| code != 0) {
        return Some(Class::Refused);
    }
    // A stream lasts as long as its ends want; slow is one whose answer began late.
    let streams = status == 101 || info.is_grpc;
    let began = info.upstream_first_byte.filter(|_| streams);
    let took = began.map_or(took, |at| at.saturating_duration_since(info.start));
    if took >= settings.slow || info.attempts > 1 || info.trail.again {
        return Some(Class::Slow);
    }
    let id = info.trail.id.as_ref().map(|id| id.as_bytes());
    sampled(id, settings.sample).then_some(Class::Good)
}

/// Whether no flag tells of a failure.
fn plain(mut flags: Flags) -> bool {
    flags.clear(Flag::DelayInjected);
    flags.is_empty()
}

fn on_purpose(mut flags: Flags) -> bool {
    for flag in
        [Flag::FaultInjected, Flag::RateLimited, Flag::UnauthorizedExternalService, Flag::NoRouteFound]
    {
        flags.clear(flag);
    }
    plain(flags)
}

/// Statuses of gRPC by which the server says that it failed: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE,
/// DATA_LOSS.
fn is_servers(code: u32) -> bool {
    matches!(code, 2 | 4 | 12..=15)
}

/// Whether the request of this id is one of the sample: the same at every proxy that it passes. One without an id is no sample, unless
/// all are.
pub fn sampled(id: Option<&[u8]>, share: f64) -> bool {
    if share >= 1.0 || share <= 0.0 {
        return share >= 1.0;
    }
    let Some(id) = id else { return false };
    // The digit that tells whether it is traced changes on the way; what follows it does not.
    let tail = &id[id.len().saturating_sub(20)..];
    let hash = tail.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The upper bits of such a hash are the good ones.
    ((hash >> 40) as f64) < share * (1u64 << 24) as f64
}

/// Keeps a request.
pub fn keep(entry: Arc<Entry>) {
    STORE.with_borrow_mut(|store| {
        let store = store.get_or_insert_with(|| {
            let settings = settings();
            let shared = Arc::new(Mutex::new(Store::new(settings.bytes / settings.workers.max(1))));
            let mut all = STORES.lock();
            all.retain(|store| store.strong_count() > 0);
            all.push(Arc::downgrade(&shared));
            shared
        });
        store.lock().push(entry);
    });
}

/// All that is kept, the newest first, and how much of it is of each class.
pub fn read() -> Vec<Arc<Entry>> {
    let stores: Vec<Shared> = STORES.lock().iter().filter_map(Weak::upgrade).collect();
    let mut all: Vec<_> = stores.iter().flat_map(|store| store.lock().entries()).collect();
    all.sort_by_key(|entry| std::cmp::Reverse(entry.start));
    all
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, StatusCode};

    use super::*;

    fn request(status: u16) -> StreamInfo {
        let mut info = StreamInfo::new(None);
        info.status = StatusCode::from_u16(status).ok();
        info.attempts = 1;
        info
    }

    fn of(info: &StreamInfo) -> Option<Class> {
        class(info, Duration::from_millis(1), &Settings { sample: 0.0, ..Settings::default() })
    }

    #[test]
    fn a_request_is_kept_for_what_became_of_it() {
        for (status, expected) in [
            (200, None),
            (302, None),
            (403, Some(Class::Refused)),
            (503, Some(Class::Failed)),
            (0, Some(Class::Failed)),
        ] {
            assert_eq!(of(&request(status)), expected, "{status}");
        }
        let with = |flag, status| {
            let mut info = request(status);
            info.flags.set(flag);
            of(&info)
        };
        assert_eq!(with(Flag::DownstreamConnectionTermination, 200), Some(Class::Failed));
        assert_eq!(with(Flag::DelayInjected, 200), None);
        assert_eq!(with(Flag::RateLimited, 429), Some(Class::Refused));
        assert_eq!(with(Flag::UpstreamRequestTimeout, 408), Some(Class::Failed));
        let grpc = |code| {
            let mut info = request(200);
            info.grpc_status = Some(code);
            of(&info)
        };
        assert_eq!([grpc(0), grpc(5), grpc(14)], [None, Some(Class::Refused), Some(Class::Failed)]);
    }

    #[test]
    fn what_is_slow_or_was_tried_again_is_kept_and_nothing_without_memory() {
        let settings = Settings { slow: Duration::from_millis(5), sample: 0.0, ..Settings::default() };
        let mut info = request(200);
        assert_eq!(class(&info, Duration::from_millis(5), &settings), Some(Class::Slow));
        assert_eq!(class(&info, Duration::from_millis(4), &settings), None);
        info.attempts = 2;
        assert_eq!(class(&info, Duration::ZERO, &settings), Some(Class::Slow));
        (info.attempts, info.trail.again) = (1, true);
        assert_eq!(class(&info, Duration::ZERO, &settings), Some(Class::Slow));
        let nothing = Settings { bytes: 0, ..settings };
        assert_eq!(class(&request(503), Duration::from_secs(9), &nothing), None);
    }

    #[test]
    fn the_sample_is_the_share_that_was_asked_for_and_does_not_depend_on_the_digit_of_tracing() {
        let mut random = fastrand::Rng::with_seed(7);
        let ids: Vec<String> = (0..20_000)
            .map(|_| {
                let hex = format!("{:032x}", random.u128(..));
                format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
            })
            .collect();
        let some = ids.iter().filter(|id| sampled(Some(id.as_bytes()), 0.05)).count();
        assert!((800..1200).contains(&some), "{some} of 20000 are not a twentieth");
        for id in &ids[..200] {
            let traced = format!("{}9{}", &id[..14], &id[15..]);
            assert_eq!(sampled(Some(id.as_bytes()), 0.5), sampled(Some(traced.as_bytes()), 0.5));
        }
        let mut info = request(200);
        let class_of = |info: &StreamInfo, sample| {
            class(info, Duration::ZERO, &Settings { sample, ..Settings::default() })
        };
        assert_eq!([class_of(&info, 1.0), class_of(&info, 0.999_999)], [Some(Class::Good), None]);
        info.trail.id = Some(HeaderValue::from_static("any"));
        assert_eq!([class_of(&info, 0.999_999), class_of(&info, 0.0)], [Some(Class::Good), None]);
    }
}
