//! Who takes spans in rows that trace: answers each OTLP request over HTTP/1 with 200, and notes who has sent any, so that no row
//! claims to trace that does not.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::poll::{self, Poll, Step, step};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// A running collector.
pub struct Collector {
    /// Where it listens.
    pub address: SocketAddr,
    missing: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Collector {
    /// Starts one on this processor that expects spans of services of these names.
    pub fn start(address: SocketAddr, cpu: usize, names: Vec<String>) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (missing, stop) = (Arc::new(Mutex::new(names)), Arc::new(AtomicBool::new(false)));
        let (names, end) = (missing.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("collector".to_owned()).spawn(move || {
            poll::pin(cpu)?;
            serve(&listener, &names, &end)
        })?;
        Ok(Self { address, missing, stop, thread: Some(thread) })
    }

    /// Waits until all of them have sent some.
    ///
    /// # Errors
    /// Names those who have not in time.
    pub fn wait(&self, limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        loop {
            let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner).join(", ");
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("no spans came from {missing}: what was measured does not trace");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, missing: &Mutex<Vec<String>>, stop: &AtomicBool) -> io::Result<()> {
    let mut poll = Poll::new()?;
    poll.add(listener, 0, poll::READ)?;
    let mut peers: HashMap<usize, (TcpStream, Vec<u8>)> = HashMap::new();
    let (mut ready, mut next, mut buffer) = (Vec::new(), 1, vec![0; 64 * 1024]);
    while !stop.load(Relaxed) {
        poll.wait(Duration::from_millis(100), &mut ready)?;
        for token in &ready {
            if *token == 0 {
                while let Ok((socket, _)) = listener.accept() {
                    socket.set_nonblocking(true)?;
                    poll.add(&socket, next, poll::READ)?;
                    peers.insert(next, (socket, Vec::new()));
                    next += 1;
                }
                continue;
            }
            let Some((socket, bytes)) = peers.get_mut(token) else { continue };
            let goes_on = match step(socket.read(&mut buffer)) {
                Step::Bytes(n) => {
                    bytes.extend_from_slice(&buffer[..n]);
                    taken(bytes, missing).iter().all(|()| socket.write_all(ANSWER).is_ok())
                }
                Step::Later => true,
                Step::End => false,
            };
            if !goes_on {
                peers.remove(token);
            }
        }
    }
    Ok(())
}

/// Takes whole requests from the front, one answer due for each.
fn taken(bytes: &mut Vec<u8>, missing: &Mutex<Vec<String>>) -> Vec<()> {
    let mut requests = Vec::new();
    while let Some(length) = whole(bytes) {
        let request: Vec<u8> = bytes.drain(..length).collect();
        let holds = |name: &str| request.windows(name.len()).any(|w| w == name.as_bytes());
        missing.lock().unwrap_or_else(PoisonError::into_inner).retain(|name| !holds(name));
        requests.push(());
    }
    requests
}

/// The length of the first request, head and body (by its length or in chunks, as Envoy sends it), where it is whole.
fn whole(bytes: &[u8]) -> Option<usize> {
    let head = line_ends(bytes, b"\r\n\r\n")?;
    let text = std::str::from_utf8(bytes.get(..head)?).ok()?;
    let field = |wanted: &str| {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        fields.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    let mut end = head;
    if field("transfer-encoding").is_some() {
        loop {
            let data = end + line_ends(&bytes[end..], b"\r\n")?;
            let size = std::str::from_utf8(&bytes[end..data]).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            end = data + size + 2;
            if size == 0 || bytes.len() < end {
                break;
            }
        }
    } else {
        end += field("content-length").and_then(|length| length.parse::<usize>().ok()).unwrap_or(0);
    }
    (bytes.len() >= end).then_some(end)
}

/// Behind the first of these in it.
fn line_ends(bytes: &[u8], end: &[u8]) -> Option<usize> {
    Some(bytes.windows(end.len()).position(|w| w == end)? + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_heard_when_its_whole_request_is_there_and_others_are_missed() {
        let missing = Mutex::new(vec!["weft-outer".to_owned(), "envoy-outer".to_owned()]);
        let mut bytes = b"POST /v1/traces HTTP/1.1\r\nContent-Length: 12\r\n\r\n..weft-oute".to_vec();
        assert!(taken(&mut bytes, &missing).is_empty());
        bytes.extend_from_slice(b"rPOST");
        assert_eq!(taken(&mut bytes, &missing).len(), 1);
        assert_eq!(bytes, b"POST");
        assert_eq!(*missing.lock().unwrap(), ["envoy-outer"]);
    }

    #[test]
    fn chunks_are_one_request() {
        let all = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4\r\nenvo\r\nb\r\ny-outer....\r\n0\r\n\r\nPOST";
        let whole_length = all.len() - 4;
        for cut in 1..whole_length {
            assert_eq!(whole(&all[..cut]), None, "cut at {cut}");
        }
        assert_eq!(whole(all), Some(whole_length));
    }

    #[test]
    fn waiting_names_who_sent_none() {
        let collector =
            Collector::start("127.0.0.1:0".parse().unwrap(), 0, vec!["weft-outer".to_owned()]).unwrap();
        let error = collector.wait(Duration::ZERO).unwrap_err().to_string();
        assert_eq!(error, "no spans came from weft-outer: what was measured does not trace");
        let mut socket = TcpStream::connect(collector.address).unwrap();
        socket.write_all(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\nweft-outer").unwrap();
        collector.wait(Duration::from_secs(20)).unwrap();
    }
}
