//! Bytes both ways between two streams: what a TCP proxy does for a connection's whole life.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;

use super::{Alarm, Io, scratch};

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
}

/// Copies until both directions have ended; the end of one is handed on (half-close) while the other goes on. Buffers exist
/// only while bytes are on their way: an idle connection holds none.
pub async fn copy_bidirectional(
    downstream: &mut Io,
    upstream: &mut Io,
    idle: Option<Duration>,
    copied: &Copied,
) -> CopyEnd {
    let Copied { received, sent } = copied;
    let (mut up, mut down) = (Way::default(), Way::default());
    let mut timer = Idle { limit: idle, alarm: Alarm::default(), last: now() };
    poll_fn(|cx| {
        let moved = received.get() + sent.get();
        let forth = up.poll(downstream, upstream, received, cx);
        let back = down.poll(upstream, downstream, sent, cx);
        for (way, first) in [(&forth, true), (&back, false)] {
            if let Poll::Ready(Err(broken)) = way {
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
    ended: bool,
    flush: bool,
    done: bool,
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
                let n = n.ok().filter(|n| *n > 0).ok_or(Side::Sink)?;
                self.written += n;
                self.flush = true;
                count.set(count.get() + n as u64);
            }
            self.rest = Vec::new();
            self.written = 0;
            if self.ended {
                // A peer that has gone needs no farewell.
                let _: io::Result<()> = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                self.done = true;
                continue;
            }
            match self.step(from, to, count, cx) {
                Poll::Ready(read) => self.ended = read? == 0,
                Poll::Pending => {
                    if self.flush {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_| Side::Sink)?;
                        self.flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads once and writes what came straight from the worker's scratch.
    fn step(
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
                Poll::Ready(_) => return broken = true,
                Poll::Pending => 0,
            };
            self.flush |= n > 0;
            count.set(count.get() + n as u64);
            self.rest.extend_from_slice(&bytes[n..]);
        });
        let read = ready!(read).map_err(|_| Side::Source)?;
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
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_a_half_close_is_handed_on() {
        let ((mut client, near), (far, mut server)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let (mut near, mut far) = (Io::memory(near), Io::memory(far));
        let counts = Copied::default();
        let copy = copy_bidirectional(&mut near, &mut far, None, &counts);
        let talk = async {
            client.write_all(&[b'q'; 1000]).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let serve = async {
            let mut question = Vec::new();
            server.read_to_end(&mut question).await.unwrap();
            // Our side may still speak after theirs has ended.
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            question.len()
        };
        let (end, answer, question) = tokio::join!(copy, talk, serve);
        assert_eq!((answer.as_slice(), question), (b"answer".as_slice(), 1000));
        assert_eq!((counts.received.get(), counts.sent.get(), end), (1000, 6, CopyEnd::Finished));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_after_the_idle_timeout_and_not_before() {
        let ((mut client, near), (far, _server)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let (mut near, mut far) = (Io::memory(near), Io::memory(far));
        let began = now();
        let talk = async {
            tokio::time::sleep(Duration::from_secs(40)).await;
            client.write_all(b"x").await.unwrap();
            std::future::pending::<()>().await;
        };
        let counts = Copied::default();
        let end = tokio::select! {
            end = copy_bidirectional(&mut near, &mut far, Some(Duration::from_secs(60)), &counts) => end,
            () = talk => unreachable!(),
        };
        assert_eq!((end, counts.received.get()), (CopyEnd::Idle, 1));
        assert_eq!((now() - began).as_secs(), 100);
    }
}
