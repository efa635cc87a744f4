//! The little of epoll and of processor affinity that generator, backend and null proxy need.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// A level-triggered epoll set whose members are numbers.
pub struct Poll {
    fd: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(256) })
    }

    /// Adds a source to be reported as `token` when it is ready for what is watched for.
    pub fn add(&self, source: impl AsFd, token: usize, watch: Watch) -> io::Result<()> {
        Ok(epoll::add(&self.fd, source, epoll::EventData::new_u64(token as u64), flags(watch))?)
    }

    /// Changes what a source is watched for.
    pub fn change(&self, source: impl AsFd, token: usize, watch: Watch) -> io::Result<()> {
        Ok(epoll::modify(&self.fd, source, epoll::EventData::new_u64(token as u64), flags(watch))?)
    }

    /// Waits, and puts the tokens of ready sources into `ready`.
    pub fn wait(&mut self, limit: Duration, ready: &mut Vec<usize>) -> io::Result<()> {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        self.events.clear();
        match epoll::wait(&self.fd, spare_capacity(&mut self.events), Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        ready.clear();
        ready.extend(self.events.iter().map(|e| e.data.u64() as usize));
        Ok(())
    }
}

/// What a source is watched for; its end is always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Bytes to read.
    pub read: bool,
    /// Room to write.
    pub write: bool,
}

/// Watch for bytes to read.
pub const READ: Watch = Watch { read: true, write: false };
/// Watch for both.
pub const BOTH: Watch = Watch { read: true, write: true };

fn flags(watch: Watch) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN, watch.read);
    flags.set(epoll::EventFlags::OUT, watch.write);
    flags
}

/// Binds the calling thread (and what it starts from here on) to one processor.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// What a non-blocking call gave: bytes, nothing yet, or the end.
pub enum Step {
    /// So many bytes.
    Bytes(usize),
    /// Not now.
    Later,
    /// The connection is over.
    End,
}

/// Sorts the outcome of a read or a write on a non-blocking socket.
pub fn step(result: io::Result<usize>) -> Step {
    match result {
        Ok(0) => Step::End,
        Ok(n) => Step::Bytes(n),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Step::Later,
        Err(_) => Step::End,
    }
}
