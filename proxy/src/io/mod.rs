//! Byte streams and what is known of a connection: the vocabulary of every stage that touches one.

pub mod alarm;
mod bell;
pub mod connection;
mod copy;
pub mod file;
mod gate;
pub mod local;
pub mod metadata;
mod pipe;
pub mod proxy_header;
mod rare;
pub mod refused;
mod round_trip;
pub mod scratch;
pub mod socket_option;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

pub use alarm::Alarm;
pub use bell::{Bell, Ear, bell};
pub use connection::{ConnectionInfo, Direction, Fingerprints, Origin, PassedOn, TlsInfo, UpstreamSource};
pub use copy::{Copied, CopyEnd, copy_bidirectional};
pub use gate::{Gate, Pass};
pub use metadata::{DynamicMetadata, FilterState, Notes};
pub use rare::Rare;
pub use round_trip::RoundTrip;
pub use socket_option::{Moment, SocketOption};

use gate::{Asked, Watch};

/// The most bytes that are read of what a network filter refused.
const REFUSED_MOST: u64 = 1 << 20;

/// One concrete type for every byte stream, with a prefix that is read again before it: bytes that were sniffed feed the TLS
/// acceptor, or the next filter, untouched.
#[derive(Debug)]
pub struct Io {
    prefix: Bytes,
    /// What stands between the stream and its reader; most have nothing.
    oversight: Option<Box<Oversight>>,
    kind: Kind,
}

/// Apart from the stream, which every connection attempt carries with it.
#[derive(Debug, Default)]
struct Oversight {
    /// Network filters that decide when bytes come.
    watch: Option<Watch>,
    /// Ends the stream for its reader.
    cut: Option<Ear>,
    /// What was read since somebody listens in.
    heard: Option<Vec<u8>>,
    /// Another descriptor of the socket, for whoever measures; it goes before the stream does, so that it keeps nothing open.
    measured: Option<Arc<OwnedFd>>,
}

/// As much is kept for those who listen in: what is said in the clear at a TLS connection's beginning, certificates included.
const HEARD_MOST: usize = 1 << 16;

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    TlsServer(Box<tokio_rustls::server::TlsStream<Io>>),
    TlsClient(Box<tokio_rustls::client::TlsStream<Io>>),
    Memory(DuplexStream),
}

impl Io {
    /// A TCP connection.
    pub fn tcp(stream: TcpStream) -> Self {
        Kind::Tcp(stream).into()
    }

    /// A connection to a UNIX socket.
    pub fn unix(stream: UnixStream) -> Self {
        Kind::Unix(stream).into()
    }

    /// The inside of a TLS connection that we accepted.
    pub fn tls_server(stream: tokio_rustls::server::TlsStream<Io>) -> Self {
        Kind::TlsServer(Box::new(stream)).into()
    }

    /// The inside of a TLS connection that we opened.
    pub fn tls_client(stream: tokio_rustls::client::TlsStream<Io>) -> Self {
        Kind::TlsClient(Box::new(stream)).into()
    }

    /// A stream within the process: internal listeners, tests.
    pub fn memory(stream: DuplexStream) -> Self {
        Kind::Memory(stream).into()
    }

    /// Puts bytes that were read back in front.
    pub fn rewind(&mut self, bytes: Bytes) {
        if self.prefix.is_empty() {
            self.prefix = bytes;
        } else {
            let mut all = bytes.to_vec();
            all.extend_from_slice(&self.prefix);
            self.prefix = all.into();
        }
    }

    /// Asks `gate` about what is read from here on.
    pub fn watch(&mut self, gate: impl Gate + 'static) {
        self.oversight.get_or_insert_default().watch = Some(Watch::Asking(Box::new(gate)));
    }

    /// Ends the stream for its reader when this rings.
    pub fn cut_by(&mut self, cut: Ear) {
        self.oversight.get_or_insert_default().cut = Some(cut);
    }

    /// Keeps what is read from here on as well.
    pub fn listen_in(&mut self) {
        self.oversight.get_or_insert_default().heard = Some(Vec::new());
    }

    /// What was read since; nothing is kept any more.
    pub fn heard(&mut self) -> Vec<u8> {
        self.oversight.as_mut().and_then(|oversight| oversight.heard.take()).unwrap_or_default()
    }

    /// How long the socket's segments take; none where it is not one of TCP, or there are no descriptors left.
    pub fn round_trip(&mut self) -> Option<Arc<RoundTrip>> {
        let socket = Arc::new(self.bare()?.as_fd().try_clone_to_owned().ok()?);
        let time = RoundTrip::of(&socket);
        self.oversight.get_or_insert_default().measured = Some(socket);
        Some(time)
    }

    /// Has the peer see a reset when the connection ends here, as a peer of the other side has made one.
    pub fn reset(&self) {
        if let Some(stream) = self.tcp_stream() {
            // Fails only on a connection that is gone.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// The TCP socket at the bottom, if there is one.
    pub fn tcp_stream(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Tcp(stream) => Some(stream),
            Kind::TlsServer(stream) => stream.get_ref().0.tcp_stream(),
            Kind::TlsClient(stream) => stream.get_ref().0.tcp_stream(),
            Kind::Unix(_) | Kind::Memory(_) => None,
        }
    }
}

/// Bytes that are read ahead: they go back in front of the stream when this is dropped, also when a time limit cuts off whoever
/// reads.
#[derive(Debug)]
pub struct Ahead<'a> {
    io: &'a mut Io,
    read: BytesMut,
}

impl<'a> Ahead<'a> {
    /// Nothing is read yet.
    pub fn of(io: &'a mut Io) -> Self {
        Self { io, read: BytesMut::new() }
    }

