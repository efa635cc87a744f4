//! Token issuers that serve their keys: well at first, and then as their URL says.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::tokens::key_set;

/// One server for all issuers, until the process ends. `/up/KEYS` serves a key set; `/down/KEYS` never does; `/gone/KEYS`
/// does at first, and later fails; `/nonsense/KEYS` later serves none; `/rotated/KEYS/KEYS` later serves the others. Below
/// each is a discovery document.
pub struct Issuers {
    pub base: String,
    later: Arc<AtomicBool>,
}

impl Issuers {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let later = Arc::new(AtomicBool::new(false));
        let (of_issuer, is_later) = (base.clone(), later.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away has what it wants.
                let _ = answer(stream, &of_issuer, is_later.load(Ordering::SeqCst));
            }
        });
        Self { base, later }
    }

    /// What has come over them, or has not yet.
    pub fn later(&self, later: bool) {
        self.later.store(later, Ordering::SeqCst);
    }
}

fn answer(mut stream: TcpStream, base: &str, later: bool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = first.split(' ').nth(1).unwrap_or_default();
    let keys = |names: &str| Some(key_set(names.split(',')).to_string());
    let body = match path.strip_suffix("/.well-known/openid-configuration") {
        Some(issuer) => Some(
            json!({"issuer": format!("{base}{issuer}"), "jwks_uri": format!("{base}{issuer}")}).to_string(),
        ),
        None => match path.trim_start_matches('/').split('/').collect::<Vec<_>>().as_slice() {
            ["up", names] => keys(names),
            ["gone", names] if !later => keys(names),
            ["nonsense", names] if !later => keys(names),
            ["nonsense", _] => Some("<html>be right back</html>".to_owned()),
            ["rotated", first, second] => keys(if later { second } else { first }),
            _ => None,
        },
    };
    let status = if body.is_some() { "200 OK" } else { "503 Service Unavailable" };
    let body = body.unwrap_or_default();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}
