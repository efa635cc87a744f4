//! The way of an event: past its kind's bound into a bounded queue, from where a thread keeps it and writes it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;

use crate::bound::Bound;
use crate::file::Destination;
use crate::flags::{EventArgs, Format};
use crate::ring::Ring;
use crate::{Event, Kind, Outcome, Severity, cef, ocsf};

/// As many events wait for the thread; more are dropped and counted.
const QUEUE: usize = 4096;
/// So often a summary is told, and the file looked at.
const EVERY: Duration = Duration::from_secs(1);
/// Lines are written when there are so many bytes of them, or when no event waits.
const BLOCK: usize = 64 * 1024;

/// Who tells the events of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `proxy`, `gateway` or `control-plane`.
    pub component: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub workload: String,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Events that were told, by kind.
    pub told: Vec<(Kind, u64)>,
    /// Events beyond a kind's bound, by kind.
    pub suppressed: Vec<(Kind, u64)>,
    /// Events lost because the thread or its file could not keep up.
    pub dropped: u64,
}

enum Message {
    Event(Box<Event>),
    Flush(SyncSender<()>),
}

struct Log {
    queue: SyncSender<Message>,
    /// Of each kind what did not succeed, and what did: who is refused often must not hide what somebody else has done.
    bounds: [[Bound; 2]; Kind::ALL.len()],
    told: [AtomicU64; Kind::ALL.len()],
    dropped: AtomicU64,
    ring: Mutex<Ring>,
    origin: Origin,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Keeps the events of this process from now on, and writes the security event log if there is to be one. Said once; a second
/// time (several halves in one process, as tests have them) the first stays.
///
/// # Errors
/// The log's file cannot be opened, or there is no thread to be had.
pub fn start(args: &EventArgs, origin: Origin) -> std::io::Result<()> {
    let destination = args.security_log.as_deref().map(Destination::open).transpose()?;
    let (queue, waiting) = sync_channel(QUEUE);
    let log = Log {
        queue,
        bounds: std::array::from_fn(|_| [0, 1].map(|_| Bound::new(args.security_log_rate))),
        told: std::array::from_fn(|_| AtomicU64::new(0)),
        dropped: AtomicU64::new(0),
        ring: Mutex::default(),
        origin,
    };
    if LOG.set(log).is_ok()
        && let Some(log) = LOG.get()
    {
        let writer = Writer { log, destination, format: args.security_log_format, lines: Vec::new() };
        std::thread::Builder::new().name("events".to_owned()).spawn(move || writer.run(&waiting))?;
    }
    Ok(())
}

/// Tells an event, if there is room for it.
pub fn emit(kind: Kind, event: impl FnOnce() -> Event) {
    let Some(log) = LOG.get() else { return };
    let [refused, done] = &log.bounds[kind.index()];
    if kind.is_of_traffic() {
        if refused.admits() {
            log.put(event());
        }
        return;
    }
    let event = event();
    let admits = match event.outcome {
        Outcome::Ok => kind.is_of_hands() || done.admits(),
        Outcome::Failed | Outcome::Denied => refused.admits(),
    };
    if admits {
        log.put(event);
    }
}

impl Log {
    fn put(&self, event: Event) {
        let kind = event.kind;
        match self.queue.try_send(Message::Event(Box::new(event))) {
            Ok(()) => self.told[kind.index()].fetch_add(1, Relaxed),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.dropped.fetch_add(1, Relaxed),
        };
    }
}

/// Events from this number on, oldest first, and the number to ask for next.
pub fn since(number: u64) -> (Vec<Value>, u64) {
    LOG.get().map(|log| log.ring.lock().since(number)).unwrap_or_default()
}

/// What was counted so far.
pub fn numbers() -> Numbers {
    let Some(log) = LOG.get() else { return Numbers::default() };
    let of = |count: &dyn Fn(usize) -> u64| {
        Kind::ALL.into_iter().map(|kind| (kind, count(kind.index()))).collect()
    };
    Numbers {
        told: of(&|i| log.told[i].load(Relaxed)),
        suppressed: of(&|i| log.bounds[i].iter().map(Bound::suppressed).sum()),
        dropped: log.dropped.load(Relaxed),
    }
}

/// Waits until what was told before is written, but no longer than this; for the end of a process.
pub fn flush(patience: Duration) {
    let Some(log) = LOG.get() else { return };
    let (done, written) = sync_channel(1);
    let end = Instant::now() + patience;
    let mut message = Message::Flush(done);
    while let Err(TrySendError::Full(back)) = log.queue.try_send(message) {
        if Instant::now() >= end {
            return;
        }
        message = back;
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = written.recv_timeout(end.saturating_duration_since(Instant::now()));
}

struct Writer {
    log: &'static Log,
    destination: Option<Destination>,
    format: Format,
    lines: Vec<u8>,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Message>) {
        let mut looked = Instant::now();
        loop {
            match waiting.recv_timeout(EVERY.saturating_sub(looked.elapsed())) {
                Ok(first) => {
                    self.take(first);
                    while let Ok(next) = waiting.try_recv() {
                        self.take(next);
                        if self.lines.len() >= BLOCK {
                            self.write();
                        }
                        // A flood must not keep the summaries of itself away.
                        if looked.elapsed() >= EVERY {
                            break;
                        }
                    }
                    self.write();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if looked.elapsed() >= EVERY {
                looked = Instant::now();
                if let Some(destination) = &mut self.destination {
                    destination.look();
                }
                self.summarise();
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.keep(&event),
            Message::Flush(done) => {
                self.summarise();
                self.write();
                let _ = done.try_send(());
            }
        }
    }

    fn keep(&mut self, event: &Event) {
        let origin = &self.log.origin;
        let json = event.to_json(origin);
        if self.destination.is_some() && event.kind.is_security() {
            let line = match self.format {
                Format::Json => json.to_string(),
                Format::Ocsf => ocsf::to_json(event, origin).to_string(),
                Format::Cef => cef::to_line(event, origin),
            };
            self.lines.extend_from_slice(line.as_bytes());
            self.lines.push(b'\n');
        }
        self.log.ring.lock().push(json);
    }

    fn summarise(&mut self) {
        for kind in Kind::ALL {
            let count: u64 = self.log.bounds[kind.index()].iter().map(Bound::take).sum();
            if count > 0 {
                let words = format!("{count} more events of the kind {} were not told", kind.name());
                let event = Event::new(Kind::Suppressed, Outcome::Ok, Severity::Medium, "bound", words)
                    .with("of", kind.name())
                    .with("count", count);
                self.log.told[Kind::Suppressed.index()].fetch_add(1, Relaxed);
                self.keep(&event);
            }
        }
        self.write();
    }

    fn write(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        if let Some(destination) = &mut self.destination
            && destination.write(&self.lines).is_err()
        {
            let lost = self.lines.iter().filter(|b| **b == b'\n').count() as u64;
            self.log.dropped.fetch_add(lost, Relaxed);
        }
        self.lines.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One process has one log, so one test tells the whole story of a flood.
    #[test]
    fn a_flood_of_one_kind_is_bounded_and_counted_and_no_other_kind_suffers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("security.jsonl");
        let args =
            EventArgs { security_log: Some(path.clone()), security_log_rate: 5, ..EventArgs::default() };
        let denied = || Event::new(Kind::Denied, Outcome::Denied, Severity::Medium, "rbac", "denied");
        emit(Kind::Denied, || unreachable!("nobody listens yet"));
        start(&args, Origin { component: "proxy", namespace: "n".into(), workload: "w".into() }).unwrap();
        for _ in 0..1000 {
            emit(Kind::Denied, denied);
        }
        for _ in 0..200 {
            emit(Kind::Admin, || Event::new(Kind::Admin, Outcome::Denied, Severity::Low, "admin", "refused"));
            emit(Kind::Certificate, || {
                Event::new(Kind::Certificate, Outcome::Failed, Severity::Low, "identity", "not renewed")
            });
        }
        for _ in 0..100 {
            emit(Kind::Admin, || Event::new(Kind::Admin, Outcome::Ok, Severity::Low, "admin", "drained"));
        }
        emit(Kind::Certificate, || {
            Event::new(Kind::Certificate, Outcome::Ok, Severity::Low, "identity", "renewed")
        });
        emit(Kind::Ejection, || Event::new(Kind::Ejection, Outcome::Ok, Severity::Low, "outlier", "ejected"));
        flush(Duration::from_secs(20));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let count = |kind: &str| lines.iter().filter(|l| l["event"] == kind).count() as u64;
        // The loop may see the turn of a second or two.
        let told = count("denied");
        assert!((5..=50).contains(&told), "{told} of 1000 were told");
        assert_eq!(count("ejection"), 0, "an ejection is no security event");
        // Refusals do not hide what was done, of which an administrator's is told in any number.
        let done = |kind: &str| lines.iter().filter(|l| l["event"] == kind && l["outcome"] == "ok").count();
        assert_eq!((done("admin"), done("certificate")), (100, 1));
        assert!(count("admin") < 200 && count("certificate") < 100);
        let of_denied = |line: &&Value| line["event"] == "suppressed" && line["of"] == "denied";
        let summed: u64 = lines.iter().filter(of_denied).map(|l| l["count"].as_u64().unwrap()).sum();
        assert_eq!(summed, 1000 - told);
        let (ring, next) = since(0);
        assert_eq!((ring.iter().filter(|e| e["event"] == "ejection").count(), next), (1, ring.len() as u64));
        let numbers = numbers();
        assert_eq!(numbers.dropped, 0);
        assert!(
            numbers.told.contains(&(Kind::Denied, told))
                && numbers.suppressed.contains(&(Kind::Denied, summed))
        );
        // Started a second time, the first stays.
        start(&EventArgs::default(), Origin::default()).unwrap();
        assert_eq!(since(0).0[0]["workload"], "w");
    }
}
