//! A proxy's process: started on its processor, observed by /proc, ended with its handle.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::poll;

/// A running proxy.
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// Processor time used so far, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// In the program.
    pub user: f64,
    /// In the kernel on its behalf.
    pub system: f64,
    /// Both, to the nanosecond where the kernel says it; user and system come in whole ticks of some milliseconds.
    pub total: f64,
}

impl Process {
    /// Starts a program on one processor; what it says goes to `log`.
    pub fn start(mut command: Command, cpu: usize, log: &Path) -> anyhow::Result<Self> {
        let (out, err) = (File::create(log)?, File::options().append(true).open(log)?);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let program = command.get_program().to_owned();
        // A child inherits the affinity of the thread that starts it.
        let child = std::thread::spawn(move || {
            poll::pin(cpu)?;
            command.spawn()
        })
        .join()
        .map_err(|_| anyhow::anyhow!("starting a process panicked"))?
        .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Starts a program on whatever processor is free.
    pub fn start_anywhere(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let (out, err) = (File::create(log)?, File::options().append(true).open(log)?);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child =
            command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Waits until it accepts connections.
    pub fn ready(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}):\n{}", self.words());
            }
            if Instant::now() > end {
                bail!("it does not listen on {address} after 20 s:\n{}", self.words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The end of what it said.
    pub fn words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Its processor time.
    pub fn cpu(&self) -> anyhow::Result<Cpu> {
        let stat = fs::read_to_string(self.file("stat"))?;
        let after = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
        let mut fields = after.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
        let mut time = || -> anyhow::Result<f64> {
            let ticks = fields.next().context("/proc/PID/stat is short")??;
            Ok(ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64)
        };
        let (user, system) = (time()?, time()?);
        Ok(Cpu { user, system, total: self.scheduled().unwrap_or(user + system) })
    }

    /// What the scheduler counted for its threads.
    fn scheduled(&self) -> Option<f64> {
        let mut sum = 0.0;
        for thread in fs::read_dir(self.file("task")).ok()? {
            let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            sum += text.split_ascii_whitespace().next()?.parse::<f64>().ok()? / 1000.0;
        }
        Some(sum)
    }

    /// Its resident memory in kB.
    pub fn resident(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(self.file("status"))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl std::ops::Sub for Cpu {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self {
            user: self.user - before.user,
            system: self.system - before.system,
            total: self.total - before.total,
        }
    }
}
