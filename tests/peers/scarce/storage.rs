//! The certificate authority's directory is full, cannot be written, or is damaged: what is issued goes on, what would change the store
//! is refused and changes nothing, and who starts on a damaged one says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use weft_certs::authority::KeyKind;
use weft_control::ca::State;
use weft_control::ca::store::Shape;

use crate::programs::{Process, get, run, weft};

/// A disk of its own.
struct Disk(PathBuf);

impl Disk {
    fn new(at: &Path, size: &str) -> Self {
        std::fs::create_dir(at).unwrap();
        let disk = Self(at.to_owned());
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at))
            .unwrap();
        disk
    }

    fn remount(&self, how: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.0)).unwrap();
    }

    fn fill(&self) {
        let bytes = vec![0; 4 << 20];
        assert!(std::fs::write(self.0.join("filler"), bytes).is_err(), "it does not fit");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

const IP: &str = "127.37.7.1";

struct Plane {
    directory: tempfile::TempDir,
    disk: Disk,
}

impl Plane {
    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn state(&self) -> PathBuf {
        self.disk.0.join("state")
    }

    fn control(&self) -> Process {
        let mut command = weft();
        command.args(["control", "--address", IP, "--config-dir", &self.file("config"), "--state-dir"]);
        command.arg(self.state());
        Process::start("control", &mut command, self.directory.path())
    }

    /// A certificate for a workload.
    fn fetch(&self) -> Result<String, String> {
        let mut command = weft();
        command.args([
            "cert",
            "fetch",
            "--ca-address",
            &format!("{IP}:15012"),
            "--root-cert",
            &self.file("root.pem"),
        ]);
        command.args([
            "--token-file",
            &self.file("token"),
            "--namespace",
            "shop",
            "--service-account",
            "one",
        ]);
        run(command.args(["--out", &self.file("out")]))
    }

    fn rotate(&self) -> Result<String, String> {
        run(weft().args(["ca", "rotate-intermediate", "--state-dir"]).arg(self.state()))
    }

    fn store(&self) -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(self.state()).unwrap().flatten();
        let keys = entries.filter(|e| e.file_name().to_string_lossy().ends_with(".pem"));
        let mut all: Vec<_> = keys
            .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap()))
            .collect();
        all.sort();
        all
    }
}

fn ready(control: &mut Process) {
    let at = format!("{IP}:8080").parse().unwrap();
    control.wait("ready", || get(at, "/ready").is_ok_and(|a| a.0 == 200));
}

#[test]
fn a_store_that_is_full_unwritable_or_damaged_stops_its_changes_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new(&directory.path().join("disk"), "1m");
    let plane = Plane { directory, disk };
    let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Default::default() };
    State::open(&plane.state(), shape, std::time::SystemTime::now().into()).unwrap();
    std::fs::create_dir(plane.file("config")).unwrap();
    std::fs::write(plane.file("config/mesh.yaml"), "apiVersion: v1\nkind: List\nitems: []\n").unwrap();
    std::fs::copy(plane.state().join("root-cert.pem"), plane.file("root.pem")).unwrap();
    let token = weft_control::ca::token::create(&plane.state(), "shop", "one", Duration::from_secs(600));
    std::fs::write(plane.file("token"), token.unwrap()).unwrap();
    let mut control = plane.control();
    ready(&mut control);
    plane.fetch().unwrap();
    plane.rotate().unwrap();

    let before = plane.store();
    plane.disk.fill();
    let refused = plane.rotate().unwrap_err();
    assert!(refused.contains("No space left") && refused.contains("free space"), "{refused}");
    plane.fetch().unwrap_or_else(|e| panic!("full: {e}\n{}", control.log()));
    assert_eq!(plane.store(), before, "what is refused changes nothing");
    std::fs::remove_file(plane.disk.0.join("filler")).unwrap();
    plane.rotate().unwrap();
    assert_ne!(plane.store(), before);

    // Who starts where nothing can be written says so, and goes no further.
    let before = plane.store();
    control.end();
    plane.disk.remount("ro");
    let mut control = plane.control();
    assert!(control.ended(Duration::from_secs(20)), "it starts where it can write nothing");
    let log = control.log();
    assert!(log.contains("Read-only file system") && log.contains(plane.state().to_str().unwrap()), "{log}");
    plane.disk.remount("rw");
    assert_eq!(plane.store(), before);
    let mut control = plane.control();
    ready(&mut control);
    plane.rotate().unwrap();

    // Who starts on a damaged store says which file it is.
    control.end();
    let key = plane.state().join("intermediate-key.pem");
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, &good[..good.len() / 2]).unwrap();
    let mut control = plane.control();
    assert!(control.ended(Duration::from_secs(20)), "it starts on a damaged store");
    let log = control.log();
    assert!(
        log.contains(key.to_str().unwrap()) && log.contains("restore the directory from its backup"),
        "{log}"
    );
    std::fs::write(&key, &good).unwrap();
    let mut control = plane.control();
    ready(&mut control);
    plane.fetch().unwrap();
}
