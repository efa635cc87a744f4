//! Gateways are replaced one after the other while clients use them: a balancer sends new connections to those that say they
//! are ready, and nobody sees an error.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Edge, GATEWAYS, gateway};
use crate::netns::hosts::inside;
use crate::programs::get;

/// What the clients share.
struct Shared {
    /// Whether each gateway says that it is ready.
    ready: [AtomicBool; 2],
    turn: AtomicUsize,
    over: AtomicBool,
    /// Requests that were answered, by kind of client.
    done: [AtomicUsize; 3],
    /// What was said into WebSockets and came back.
    said: AtomicUsize,
    /// HTTP/2 requests that were sent while the last GOAWAY was on its way: their client sends them again.
    again: AtomicUsize,
    errors: Mutex<Vec<String>>,
}

impl Shared {
    /// Where the next connection goes.
    fn next(&self) -> SocketAddr {
        loop {
            let at = self.turn.fetch_add(1, Relaxed) % 2;
            if self.ready[at].load(Relaxed) || self.over.load(Relaxed) {
                return SocketAddr::new(GATEWAYS[at].parse().unwrap(), 80);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn error(&self, what: &str, error: impl std::fmt::Display) {
        self.errors.lock().unwrap().push(format!("{what}: {error}"));
    }
}

/// Ends the clients, also when the test fails.
struct Over(Arc<Shared>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.over.store(true, Relaxed);
    }
}

/// One connection of HTTP/1.1, with requests until the gateway says that it is the last one.
fn http1(shared: &Shared) -> std::io::Result<()> {
    let stream = TcpStream::connect(shared.next())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while !shared.over.load(Relaxed) {
        writer.write_all(b"GET /whoami HTTP/1.1\r\nhost: plain.example\r\n\r\n")?;
        let (mut length, mut last, mut first) = (0, false, true);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if std::mem::take(&mut first) && !line.contains(" 200 ") {
                return Err(std::io::Error::other(line));
            }
            last |= line == "connection: close";
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length])?;
        shared.done[0].fetch_add(1, Relaxed);
        if last {
            return Ok(());
        }
    }
    Ok(())
}

/// One connection of HTTP/2, with requests until the gateway says that it takes no more. A request that the last GOAWAY does
/// not count was not handled, whatever its method, and is sent again on the next connection (RFC 9113, section 6.8).
async fn http2(shared: &Shared) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = tokio::net::TcpStream::connect(shared.next()).await?;
    let (mut client, connection) = h2::client::handshake(stream).await?;
    tokio::task::spawn_local(connection);
    while !shared.over.load(Relaxed) {
        client = match client.ready().await {
            Ok(client) => client,
            Err(_) => return Ok(()),
        };
        let request = http::Request::get("http://plain.example/whoami").body(())?;
        // A stream that cannot so much as begin was refused in order.
        let Ok((response, _)) = client.send_request(request, true) else { return Ok(()) };
        let response = match response.await {
            Err(e) if e.is_go_away() && e.is_remote() && e.reason() == Some(h2::Reason::NO_ERROR) => {
                shared.again.fetch_add(1, Relaxed);
                return Ok(());
            }
            other => other?,
        };
        if response.status() != 200 {
            return Err(format!("{}", response.status()).into());
        }
        let mut body = response.into_body();
        while let Some(piece) = body.data().await {
            let piece = piece?;
            let _ = body.flow_control().release_capacity(piece.len());
        }
        shared.done[1].fetch_add(1, Relaxed);
    }
    Ok(())
}

/// A WebSocket's life of a second: what is said into it comes back.
fn websocket(shared: &Shared) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(shared.next())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(
        b"GET /ws HTTP/1.1\r\nhost: plain.example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(std::io::Error::other(String::from_utf8_lossy(&head).into_owned()));
    }
    let end = Instant::now() + Duration::from_secs(1);
    let mut said = 0_u64;
    while Instant::now() < end {
        said += 1;
        stream.write_all(&said.to_be_bytes())?;
        let mut heard = [0; 8];
        stream.read_exact(&mut heard)?;
        assert_eq!(heard, said.to_be_bytes());
        shared.said.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
    shared.done[2].fetch_add(1, Relaxed);
    Ok(())
}

