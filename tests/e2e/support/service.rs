//! A service of HTTP/1.1 that a test looks into.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

/// A service that answers with its name, keeps the heads that it got, and fails when told to.
#[derive(Clone)]
pub struct Service {
    pub port: u16,
    pub status: Arc<AtomicU16>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Service {
    pub fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = Self {
            port: listener.local_addr().unwrap().port(),
            status: Arc::new(AtomicU16::new(200)),
            heads: Arc::default(),
        };
        let own = service.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let own = own.clone();
                std::thread::spawn(move || {
                    let mut writer = stream.try_clone().unwrap();
                    let (mut lines, mut head) = (BufReader::new(stream).lines(), String::new());
                    while let Some(Ok(line)) = lines.next() {
                        if !line.is_empty() {
                            head = head + &line + "\n";
                            continue;
                        }
                        let last = head.contains("connection: close");
                        own.heads.lock().unwrap().push(std::mem::take(&mut head));
                        let status = own.status.load(Ordering::Relaxed);
                        let _ = write!(
                            writer,
                            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{name}",
                            name.len()
                        );
                        if last {
                            return;
                        }
                    }
                });
            }
        });
        service
    }

    /// The heads that came so far, header names as they came.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}
