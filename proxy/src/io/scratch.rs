//! A read buffer for each worker, in place of one for each connection.
//!
//! A read takes what has come into memory that is warm in the cache and large enough to need few system calls; what is kept
//! of it is copied and has exactly its size. For heads and small bodies the copy costs less than a buffer's allocation, and
//! slices of a head never hold a whole read buffer in memory.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::Io;

/// The most that is read at once.
pub const SIZE: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads once and gives `take` what came, if anything did; ready with its length, 0 at the end. `take` must not read.
pub fn poll_read(
    io: &mut Io,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8], &mut Context<'_>),
) -> Poll<io::Result<usize>> {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.is_empty() {
            scratch.resize(SIZE, 0);
        }
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
        let filled = buffer.filled();
        if !filled.is_empty() {
            take(filled, cx);
        }
        Poll::Ready(Ok(filled.len()))
    })
}
