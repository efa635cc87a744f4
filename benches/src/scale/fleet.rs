//! All simulated proxies on one thread: sockets, TLS and an epoll set, and as little else as can be, for they share the machine with
//! what is measured.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::sync::mpsc;

use super::mesh::Size;
use super::proxy::{NAME, Proxy, Seen};
use super::stream::Stream;
use crate::poll::{BOTH, Poll, READ};

/// Proxies that start at once.
const STARTING: usize = 32;

/// What all proxies share.
pub struct Fleet {
    /// The control plane's secure port.
    pub port: u16,
    /// The roots that its certificate is checked by.
    pub roots: String,
    /// The mesh that they stand in.
    pub size: Size,
    /// How many.
    pub proxies: usize,
    /// Bytes that came, TLS and HTTP/2 included.
    pub received: Arc<AtomicU64>,
    /// Bytes that went.
    pub sent: Arc<AtomicU64>,
    /// Where changes are told that were acknowledged: all of one round together, for each telling may wake a thread.
    pub seen: mpsc::UnboundedSender<Vec<Seen>>,
}

struct Member {
    proxy: Proxy,
    stream: Stream,
    tls: ClientConnection,
    socket: TcpStream,
    /// Its socket is watched for room to write.
    full: bool,
}

/// A socket that is read, and whether there may be more: one that did not fill the buffer has been read empty, and need not be asked.
struct Reading<'a> {
    socket: &'a TcpStream,
    full: bool,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.socket.read(buffer)?;
        self.full = n == buffer.len();
        Ok(n)
    }
}

impl Fleet {
    /// Starts them, some at a time, and answers until nobody listens any more.
    ///
    /// # Errors
    /// The first stream that breaks.
    pub fn run(&self) -> anyhow::Result<()> {
        let config = Arc::new(self.tls()?);
        let mut poll = Poll::new()?;
        let mut members: Vec<Member> = Vec::with_capacity(self.proxies);
        let (mut ready, mut there, mut buffer) = (Vec::new(), 0, vec![0; 64 * 1024]);
        while !self.seen.is_closed() {
            while members.len() < self.proxies && members.len() - there < STARTING {
                let mut member = self.start(members.len(), config.clone())?;
                poll.add(&member.socket, members.len(), READ)?;
                self.flush(&mut member)?;
                members.push(member);
            }
            poll.wait(Duration::from_millis(100), &mut ready)?;
            let mut seen = Vec::new();
            for number in &ready {
                let Some(member) = members.get_mut(*number) else { continue };
                let before = member.proxy.there();
                self.turn(member, &mut buffer, &mut seen).with_context(|| format!("proxy {number}"))?;
                there += usize::from(!before && member.proxy.there());
                if member.tls.wants_write() != member.full {
                    member.full = !member.full;
                    poll.change(&member.socket, *number, if member.full { BOTH } else { READ })?;
                }
            }
            if !seen.is_empty() {
                // Nobody listens at the end of a run.
                let _ = self.seen.send(seen);
            }
        }
        Ok(())
    }

    fn tls(&self) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.roots.as_bytes()) {
            roots.add(root?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn start(&self, number: usize, config: Arc<ClientConfig>) -> anyhow::Result<Member> {
        let socket = TcpStream::connect(("127.0.0.1", self.port))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut tls = ClientConnection::new(config, ServerName::try_from(NAME)?)?;
        tls.set_buffer_limit(None);
        let (proxy, stream) = Proxy::start(&self.size, number);
        Ok(Member { proxy, stream, tls, socket, full: false })
    }

    fn turn(&self, member: &mut Member, buffer: &mut [u8], seen: &mut Vec<Seen>) -> anyhow::Result<()> {
        let mut more = true;
        while more {
            let mut socket = Reading { socket: &member.socket, full: false };
            match member.tls.read_tls(&mut socket) {
                Ok(0) => bail!("the control plane closed the connection"),
                Ok(n) => self.received.fetch_add(n as u64, Relaxed),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            more = socket.full;
            let left = member.tls.process_new_packets()?.plaintext_bytes_to_read();
            let mut left = left;
            while left > 0 {
                let most = left.min(buffer.len());
                let n = member.tls.reader().read(&mut buffer[..most])?;
                left -= n;
                let Member { proxy, stream, .. } = member;
                stream.take(&buffer[..n], |stream, message| proxy.answer(stream, message, seen))?;
            }
        }
        self.flush(member)
    }

    fn flush(&self, member: &mut Member) -> anyhow::Result<()> {
        member.tls.writer().write_all(&member.stream.out)?;
        member.stream.out.clear();
        while member.tls.wants_write() {
            match member.tls.write_tls(&mut member.socket) {
                Ok(n) => self.sent.fetch_add(n as u64, Relaxed),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
        }
        Ok(())
    }
}
