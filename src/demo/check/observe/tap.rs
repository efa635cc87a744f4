//! Stands between two proxies: passes bytes on unchanged and keeps the first of what the server sent, to read the handshake
//! from.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::hello::{self, Agreed};

/// How much of each connection is kept.
const KEPT: usize = 16 * 1024;

/// What went through one connection.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// The first bytes from the client.
    pub client: Vec<u8>,
    /// The first bytes from the server.
    pub server: Vec<u8>,
}

impl Wire {
    /// What the server chose, if this was TLS.
    pub fn agreed(&self) -> Option<Agreed> {
        // A TLS client begins with a handshake record.
        (self.client.first() == Some(&22)).then(|| hello::server_hello(&self.server)).flatten()
    }
}

type Wires = Arc<Mutex<Vec<Arc<Mutex<Wire>>>>>;

/// A tap that listens until it is dropped.
#[derive(Debug)]
pub struct Tap {
    wires: Wires,
    task: JoinHandle<()>,
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tap {
    /// Listens at `at`, and connects each connection to `to`.
    pub async fn open(at: SocketAddr, to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(at).await.with_context(|| format!("the tap at {at}"))?;
        let wires = Wires::default();
        let task = tokio::spawn(accept(listener, to, wires.clone()));
        Ok(Self { wires, task })
    }

    /// All connections so far.
    pub fn wires(&self) -> Vec<Wire> {
        locked(&self.wires).iter().map(|w| locked(w).clone()).collect()
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, wires: Wires) {
    // Dropped with this task, so that no connection outlives its tap.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let wire = Arc::new(Mutex::new(Wire::default()));
        locked(&wires).push(wire.clone());
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(to).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::join!(
                pass(from_client, to_server, |bytes| keep(&mut locked(&wire).client, bytes)),
                pass(from_server, to_client, |bytes| keep(&mut locked(&wire).server, bytes)),
            );
        });
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = KEPT.saturating_sub(kept.len()).min(bytes.len());
    kept.extend_from_slice(&bytes[..room]);
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut see: impl FnMut(&[u8]),
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        see(&buffer[..n]);
        if to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
