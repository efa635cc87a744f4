//! A gate before a stream's reader: network filters that decide when bytes come.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Sleep;

/// What becomes of bytes that came.
#[derive(Debug)]
pub enum Pass {
    /// They go on, and so does everything after them.
    Always,
    /// They go on; ask again for the next.
    Once,
    /// They do not, and the stream is to be closed, after this time if there is one.
    Never(Option<Duration>),
    /// Not known yet: they wait, and the gate is asked about them again when this is sent or dropped.
    Later(oneshot::Receiver<()>),
}

/// Decides over bytes that came.
pub trait Gate: Send {
    /// Asked when bytes, or the end, came.
    fn data(&mut self) -> Pass;

    /// Told how many bytes it let go nowhere.
    fn refused(&mut self, bytes: u64);
}

/// A gate and where it stands.
pub(super) enum Watch {
    Asking(Box<dyn Gate>),
    /// What came waits in front of the stream.
    Waiting(Box<dyn Gate>, oneshot::Receiver<()>),
    /// What was refused is still being read, so that the close is not a reset.
    Refused(Box<dyn Gate>, Option<Duration>),
    Closing(Pin<Box<Sleep>>),
    Closed,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Asking(_) => "Asking",
            Self::Waiting(..) => "Waiting",
            Self::Refused(..) => "Refused",
            Self::Closing(_) => "Closing",
            Self::Closed => "Closed",
        })
    }
}

/// What a gate said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nobody need be asked again.
    Always,
    /// They pass this time.
    Once,
    /// They do not pass.
    Never,
    /// They wait.
    Later,
}

/// The error of a stream whose gate let nothing pass.
pub(super) fn denied() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "a network filter closed the connection")
}

impl Watch {
    /// Whether the reader must wait, or read no more. Ready where bytes may be read and then asked about.
    pub(super) fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self {
            Self::Asking(_) | Self::Refused(..) => Poll::Ready(Ok(())),
            Self::Waiting(_, known) => Pin::new(known).poll(cx).map(|_| {
                if let Self::Waiting(gate, _) = std::mem::replace(self, Self::Closed) {
                    *self = Self::Asking(gate);
                }
                Ok(())
            }),
            Self::Closing(sleep) => sleep.as_mut().poll(cx).map(|()| {
                *self = Self::Closed;
                Err(denied())
            }),
            Self::Closed => Poll::Ready(Err(denied())),
        }
    }

    /// Asks about bytes that came.
    pub(super) fn ask(&mut self) -> Asked {
        let Self::Asking(gate) = self else { return Asked::Never };
        let pass = gate.data();
        let Self::Asking(gate) = std::mem::replace(self, Self::Closed) else { return Asked::Never };
        match pass {
            Pass::Always => return Asked::Always,
            Pass::Once => *self = Self::Asking(gate),
            Pass::Never(delay) => {
                *self = Self::Refused(gate, delay);
                return Asked::Never;
            }
            Pass::Later(known) => {
                *self = Self::Waiting(gate, known);
                return Asked::Later;
            }
        }
        Asked::Once
    }

    /// All that came of what was refused is read: so many bytes.
    pub(super) fn refused(&mut self, bytes: u64) {
        if let Self::Refused(gate, delay) = self {
            gate.refused(bytes);
            *self = match delay {
                Some(delay) => Self::Closing(Box::pin(tokio::time::sleep(*delay))),
                None => Self::Closed,
            };
        }
    }
}
