//! What several tests need: the binary, a free port, a process that does not outlive its test.

pub mod authority;
pub mod control;
pub mod edge;
pub mod http;
pub mod logged;
pub mod management;
pub mod mesh;
pub mod pair;
pub mod service;
pub mod world;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The all-in-one binary.
pub const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// Runs the binary to its end.
pub fn weft(arguments: &[&str]) -> Output {
    Command::new(WEFT).args(arguments).stdin(Stdio::null()).output().expect("weft runs")
}

/// The same, with `temporary` for what it puts among temporary files; nothing must be left there.
pub fn weft_tidy(temporary: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(WEFT);
    let output =
        command.args(arguments).env("TMPDIR", temporary).stdin(Stdio::null()).output().expect("weft runs");
    let left: Vec<_> =
        std::fs::read_dir(temporary).expect("a directory").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    output
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An address that nobody listens on now.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
}

/// A process that is killed with its test.
pub struct Running(pub Child);

impl Running {
    /// Starts the binary.
    pub fn weft(arguments: &[&str]) -> Self {
        let child = Command::new(WEFT).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self(child.expect("weft starts"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a condition; panics with `what` after ten seconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within ten seconds");
        std::thread::sleep(Duration::from_millis(20));
    }
}
