//! What goes over the wire.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::hosts::Host;

/// Everything that a host sends and gets, until it is asked for.
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: std::thread::JoinHandle<Vec<u8>>,
}

impl Capture {
    /// From now on.
    pub fn start(host: &Host) -> Self {
        // All protocols, in network byte order.
        let all = Protocol::from(i32::from(3_u16.to_be()));
        let socket = host.inside(|| Socket::new(Domain::PACKET, Type::RAW, Some(all)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reader = std::thread::spawn(move || {
            let (mut seen, mut frame, mut socket) = (Vec::new(), vec![0; 65536], socket);
            // What is still in the socket's buffer belongs to it.
            loop {
                match socket.read(&mut frame) {
                    Ok(count) => seen.extend_from_slice(&frame[..count]),
                    Err(_) if stopped.load(Relaxed) => return seen,
                    Err(_) => {}
                }
            }
        });
        Self { stop, reader }
    }

    /// All that was seen.
    pub fn bytes(self) -> Vec<u8> {
        self.stop.store(true, Relaxed);
        self.reader.join().unwrap()
    }
}
