//! Byte streams and what is known of a connection: the vocabulary of every stage that touches one.

pub mod alarm;
pub mod connection;
mod copy;
pub mod scratch;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

pub use alarm::Alarm;
pub use connection::{ConnectionInfo, Direction, TlsInfo};
pub use copy::{Copied, CopyEnd, copy_bidirectional};

/// One concrete type for every byte stream, with a prefix that is read again before it: bytes that were sniffed feed the TLS
/// acceptor, or the next filter, untouched.
#[derive(Debug)]
pub struct Io {
    prefix: Bytes,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    TlsServer(Box<tokio_rustls::server::TlsStream<Io>>),
    TlsClient(Box<tokio_rustls::client::TlsStream<Io>>),
    Memory(DuplexStream),
}

impl Io {
    /// A TCP connection.
    pub fn tcp(stream: TcpStream) -> Self {
        Kind::Tcp(stream).into()
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

    /// The TCP socket at the bottom, if there is one.
    pub fn tcp_stream(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Tcp(stream) => Some(stream),
            Kind::TlsServer(stream) => stream.get_ref().0.tcp_stream(),
            Kind::TlsClient(stream) => stream.get_ref().0.tcp_stream(),
            Kind::Memory(_) => None,
        }
    }
}

impl From<Kind> for Io {
    fn from(kind: Kind) -> Self {
        Self { prefix: Bytes::new(), kind }
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match &mut $self.kind {
            Kind::Tcp($stream) => $call,
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
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buffer.remaining());
            buffer.put_slice(&self.prefix[..n]);
            self.prefix.advance(n);
            return Poll::Ready(Ok(()));
        }
        each!(self, stream => Pin::new(stream).poll_read(cx, buffer))
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
            Kind::TlsServer(stream) => stream.is_write_vectored(),
            Kind::TlsClient(stream) => stream.is_write_vectored(),
            Kind::Memory(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
}
