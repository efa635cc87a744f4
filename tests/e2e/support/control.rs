//! A control plane of a test's own.

use std::path::{Path, PathBuf};

use super::eventually;
use super::http::get;
use super::logged::Logged;

/// `weft control` at the usual ports of an address of its own, on a directory that the test writes. Its authority is there
/// beforehand, with keys that are quickly made.
pub struct Control {
    pub process: Logged,
    pub ip: &'static str,
    directory: tempfile::TempDir,
    more: &'static [&'static str],
}

impl Control {
    /// Starts it with one file, and waits until it is ready.
    pub fn start(ip: &'static str, yaml: &str) -> Self {
        Self::start_with(ip, yaml, &[])
    }

    /// The same with more arguments.
    pub fn start_with(ip: &'static str, yaml: &str, more: &'static [&'static str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let shape = weft_control::ca::store::Shape {
            root_key: weft_certs::authority::KeyKind::P256,
            intermediate_key: weft_certs::authority::KeyKind::P256,
            ..Default::default()
        };
        let now = std::time::SystemTime::now().into();
        weft_control::ca::State::open(&directory.path().join("state"), shape, now).expect("an authority");
        std::fs::create_dir(directory.path().join("config")).expect("a directory");
        std::fs::write(directory.path().join("config/mesh.yaml"), yaml).expect("a file");
        let process = run(directory.path(), ip, more);
        let control = Self { process, ip, directory, more };
        control.ready();
        control
    }

    /// Starts it again after its end.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = run(self.directory.path(), self.ip, self.more);
        self.ready();
    }

    fn ready(&self) {
        let address = format!("{}:8080", self.ip).parse().expect("an address");
        eventually("the control plane is ready", || get(address, "/ready").is_ok_and(|a| a.0 == 200));
    }

    /// The path of a file of its configuration.
    pub fn config(&self, file: &str) -> PathBuf {
        self.directory.path().join("config").join(file)
    }

    /// The authority's state.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The root that proxies are to trust.
    pub fn root(&self) -> PathBuf {
        self.state().join(weft_control::ca::store::ROOT_CERTIFICATE)
    }

    /// A debug page.
    pub fn page(&self, path: &str) -> String {
        let address = format!("{}:8080", self.ip).parse().expect("an address");
        get(address, path).expect("an answer").1
    }
}

fn run(directory: &Path, ip: &str, more: &[&str]) -> Logged {
    let text = |path: &str| directory.join(path).to_string_lossy().into_owned();
    let (config, state) = (text("config"), text("state"));
    let usual = ["control", "--config-dir", &config, "--state-dir", &state, "--address", ip];
    Logged::weft(&[&usual, more].concat())
}