#[test]
fn gateways_are_replaced_under_load_and_nobody_notices() {
    let mut edge = Edge::start(2);
    let shared = Arc::new(Shared {
        ready: [AtomicBool::new(true), AtomicBool::new(true)],
        turn: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        done: std::array::from_fn(|_| AtomicUsize::new(0)),
        said: AtomicUsize::new(0),
        again: AtomicUsize::new(0),
        errors: Mutex::default(),
    });
    let over = Over(shared.clone());
    let mut threads = Vec::new();
    // The balancer: it asks each gateway whether it is ready.
    for (number, host) in edge.hosts.iter().enumerate() {
        let (shared, name) = (shared.clone(), host.name().to_owned());
        threads.push(std::thread::spawn(move || {
            inside(&name, || {
                let at = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15021);
                while !shared.over.load(Relaxed) {
                    let ready = get(at, "/healthz/ready").is_ok_and(|(status, _)| status == 200);
                    shared.ready[number].store(ready, Relaxed);
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }));
    }
    for number in 0..9 {
        let (shared, name) = (shared.clone(), edge.client.name().to_owned());
        threads.push(std::thread::spawn(move || {
            inside(&name, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let local = tokio::task::LocalSet::new();
                while !shared.over.load(Relaxed) {
                    match number % 3 {
                        0 => http1(&shared).unwrap_or_else(|e| shared.error("HTTP/1.1", e)),
                        1 => {
                            let done = runtime.block_on(local.run_until(http2(&shared)));
                            done.unwrap_or_else(|e| shared.error("HTTP/2", e));
                        }
                        _ => websocket(&shared).unwrap_or_else(|e| shared.error("WebSocket", e)),
                    }
                }
            });
        }));
    }
    let counted = || shared.done.each_ref().map(|d| d.load(Relaxed));
    let errors = || shared.errors.lock().unwrap().clone();
    let goes_on = |what: &str| {
        let (before, end) = (counted(), Instant::now() + Duration::from_secs(20));
        while counted().iter().zip(before).any(|(now, before)| *now < before + 6) {
            assert!(Instant::now() < end && errors().is_empty(), "{what}: {:?} {:?}", counted(), errors());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    goes_on("both");
    let began = Instant::now();
    for round in 0..2 {
        for number in [0, 1] {
            let name = ["gateway-0", "gateway-1"][number];
            edge.pods.send(name, Signal::TERM);
            edge.pods.ended(name, Duration::from_secs(30));
            goes_on(&format!("round {round}, without {name}"));
            edge.pods.restart(name);
            edge.pods.ready(&gateway(&edge.hosts[number], number));
            goes_on(&format!("round {round}, {name} is back"));
        }
    }
    let took = began.elapsed().as_secs_f64();
    drop(over);
    for thread in threads {
        thread.join().unwrap();
    }
    let again = shared.again.load(Relaxed);
    let [first, second, sockets] = counted();
    let said = shared.said.load(Relaxed);
    let rate = (first + second + said) as f64 / took;
    println!(
        "{first} requests of HTTP/1.1, {second} of HTTP/2, {said} messages on {sockets} WebSockets, {rate:.0} a second of all; \
         {again} requests sent again"
    );
    // Many times that on a machine that has nothing else to do.
    assert!(rate > 1000.0, "{rate} a second are no load");
    // Four gateways ended, three clients each: more than a request each is not a race any more.
    assert!(again <= 12, "{again} requests met a gateway's end");
    assert!(errors().is_empty(), "{:#?}\n{}", errors(), edge.pods.logs());
}
