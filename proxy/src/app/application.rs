//! Whether the application beside a sidecar is still there, by what the kernel says of the network namespace that they share: as
//! long as a server runs, it listens. The namespace is the pod's, so whoever listens there and is not this process is the
//! application (or a neighbour of its kind, which is as good a reason to stay).

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
    fn our_own_listener_is_not_anothers() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = format!(":{:04X} ", listener.local_addr().unwrap().port());
        let text = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let line = text.lines().find(|l| l.contains(&port)).unwrap();
        let table = format!("head\n{line}");
        assert!(own_sockets().unwrap().contains(listening(&table).next().unwrap()));
    }
}
