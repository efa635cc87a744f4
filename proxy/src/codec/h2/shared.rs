//! The socket under an HTTP/2 connection, kept beside the h2 crate's hold on it, so that there is somebody left to close it well.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout_at};

use crate::io::Io;

/// The most that is read of a peer who does not stop sending.
const MOST_DISCARDED: usize = 1024 * 1024;

/// One of the two holders of a byte stream.
pub(super) struct SharedIo(Rc<RefCell<Io>>);

impl SharedIo {
    /// Both holders: the codec's, and the one that closes.
    pub(super) fn pair(io: Io) -> (Self, Self) {
        let shared = Rc::new(RefCell::new(io));
        (Self(shared.clone()), Self(shared))
    }

    /// Ends our side, then waits a little for the peer's end. Closing while something of the peer's is unread would reset the
    /// connection, and a reset can overtake the GOAWAY that says why. To be called when the codec is done with it.
    pub(super) async fn linger(self, limit: Duration) {
        let Ok(io) = Rc::try_unwrap(self.0) else { return };
        let mut io = io.into_inner();
        let end = Instant::now() + limit;
        if !matches!(timeout_at(end, io.shutdown()).await, Ok(Ok(()))) {
            return;
        }
        let (mut discarded, mut buffer) = (0, [0; 1024]);
        while discarded < MOST_DISCARDED {
            match timeout_at(end, io.read(&mut buffer)).await {
                Ok(Ok(n)) if n > 0 => discarded += n,
                _ => return,
            }
        }
    }

    fn with<T>(&self, call: impl FnOnce(Pin<&mut Io>) -> T) -> T {
        call(Pin::new(&mut *self.0.borrow_mut()))
    }
}

impl AsyncRead for SharedIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_read(cx, buffer))
    }
}

impl AsyncWrite for SharedIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|io| io.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|io| io.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().is_write_vectored()
    }
}
