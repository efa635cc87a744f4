//! Where access log lines go: a file or a standard stream, written by a thread of its own.
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
    dropped: AtomicU64,
}

/// One destination. Sinks of the same path are the same sink.
pub struct Sink {
    id: u64,
    shared: Arc<Shared>,
}

thread_local! {
    static BUFFERS: RefCell<HashMap<u64, Buffer>> = RefCell::default();
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
        let file: Box<dyn Write + Send> = match path.to_str() {
            Some("/dev/stdout") => Box::new(std::io::stdout()),
            Some("/dev/stderr") => Box::new(std::io::stderr()),
            _ => Box::new(std::fs::OpenOptions::new().create(true).append(true).open(path)?),
        };
        let shared = Arc::new(Shared {
            buffers: Mutex::default(),
            wake: Condvar::new(),
            wake_lock: Mutex::new(false),
            stop: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        });
        let writer = shared.clone();
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || run(&writer, file))?;
        let sink = Arc::new(Self { id: NEXT.fetch_add(1, Relaxed), shared });
        open.insert(path.to_owned(), Arc::downgrade(&sink));
        Ok(sink)
    }

    /// Lets `write` append one line to this thread's buffer.
    pub fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        BUFFERS.with_borrow_mut(|buffers| {
            let buffer = buffers.entry(self.id).or_insert_with(|| {
                let buffer = Buffer::default();
                self.shared.buffers.lock().push(buffer.clone());
                buffer
            });
            let mut lines = buffer.lock();
            if lines.len() > LIMIT {
                self.shared.dropped.fetch_add(1, Relaxed);
                return;
            }
            let before = lines.len();
            write(&mut lines);
            if before < WAKE_AT && lines.len() >= WAKE_AT {
                *self.shared.wake_lock.lock() = true;
                self.shared.wake.notify_one();
            }
        });
    }

    /// Lines lost because the destination could not keep up or failed.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// Writes what is buffered before the process ends.
    pub fn flush_all(deadline: Duration) {
        let sinks: Vec<_> = OPEN.lock().values().filter_map(Weak::upgrade).collect();
        let end = std::time::Instant::now() + deadline;
        for sink in sinks {
            *sink.shared.wake_lock.lock() = true;
            sink.shared.wake.notify_one();
            while std::time::Instant::now() < end
                && sink.shared.buffers.lock().iter().any(|b| !b.lock().is_empty())
            {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        *self.shared.wake_lock.lock() = true;
        self.shared.wake.notify_one();
    }
}

fn run(shared: &Shared, mut file: Box<dyn Write + Send>) {
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
        let buffers: Vec<_> = {
            let mut buffers = shared.buffers.lock();
            // A buffer that only we hold belonged to a worker that has ended.
            buffers.retain(|b| Arc::strong_count(b) > 1 || !b.lock().is_empty());
            buffers.clone()
        };
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
        if last {
            return;
        }
    }
}
