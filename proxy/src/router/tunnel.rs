//! CONNECT that ends here (`RouteAction.UpgradeConfig.ConnectConfig`): the bytes of the stream go to a TCP connection of its
//! own, and no HTTP goes upstream.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::StatusCode;
use tokio::io::AsyncWrite;

use super::attempt::Failure;
use crate::cluster::connect::{ConnectionGuard, connect};
use crate::cluster::{Cluster, Outcome, Picked, RoutingPriority};
use crate::codec::{
    Body, BodyError, BodyStream, Frame, Headers, Meter, Protocol, Reply, ResetReason, ResponseHead,
};
use crate::identity::tls::ConnectOptions;
use crate::io::{Io, TlsInfo, scratch};
use crate::telemetry::record::UpstreamLine;

/// What is known of the connection, beside the reply.
pub struct Opened {
    /// The answer: 200, and the bytes that come back.
    pub reply: Reply,
    /// Our address.
    pub local: Option<std::net::SocketAddr>,
    /// What TLS established.
    pub tls: Option<Arc<TlsInfo>>,
    /// The connection.
    pub line: Rc<UpstreamLine>,
}

/// Connects to the host and grants the tunnel. `body` are the bytes that go there; `meter` counts them and those that come back.
pub async fn open(
    cluster: &Arc<Cluster>,
    picked: Picked,
    priority: RoutingPriority,
    body: Body,
    meter: Option<Rc<Meter>>,
) -> Result<Opened, Failure> {
    let host = picked.host().clone();
    let permit = cluster.limits(priority).connections.try_acquire().ok_or(Failure::Overflow)?;
    let connected = connect(cluster, &host, permit, ConnectOptions::default()).await.map_err(|failure| {
        cluster.report(&host, Outcome::ConnectFailed);
        Failure::Connect { timeout: failure.timeout, reason: failure.reason }
    })?;
    cluster.report(&host, Outcome::Answered(StatusCode::OK));
    let (local, tls, line) = (connected.local, connected.tls, connected.facts);
    let mut stream = Tunnel {
        io: connected.io,
        source: body,
        unsent: Bytes::new(),
        sending: Sending::Open,
        meter,
        _guard: connected.guard,
        _picked: picked,
    };
    // What the client did not wait to send goes first.
    if let Some(Err(error)) = poll_fn(|cx| Poll::Ready(stream.poll_now(cx))).await {
        return Err(Failure::Downstream(error));
    }
    let head = ResponseHead { status: StatusCode::OK, protocol: Protocol::Http11, headers: Headers::new() };
    let reply = Reply { head, body: Body::stream(stream), close: false, reset: None };
    Ok(Opened { reply, local, tls, line })
}

/// How far our side of the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Open,
    Ending,
    Ended,
}

struct Tunnel {
    io: Io,
    source: Body,
    unsent: Bytes,
    sending: Sending,
    meter: Option<Rc<Meter>>,
    _guard: ConnectionGuard,
    _picked: Picked,
}

impl Tunnel {
    fn poll_now(&mut self, cx: &mut Context<'_>) -> Option<Result<(), BodyError>> {
        match self.poll_send(cx) {
            Poll::Ready(sent) => Some(sent),
            Poll::Pending => None,
        }
    }

    /// Writes what there is to write. Ready when our side has ended.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let broken =
            BodyError { reason: ResetReason::ConnectionTermination, details: "connection termination" };
        loop {
            if self.sending == Sending::Ended {
                return Poll::Ready(Ok(()));
            }
            if !self.unsent.is_empty() {
                let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.unsent)).map_err(|_| broken)?;
                self.unsent.advance(n);
                if let Some(meter) = &self.meter {
                    meter.count(|bytes| bytes.sent += n as u64);
                }
                continue;
            }
            if self.sending == Sending::Ending {
                // The peer may have closed; what it sent is read all the same.
                let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
                self.sending = Sending::Ended;
                continue;
            }
            match self.source.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => self.unsent = data,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None | Some(Ok(Frame::Trailers(_)))) => self.sending = Sending::Ending,
                Poll::Pending => {
                    // TLS may hold what was written.
                    ready!(Pin::new(&mut self.io).poll_flush(cx)).map_err(|_| broken)?;
                    return Poll::Pending;
                }
            }
        }
    }
}

impl BodyStream for Tunnel {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        let mut read = Bytes::new();
        let polled = scratch::poll_read(&mut self.io, cx, |bytes, _| read = Bytes::copy_from_slice(bytes));
        Poll::Ready(match ready!(polled) {
            Ok(0) => None,
            Ok(n) => {
                if let Some(meter) = &self.meter {
                    meter.count(|bytes| bytes.received += n as u64);
                }
                Some(Ok(Frame::Data(read)))
            }
            Err(_) => Some(Err(BodyError {
                reason: ResetReason::ConnectionTermination,
                details: "connection termination",
            })),
        })
    }
}
