//! One child process: started, watched, started again when it dies by itself, ended with everything that it started.

use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

/// Back-off between restarts: the first, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Who ran this long is healthy: the next restart is immediate again.
const HEALTHY: Duration = Duration::from_secs(10);
/// So much of a log is shown when its process has died.
const TAIL_LINES: usize = 12;
const TAIL_BYTES: u64 = 8192;

/// Which process of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The control plane.
    Control,
    /// The proxy of the workload with this id.
    Proxy(String),
    /// The application of the workload with this id.
    App(String),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("the control plane"),
            Self::Proxy(id) => write!(f, "the proxy of {id}"),
            Self::App(id) => write!(f, "the application of {id}"),
        }
    }
}

impl Part {
    /// Its log's file name.
    pub(super) fn log_name(&self) -> String {
        match self {
            Self::Control => "control.log".to_owned(),
            Self::Proxy(id) => format!("{id}.proxy.log"),
            Self::App(id) => format!("{id}.app.log"),
        }
    }
}

/// How a process is started.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) part: Part,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) log: PathBuf,
}

/// What a process does now.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Its process id, while it runs.
    pub pid: Option<u32>,
    /// How many times it was started.
    pub starts: u32,
    /// How many times it died by itself.
    pub deaths: u32,
    /// How it ended last: exit status or signal, and the last lines of its log.
    pub last_end: Option<Death>,
}

/// A process that ended without being told to.
#[derive(Clone, Debug)]
pub struct Death {
    /// Which.
    pub part: Part,
    /// Exit status or signal.
    pub status: String,
    /// The last lines of its log.
    pub tail: String,
    /// Its whole log.
    pub log: PathBuf,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ended ({})", self.part, self.status)?;
        if !self.tail.is_empty() {
            write!(f, "; the last lines of {}:", self.log.display())?;
            for line in self.tail.lines() {
                write!(f, "\n    {line}")?;
            }
        }
        Ok(())
    }
}

/// What a process is told.
pub(super) enum Order {
    /// Run, if it does not.
    Start,
    /// Get this signal; it stays down after `stay_down`.
    Signal { signal: Signal, stay_down: bool },
}

/// Holds a process as its orders say, until they end; then it is killed.
pub(super) async fn keep(
    spec: Spec,
    mut orders: mpsc::UnboundedReceiver<Order>,
    state: watch::Sender<State>,
    deaths: mpsc::UnboundedSender<Death>,
) {
    let mut wanted = false;
    let mut pause = BACK_OFF.0;
    loop {
        while !wanted {
            match orders.recv().await {
                Some(Order::Start) => wanted = true,
                Some(Order::Signal { .. }) => {}
                None => return,
            }
        }
        let began = Instant::now();
        let end = match start(&spec) {
            Ok(child) => match run(child, &mut orders, &mut wanted, &state).await {
                Some(status) => describe(status),
                None => return,
            },
            Err(error) => format!("{error:#}"),
        };
        if !wanted {
            continue;
        }
        let death =
            Death { part: spec.part.clone(), status: end, tail: tail(&spec.log), log: spec.log.clone() };
        state.send_modify(|s| {
            s.deaths += 1;
            s.last_end = Some(death.clone());
        });
        // Nobody need listen.
        let _ = deaths.send(death);
        if began.elapsed() >= HEALTHY {
            pause = BACK_OFF.0;
        }
        let until = tokio::time::Instant::now() + pause;
        pause = (pause * 2).min(BACK_OFF.1);
        while wanted {
            match tokio::time::timeout_at(until, orders.recv()).await {
                Err(_) | Ok(Some(Order::Start)) => break,
                Ok(Some(Order::Signal { stay_down, .. })) => wanted &= !stay_down,
                Ok(None) => return,
            }
        }
    }
}

/// Waits for the end of a running child and passes signals on. Nothing comes back when the orders ended.
async fn run(
    mut child: Child,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    wanted: &mut bool,
    state: &watch::Sender<State>,
) -> Option<ExitStatus> {
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let signal = |signal| {
        // A group that is gone has what it needs.
        let _ = group.map(|group| kill_process_group(group, signal));
    };
    state.send_modify(|s| {
        s.pid = child.id();
        s.starts += 1;
    });
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.unwrap_or_else(|_| ExitStatus::from_raw(0)),
            order = orders.recv() => match order {
                Some(Order::Start) => *wanted = true,
                Some(Order::Signal { signal: which, stay_down }) => {
                    *wanted &= !stay_down;
                    signal(which);
                }
                None => {
                    signal(Signal::KILL);
                    let _ = child.wait().await;
                    state.send_modify(|s| s.pid = None);
                    return None;
                }
            },
        }
    };
    // What the child started itself goes with it.
    signal(Signal::KILL);
    state.send_modify(|s| s.pid = None);
    Some(status)
}

