//! Watches one answer that goes on and on: numbered lines, each of which must come, once and in order.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::http::{Connection, Failure, Request};

/// What a stream showed.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Lines that came in order.
    pub lines: u64,
    /// Why it ended before its time, if it did.
    pub broken: Option<String>,
}

/// A stream that is being watched.
#[derive(Debug)]
pub struct Watcher {
    stop: watch::Sender<bool>,
    task: JoinHandle<Watched>,
}

impl Watcher {
    /// Asks for the stream. Its body is lines that begin with their number, from 1.
    pub async fn start(to: SocketAddr, request: &Request, patience: Duration) -> Result<Self, Failure> {
        let mut connection = Connection::open(to, patience).await?;
        let head = connection.begin(request).await?;
        if head.status != 200 {
            return Err(Failure::Malformed(format!("status {} in place of a stream", head.status)));
        }
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(follow(connection, stopped));
        Ok(Self { stop, task })
    }

    /// Ends watching.
    pub async fn stop(self) -> Watched {
        let _ = self.stop.send(true);
        self.task.await.unwrap_or_else(|e| Watched { lines: 0, broken: Some(e.to_string()) })
    }
}

async fn follow(
    mut connection: Connection<tokio::net::TcpStream>,
    mut stopped: watch::Receiver<bool>,
) -> Watched {
    let (mut lines, mut rest) = (0, Vec::new());
    let broken = loop {
        let piece = tokio::select! {
            piece = connection.piece() => piece,
            _ = stopped.changed() => break None,
        };
        match piece {
            Ok(Some(bytes)) => rest.extend(bytes),
            Ok(None) => break Some("it ended".to_owned()),
            Err(failure) => break Some(failure.to_string()),
        }
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let number = line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
            if number != Some(lines + 1) {
                return Watched { lines, broken: Some(format!("line {line:?} after line {lines}")) };
            }
            lines += 1;
        }
    };
    Watched { lines, broken }
}
