//! A probe by a command, for workloads that no kubelet looks after: it is well if the command ends with status 0.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::task::JoinSet;

use super::{Outcome, up};

/// As much of what it says is told.
const TOLD: usize = 1024;
/// Something that the command has started may hold its output open: that is not waited for.
const PATIENCE: Duration = Duration::from_millis(100);

/// Whoever gives up waiting ends the command, and what it has started.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended meanwhile.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

pub(super) async fn probe(command: &[String]) -> anyhow::Result<Outcome> {
    let (program, arguments) = command.split_first().context("the command is empty")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{program:?} cannot be started"))?;
    // Dropped before the child is waited for by somebody else: the number is still its own.
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut group = Group(id);
    let (errors, output) = (child.stderr.take(), child.stdout.take());
    // They end with whoever waits for them: a process that left the group may hold its output open for ever.
    let mut reading = JoinSet::new();
    reading.spawn(async { (0, beginning(errors).await) });
    reading.spawn(async { (1, beginning(output).await) });
    let status = child.wait().await.context("the command cannot be waited for")?;
    group.0 = None;
    let mut said = [Vec::new(), Vec::new()];
    let all = async {
        while let Some(read) = reading.join_next().await {
            if let Ok((at, text)) = read {
                said[at] = text;
            }
        }
    };
    // What did not come by then is not told.
    let _ = tokio::time::timeout(PATIENCE, all).await;
    let text = said.concat();
    if status.success() {
        return Ok(up());
    }
    bail!("{program:?} ended with {status}: {}", String::from_utf8_lossy(&text).trim())
}

/// The beginning of what comes; the rest is read and thrown away, so that nobody waits for room.
async fn beginning(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut text, mut buffer) = (Vec::new(), [0; 1024]);
    let Some(mut from) = from else { return text };
    while let Ok(read) = from.read(&mut buffer).await
        && read > 0
    {
        let room = TOLD.saturating_sub(text.len());
        text.extend_from_slice(&buffer[..read.min(room)]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str) -> Result<(), String> {
        let command = ["sh", "-c", script].map(str::to_owned);
        probe(&command).await.map(drop).map_err(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn a_workload_is_well_if_its_command_says_so() {
        shell("exit 0").await.unwrap();
        // More than a pipe holds, and something that goes on with the output open, whose end nobody waits for.
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("yes | head -c 300000; sleep 600 & echo $! > {}; exit 0", file.display());
        let ended = tokio::time::timeout(Duration::from_secs(30), shell(&script)).await;
        let pid = std::fs::read_to_string(&file).unwrap().trim().parse().ok().and_then(Pid::from_raw);
        rustix::process::kill_process(pid.unwrap(), Signal::KILL).expect("it still goes on");
        ended.expect("it is not waited for").unwrap();
        let why = shell("echo disk full >&2; exit 3").await.unwrap_err();
        assert!(why.contains("disk full") && why.contains('3'), "{why}");
        let why = probe(&["/nowhere/at/all".to_owned()]).await.unwrap_err();
        assert!(format!("{why:#}").contains("cannot be started"), "{why:#}");
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_is_ended_with_all_that_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pids");
        let script = format!("sleep 600 & echo $$ $! > {0}.part && mv {0}.part {0}; wait", file.display());
        let written = async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = shell(&script) => panic!("{ended:?}"),
            () = written => {}
        }
        let pids = std::fs::read_to_string(&file).unwrap();
        let lives = |pid: &str| {
            // One that nobody has waited for yet is dead all the same.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
        };
        let gone = async {
            while pids.split_whitespace().any(lives) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("they are ended");
    }

    #[tokio::test]
    async fn nothing_reads_on_when_nobody_waits_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        // It has left the group, and holds the output open.
        let away = format!("echo $$ > {0}.part; mv {0}.part {0}; exec sleep 60", file.display());
        let script = format!("setsid sh -c '{away}' & wait");
        let until = async |what: &str, done: &dyn Fn() -> bool| {
            let waited = async {
                while !done() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), waited).await.expect(what);
        };
        let begun = || file.exists();
        tokio::select! {
            ended = shell(&script) => panic!("{ended:?}"),
            () = until("it has begun", &begun) => {}
        }
        let pid =
            std::fs::read_to_string(&file).unwrap().trim().parse().ok().and_then(Pid::from_raw).unwrap();
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        until("the readers end", &|| tasks() == 0).await;
        rustix::process::kill_process(pid, Signal::KILL).expect("it still holds the output");
    }
}
