//! Bytes both ways between two streams: what a TCP proxy does for a connection's whole life.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;

use super::pipe::Pipe;
use super::{Alarm, Io, scratch};

/// Fewer bytes at once are copied: a small message costs less by one read and one write than by a pipe.
const BULK: usize = 16 * 1024;

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyEnd {
    /// Both directions ended in order.
    Finished,
    /// Nothing moved for the idle timeout.
    Idle,
    /// The first stream broke.
    DownstreamError,
    /// The second stream broke.
    UpstreamError,
}

/// Bytes copied so far; whoever cuts a copy off still knows.
#[derive(Debug, Default)]
pub struct Copied {
    /// From the first stream to the second.
    pub received: Cell<u64>,
    /// From the second stream to the first.
    pub sent: Cell<u64>,
    /// Whether the first stream was the first to end its sending; none while neither has.
    pub first_ended: Cell<Option<bool>>,
    /// Whether the stream that broke was reset by its peer.
    pub reset: Cell<bool>,
}

/// Copies until both directions have ended; the end of one is handed on (half-close) while the other goes on. Buffers exist
/// only while bytes are on their way: an idle connection holds none. One direction holds one read at most that the other side
/// has not taken, and reads no more until it has. Where both sides are plain sockets, and one sends much, the kernel moves the
/// bytes ([`Pipe`]).
pub async fn copy_bidirectional(
    downstream: &mut Io,
    upstream: &mut Io,
    idle: Option<Duration>,
    copied: &Copied,
) -> CopyEnd {
    let Copied { received, sent, first_ended, reset } = copied;
    let (mut up, mut down) = (Way::default(), Way::default());
    let mut timer = Idle { limit: idle, alarm: Alarm::default(), last: now() };
    poll_fn(|cx| {
        // Also while nothing is read, because the other side is slow.
        if downstream.is_cut(cx) {
            return Poll::Ready(CopyEnd::DownstreamError);
        }
        let moved = received.get() + sent.get();
        let forth = up.poll(downstream, upstream, received, cx);
        let back = down.poll(upstream, downstream, sent, cx);
        if first_ended.get().is_none() && (up.ended || down.ended) {
            first_ended.set(Some(up.ended));
        }
        for (way, first) in [(&forth, true), (&back, false)] {
            if let Poll::Ready(Err(broken)) = way {
                reset.set(if first { up.reset } else { down.reset });
                // The reading side of one direction is the writing side of the other.
                let downstream_broke = (*broken == Side::Source) == first;
                return Poll::Ready(if downstream_broke {
                    CopyEnd::DownstreamError
                } else {
                    CopyEnd::UpstreamError
                });
            }
        }
        if forth.is_ready() && back.is_ready() {
            return Poll::Ready(CopyEnd::Finished);
        }
        timer.poll(moved != received.get() + sent.get(), cx).map(|()| CopyEnd::Idle)
    })
    .await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Sink,
}

#[derive(Default)]
struct Way {
    /// What was read and the sink did not take at once.
    rest: Vec<u8>,
    written: usize,
    /// In its place, what the kernel moved and the sink did not take at once.
    pipe: Option<Pipe>,
    /// Much came at once, so more is likely to.
    bulk: bool,
    ended: bool,
    flush: bool,
    done: bool,
    /// It broke by a reset.
    reset: bool,
}

