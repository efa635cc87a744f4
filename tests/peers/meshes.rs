//! Whole meshes for this tier, each in a part of the loopback network of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use weft::up::{Mesh, Options};
use weft_certs::authority::KeyKind;
use weft_control::ca::State;
use weft_control::ca::store::Shape;

/// A runtime that lives as long as its test.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A certificate authority for each, for a control plane has its state directory to itself; its keys are of the kind that is
/// quick to make.
fn authority(loopback: u8) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("peers-authority-{loopback}"));
    let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Default::default() };
    State::open(&directory, shape, std::time::SystemTime::now().into()).unwrap();
    directory
}

/// Runs the mesh of a directory at 127.`loopback`.x.y until it is ready.
pub async fn start(directory: &Path, loopback: u8) -> Mesh {
    start_as(directory, loopback, |_| ()).await
}

/// The same, otherwise than usual.
pub async fn start_as(directory: &Path, loopback: u8, change: impl FnOnce(&mut Options)) -> Mesh {
    let mut options = Options {
        exe: env!("CARGO_BIN_EXE_weft").into(),
        state_dir: Some(authority(loopback)),
        loopback: Some(loopback),
        drain: Duration::from_secs(1),
        concurrency: 1,
        ..Options::new(directory).unwrap()
    };
    change(&mut options);
    let mesh = Mesh::start(options).await.unwrap();
    mesh.wait_ready(Duration::from_secs(90)).await.unwrap();
    mesh
}
