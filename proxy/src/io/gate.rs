//! A gate before a stream's reader: network filters that decide when bytes come.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

/// What becomes of bytes that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// They go on, and so does everything after them.
    Always,
    /// They go on; ask again for the next.
    Once,
    /// They do not, and the stream is to be closed, after this time if there is one.
    Never(Option<Duration>),
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
    /// What was refused is still being read, so that the close is not a reset.
    Refused(Box<dyn Gate>, Option<Duration>),
    Closing(Pin<Box<Sleep>>),
    Closed,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Asking(_) => "Asking",
            Self::Refused(..) => "Refused",
            Self::Closing(_) => "Closing",
            Self::Closed => "Closed",
        })
    }
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
            Self::Closing(sleep) => sleep.as_mut().poll(cx).map(|()| {
                *self = Self::Closed;
                Err(denied())
            }),
            Self::Closed => Poll::Ready(Err(denied())),
        }
    }

    /// Asks about bytes that came: true if nobody need be asked again, false if they pass this time.
    pub(super) fn ask(&mut self) -> Option<bool> {
        let Self::Asking(gate) = self else { return None };
        match gate.data() {
            Pass::Always => Some(true),
            Pass::Once => Some(false),
            Pass::Never(delay) => {
                if let Self::Asking(gate) = std::mem::replace(self, Self::Closed) {
                    *self = Self::Refused(gate, delay);
                }
                None
            }
        }
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
