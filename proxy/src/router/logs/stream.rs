//! Envoy's access log service: entries go on one stream of gRPC for as long as it lives, and on a new one after it.
//!
//! The first message of a stream says who logs, and under which name.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use xds_protos::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use xds_protos::envoy::service::accesslog::v3::stream_access_logs_message::{Identifier, LogEntries};

use super::{LATEST, Stats};
use crate::codec::{Body, BodyError, BodyStream, Frame};
use crate::router::call;
use crate::router::grpc::{GrpcService, framed};
use crate::telemetry::access_log::queue::Taker;

const METHOD: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// How long the service may take to end a stream that ended here.
const FAREWELL: Duration = Duration::from_secs(5);

/// An access log service.
#[derive(Debug)]
pub(super) struct Service {
    pub service: Arc<GrpcService>,
    pub identifier: Identifier,
    pub every: Duration,
}

/// A message, and whom to tell when it was taken to be sent.
type Item = (Bytes, oneshot::Sender<()>);

/// A stream that is open.
struct Open {
    messages: mpsc::Sender<Item>,
    call: JoinHandle<()>,
}

/// Messages as a request's body. It ends when nobody is left to send any.
struct Messages(mpsc::Receiver<Item>);

impl BodyStream for Messages {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        self.0.poll_recv(cx).map(|item| {
            item.map(|(bytes, taken)| {
                let _ = taken.send(());
                Ok(Frame::Data(bytes))
            })
        })
    }
}

impl Open {
    fn new(service: &Arc<GrpcService>) -> Self {
        let (messages, receiver) = mpsc::channel(1);
        let service = service.clone();
        let call = tokio::task::spawn_local(async move {
            service.stream(METHOD, Body::stream(Messages(receiver)), &call::nobody()).await;
        });
        Self { messages, call }
    }

    fn is_over(&self) -> bool {
        self.call.is_finished() || self.messages.is_closed()
    }

    /// Whether the connection took the message.
    async fn send(&mut self, message: Bytes) -> bool {
        let (taken, was_taken) = oneshot::channel();
        let sending = async { self.messages.send((message, taken)).await.is_ok() && was_taken.await.is_ok() };
        tokio::select! {
            sent = tokio::time::timeout(LATEST, sending) => sent == Ok(true),
            // Ended by the other side with the message in our hands.
            _ = &mut self.call => false,
        }
    }

    /// Ends it, and gives the service time to read the last of it.
    async fn close(self) {
        drop(self.messages);
        let abort = self.call.abort_handle();
        if tokio::time::timeout(FAREWELL, self.call).await.is_err() {
            abort.abort();
        }
    }
}

impl Service {
    pub(super) async fn run<T>(self, mut taker: Taker<T>, stats: Stats, wrap: fn(Vec<T>) -> LogEntries) {
        let mut open: Option<Open> = None;
        while let Some(mut batch) = taker.batch(self.every).await {
            let entries = std::mem::take(&mut batch.entries);
            let count = entries.len() as u64;
            let mut message = StreamAccessLogsMessage { identifier: None, log_entries: Some(wrap(entries)) };
            let mut sent = false;
            if let Some(stream) = open.as_mut().filter(|stream| !stream.is_over()) {
                sent = stream.send(framed(&message)).await;
            }
            if !sent {
                if let Some(old) = open.take() {
                    old.call.abort();
                }
                message.identifier = Some(self.identifier.clone());
                let stream = open.insert(Open::new(&self.service));
                sent = stream.send(framed(&message)).await;
            }
            if !sent {
                stats.dropped.add(count);
                if let Some(old) = open.take() {
                    old.call.abort();
                }
            }
        }
        if let Some(stream) = open {
            stream.close().await;
        }
    }
}
