//! What is sent to do harm: each is refused, memory stays within bounds, and others are served meanwhile.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use xds_protos::ResourceType;

use crate::support::world::{TO_BACKEND, World, all, cluster, listener, routes};

/// How much more the proxy may hold after an attack, in KiB.
const ROOM: u64 = 24 * 1024;
/// How long an attack may go on.
const PATIENCE: Duration = Duration::from_secs(20);

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET http://a/` by HPACK's static table, and a literal authority.
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'a'];

/// The attacked proxy, and what it held before.
struct Target {
    world: World,
    before: u64,
}

impl Target {
    fn new(ip: &'static str, manager: &str) -> Self {
        let world = World::start(ip, "delta");
        if !manager.is_empty() {
            let changed = listener("main", ip, 8080, "")
                .replace("      stat_prefix: test\n", &format!("      stat_prefix: test\n      {manager}\n"));
            let resources = all(&[cluster("backend", world.backend, ""), changed, routes(TO_BACKEND)]);
            world.taken(ResourceType::Listener, &resources);
        }
        let before = world.proxy.resident();
        Self { world, before }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.world.at(8080)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        stream
    }

    /// An HTTP/2 connection whose beginning is over.
    fn connect_h2(&self) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
        stream
    }

    /// Others are served, and no memory was taken for good.
    fn is_well(&self) {
        assert_eq!(self.world.get("/").unwrap().0, 200, "others are served");
        let now = self.world.proxy.resident();
        assert!(now < self.before + ROOM, "{} KiB before, {now} KiB now", self.before);
    }

    fn counter(&self, name: &str) -> u64 {
        let stats = crate::support::http::get(self.world.at(15000), "/stats").unwrap().1;
        let value = stats.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        value.map_or(0, |v| v.parse().unwrap())
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Sends what `next` makes until the proxy takes no more, or the patience is over; how many it took.
fn flood(stream: &mut TcpStream, mut next: impl FnMut(u32) -> Vec<u8>) -> Option<u32> {
    let (began, mut number) = (Instant::now(), 0);
    while began.elapsed() < PATIENCE {
        if stream.write_all(&next(number)).is_err() {
            return Some(number);
        }
        number += 1;
    }
    None
}

/// Everything that comes until the connection ends.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let _ = stream.shutdown(Shutdown::Write);
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        all.extend_from_slice(&buffer[..n]);
    }
    all
}

/// The whole frames among these bytes: kind, flags, payload.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = (u8, u8, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, kind, flags, _, _, _, _, after @ ..] = bytes else { return None };
        let payload = after.get(..u32::from_be_bytes([0, *a, *b, *c]) as usize)?;
        bytes = &after[payload.len()..];
        Some((*kind, *flags, payload))
    })
}

/// The reason of the GOAWAY among frames.
fn farewell(bytes: &[u8]) -> Option<u32> {
    let (.., payload) = frames(bytes).find(|(kind, ..)| *kind == GOAWAY)?;
    Some(u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?))
}

/// A stream that is opened and reset.
fn opened_and_reset(number: u32) -> Vec<u8> {
    let id = number * 2 + 1;
    let cancel = 8u32.to_be_bytes();
    [frame(HEADERS, END_STREAM | END_HEADERS, id, GET), frame(RST_STREAM, 0, id, &cancel)].concat()
}

#[test]
fn streams_that_are_reset_at_once_end_their_connection() {
    let target = Target::new("127.58.1.1", "");
    let mut stream = target.connect_h2();
    assert!(flood(&mut stream, opened_and_reset).is_some(), "the connection goes on");
    target.is_well();
    let requests = target.counter("cluster.backend.upstream_rq_total");
    assert!(requests < 2000, "{requests} requests went on to the upstream");
}

#[test]
fn streams_that_are_reset_soon_end_their_connection_as_well() {
    let target = Target::new("127.58.7.1", "");
    let mut stream = target.connect_h2();
    let (mut seen, mut buffer, mut number) = (Vec::new(), [0; 4096], 0);
    let calm = loop {
        assert!(number < 1000, "the connection goes on after {number} streams");
        // Few at a time, and no more before the proxy has read them: what it has not looked at is judged otherwise.
        let few: Vec<u8> = (number..number + 4).flat_map(opened_and_reset).collect();
        let asked = u64::from(number).to_be_bytes();
        stream.write_all(&[few, frame(PING, 0, 0, &asked)].concat()).unwrap();
        number += 4;
        while farewell(&seen).is_none() && !frames(&seen).any(|f| f == (PING, ACK, &asked)) {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "the connection ended without a word after {number} streams");
            seen.extend_from_slice(&buffer[..read]);
        }
        if let Some(reason) = farewell(&seen) {
            break reason;
        }
    };
    // ENHANCE_YOUR_CALM
    assert_eq!(calm, 11);
    assert!(number >= 250, "half of five hundred are let pass, not {number}");
    assert_eq!(target.counter("http.test.downstream_rq_too_many_premature_resets"), 1);
    target.is_well();
}