    /// Reads more; gives the number of bytes, 0 at the stream's end.
    pub async fn more(&mut self) -> io::Result<usize> {
        self.io.read_buf(&mut self.read).await
    }

    /// What was read.
    pub fn bytes(&self) -> &[u8] {
        &self.read
    }

    /// Takes this many of the first bytes for good.
    pub fn take(&mut self, length: usize) {
        self.read.advance(length.min(self.read.len()));
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.io.rewind(std::mem::take(&mut self.read).freeze());
    }
}

impl From<Kind> for Io {
    fn from(kind: Kind) -> Self {
        Self { prefix: Bytes::new(), oversight: None, kind }
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match &mut $self.kind {
            Kind::Tcp($stream) => $call,
            Kind::Unix($stream) => $call,
            Kind::TlsServer($stream) => $call,
            Kind::TlsClient($stream) => $call,
            Kind::Memory($stream) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Most have nothing that looks on.
        if self.oversight.is_none() {
            return self.poll_plain(cx, buffer);
        }
        if self.is_cut(cx) {
            return Poll::Ready(Err(gate::denied()));
        }
        let before = buffer.filled().len();
        let read = match self.watch_of() {
            Some(_) => self.poll_watched(cx, buffer),
            None => self.poll_plain(cx, buffer),
        };
        if let Some(heard) = self.oversight.as_mut().and_then(|oversight| oversight.heard.as_mut()) {
            let new = &buffer.filled()[before..];
            heard.extend_from_slice(&new[..new.len().min(HEARD_MOST - heard.len())]);
        }
        read
    }
}

impl Io {
    /// The socket, to take bytes from it that nobody here has to see; none where TLS, a filter, or bytes that were read ahead
    /// stand before it.
    ///
    /// # Errors
    /// The stream is cut.
    fn unseen(&mut self, cx: &Context<'_>) -> io::Result<Option<&TcpStream>> {
        if self.is_cut(cx) {
            return Err(gate::denied());
        }
        let seen = self.watch_of().is_some() || !self.prefix.is_empty();
        Ok(self.bare().filter(|_| !seen))
    }

    /// Whether the stream is cut for its reader; if not, this task is woken when it is.
    fn is_cut(&mut self, cx: &Context<'_>) -> bool {
        let cut = self.oversight.as_mut().and_then(|oversight| oversight.cut.as_mut());
        cut.is_some_and(|cut| cut.hears(cx.waker()))
    }

    /// The socket, where bytes are written to it as they are.
    fn bare(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Tcp(stream) => Some(stream),
            Kind::Unix(_) | Kind::TlsServer(_) | Kind::TlsClient(_) | Kind::Memory(_) => None,
        }
    }

    fn watch_of(&mut self) -> Option<&mut Watch> {
        self.oversight.as_mut()?.watch.as_mut()
    }

    fn poll_watched(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(watch) = self.watch_of() {
            ready!(watch.poll_closing(cx))?;
        }
        let before = buffer.filled().len();
        ready!(self.poll_plain(cx, buffer))?;
        match self.watch_of().map_or(Asked::Always, |watch| watch.ask()) {
            Asked::Always => {
                if let Some(oversight) = &mut self.oversight {
                    oversight.watch = None;
                }
            }
            Asked::Once => {}
            Asked::Later => {
                let bytes = Bytes::copy_from_slice(&buffer.filled()[before..]);
                buffer.set_filled(before);
                // An end that came is seen again at the next read.
                self.rewind(bytes);
                return self.poll_watched(cx, buffer);
            }
            Asked::Never => {
                let mut refused = (buffer.filled().len() - before) as u64;
                buffer.set_filled(before);
                // What is left unread would turn the close into a reset; a peer that never stops does not keep us.
                let mut rest = [0u8; 4096];
                while refused < REFUSED_MOST {
                    let mut more = ReadBuf::new(&mut rest);
                    match self.poll_plain(cx, &mut more) {
                        Poll::Ready(Ok(())) if !more.filled().is_empty() => {
                            refused += more.filled().len() as u64
                        }
                        _ => break,
                    }
                }
                if let Some(watch) = self.watch_of() {
                    watch.refused(refused);
                }
                if let Some(watch) = self.watch_of() {
                    return watch.poll_closing(cx);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_plain(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buffer.remaining());
            buffer.put_slice(&self.prefix[..n]);
            self.prefix.advance(n);
            return Poll::Ready(Ok(()));
        }
        let read = each!(self, stream => Pin::new(stream).poll_read(cx, buffer));
        if let Poll::Ready(Err(error)) = &read
            && matches!(self.kind, Kind::TlsServer(_) | Kind::TlsClient(_))
        {
            // In TLS 1.3 a server's word about the client's certificate comes after the client's handshake is done.
            refused::note(error);
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Tcp(stream) => stream.is_write_vectored(),
            Kind::Unix(stream) => stream.is_write_vectored(),
            Kind::TlsServer(stream) => stream.is_write_vectored(),
            Kind::TlsClient(stream) => stream.is_write_vectored(),
            Kind::Memory(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn sniffed_bytes_are_read_again_first() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"hello world").await.unwrap();
        let mut io = Io::memory(near);
        let mut start = [0; 5];
        io.read_exact(&mut start).await.unwrap();
        io.rewind(Bytes::copy_from_slice(&start));
        io.rewind(Bytes::from_static(b">"));
        let mut all = [0; 12];
        io.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b">hello world");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_ahead_survives_whoever_is_cut_off_while_reading() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"hello").await.unwrap();
        let mut io = Io::memory(near);
        let look = async {
            let mut ahead = Ahead::of(&mut io);
            loop {
                ahead.more().await.unwrap();
            }
        };
        let _: Result<(), _> = tokio::time::timeout(std::time::Duration::from_secs(1), look).await;
        drop(far);
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"hello");
    }
}
