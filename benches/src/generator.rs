//! The load generator: closed loop or at a fixed rate, one thread, raw epoll. Each answer is checked byte by byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;

use crate::backend;
use crate::exchange::Exchange;
use crate::poll::{Poll, READ, Step, step};

/// How much load for how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Connections, each with one request under way.
    pub connections: usize,
    /// Before the measurement.
    pub warmup: Duration,
    /// The measurement.
    pub seconds: Duration,
    /// Requests per second, sent when they are due whatever became of those before; none for as many as go.
    pub rate: Option<u32>,
}

/// What was done within the measurement.
#[derive(Debug)]
pub struct Done {
    /// Answers (for bulk: bytes).
    pub count: u64,
    /// How long it took.
    pub time: Duration,
    /// Latencies in nanoseconds; empty for bulk.
    pub latency: Histogram<u64>,
}

struct Client {
    socket: TcpStream,
    sent: Instant,
    got: Vec<u8>,
}

fn dial(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket =
        TcpStream::connect(address).with_context(|| format!("connecting to the proxy at {address}"))?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Runs requests; `mark` is called as the measurement begins and as it ends.
///
/// # Errors
/// An answer was wrong, or a connection ended.
pub fn exchanges(
    exchange: Exchange,
    address: SocketAddr,
    load: Load,
    mut mark: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Done> {
    let mut poll = Poll::new()?;
    let mut clients = Vec::with_capacity(load.connections);
    for token in 0..load.connections {
        let mut socket = dial(address)?;
        poll.add(&socket, token, READ)?;
        if load.rate.is_none() {
            socket.write_all(exchange.request())?;
        }
        clients.push(Client { socket, sent: Instant::now(), got: Vec::with_capacity(4096) });
    }
    let mut latency = Histogram::new_with_max(60_000_000_000, 3)?;
    let (began, mut started, mut count) = (Instant::now(), None, 0);
    let (mut ready, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    let mut last = Instant::now();
    let every = load.rate.map(|rate| Duration::from_secs(1) / rate);
    let (mut free, mut due) = (Vec::from_iter(0..load.connections), began);
    loop {
        let limit = Duration::from_millis(100);
        let limit = every.map_or(limit, |_| due.saturating_duration_since(Instant::now()).min(limit));
        poll.wait(limit, &mut ready)?;
        let now = Instant::now();
        while let Some(every) = every.filter(|_| due <= now) {
            let Some(token) = free.pop() else { break };
            // Latency counts from when it was due: a late start is the proxy's doing as well.
            clients[token].sent = due;
            clients[token].socket.write_all(exchange.request())?;
            due += every;
        }
        match started {
            None if now - began >= load.warmup => {
                mark()?;
                started = Some(Instant::now());
            }
            Some(start) if now - start >= load.seconds => {
                mark()?;
                return Ok(Done { count, time: start.elapsed(), latency });
            }
            _ => {}
        }
        if now - last > Duration::from_secs(5) {
            bail!("no answer for five seconds");
        }
        for token in &ready {
            let client = &mut clients[*token];
            match step(client.socket.read(&mut buffer)) {
                Step::Bytes(n) => client.got.extend_from_slice(&buffer[..n]),
                Step::Later => continue,
                Step::End => bail!("the proxy closed a connection"),
            }
            match exchange.complete(&client.got) {
                Ok(None) => {}
                Ok(Some(_)) => {
                    last = Instant::now();
                    if started.is_some() {
                        count += 1;
                        latency.saturating_record((last - client.sent).as_nanos() as u64);
                    }
                    client.got.clear();
                    if every.is_some() {
                        free.insert(0, *token);
                        continue;
                    }
                    client.sent = last;
                    client.socket.write_all(exchange.request())?;
                }
                Err(wrong) => bail!("wrong answer: {wrong}"),
            }
        }
    }
}

/// Reads a bulk backend's bytes through the proxy.
///
/// # Errors
/// A byte was wrong, or a connection ended.
pub fn bulk(
    address: SocketAddr,
    load: Load,
    mut mark: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Done> {
    let pattern = backend::bulk();
    let mut poll = Poll::new()?;
    let mut clients = Vec::with_capacity(load.connections);
    for token in 0..load.connections {
        let socket = dial(address)?;
        poll.add(&socket, token, READ)?;
        clients.push((socket, 0));
    }
    let (began, mut started, mut count) = (Instant::now(), None, 0);
    let (mut ready, mut buffer) = (Vec::new(), vec![0; 256 * 1024]);
    loop {
        poll.wait(Duration::from_millis(100), &mut ready)?;
        let now = Instant::now();
        match started {
            None if now - began >= load.warmup => {
                mark()?;
                started = Some(Instant::now());
            }
            Some(start) if now - start >= load.seconds => {
                mark()?;
                return Ok(Done { count, time: start.elapsed(), latency: Histogram::new(3)? });
            }
            _ => {}
        }
        for token in &ready {
            let (socket, at) = &mut clients[*token];
            match step(socket.read(&mut buffer)) {
                Step::Bytes(n) => {
                    check(&buffer[..n], &pattern, at)?;
                    if started.is_some() {
                        count += n as u64;
                    }
                }
                Step::Later => {}
                Step::End => bail!("the proxy closed a connection"),
            }
        }
    }
}

fn check(mut bytes: &[u8], pattern: &[u8], at: &mut usize) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        let n = bytes.len().min(pattern.len() - *at);
        if bytes[..n] != pattern[*at..*at + n] {
            bail!("the bytes are not the backend's");
        }
        *at = (*at + n) % pattern.len();
        bytes = &bytes[n..];
    }
    Ok(())
}

/// Opens connections that each make one exchange and stay open and silent.
///
/// # Errors
/// An answer was wrong, or a connection ended.
pub fn idlers(exchange: Exchange, address: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let mut all = Vec::with_capacity(count);
    let mut buffer = vec![0; 16 * 1024];
    for _ in 0..count {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(exchange.request())?;
        let mut got = Vec::new();
        loop {
            let n = socket.read(&mut buffer)?;
            if n == 0 {
                bail!("the proxy closed a connection");
            }
            got.extend_from_slice(&buffer[..n]);
            match exchange.complete(&got) {
                Ok(None) => {}
                Ok(Some(_)) => break,
                Err(wrong) => bail!("wrong answer: {wrong}"),
            }
        }
        all.push(socket);
    }
    Ok(all)
}
