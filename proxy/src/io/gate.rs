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
}

/// A gate and where it stands.
pub(super) enum Watch {
    Asking(Box<dyn Gate>),
    Closing(Pin<Box<Sleep>>),
    Closed,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Asking(_) => "Asking",
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
            Self::Asking(_) => Poll::Ready(Ok(())),
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
                *self = match delay {
                    Some(delay) => Self::Closing(Box::pin(tokio::time::sleep(delay))),
                    None => Self::Closed,
                };
                None
            }
        }
    }
}
