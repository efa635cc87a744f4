//! The raw client: plays its steps and keeps what came.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::case::Step;
use super::normalize::{Message, whole};
use super::run::Flags;
use super::upstream::find;

/// How long an expected thing may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection is watched for its end after everything expected has come. It covers Envoy's delayed close.
const WATCH: Duration = Duration::from_millis(500);

/// How a connection ended, as seen from one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was still open when the case was over.
    Open,
    /// The other side closed it.
    Closed,
    /// The other side reset it.
    Reset,
}

/// A stream that keeps what it reads.
pub struct Wire {
    pub stream: TcpStream,
    pub received: Vec<u8>,
    /// Up to here it was read by earlier steps.
    pub mark: usize,
    pub end: End,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self { stream, received: Vec::new(), mark: 0, end: End::Open }
    }

    /// Reads until `done` says how much of the unread bytes it takes. False if the stream ended or nothing came in time.
    pub fn read_until(&mut self, patience: Duration, mut done: impl FnMut(&[u8]) -> Option<usize>) -> bool {
        let end = Instant::now() + patience;
        loop {
            if let Some(taken) = done(&self.received[self.mark..]) {
                self.mark += taken;
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if self.end != End::Open || left.is_zero() {
                return false;
            }
            let mut buffer = [0; 64 * 1024];
            let _ = self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))));
            match self.stream.read(&mut buffer) {
                Ok(0) => self.end = End::Closed,
                Ok(n) => self.received.extend_from_slice(&buffer[..n]),
                Err(e)
                    if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                Err(_) => self.end = End::Reset,
            }
        }
    }

    /// Closes so that the other side sees a reset.
    pub fn reset(self) {
        let socket = socket2::Socket::from(self.stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

/// What a client saw.
pub struct Seen {
    pub received: Vec<u8>,
    pub end: End,
    /// A step that waited in vain.
    pub missed: Option<String>,
}

/// Plays the steps on a connection of its own.
pub fn play(address: SocketAddr, steps: &[Step], flags: &Flags) -> Seen {
    let mut wire = Wire::new(TcpStream::connect_timeout(&address, PATIENCE).unwrap());
    let mut missed = None;
    let mut miss = |step: &Step| missed = missed.take().or(Some(format!("{step:?}")));
    for step in steps {
        match step {
            // A proxy that has refused the beginning need not take the rest.
            Step::Send(bytes) => _ = wire.stream.write_all(bytes),
            Step::Answer(method) => {
                let method = *method;
                if !wire.read_until(PATIENCE, |b| whole(b, &Message::Response(method)))
                    && wire.end == End::Open
                {
                    miss(step);
                }
                if wire.end != End::Open {
                    wire.mark = wire.received.len();
                }
            }
            Step::Until(marker) => {
                if !wire.read_until(PATIENCE, |b| find(b, marker.as_bytes())) {
                    miss(step);
                }
            }
            Step::End => {
                wire.read_until(PATIENCE, |_| None);
                if wire.end == End::Open {
                    miss(step);
                }
            }
            Step::Fin => _ = wire.stream.shutdown(Shutdown::Write),
            Step::Abort => {
                let received = std::mem::take(&mut wire.received);
                wire.reset();
                return Seen { received, end: End::Open, missed };
            }
            Step::Pause(millis) => std::thread::sleep(Duration::from_millis(*millis)),
            Step::Tell(flag) => flags.raise(flag),
            Step::Await(flag) => {
                if !flags.wait(flag, PATIENCE) {
                    miss(step);
                }
            }
        }
    }
    wire.read_until(WATCH, |_| None);
    Seen { received: wire.received, end: wire.end, missed }
}
