//! Where access log lines go: a file or a standard stream, written by a thread of its own.
//!
//! Whoever rotates files renames them and says so ([`Sink::reopen_all`]): what was logged before goes to the old file, what comes
//! after to a new one of the same name, and nothing is lost in between.
//!
//! A worker appends to its own buffer under a lock that only the writer thread ever shares. The writer collects every
//! [`FLUSH_INTERVAL`], or when a buffer grows over [`WAKE_AT`]. A buffer over [`LIMIT`] means that the file cannot keep
//! up: lines are dropped and counted.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long a line may stay in memory; Envoy's default is longer (10 s), a tail on the file should see lines soon.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
const WAKE_AT: usize = 64 * 1024;
const LIMIT: usize = 4 * 1024 * 1024;

type Buffer = Arc<Mutex<Vec<u8>>>;

struct Shared {
    buffers: Mutex<Vec<Buffer>>,
    wake: Condvar,
    wake_lock: Mutex<bool>,
    stop: AtomicBool,
    reopen: AtomicBool,
    /// The writer has lines in hand.
    busy: AtomicBool,
    dropped: AtomicU64,
}

impl Shared {
    fn wake(&self) {
        *self.wake_lock.lock() = true;
        self.wake.notify_one();
    }

    /// Whether any line is not written. Whoever finds a buffer empty that the writer took sees that it is busy, for it said so
    /// before it took the buffer's lock.
    fn has_lines(&self) -> bool {
        self.buffers.lock().iter().any(|b| !b.lock().is_empty()) || self.busy.load(Relaxed)
    }
}

/// One destination. Sinks of the same path are the same sink.
pub struct Sink {
    id: u64,
    shared: Arc<Shared>,
}

thread_local! {
    /// By sink; there are few.
    static BUFFERS: RefCell<Vec<(u64, Buffer)>> = const { RefCell::new(Vec::new()) };
}

static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<Sink>>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Sink {
    /// Opens (appending) the file, or a standard stream for `/dev/stdout` and `/dev/stderr`.
    pub fn open(path: &Path) -> std::io::Result<Arc<Self>> {
        let mut open = OPEN.lock();
        if let Some(sink) = open.get(path).and_then(Weak::upgrade) {
            return Ok(sink);
        }
        let file = destination(path)?;
        let shared = Arc::new(Shared {
            buffers: Mutex::default(),
            wake: Condvar::new(),
            wake_lock: Mutex::new(false),
            stop: AtomicBool::new(false),
            reopen: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        });
        let (writer, own) = (shared.clone(), path.to_owned());
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || run(&writer, &own, file))?;
        let sink = Arc::new(Self { id: NEXT.fetch_add(1, Relaxed), shared });
        open.insert(path.to_owned(), Arc::downgrade(&sink));
        Ok(sink)
    }

    /// Lets `write` append one line to this thread's buffer.
    pub fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        BUFFERS.with_borrow_mut(|buffers| {
            let place = buffers.iter().position(|(id, _)| *id == self.id).unwrap_or_else(|| {
                // A buffer that only we hold belonged to a sink that is gone.
                buffers.retain(|(_, buffer)| Arc::strong_count(buffer) > 1);
                let buffer = Buffer::default();
                self.shared.buffers.lock().push(buffer.clone());
                buffers.push((self.id, buffer));
                buffers.len() - 1
            });
            let Some((_, buffer)) = buffers.get(place) else { return };
            let mut lines = buffer.lock();
            if lines.len() > LIMIT {
                self.shared.dropped.fetch_add(1, Relaxed);
                return;
            }
            let before = lines.len();
            write(&mut lines);
            if before < WAKE_AT && lines.len() >= WAKE_AT {
                self.shared.wake();
            }
        });
    }

    /// Lines lost because the destination could not keep up or failed.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// Has every file opened anew by its name, as whoever rotates files wants it. What was appended before goes to the old one.
    pub fn reopen_all() {
        for sink in OPEN.lock().values().filter_map(Weak::upgrade) {
            sink.shared.reopen.store(true, Relaxed);
            sink.shared.wake();
        }
    }

    /// Writes what is buffered before the process ends.
    pub fn flush_all(deadline: Duration) {
        let sinks: Vec<_> = OPEN.lock().values().filter_map(Weak::upgrade).collect();
        let end = std::time::Instant::now() + deadline;
        for sink in sinks {
            sink.shared.wake();
            while std::time::Instant::now() < end && sink.shared.has_lines() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.wake();
    }
}

