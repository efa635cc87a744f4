//! The real programs, and processes that end with the test.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long a program may take to start.
const START: Duration = Duration::from_secs(30);

/// Where a peer is, by the name that `tests/peers/install` gives it. A missing one fails the test.
pub fn peer(name: &str) -> PathBuf {
    let cache = std::env::var_os("WEFT_PEERS_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
        Path::new(&home).join(".cache/weft/peers")
    });
    let file = cache.join("env");
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|e| panic!("{}: {e}; run tests/peers/install first", file.display()));
    let known: HashMap<_, _> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let path = known.get(name).unwrap_or_else(|| {
        panic!("{} does not say where {name} is; run tests/peers/install", file.display())
    });
    assert!(Path::new(path).exists(), "{name}: {path} is gone; run tests/peers/install");
    path.into()
}

/// Our own binary.
pub fn weft() -> Command {
    Command::new(env!("CARGO_BIN_EXE_weft"))
}

/// A proxy of ours; another build of it where `WEFT_PROXY_UNDER_TEST` says so.
pub fn weft_proxy() -> Command {
    if let Some(other) = std::env::var_os("WEFT_PROXY_UNDER_TEST") {
        return Command::new(other);
    }
    let mut command = weft();
    command.arg("proxy");
    command
}

/// A process that ends when this is dropped; its output is in a file.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command whose output goes to `NAME.log` in the directory.
    pub fn start(name: &str, command: &mut Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        let _ = std::fs::remove_file(&log);
        Self::start_again(name, command, directory)
    }

    /// The same, of one whose output goes on where that of an earlier one ended.
    pub fn start_again(name: &str, command: &mut Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        let out = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap_or_else(|e| panic!("{name} ({:?}): {e}", command.get_program()));
        Self { name: name.to_owned(), child, log }
    }

    /// Waits until the condition holds. Panics with the log if the process ends first or the time is over.
    pub fn wait(&mut self, what: &str, done: impl FnMut() -> bool) {
        self.wait_within(START, what, done);
    }

    /// The same with a deadline of its own.
    pub fn wait_within(&mut self, time: Duration, what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + time;
        while !done() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{} ended ({status}) before it was {what}:\n{}", self.name, self.log());
            }
            assert!(Instant::now() < end, "{} is not {what} after {time:?}:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it ends by itself in this time.
    pub fn ended(&mut self, within: Duration) -> bool {
        let end = Instant::now() + within;
        loop {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// What it has written.
    pub fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        // What is wrong with a long configuration stands before it or behind it.
        let (first, last) = (lines.len().min(20), lines.len().saturating_sub(60).max(20).min(lines.len()));
        [&lines[..first], &lines[last..]].concat().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A GET of a small page: status and body.
pub fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    ask(address, "GET", path)
}

/// A POST of nothing: status and body.
pub fn post(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    ask(address, "POST", path)
}

fn ask(address: SocketAddr, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let end = "connection: close\r\ncontent-length: 0";
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: {address}\r\n{end}\r\n\r\n")?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map(|(_, b)| b.to_owned()).unwrap_or_default();
    Ok((status, body))
}

/// Runs a client's program to its end and gives what it printed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.env("PGCONNECT_TIMEOUT", "10").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => {
            Err(format!("{command:?}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr)))
        }
    }
}

/// Waits for something, not for ever.
pub fn until(what: &str, done: impl FnMut() -> bool) {
    until_or(what, String::new, done);
}

/// The same; `story` tells what to look at where it does not come.
pub fn until_or(what: &str, story: impl Fn() -> String, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}\n{}", story());
        std::thread::sleep(Duration::from_millis(50));
    }
}
