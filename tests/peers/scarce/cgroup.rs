//! A cgroup that a test makes, of whichever version the machine has, and removes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

const ROOT: &str = "/sys/fs/cgroup";

/// What a process in it may have.
pub struct Cgroup(PathBuf);

/// Whether there is one hierarchy for all controllers.
fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

impl Cgroup {
    fn new(controller: &str, settings: &[(&str, String)]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("weft-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let above = if unified() {
            // Children have a controller if their parent says so.
            let _ = std::fs::write(Path::new(ROOT).join("cgroup.subtree_control"), format!("+{controller}"));
            PathBuf::from(ROOT)
        } else {
            Path::new(ROOT).join(controller)
        };
        let cgroup = Self(above.join(name));
        std::fs::create_dir(&cgroup.0).unwrap_or_else(|e| {
            panic!(
                "{}: {e}; these tests make cgroups and need root and {ROOT} to be writable",
                cgroup.0.display()
            )
        });
        for (file, value) in settings {
            let path = cgroup.0.join(file);
            std::fs::write(&path, value).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        cgroup
    }

    /// So many bytes.
    pub fn memory(bytes: u64) -> Self {
        let file = if unified() { "memory.max" } else { "memory.limit_in_bytes" };
        Self::new("memory", &[(file, bytes.to_string())])
    }

    /// So much time of processors.
    pub fn processors(count: f64) -> Self {
        let quota = (count * 100_000.0) as u64;
        if unified() {
            return Self::new("cpu", &[("cpu.max", format!("{quota} 100000"))]);
        }
        Self::new(
            "cpu",
            &[("cpu.cfs_period_us", "100000".to_owned()), ("cpu.cfs_quota_us", quota.to_string())],
        )
    }

    /// The same command, in here from its beginning.
    pub fn command(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        let procs = self.0.join("cgroup.procs");
        shell.args(["-c", &format!("echo $$ > {} && exec \"$@\"", procs.display()), "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        shell
    }

    fn number(&self, file: &str, key: &str) -> u64 {
        let text = std::fs::read_to_string(self.0.join(file)).unwrap();
        let found = text.lines().find_map(|line| line.trim().strip_prefix(key)?.trim().parse().ok());
        found.unwrap_or_else(|| panic!("{file} has no {key:?}: {text}"))
    }

    /// The most memory that was used, files' pages included.
    pub fn peak(&self) -> u64 {
        self.number(if unified() { "memory.peak" } else { "memory.max_usage_in_bytes" }, "")
    }

    /// Memory that is used now, without files' pages.
    pub fn used(&self) -> u64 {
        self.number("memory.stat", if unified() { "anon " } else { "rss " })
    }

    /// How many processes the kernel has killed in here.
    pub fn kills(&self) -> u64 {
        self.number(if unified() { "memory.events" } else { "memory.oom_control" }, "oom_kill ")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes have ended, which the kernel may notice a moment later.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("{} is left behind", self.0.display());
    }
}

/// The same command as it is.
pub fn copied(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    copy
}
