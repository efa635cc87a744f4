//! Whether the application beside a sidecar is still there, by what the kernel says.
//!
//! A pod's containers always share a network namespace: as long as a server runs, it listens, and whoever listens there and is
//! not this process is the application (or a neighbour, which is as good a reason to stay). That tells a proxy that is ending
//! when it may. Where they share their processes, too (`shareProcessNamespace`), a proxy sees the application itself end, though
//! it never listened: for jobs, whose pod would wait for its sidecar for ever.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// The kernel's tables are read at most so often.
const EVERY: Duration = Duration::from_millis(250);
/// The state of a listening socket in those tables.
const LISTEN: &str = "0A";

/// Looks whether anybody else listens.
#[derive(Debug, Default)]
pub(super) struct Gone {
    looked: Option<(Instant, bool)>,
}

impl Gone {
    /// Whether nobody but this process listens for TCP in its network namespace. Where that cannot be told, somebody does.
    pub(super) fn is_gone(&mut self) -> bool {
        match self.looked {
            Some((when, gone)) if when.elapsed() < EVERY => gone,
            _ => {
                let gone = others_listen() == Some(false);
                self.looked = Some((Instant::now(), gone));
                gone
            }
        }
    }
}

fn others_listen() -> Option<bool> {
    let own = own_sockets()?;
    let mut any = false;
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        match std::fs::read_to_string(table) {
            Ok(text) => any |= listening(&text).any(|inode| !own.contains(inode)),
            // No IPv6 here.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && table.ends_with('6') => {}
            Err(_) => return None,
        }
    }
    Some(any)
}

/// The inodes of listening sockets in a table.
fn listening(table: &str) -> impl Iterator<Item = &str> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.nth(3)? == LISTEN).then(|| fields.nth(5))?
    })
}

/// The inodes of this process's sockets.
fn own_sockets() -> Option<HashSet<String>> {
    let files = std::fs::read_dir("/proc/self/fd").ok()?;
    let inode = |entry: std::fs::DirEntry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    Some(files.flatten().filter_map(inode).collect())
}

/// How often processes are looked for.
const EVERY_PROCESS: Duration = Duration::from_millis(500);

/// Waits until there were other processes in this one's namespace, and then none, at two looks. The first process of the
/// namespace, which holds it, does not count, and neither does who started this one.
///
/// # Errors
/// The namespace has no room for others: this process is its first.
pub(super) async fn ended() -> anyhow::Result<()> {
    if std::process::id() == 1 {
        anyhow::bail!(
            "--exit-with-application: the pod's containers do not share their processes; set shareProcessNamespace: true in \
             the pod's spec, or let the application end its proxy by POST to 127.0.0.1:15020/quitquitquit"
        );
    }
    let own = lineage();
    let (mut seen, mut missed) = (false, 0);
    while missed < 2 {
        tokio::time::sleep(EVERY_PROCESS).await;
        // Where it cannot be told, it is there.
        let there = processes().is_none_or(|all| all.iter().any(|pid| !own.contains(pid)));
        seen |= there;
        missed = if seen && !there { missed + 1 } else { 0 };
    }
    Ok(())
}

/// This process and those that it descends from.
fn lineage() -> HashSet<u32> {
    let mut all = HashSet::from([1]);
    let mut next = Some(std::process::id());
    while let Some(pid) = next.filter(|pid| *pid != 0 && all.insert(*pid)) {
        next = status(pid).and_then(|(_, parent)| parent);
    }
    all
}

/// The processes that run.
fn processes() -> Option<Vec<u32>> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let all = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    // One that has ended and is not yet buried runs no more.
    Some(all.filter(|pid| status(*pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))).collect())
}

/// A process's state and its parent.
fn status(pid: u32) -> Option<(char, Option<u32>)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in parentheses, may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next().and_then(|p| p.parse().ok())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_told_from_others() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:D431 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0000000000000000 20 4 30 10 -1
";
        assert_eq!(listening(table).collect::<Vec<_>>(), ["4711"]);
    }

    #[test]
    fn a_process_that_runs_is_seen_with_its_parent_and_one_that_has_ended_is_not() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(status(child.id()).unwrap().1, Some(std::process::id()));
        assert!(processes().unwrap().contains(&child.id()) && !lineage().contains(&child.id()));
        assert!(lineage().contains(&std::process::id()));
        child.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while processes().unwrap().contains(&child.id()) {
            assert!(Instant::now() < deadline, "it has ended, and nobody has buried it");
        }
        child.wait().unwrap();
    }

    #[test]
    fn our_own_listener_is_not_anothers() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = format!(":{:04X} ", listener.local_addr().unwrap().port());
        let text = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let line = text.lines().find(|l| l.contains(&port)).unwrap();
        let table = format!("head\n{line}");
        assert!(own_sockets().unwrap().contains(listening(&table).next().unwrap()));
    }
}
