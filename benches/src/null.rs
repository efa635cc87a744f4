//! The null proxy: bytes copied blindly both ways, raw epoll, nothing parsed. What it costs is the kernel's price of a hop, the
//! floor under every real proxy.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::poll::{Poll, READ, Step, Watch, step};

/// One of the two ends of a proxied connection.
struct End {
    socket: TcpStream,
    other: usize,
    /// What could not be written yet; meanwhile nothing is read from the other end.
    waiting: Vec<u8>,
}

type Ends = HashMap<usize, End>;

/// Serves hops (where to listen, where to connect) until the process is killed.
pub fn run(hops: &[(SocketAddr, SocketAddr)]) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listeners = Vec::new();
    for (token, (from, to)) in hops.iter().enumerate() {
        let listener = TcpListener::bind(from)?;
        listener.set_nonblocking(true)?;
        poll.add(&listener, token, READ)?;
        listeners.push((listener, *to));
    }
    let mut ends = Ends::new();
    let (mut ready, mut next, mut buffer) = (Vec::new(), listeners.len(), vec![0; 64 * 1024]);
    loop {
        poll.wait(Duration::from_secs(1), &mut ready)?;
        for token in &ready {
            if let Some((listener, to)) = listeners.get(*token) {
                while let Ok((near, _)) = listener.accept() {
                    let far = TcpStream::connect(to)?;
                    for (socket, token, other) in [(near, next, next + 1), (far, next + 1, next)] {
                        socket.set_nonblocking(true)?;
                        socket.set_nodelay(true)?;
                        poll.add(&socket, token, READ)?;
                        ends.insert(token, End { socket, other, waiting: Vec::new() });
                    }
                    next += 2;
                }
            } else if !turn(&mut ends, *token, &poll, &mut buffer)?
                && let Some(end) = ends.remove(token)
            {
                ends.remove(&end.other);
            }
        }
    }
}

/// Serves one ready end; says whether the connection goes on.
fn turn(ends: &mut Ends, token: usize, poll: &Poll, buffer: &mut [u8]) -> io::Result<bool> {
    let Some(end) = ends.get_mut(&token) else { return Ok(true) };
    let other = end.other;
    if !end.waiting.is_empty() {
        match step(end.socket.write(&end.waiting)) {
            Step::Bytes(n) => drop(end.waiting.drain(..n)),
            Step::Later => {}
            Step::End => return Ok(false),
        }
        if end.waiting.is_empty() {
            watch(ends, token, poll)?;
            watch(ends, other, poll)?;
        }
        return Ok(true);
    }
    let n = match step(end.socket.read(buffer)) {
        Step::Bytes(n) => n,
        Step::Later => return Ok(true),
        Step::End => return Ok(false),
    };
    let Some(to) = ends.get_mut(&other) else { return Ok(false) };
    let written = match step(to.socket.write(&buffer[..n])) {
        Step::Bytes(written) => written,
        Step::Later => 0,
        Step::End => return Ok(false),
    };
    if written < n {
        to.waiting.extend_from_slice(&buffer[written..n]);
        watch(ends, token, poll)?;
        watch(ends, other, poll)?;
    }
    Ok(true)
}

/// Watches an end for what it can do now.
fn watch(ends: &Ends, token: usize, poll: &Poll) -> io::Result<()> {
    let Some(end) = ends.get(&token) else { return Ok(()) };
    let read = ends.get(&end.other).is_some_and(|o| o.waiting.is_empty());
    poll.change(&end.socket, token, Watch { read, write: !end.waiting.is_empty() })
}