fn destination(path: &Path) -> std::io::Result<Box<dyn Write + Send>> {
    Ok(match path.to_str() {
        Some("/dev/stdout") => Box::new(std::io::stdout()),
        Some("/dev/stderr") => Box::new(std::io::stderr()),
        _ => Box::new(std::fs::OpenOptions::new().create(true).append(true).open(path)?),
    })
}

fn run(shared: &Shared, path: &Path, mut file: Box<dyn Write + Send>) {
    let mut pending = Vec::new();
    loop {
        {
            let mut woken = shared.wake_lock.lock();
            if !*woken {
                let _ = shared.wake.wait_for(&mut woken, FLUSH_INTERVAL);
            }
            *woken = false;
        }
        let last = shared.stop.load(Relaxed);
        let reopen = shared.reopen.swap(false, Relaxed);
        let buffers: Vec<_> = {
            let mut buffers = shared.buffers.lock();
            // A buffer that only we hold belonged to a worker that has ended.
            buffers.retain(|b| Arc::strong_count(b) > 1 || !b.lock().is_empty());
            buffers.clone()
        };
        shared.busy.store(true, Relaxed);
        for buffer in buffers {
            std::mem::swap(&mut pending, &mut *buffer.lock());
            if pending.is_empty() {
                continue;
            }
            if file.write_all(&pending).and_then(|()| file.flush()).is_err() {
                let lines = pending.iter().filter(|b| **b == b'\n').count();
                shared.dropped.fetch_add(lines as u64, Relaxed);
            }
            pending.clear();
        }
        shared.busy.store(false, Relaxed);
        if last {
            return;
        }
        if reopen {
            match destination(path) {
                Ok(new) => file = new,
                // The old file is still there, under whatever name: better there than nowhere.
                Err(error) => tracing::warn!(path = %path.display(), %error,
                    "the log cannot be opened anew, and goes on where it was; see that its directory is there and may be written"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    use super::*;

    #[test]
    fn lines_in_the_hands_of_the_writer_are_waited_for() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let sink = Sink::open(Path::new(&format!("/proc/self/fd/{}", writer.as_raw_fd()))).unwrap();
        drop(writer);
        // More than a pipe holds.
        sink.append(|lines| lines.resize(1024 * 1024, b'x'));
        let deadline = Instant::now() + Duration::from_secs(20);
        while sink.shared.buffers.lock().iter().any(|b| !b.lock().is_empty()) {
            assert!(Instant::now() < deadline, "the writer does not take the buffer");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(sink.shared.has_lines());
        let mut all = vec![0; 1024 * 1024];
        reader.read_exact(&mut all).unwrap();
        while sink.shared.has_lines() {
            assert!(Instant::now() < deadline, "the writer goes on for ever");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn buffers_of_sinks_that_are_gone_go() {
        let dir = tempfile::tempdir().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut number = 0;
        loop {
            let sink = Sink::open(&dir.path().join(number.to_string())).unwrap();
            sink.append(|lines| lines.extend_from_slice(b"a line\n"));
            number += 1;
            // Writers end in their own time; of many sinks not all are held.
            if BUFFERS.with_borrow(|buffers| buffers.len()) < number {
                break;
            }
            assert!(Instant::now() < deadline, "{number} buffers");
            drop(sink);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
