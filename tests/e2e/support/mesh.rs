//! Whole meshes for tests: on addresses of their own, with one certificate authority for all of them.

use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use weft::up::Options;
use weft_control::ca::store::{Shape, State};

/// A runtime for a test that is not asynchronous itself.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// One mesh at a time: several would take each other's processor.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The authority's state, kept from run to run: an RSA key of 4096 bits is long in the making.
pub fn authority() -> PathBuf {
    static STATE: LazyLock<PathBuf> = LazyLock::new(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("authority");
        State::open(&directory, Shape::default(), OffsetDateTime::now_utc()).expect("an authority");
        directory
    });
    STATE.clone()
}

/// How a test runs a mesh: at 127.N.x.y, where nobody runs one now.
pub fn options() -> Options {
    let free = |n: &u8| std::net::TcpListener::bind((std::net::Ipv4Addr::new(127, *n, 1, 1), 15012)).is_ok();
    let loopback = (20..30).find(free).expect("a free part of the loopback network");
    let mut options = Options::new("").expect("options");
    options.exe = super::WEFT.into();
    options.state_dir = Some(authority());
    options.loopback = Some(loopback);
    options.concurrency = 1;
    options.drain = std::time::Duration::from_secs(1);
    options
}
