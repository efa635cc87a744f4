//! Bytes from one socket to another that nobody here looks at: the kernel hands its own pages on by way of a pipe (`splice`),
//! in place of copying them out of the one and into the other.
//!
//! As with [`super::scratch`], a worker has a pipe at hand for all of its connections. One of them keeps a pipe only while bytes
//! wait in it for a slow reader, and no more than [`MOST`] of them do: the others copy.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe is made to hold. The kernel counts pages of all pipes of a user (16,384 of 4 KiB before it gives less).
const CAPACITY: usize = 256 * 1024;
/// The most pipes of a worker at a time, and so twice as many descriptors.
const MOST: usize = 64;
/// Of those that are empty again, so many are kept.
const SPARE: usize = 4;

thread_local! {
    static SPARES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    static ALIVE: Cell<usize> = const { Cell::new(0) };
}

/// A pipe, and how many bytes are in it.
#[derive(Debug)]
pub(super) struct Pipe {
    output: OwnedFd,
    input: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty pipe, if there is one to be had.
    pub(super) fn take() -> Option<Self> {
        SPARES.with_borrow_mut(Vec::pop).or_else(Self::new)
    }

    fn new() -> Option<Self> {
        if ALIVE.get() >= MOST {
            return None;
        }
        // Out of descriptors or of pages: the bytes are copied.
        let (output, input) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        fcntl_setpipe_size(&input, CAPACITY).ok()?;
        ALIVE.set(ALIVE.get() + 1);
        Some(Self { output, input, held: 0 })
    }

    /// Keeps it for the next who needs one, if it is empty.
    pub(super) fn give_back(self) {
        SPARES.with_borrow_mut(|spares| {
            if self.held == 0 && spares.len() < SPARE {
                spares.push(self);
            }
        });
    }

    /// The bytes in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Takes what has come from the socket; ready with 0 at its end. An error need not be the socket's own.
    pub(super) fn poll_fill(&mut self, from: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || moved(from, &self.input, CAPACITY)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    self.held += *read.as_ref().unwrap_or(&0);
                    return Poll::Ready(read);
                }
            }
        }
    }

    /// Gives the socket of what is in it.
    pub(super) fn poll_drain(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || moved(&self.output, to, self.held)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.held -= *written.as_ref().unwrap_or(&0);
                    return Poll::Ready(written);
                }
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // Not there any more when the thread's last pipes go with it.
        let _ = ALIVE.try_with(|alive| alive.set(alive.get() - 1));
    }
}

fn moved(from: &impl AsFd, to: &impl AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
}

#[cfg(test)]
pub(super) fn alive() -> (usize, usize) {
    (ALIVE.get(), SPARES.with_borrow(Vec::len))
}
