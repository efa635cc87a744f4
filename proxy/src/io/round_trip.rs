//! How long a TCP connection's segments take to be acknowledged, as the kernel has measured it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// A connection's round trip time. It does not keep the connection open.
#[derive(Debug)]
pub struct RoundTrip {
    /// A descriptor of the connection's own socket; gone when the stream is.
    socket: Weak<OwnedFd>,
    /// What was measured last, in microseconds.
    last: AtomicU32,
}

impl RoundTrip {
    /// That of this socket, measured for the first time.
    pub(super) fn of(socket: &Arc<OwnedFd>) -> Arc<Self> {
        let this = Self { socket: Arc::downgrade(socket), last: AtomicU32::new(0) };
        this.measure();
        Arc::new(this)
    }

    /// The time in milliseconds: that of now, or the last of a connection that has ended.
    pub fn millis(&self) -> u32 {
        self.measure();
        self.last.load(Relaxed) / 1000
    }

    /// Asks the kernel, for whoever wants to know when the connection has ended.
    pub fn measure(&self) {
        if let Some(micros) = self.socket.upgrade().and_then(|socket| round_trip(&socket)) {
            self.last.store(micros, Relaxed);
        }
    }
}

#[allow(unsafe_code, reason = "no safe wrapper reads TCP_INFO")]
fn round_trip(socket: &OwnedFd) -> Option<u32> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the descriptor is borrowed and so open; the kernel writes at most `length` bytes, which is what `info` has room for.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // SAFETY: all of it was zeroed, whatever the kernel has not written; it is numbers and bit fields, of which any bytes are some.
    (result == 0).then(|| unsafe { info.assume_init() }.tcpi_rtt)
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use crate::io::Io;

    #[tokio::test]
    async fn it_is_measured_while_the_connection_lives_and_does_not_keep_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut io = Io::tcp(listener.accept().await.unwrap().0);
        let time = io.round_trip().unwrap();
        let first = time.last.load(super::Relaxed);
        assert!(first > 0, "the handshake of TCP was measured");
        time.last.store(77_000_000, super::Relaxed);
        assert!(time.millis() < 77_000, "it is measured anew");
        time.last.store(77_000_000, super::Relaxed);
        drop(io);
        assert_eq!(time.millis(), 77_000, "the last one of a connection that has ended");
        // The other end sees that it has ended.
        client.readable().await.unwrap();
        assert_eq!(client.try_read(&mut [0]).unwrap(), 0);
        // Where there is no TCP there is none.
        assert!(Io::memory(tokio::io::duplex(1).0).round_trip().is_none());
    }
}