#[test]
fn heads_that_never_end_end_their_connection() {
    let target = Target::new("127.58.2.1", "");
    for size in [5, 8000] {
        let mut stream = target.connect_h2();
        stream.write_all(&frame(HEADERS, END_STREAM, 1, GET)).unwrap();
        // A literal field with a new name, over and over.
        let piece: Vec<u8> = [0x00, 1, b'x', 1, b'y'].into_iter().cycle().take(size).collect();
        assert!(
            flood(&mut stream, |_| frame(CONTINUATION, 0, 1, &piece)).is_some(),
            "pieces of {size} bytes"
        );
    }
    target.is_well();
}

#[test]
fn control_frames_that_nobody_reads_the_answers_of_take_no_memory() {
    let target = Target::new("127.58.3.1", "");
    let ping = frame(PING, 0, 0, &[7; 8]);
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
    for one in [ping, settings] {
        let many = one.repeat(500);
        let mut stream = target.connect_h2();
        // Our side stops reading when its answers are not taken; then the writes do not go through any more.
        assert!(flood(&mut stream, |_| many.clone()).is_some(), "everything is taken");
        target.is_well();
    }
}

#[test]
fn a_small_head_that_unpacks_to_a_large_one_is_refused() {
    let target = Target::new("127.58.4.1", "");
    let mut stream = target.connect_h2();
    // A field of 3,900 bytes goes into the table, and is named 16,000 times by one byte each.
    let mut head = GET.to_vec();
    head.extend([0x40, 1, b'x', 0x7f]);
    let mut length = 3900 - 127;
    while length >= 128 {
        head.push(u8::try_from(length % 128).unwrap() | 0x80);
        length /= 128;
    }
    head.push(u8::try_from(length).unwrap());
    head.extend([b'y'; 3900]);
    head.extend(std::iter::repeat_n(0xbe, 12_000));
    stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head)).unwrap();
    let answer = rest(&mut stream);
    let requests = target.counter("cluster.backend.upstream_rq_total");
    // The world's own request was the only one.
    assert!(requests <= 2, "{requests} requests went on: {answer:?}");
    assert!(!answer.is_empty());
    target.is_well();
}

#[test]
fn heads_that_come_byte_by_byte_run_out_of_time() {
    let target = Target::new("127.58.5.1", "request_headers_timeout: 1s");
    let slow: Vec<_> = (0..300)
        .map(|_| {
            let mut stream = target.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx-").unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    for mut stream in slow {
        // Bytes that come do not make the time longer.
        let mut answer = Vec::new();
        while began.elapsed() < PATIENCE && stream.write_all(b"a").is_ok() {
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let mut buffer = [0; 512];
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => answer.extend_from_slice(&buffer[..n]),
                Err(_) => {}
            }
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(began.elapsed() < PATIENCE, "a connection is still open");
    }
    target.is_well();
}

#[test]
fn bodies_that_come_byte_by_byte_run_out_of_time() {
    let target = Target::new("127.58.8.1", "");
    // An upstream that waits for all of it before it answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap();
    std::thread::spawn(move || silent.incoming().flatten().collect::<Vec<_>>());
    let limited = listener("main", target.world.ip, 8080, "")
        .replace("      stat_prefix: test\n", "      stat_prefix: test\n      request_timeout: 3s\n");
    let to_silent = "  - {match: {prefix: /slow}, route: {cluster: silent}}\n".to_owned();
    let resources = all(&[
        cluster("backend", target.world.backend, ""),
        cluster("silent", at, ""),
        limited,
        routes(&(to_silent + TO_BACKEND)),
    ]);
    for kind in [ResourceType::Listener, ResourceType::Route] {
        target.world.taken(kind, &resources);
    }
    let mut slow: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = target.connect();
            stream.write_all(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n").unwrap();
            stream.set_nonblocking(true).unwrap();
            Some(stream)
        })
        .collect();
    let began = Instant::now();
    let mut answers = Vec::new();
    while slow.iter().any(Option::is_some) {
        assert!(began.elapsed() < PATIENCE, "{} are still open", slow.iter().flatten().count());
        // Others are served meanwhile.
        assert_eq!(target.world.get("/").unwrap().0, 200);
        for place in &mut slow {
            let Some(stream) = place else { continue };
            let sent = stream.write_all(b"a").is_ok();
            let mut buffer = [0; 512];
            match stream.read(&mut buffer) {
                Ok(count) => answers.push(String::from_utf8_lossy(&buffer[..count]).into_owned()),
                Err(_) if sent => continue,
                Err(_) => {}
            }
            *place = None;
        }
    }
    assert!(began.elapsed() > Duration::from_secs(2), "nobody had a chance");
    assert!(
        answers.len() > 100 && answers.iter().all(|a| a.is_empty() || a.starts_with("HTTP/1.1 408")),
        "{answers:?}"
    );
    target.is_well();
}

