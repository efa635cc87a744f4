//! As much of HTTP/1.1 as the applications need: one request on a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::netns::hosts::Host;

/// No exchange may take longer.
const PATIENCE: Duration = Duration::from_secs(35);

/// A request or an answer.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The first line.
    pub first: String,
    headers: Vec<(String, String)>,
    /// All of the body.
    pub body: String,
}

impl Message {
    /// Reads one.
    pub fn read(stream: &TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream);
        let mut message = Self::default();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            match (line.trim_end(), message.first.is_empty()) {
                ("", _) => break,
                (line, true) => line.clone_into(&mut message.first),
                (line, false) => {
                    let (name, value) = line.split_once(':').unwrap_or((line, ""));
                    message.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                }
            }
        }
        let mut body = Vec::new();
        match message.header("content-length").map(|l| l.parse::<usize>()) {
            Some(Ok(length)) => {
                body.resize(length, 0);
                reader.read_exact(&mut body)?;
            }
            _ if message.first.starts_with("HTTP/") => {
                reader.read_to_end(&mut body)?;
            }
            _ => {}
        }
        message.body = String::from_utf8_lossy(&body).into_owned();
        Ok(message)
    }

    /// A header field's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// An answer's status; 0 of none.
    pub fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    /// A request's method and path.
    pub fn asks(&self) -> (&str, &str) {
        let mut words = self.first.split(' ');
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }
}

/// Answers a request.
pub fn answer(stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Asks from a host; a failure is status 0, with its reason as the body.
pub fn ask(from: &Host, to: SocketAddr, request: &str, headers: &str, body: &str) -> Message {
    let exchange = || -> std::io::Result<Message> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        write!(
            stream,
            "{request} HTTP/1.1\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )?;
        Message::read(&stream)
    };
    from.inside(exchange).unwrap_or_else(|e| Message { body: format!("{e}"), ..Message::default() })
}
