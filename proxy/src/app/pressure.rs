//! Watches how much of the memory that the cgroup grants is in use. At the limit the kernel kills: a proxy that refuses some of its
//! work before that goes on with the rest.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::telemetry::pressure::{self, CONNECTIONS, REQUESTS};
use crate::telemetry::registry::Group;

/// How often it is looked: memory fills in less than a second where many connections come at once.
const LOOK: Duration = Duration::from_millis(50);

/// How often it is said that there is too little.
const SAY: Duration = Duration::from_secs(10);

/// Watches for as long as the proxy lives; not at all where nothing limits it.
pub(super) async fn watch() {
    let Some(memory) = Memory::find(Path::new("/sys/fs/cgroup"), &read(Path::new("/proc/self/cgroup")))
    else {
        return;
    };
    let group = Group::new("overload", Vec::new());
    let percent_now = group.gauge("envoy.resource_monitors.cgroup_memory.pressure");
    let sheds = group.gauge("envoy.overload_actions.stop_accepting_requests.active");
    let rejects = group.gauge("envoy.overload_actions.reject_incoming_connections.active");
    let mut said: Option<Instant> = None;
    let mut interval = tokio::time::interval(LOOK);
    loop {
        interval.tick().await;
        let seen = memory.used_of();
        let (percent, (used, limit)) = (share(seen), seen.unwrap_or_default());
        percent_now.set(percent as i64);
        sheds.set(i64::from(percent >= REQUESTS));
        rejects.set(i64::from(percent >= CONNECTIONS));
        pressure::set(percent);
        if percent >= REQUESTS && said.is_none_or(|at| at.elapsed() > SAY) {
            said = Some(Instant::now());
            tracing::warn!(
                used_mib = used >> 20,
                limit_mib = limit >> 20,
                "memory is nearly used up: requests are answered with 503 from {REQUESTS} % of the limit on, connections \
                 refused from {CONNECTIONS} %; give the proxy more memory, or see who opens so many connections (/stats, \
                 downstream_cx_active)"
            );
        } else if percent < REQUESTS && said.take().is_some() {
            tracing::info!(used_mib = used >> 20, limit_mib = limit >> 20, "there is memory enough again");
        }
    }
}

/// How much of what may be used is, in percent. Where nothing limits it any more, or others use most of it, that is nothing: what
/// is shed then would not help, and would be shed for ever.
fn share(seen: Option<(u64, u64)>) -> u64 {
    seen.map_or(0, |(used, limit)| used.saturating_mul(100) / limit.max(1))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Where the kernel says how much memory the process may have, and has.
#[derive(Debug, PartialEq)]
struct Memory {
    directory: PathBuf,
    limit: &'static str,
    used: &'static str,
    /// Pages of files, which the kernel takes back when it needs them.
    cache: &'static str,
}

impl Memory {
    /// That of the cgroup that `/proc/self/cgroup` names, of either version; in a container its own is often the root of what is
    /// mounted.
    fn find(root: &Path, own: &str) -> Option<Self> {
        let of = |line: &str, controller: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            controllers.split(',').any(|c| c == controller).then(|| path.trim_start_matches('/').to_owned())
        };
        let place = |mounted: &Path, controller: &str, limit: &str| {
            let path = own.lines().find_map(|line| of(line, controller))?;
            [mounted.join(path), mounted.to_owned()].into_iter().find(|dir| dir.join(limit).is_file())
        };
        let (v1, v2) = ("memory.limit_in_bytes", "memory.max");
        if let Some(directory) = place(&root.join("memory"), "memory", v1) {
            return Some(Self { directory, limit: v1, used: "memory.usage_in_bytes", cache: "cache " });
        }
        let directory = place(root, "", v2)?;
        Some(Self { directory, limit: v2, used: "memory.current", cache: "file " })
    }

    /// What is used, and what may be; nothing where there is no limit, or where others use most of it: to take less would not help.
    fn used_of(&self) -> Option<(u64, u64)> {
        let number = |file: &str| read(&self.directory.join(file)).trim().parse::<u64>().ok();
        let limit = number(self.limit).filter(|limit| (1..1 << 60).contains(limit))?;
        let stat = read(&self.directory.join("memory.stat"));
        let of = |name: &str| -> u64 {
            stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
        };
        // What is in files of memory alone counts as pages of files, too, and is never taken back.
        let cache = of(self.cache).saturating_sub(of("shmem "));
        let used = number(self.used)?.saturating_sub(cache);
        let status = read(Path::new("/proc/self/status"));
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        let own: u64 = own.trim().trim_end_matches(" kB").parse().ok()?;
        (own * 1024 >= used / 2).then_some((used, limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_longer_known_sheds_nothing() {
        assert_eq!(
            [share(Some((96, 100))), share(Some((5, 100))), share(None), share(Some((1, 0)))],
            [96, 5, 0, 100]
        );
    }

    #[test]
    fn the_limit_is_found_in_either_version_and_where_there_is_none_nothing_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let put = |file: &str, text: String| {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(Memory::find(root, "4:memory:/pod/c\n0::/\n"), None);
        // Of the second version, seen from inside: the root is the container's own.
        let mib = |n: u64| (n << 20).to_string();
        put("memory.max", "max\n".to_owned());
        put("memory.current", mib(1 << 20));
        put("memory.stat", format!("anon 1\nfile {}\n", mib(0)));
        let second = Memory::find(root, "0::/../other\n").unwrap();
        assert_eq!((second.directory.as_path(), second.used_of()), (root, None), "without a limit");
        put("memory.max", mib(100));
        assert_eq!(second.used_of(), None, "others use most of it");
        put("memory.current", format!("{}\n", 41 << 10));
        put("memory.stat", format!("anon 1\nfile {}\n", 1 << 10));
        assert_eq!(second.used_of(), Some((40 << 10, 100 << 20)), "files do not count");
        put("memory.stat", format!("anon 1\nfile {}\nshmem {}\n", 1 << 10, 1 << 9));
        assert_eq!(
            second.used_of(),
            Some(((40 << 10) + (1 << 9), 100 << 20)),
            "unless they are in memory alone"
        );
        // Of the first, by its path.
        put("memory/pod/c/memory.limit_in_bytes", "9223372036854771712\n".to_owned());
        put("memory/pod/c/memory.usage_in_bytes", format!("{}", 50 << 10));
        put("memory/pod/c/memory.stat", format!("cache {}\nrss 0\n", 20 << 10));
        let first = Memory::find(root, "5:cpu:/x\n4:memory:/pod/c\n0::/\n").unwrap();
        assert_eq!(first.directory, root.join("memory/pod/c"));
        assert_eq!(first.used_of(), None, "a number that stands for none");
        put("memory/pod/c/memory.limit_in_bytes", mib(64));
        assert_eq!(first.used_of(), Some((30 << 10, 64 << 20)));
    }
}