impl Way {
    fn poll(
        &mut self,
        from: &mut Io,
        to: &mut Io,
        count: &Cell<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Side>> {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            while self.written < self.rest.len() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest[self.written..]));
                let n = n.map_err(|error| self.broke(Side::Sink, &error))?;
                if n == 0 {
                    return Poll::Ready(Err(Side::Sink));
                }
                self.written += n;
                self.flush = true;
                count.set(count.get() + n as u64);
            }
            self.rest = Vec::new();
            self.written = 0;
            ready!(self.poll_drain(to, count, cx))?;
            if self.ended {
                // A peer that has gone needs no farewell.
                let _: io::Result<()> = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                self.done = true;
                continue;
            }
            match self.poll_step(from, to, count, cx) {
                Poll::Ready(read) => self.ended = read? == 0,
                Poll::Pending => {
                    if self.flush {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|e| self.broke(Side::Sink, &e))?;
                        self.flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// A side broke, and by what.
    fn broke(&mut self, side: Side, error: &io::Error) -> Side {
        self.reset = error.kind() == io::ErrorKind::ConnectionReset;
        side
    }

    /// Writes what is in the pipe.
    fn poll_drain(&mut self, to: &Io, count: &Cell<u64>, cx: &mut Context<'_>) -> Poll<Result<(), Side>> {
        let (Some(pipe), Some(to)) = (&mut self.pipe, to.bare()) else { return Poll::Ready(Ok(())) };
        while pipe.held() > 0 {
            let drained = ready!(pipe.poll_drain(to, cx));
            self.reset = drained.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset);
            let n = drained.ok().filter(|n| *n > 0).ok_or(Side::Sink)?;
            count.set(count.get() + n as u64);
        }
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once; what came is written, or in the pipe.
    fn poll_step(
        &mut self,
        from: &mut Io,
        to: &mut Io,
        count: &Cell<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Side>> {
        if self.bulk
            && let Some(moved) = ready!(self.poll_splice(from, to, cx))?
        {
            return Poll::Ready(Ok(moved));
        }
        self.poll_copy(from, to, count, cx)
    }

    /// Lets the kernel take what has come; none where that does not go, and where the copy shall see whether the stream has
    /// ended or is broken.
    fn poll_splice(
        &mut self,
        from: &mut Io,
        to: &Io,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<usize>, Side>> {
        self.bulk = false;
        let from = from.unseen(cx).map_err(|_| Side::Source)?;
        let (Some(from), Some(_)) = (from, to.bare()) else { return Poll::Ready(Ok(None)) };
        let Some(mut pipe) = Pipe::take() else { return Poll::Ready(Ok(None)) };
        match pipe.poll_fill(from, cx) {
            Poll::Ready(Ok(moved)) if moved > 0 => {
                self.bulk = moved >= BULK;
                self.pipe = Some(pipe);
                Poll::Ready(Ok(Some(moved)))
            }
            // It is told once: a read after it would see an end in order.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                pipe.give_back();
                Poll::Ready(Err(self.broke(Side::Source, &error)))
            }
            Poll::Ready(_) => {
                pipe.give_back();
                Poll::Ready(Ok(None))
            }
            Poll::Pending => {
                self.bulk = true;
                pipe.give_back();
                Poll::Pending
            }
        }
    }

    /// Reads once and writes what came straight from the worker's scratch.
    fn poll_copy(
        &mut self,
        from: &mut Io,
        to: &mut Io,
        count: &Cell<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Side>> {
        let mut broken = false;
        let read = scratch::poll_read(from, cx, |bytes, cx| {
            let n = match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(Ok(n)) if n > 0 => n,
                Poll::Ready(written) => {
                    self.reset = written.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset);
                    return broken = true;
                }
                Poll::Pending => 0,
            };
            self.flush |= n > 0;
            count.set(count.get() + n as u64);
            self.rest.extend_from_slice(&bytes[n..]);
        });
        let read = ready!(read).map_err(|error| self.broke(Side::Source, &error))?;
        self.bulk = read >= BULK;
        Poll::Ready(if broken { Err(Side::Sink) } else { Ok(read) })
    }
}

struct Idle {
    limit: Option<Duration>,
    alarm: Alarm,
    last: Instant,
}

impl Idle {
    fn poll(&mut self, moved: bool, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        if moved {
            self.last = now();
        }
        self.alarm.poll(self.last + limit, cx)
    }
}

/// By the runtime's clock.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
