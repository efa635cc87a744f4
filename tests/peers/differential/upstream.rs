//! The scripted raw upstream: plays its part on each connection and keeps what came.

use std::io::Write;
use std::net::{Shutdown, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::case::Play;
use super::client::{End, Wire};
use super::normalize::{Message, whole};
use super::run::Flags;

const PATIENCE: Duration = Duration::from_secs(5);
/// How long the proxy's end of a connection is waited for once the client is done.
const WATCH: Duration = Duration::from_millis(300);

/// What one connection brought.
#[derive(Clone, Debug)]
pub struct Seen {
    pub received: Vec<u8>,
    /// How the proxy ended it; none where the script did.
    pub end: Option<End>,
    /// A part that waited in vain.
    pub missed: Option<String>,
}

/// A running upstream.
pub struct Upstream {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Seen>>,
}

impl Upstream {
    /// Takes connections until [`Upstream::finish`].
    pub fn start(listener: TcpListener, scripts: Vec<Vec<Play>>, flags: Arc<Flags>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ending = over.clone();
        listener.set_nonblocking(true).unwrap();
        let thread = std::thread::spawn(move || {
            let mut scripts = scripts.into_iter();
            let mut connections = Vec::new();
            while !ending.load(Ordering::SeqCst) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                let script = scripts.next().unwrap_or_else(|| vec![Play::Close]);
                let (flags, ending) = (flags.clone(), ending.clone());
                let seen = Arc::new(Mutex::new(None));
                let put = seen.clone();
                let thread = std::thread::spawn(move || {
                    let result = play(Wire::new(stream), &script, &flags, &ending);
                    *put.lock().unwrap() = Some(result);
                });
                connections.push((thread, seen));
            }
            connections
                .into_iter()
                .map(|(thread, seen)| {
                    thread.join().expect("an upstream's connection panicked");
                    seen.lock().unwrap().take().expect("it has left its result")
                })
                .collect()
        });
        Self { over, thread }
    }

    /// What came, on each connection in the order of their beginning.
    pub fn finish(self) -> Vec<Seen> {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().expect("the upstream panicked")
    }
}

/// Where the first of these ends.
pub fn find(bytes: &[u8], marker: &[u8]) -> Option<usize> {
    bytes.windows(marker.len()).position(|w| w == marker).map(|at| at + marker.len())
}

/// Reads until it is there, or it is clear that it will not come.
fn expect(wire: &mut Wire, over: &AtomicBool, mut done: impl FnMut(&[u8]) -> Option<usize>) -> bool {
    let mut end = Instant::now() + PATIENCE;
    let mut watching = false;
    while wire.end == End::Open && Instant::now() < end {
        if wire.read_until(Duration::from_millis(5), &mut done) {
            return true;
        }
        if over.load(Ordering::SeqCst) && !watching {
            watching = true;
            end = Instant::now() + WATCH;
        }
    }
    wire.read_until(Duration::ZERO, &mut done)
}

fn play(mut wire: Wire, script: &[Play], flags: &Flags, over: &AtomicBool) -> Seen {
    let mut missed = None;
    for part in script {
        let done = match part {
            Play::Head => expect(&mut wire, over, |b| find(b, b"\r\n\r\n")),
            Play::Request => expect(&mut wire, over, |b| whole(b, &Message::Request)),
            Play::Until(marker) => expect(&mut wire, over, |b| find(b, marker.as_bytes())),
            Play::Send(bytes) => {
                let _ = wire.stream.write_all(bytes);
                true
            }
            Play::Close => {
                // What is unread would make the kernel send a reset.
                wire.read_until(Duration::from_millis(1), |_| None);
                return Seen { received: wire.received, end: None, missed };
            }
            Play::Fin => {
                let _ = wire.stream.shutdown(Shutdown::Write);
                true
            }
            Play::Reset => {
                let received = std::mem::take(&mut wire.received);
                wire.reset();
                return Seen { received, end: None, missed };
            }
            Play::Tell(flag) => {
                flags.raise(flag);
                true
            }
            Play::Pause(millis) => {
                std::thread::sleep(Duration::from_millis(*millis));
                true
            }
            Play::Await(flag) => flags.wait(flag, PATIENCE),
        };
        if !done {
            missed = missed.or(Some(format!("{part:?}")));
        }
    }
    // What else comes, and whether the proxy ends the connection.
    let mut watch_until = None;
    while wire.end == End::Open && watch_until.is_none_or(|end| Instant::now() < end) {
        wire.read_until(Duration::from_millis(5), |_| None);
        if over.load(Ordering::SeqCst) && watch_until.is_none() {
            watch_until = Some(Instant::now() + WATCH);
        }
    }
    Seen { received: wire.received, end: Some(wire.end), missed }
}
