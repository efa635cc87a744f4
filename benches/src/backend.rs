//! The backend: answers HTTP requests, echoes bytes, or sends without end; one thread, raw epoll.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::exchange::answer;
use crate::poll::{self, Poll, Step, step};

/// What a backend does on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Answers each HTTP/1 request (without a body) with the same answer.
    Http,
    /// Sends back what comes.
    Echo,
    /// Sends [`bulk`] again and again.
    Bulk,
}

/// What a bulk backend repeats.
pub fn bulk() -> Vec<u8> {
    (0..BULK).map(|i| (i % 251) as u8).collect()
}

/// The length of [`bulk`].
pub const BULK: usize = 64 * 1024;

/// A running backend.
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections that it has accepted.
    pub accepted: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Backend {
    /// Starts one on this processor.
    pub fn start(kind: Kind, address: SocketAddr, cpu: usize) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (accepted, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (accepted.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("backend".to_owned()).spawn(move || {
            poll::pin(cpu)?;
            serve(kind, &listener, &count, &end)
        })?;
        Ok(Self { address, accepted, stop, thread: Some(thread) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Peer {
    socket: TcpStream,
    /// Bytes of a request that is not whole, or of an echo that could not be written.
    rest: Vec<u8>,
    /// How far into the bulk pattern.
    at: usize,
}

fn serve(kind: Kind, listener: &TcpListener, accepted: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let mut poll = Poll::new()?;
    poll.add(listener, 0, poll::READ)?;
    let (answer, bulk) = (answer(), bulk());
    let mut peers: HashMap<usize, Peer> = HashMap::new();
    let (mut ready, mut next, mut buffer) = (Vec::new(), 1, vec![0; 64 * 1024]);
    while !stop.load(Relaxed) {
        poll.wait(Duration::from_millis(100), &mut ready)?;
        for token in &ready {
            if *token == 0 {
                while let Ok((socket, _)) = listener.accept() {
                    socket.set_nonblocking(true)?;
                    socket.set_nodelay(true)?;
                    poll.add(&socket, next, if kind == Kind::Bulk { poll::BOTH } else { poll::READ })?;
                    peers.insert(next, Peer { socket, rest: Vec::new(), at: 0 });
                    accepted.fetch_add(1, Relaxed);
                    next += 1;
                }
                continue;
            }
            let Some(peer) = peers.get_mut(token) else { continue };
            let goes_on = match kind {
                Kind::Http => peer.answer(&answer, &mut buffer),
                Kind::Echo => peer.echo(&mut buffer),
                Kind::Bulk => peer.pour(&bulk, &mut buffer),
            };
            if !goes_on {
                peers.remove(token);
            }
        }
    }
    Ok(())
}

impl Peer {
    fn answer(&mut self, answer: &[u8], buffer: &mut [u8]) -> bool {
        let n = match step(self.socket.read(buffer)) {
            Step::Bytes(n) => n,
            Step::Later => return true,
            Step::End => return false,
        };
        let bytes: &[u8] = if self.rest.is_empty() {
            &buffer[..n]
        } else {
            self.rest.extend_from_slice(&buffer[..n]);
            &self.rest
        };
        let mut requests = 0;
        let mut end = 0;
        while let Some(at) = bytes[end..].windows(4).position(|w| w == b"\r\n\r\n") {
            requests += 1;
            end += at + 4;
        }
        let rest = bytes[end..].to_vec();
        self.rest = rest;
        // A small answer always fits into the socket's buffer.
        (0..requests).all(|_| self.socket.write_all(answer).is_ok())
    }

    fn echo(&mut self, buffer: &mut [u8]) -> bool {
        match step(self.socket.read(buffer)) {
            Step::Bytes(n) => self.socket.write_all(&buffer[..n]).is_ok(),
            Step::Later => true,
            Step::End => false,
        }
    }

    fn pour(&mut self, bulk: &[u8], buffer: &mut [u8]) -> bool {
        if matches!(step(self.socket.read(buffer)), Step::End) {
            return false;
        }
        match step(self.socket.write(&bulk[self.at..])) {
            Step::Bytes(n) => {
                self.at = (self.at + n) % bulk.len();
                true
            }
            Step::Later => true,
            Step::End => false,
        }
    }
}
