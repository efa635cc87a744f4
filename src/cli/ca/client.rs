//! The control plane that works on a state directory, over the socket in it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use weft_control::ca::status::Status;
use weft_control::serve::authority::SOCKET;

/// Making keys of 4096 bits may take this long on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the control plane refused before it touched anything.
#[derive(Debug)]
pub(super) struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// The control plane.
pub(super) struct Plane {
    socket: PathBuf,
}

impl Plane {
    /// Finds it.
    pub(super) fn connect(directory: &Path) -> anyhow::Result<Self> {
        let plane = Self { socket: directory.join(SOCKET) };
        plane.status()?;
        Ok(plane)
    }

    pub(super) fn status(&self) -> anyhow::Result<Status> {
        Ok(serde_json::from_value(self.exchange("GET", "/ca/status", "")?)?)
    }

    /// Has something changed.
    pub(super) fn post(&self, path: &str) -> anyhow::Result<Value> {
        self.exchange("POST", path, "")
    }

    /// The same, with something that it needs.
    pub(super) fn send(&self, path: &str, body: &str) -> anyhow::Result<Value> {
        self.exchange("POST", path, body)
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
        // It goes into a request line.
        if path.contains(|c: char| c.is_whitespace() || c.is_control()) {
            bail!("{path:?} cannot be asked for");
        }
        let mut text = String::new();
        (|| {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(
                stream,
                "{method} {path} HTTP/1.1\r\nhost: weft\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )?;
            stream.read_to_string(&mut text)
        })()
        .with_context(|| format!("{}", self.socket.display()))?;
        let (head, body) = text.split_once("\r\n\r\n").context("the control plane's answer is cut off")?;
        let body: Value = serde_json::from_str(body).context("the control plane's answer is not JSON")?;
        if head.split(' ').nth(1) != Some("200") {
            let words = body["error"].as_str().unwrap_or("the control plane refused").to_owned();
            if body["refused"] == true {
                return Err(Refused(words).into());
            }
            bail!("{words}");
        }
        Ok(body)
    }
}
