//! What runs in the pods: an HTTP server that says what came to it and does what the path asks for, and one that speaks first.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::netns::hosts::{Host, Serving};

/// No request takes longer to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// An HTTP server.
pub struct Application {
    heads: Arc<Mutex<Vec<String>>>,
    _serving: Serving,
}

impl Application {
    /// Serves a port of all addresses of a host, and answers with this name.
    pub fn start(host: &Host, port: u16, name: &str) -> Self {
        let (heads, name) = (Arc::<Mutex<Vec<String>>>::default(), name.to_owned());
        let seen = heads.clone();
        let serving = host.serve(Ipv6Addr::UNSPECIFIED, port, move |stream, _| serve(stream, &name, &seen));
        Self { heads, _serving: serving }
    }

    /// The heads of requests that came, in small letters but for values and the first line.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Those whose path begins so.
    pub fn asked(&self, path: &str) -> Vec<String> {
        let begins = |head: &String| head.split(' ').nth(1).is_some_and(|asked| asked.starts_with(path));
        self.heads().into_iter().filter(begins).collect()
    }
}

/// One connection: as many requests as the client has.
fn serve(mut stream: TcpStream, name: &str, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let before = {
            let mut seen = seen.lock().unwrap();
            let before = seen.iter().filter(|one| one.split(' ').nth(1) == Some(&path)).count();
            seen.push(head);
            before
        };
        let status = match path.split('?').next().unwrap_or_default() {
            // Nothing is answered until the client gives up.
            "/never" => {
                while stream.read(&mut byte).is_ok_and(|n| n > 0) {}
                return Ok(());
            }
            // Each third request is answered well.
            path if path.starts_with("/flaky") => {
                if before % 3 == 2 {
                    200
                } else {
                    503
                }
            }
            path => path.strip_prefix("/status/").and_then(|s| s.parse().ok()).unwrap_or(200),
        };
        write!(
            stream,
            "HTTP/1.1 {status} Said\r\ncontent-length: {}\r\nx-own: {name}\r\n\r\n{name}",
            name.len()
        )?;
    }
}

/// A server that greets whoever connects, if it has something to say, and gives back what it is told.
pub fn greets(host: &Host, port: u16, name: &str) -> Serving {
    let name = name.to_owned();
    host.serve(Ipv6Addr::UNSPECIFIED, port, move |mut stream, _| -> std::io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(name.as_bytes())?;
        let mut buffer = [0; 1024];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                n => stream.write_all(&buffer[..n])?,
            }
        }
    })
}