fn start(spec: &Spec) -> anyhow::Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&spec.log)
        .with_context(|| format!("cannot write {}", spec.log.display()))?;
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.arguments)
        .envs(spec.environment.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A group of its own: Ctrl-C at the terminal is ours to pass on, in order.
        .process_group(0);
    die_with_us(&mut command);
    command.spawn().with_context(|| format!("cannot start {}", spec.program.display()))
}

/// The kernel kills the child when the thread that started it ends, however it ends. The supervisor's thread starts all.
#[allow(unsafe_code)]
fn die_with_us(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only async-signal-safe work is allowed. The closure makes two system calls (prctl and
    // getppid, both direct ones in rustix), allocates nothing, takes no lock, and touches no memory but its own copy of a
    // number.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // We may have died before the kernel knew the wish.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(std::io::ErrorKind::Interrupted.into())
            }
        });
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => status.to_string(),
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, dir: &Path) -> Spec {
        Spec {
            part: Part::App("a".to_owned()),
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: vec![("WORD".to_owned(), "hello".to_owned())],
            log: dir.join("log"),
        }
    }

    struct Kept {
        orders: mpsc::UnboundedSender<Order>,
        state: watch::Receiver<State>,
        deaths: mpsc::UnboundedReceiver<Death>,
        task: tokio::task::JoinHandle<()>,
    }

    fn kept(spec: Spec) -> Kept {
        let (orders, receiver) = mpsc::unbounded_channel();
        let (sender, state) = watch::channel(State::default());
        let (tell, deaths) = mpsc::unbounded_channel();
        Kept { orders, state, deaths, task: tokio::spawn(keep(spec, receiver, sender, tell)) }
    }

    #[tokio::test]
    async fn who_dies_is_named_with_its_last_words_and_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = kept(sh("echo $WORD from $$; exit 3", dir.path()));
        kept.orders.send(Order::Start).ok().unwrap();
        let death = kept.deaths.recv().await.unwrap();
        assert_eq!(death.status, "exit status 3");
        assert!(death.tail.starts_with("hello from "), "{}", death.tail);
        assert!(death.to_string().contains("the application of a ended (exit status 3)"));
        kept.state.wait_for(|s| s.starts >= 3).await.unwrap();
    }

    #[tokio::test]
    async fn who_is_told_to_end_stays_down_until_told_to_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = kept(sh("sleep 1000", dir.path()));
        kept.orders.send(Order::Start).ok().unwrap();
        kept.state.wait_for(|s| s.pid.is_some()).await.unwrap();
        kept.orders.send(Order::Signal { signal: Signal::TERM, stay_down: true }).ok().unwrap();
        kept.state.wait_for(|s| s.pid.is_none()).await.unwrap();
        kept.orders.send(Order::Start).ok().unwrap();
        let state = kept.state.wait_for(|s| s.pid.is_some()).await.unwrap().clone();
        assert_eq!((state.starts, state.deaths), (2, 0));
        assert!(kept.deaths.try_recv().is_err());
    }

    #[tokio::test]
    async fn the_end_of_orders_ends_a_process_and_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = kept(sh("sleep 1000 & echo $!; wait", dir.path()));
        kept.orders.send(Order::Start).ok().unwrap();
        let log = dir.path().join("log");
        let deadline = Instant::now() + Duration::from_secs(10);
        let grandchild = loop {
            if let Ok(pid) = std::fs::read_to_string(&log).unwrap_or_default().trim().parse::<u32>() {
                break pid;
            }
            assert!(Instant::now() < deadline, "the child says nothing");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        kept.state.wait_for(|s| s.pid.is_some()).await.unwrap();
        drop(kept.orders);
        kept.task.await.unwrap();
        // Killed; a zombie at most until its new parent has looked.
        loop {
            let state = std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                break;
            }
            assert!(Instant::now() < deadline, "the grandchild is still there: {state}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