/// Answers with more than anybody waits for; how much of it was taken so far is in the counter.
fn pour(mut stream: TcpStream, taken: &AtomicUsize) -> std::io::Result<()> {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..count]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000000\r\n\r\n")?;
    loop {
        taken.fetch_add(stream.write(&[b'x'; 65536])?, Ordering::Relaxed);
    }
}

#[test]
fn answers_that_nobody_reads_stop_their_upstream_and_cost_little() {
    const READERS: usize = 48;
    let target = Target::new("127.58.9.1", "");
    let large = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = large.local_addr().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    std::thread::spawn(move || {
        for stream in large.incoming().flatten() {
            let counted = counted.clone();
            std::thread::spawn(move || pour(stream, &counted));
        }
    });
    let resources = all(&[
        cluster("backend", target.world.backend, ""),
        cluster("large", at, ""),
        listener("main", target.world.ip, 8080, ""),
        routes(&("  - {match: {prefix: /large}, route: {cluster: large}}\n".to_owned() + TO_BACKEND)),
    ]);
    target.world.taken(ResourceType::Route, &resources);
    let mut readers: Vec<TcpStream> = (0..READERS).map(|_| target.connect()).collect();
    for reader in &mut readers {
        reader.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    }
    // Until everything that can take something is full: nothing more is taken for half a second.
    let (began, mut last, mut since) = (Instant::now(), 0, Instant::now());
    while since.elapsed() < Duration::from_millis(500) || last == 0 {
        assert!(began.elapsed() < PATIENCE * 2, "{last} bytes, and still more");
        let now = taken.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let grown = target.world.proxy.resident().saturating_sub(target.before);
    assert!(grown < 16 * 1024, "{READERS} readers cost {grown} KiB, {last} bytes were taken");
    target.is_well();
    // Who reads gets what is there, and more of it comes.
    let reader = &mut readers[0];
    reader.read_exact(&mut vec![0; 32 << 20]).unwrap();
    assert!(taken.load(Ordering::Relaxed) > last);
}

#[test]
fn requests_that_two_hops_could_read_differently_are_refused() {
    let target = Target::new("127.58.6.1", "");
    let before = target.counter("cluster.backend.upstream_rq_total");
    for (what, request) in [
        (
            "both framings",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("two lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"),
        ("a list of lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\nx"),
        ("a signed length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx"),
        ("an unknown coding", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
        (
            "chunked and another coding",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked twice",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "space before the colon",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        ),
        ("a folded field", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n transfer-encoding: chunked\r\n\r\n"),
        ("bare line feeds", "GET / HTTP/1.1\nhost: a\n\n"),
        (
            "a bare line feed in a field",
            "GET / HTTP/1.1\r\nhost: a\r\nx: 1\ntransfer-encoding: chunked\r\n\r\n",
        ),
        ("a null in a field", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\0\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("a space in the target", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n"),
    ] {
        let mut stream = target.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let answer = String::from_utf8_lossy(&rest(&mut stream)).into_owned();
        let status = answer.get(9..12).unwrap_or_default().to_owned();
        assert!(["400", "501"].contains(&status.as_str()), "{what}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer:?}");
    }
    // Sizes of chunks that are read in two ways, and a chunk's data without its end.
    for (what, body) in [
        ("a size that overflows", "10000000000000001\r\nx\r\n0\r\n\r\n"),
        ("a signed size", "+1\r\nx\r\n0\r\n\r\n"),
        ("a size in two notations", "0x1\r\nx\r\n0\r\n\r\n"),
        ("a bare line feed after a size", "1\nx\r\n0\r\n\r\n"),
        ("data longer than its size", "1\r\nxyz\r\n0\r\n\r\n"),
    ] {
        let mut stream = target.connect();
        let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        stream
            .write_all([head, body, "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"].concat().as_bytes())
            .unwrap();
        let answer = String::from_utf8_lossy(&rest(&mut stream)).into_owned();
        assert!(answer.matches("HTTP/1.1 200").count() <= 1, "{what}: {answer:?}");
        assert!(!answer.contains("smuggled"), "{what}: {answer:?}");
    }
    let after = target.counter("cluster.backend.upstream_rq_total");
    assert!(after - before <= 5, "{} requests went on", after - before);
    target.is_well();
}

#[test]
fn a_farewell_is_found_among_frames() {
    let frames = [frame(SETTINGS, 0, 0, &[]), frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 11])].concat();
    assert_eq!(farewell(&frames), Some(11));
    assert_eq!(farewell(&frames[..9]), None);
}
