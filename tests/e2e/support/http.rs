//! HTTP/1.1 in its plainest form: a service that says its name, and one request on one connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Answers every request with `name`, until the test's process ends.
pub fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream, name));
        }
    });
    address
}

fn answer(stream: TcpStream, name: &str) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    let mut last = false;
    while !last {
        loop {
            let Some(line) = lines.next().transpose()? else { return Ok(()) };
            last |= line.eq_ignore_ascii_case("connection: close");
            if line.is_empty() {
                break;
            }
        }
        // In one piece: the second of two would wait for the first one's acknowledgement, 40 ms each time.
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
        writer.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Status and body of one GET; an error when there is no whole answer.
pub fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let (head, body) =
        exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"))?;
    let status = head.get(9..12).and_then(|s| s.parse().ok());
    Ok((status.ok_or_else(|| std::io::Error::other(head))?, body))
}

/// Sends bytes and reads to the end of the connection; head and body of what came.
pub fn exchange(address: SocketAddr, request: &str) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Ok((head.to_owned(), body.to_owned()))
}
