//! A process whose log a test reads.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::{WEFT, eventually};

/// The binary at work, its standard error in a file. Killed with its test.
pub struct Logged {
    child: Child,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

impl Logged {
    /// Starts the binary with these words.
    pub fn weft<S: AsRef<str>>(arguments: &[S]) -> Self {
        Self::weft_with(arguments, &[])
    }

    /// The same with these environment variables.
    pub fn weft_with<S: AsRef<str>>(arguments: &[S], environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("log");
        let file = std::fs::File::create(&log).expect("a log");
        let child = Command::new(WEFT)
            .args(arguments.iter().map(AsRef::as_ref))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("weft starts");
        Self { child, log, _directory: directory }
    }

    /// A proxy at an address of its own, which a control plane configures in plain text.
    pub fn proxy(control: &str, ip: &str, namespace: &str, more: &[&str]) -> Self {
        let (control, admin) = (format!("{control}:15010"), format!("{ip}:15000"));
        let usual =
            ["proxy", "--xds-address", &control, "--xds-plaintext", "--namespace", namespace, "--ip", ip];
        Self::weft(&[&usual[..], &["--admin-address", &admin, "--concurrency", "1"], more].concat())
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }

    /// Waits until a line of the log has all of these words, and gives the first such line.
    pub fn says(&self, words: &[&str]) -> String {
        let find = || self.log().lines().find(|l| words.iter().all(|w| l.contains(w))).map(str::to_owned);
        for _ in 0..1000 {
            if let Some(line) = find() {
                return line;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("the log never says {words:?}:\n{}", self.log());
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its resident memory, in KiB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a process");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a size");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a process").count()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a signal");
    }

    /// Waits for its end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.ended();
            status.is_some()
        });
        status.expect("ended")
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log ---\n{}", self.log());
        }
    }
}
