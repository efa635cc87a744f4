//! The sockets: UDP and TCP at each address, and what becomes of a question.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Dns;
use super::message::{Request, Transport, read};
use super::settings::{Needed, Settings};

/// Questions that are being answered at the same time; more are not heard, and asked again by those who wait.
const MOST: usize = 4096;
/// Connections at the same time.
const MOST_CONNECTIONS: usize = 256;
/// Questions of one connection at the same time.
const MOST_PIPELINED: usize = 64;
/// A connection on which nothing is asked for so long ends (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// Sockets at every address.
pub(super) struct Sockets(Vec<(UdpSocket, TcpListener)>);

impl Sockets {
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect()
    }
}

/// Takes the addresses.
pub(super) fn bind(settings: &Settings) -> anyhow::Result<Sockets> {
    let mut sockets = Vec::new();
    for (address, needed) in &settings.listen {
        match both(*address) {
            Ok(pair) => sockets.push(pair),
            Err(error) if *needed == Needed::IfThere && lacks_family(&error) => {
                tracing::info!(%address, %error, "there is no such address here; DNS is answered without it");
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot answer DNS at {address} (--dns-address); is somebody else answering there? (ss -lnup shows)"
                    )
                });
            }
        }
    }
    if sockets.is_empty() {
        bail!("there is no address to answer DNS at (--dns-address)");
    }
    Ok(Sockets(sockets))
}

/// Both on the same port, also where any would do: one that is free for datagrams may be taken for connections.
pub(super) fn both(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let mut tries = if address.port() == 0 { 100 } else { 1 };
    let (udp, tcp) = loop {
        tries -= 1;
        let udp = UdpSocket::bind(address)?;
        match TcpListener::bind(udp.local_addr()?) {
            Ok(tcp) => break (udp, tcp),
            Err(error) if error.kind() == ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    };
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}

fn lacks_family(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Answers for ever.
pub(super) async fn run(sockets: Sockets, dns: Dns) {
    let permits = Arc::new(Semaphore::new(MOST));
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut tasks = JoinSet::new();
    for (udp, tcp) in sockets.0 {
        match (tokio::net::UdpSocket::from_std(udp), tokio::net::TcpListener::from_std(tcp)) {
            (Ok(udp), Ok(tcp)) => {
                tasks.spawn(datagrams(udp, dns.clone(), permits.clone()));
                tasks.spawn(streams(tcp, dns.clone(), permits.clone(), connections.clone()));
            }
            (udp, tcp) => {
                tracing::error!(udp = ?udp.err(), tcp = ?tcp.err(), "a socket for DNS cannot be used");
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn datagrams(socket: tokio::net::UdpSocket, dns: Dns, permits: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 65_535];
    loop {
        let (size, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving DNS");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            dns.0.stats.dropped.inc();
            continue;
        };
        let (dns, socket, bytes) = (dns.clone(), socket.clone(), buffer[..size].to_vec());
        tokio::spawn(async move {
            if let Some(answer) = dns.answer(&bytes, Transport::Udp, peer).await
                && let Err(error) = socket.send_to(&answer, peer).await
            {
                tracing::debug!(%peer, %error, "an answer of DNS cannot be sent");
            }
            drop(permit);
        });
    }
}

async fn streams(
    listener: tokio::net::TcpListener,
    dns: Dns,
    permits: Arc<Semaphore>,
    connections: Arc<Semaphore>,
) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection for DNS");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = connections.clone().try_acquire_owned() else {
            dns.0.stats.dropped.inc();
            continue;
        };
        let (dns, permits) = (dns.clone(), permits.clone());
        tokio::spawn(async move {
            if let Err(error) = conversation(stream, peer, dns, permits).await {
                tracing::debug!(%peer, %error, "a connection for DNS");
            }
            drop(place);
        });
    }
}

/// One connection: questions as they come, answers as they are there.
async fn conversation(
    stream: TcpStream,
    peer: SocketAddr,
    dns: Dns,
    permits: Arc<Semaphore>,
) -> std::io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let (answers, mut ready) = mpsc::channel::<Vec<u8>>(MOST_PIPELINED);
    let mut asked = JoinSet::new();
    let read = async {
        loop {
            while asked.try_join_next().is_some() {}
            if asked.len() >= MOST_PIPELINED {
                asked.join_next().await;
            }
            let size = match timeout(IDLE, reader.read_u16()).await {
                Ok(Ok(size)) => usize::from(size),
                // The client's end, or ours.
                Ok(Err(_)) | Err(_) => break,
            };
            let mut bytes = vec![0; size];
            match timeout(IDLE, reader.read_exact(&mut bytes)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => break,
            }
            let Ok(permit) = permits.clone().acquire_owned().await else { break };
            let (dns, answers) = (dns.clone(), answers.clone());
            asked.spawn(async move {
                if let Some(answer) = dns.answer(&bytes, Transport::Tcp, peer).await {
                    let _ = answers.send(answer).await;
                }
                drop(permit);
            });
        }
        // What is asked for is still answered.
        while asked.join_next().await.is_some() {}
        drop(answers);
    };
    let write = async {
        while let Some(answer) = ready.recv().await {
            let Ok(size) = u16::try_from(answer.len()) else { continue };
            let message = [&size.to_be_bytes()[..], &answer].concat();
            timeout(IDLE, writer.write_all(&message))
                .await
                .map_err(|_| std::io::Error::from(ErrorKind::TimedOut))??;
        }
        Ok(())
    };
    tokio::select! {
        biased;
        ended = write => ended,
        () = async { read.await; std::future::pending().await } => Ok(()),
    }
}

impl Dns {
    /// The answer to a message; none if it deserves none.
    async fn answer(&self, bytes: &[u8], transport: Transport, peer: SocketAddr) -> Option<Vec<u8>> {
        let shared = &self.0;
        shared.stats.requests.inc();
        let query = match read(bytes) {
            Request::Query(query) => query,
            Request::Refused(answer) => return answer.to_vec().ok(),
            Request::Nothing => return None,
        };
        if shared.resolver.upstream().is_own(&peer) {
            shared.stats.loops.inc();
            tracing::error!(
                "DNS turns in circles: the kernel sends what this proxy asks a server back to it. Run the proxy as the user or \
                 group that `weft init` was told (-u, -g; 1337)"
            );
            return None;
        }
        let found = match self.table() {
            None => {
                shared.stats.failures.inc();
                return query.encode(query.respond(ResponseCode::ServFail), transport).ok();
            }
            Some(table) => table.and_then(|table| table.find(&query.question.name)),
        };
        let here = matches!(
            query.question.kind,
            RecordType::A
                | RecordType::AAAA
                | RecordType::ANY
                | RecordType::CNAME
                | RecordType::HTTPS
                | RecordType::SVCB
        );
        let response = match found {
            Some(found) if here => {
                shared.stats.local.inc();
                query.local(&found)
            }
            // Others may know more of the name (where its service is, say); whether it is there is known here.
            Some(found) => match shared.resolver.answer(&query).await {
                Ok(answer) if answer.metadata.response_code == ResponseCode::NoError => answer,
                _ => query.local(&found),
            },
            None => shared.resolver.answer(&query).await.unwrap_or_else(|code| {
                shared.stats.failures.inc();
                query.respond(code)
            }),
        };
        match query.encode(response, transport) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::warn!(name = %query.question.name, %error, "an answer of DNS cannot be written");
                query.encode(query.respond(ResponseCode::ServFail), transport).ok()
            }
        }
    }
}

#[cfg(test)]
mod tests;
