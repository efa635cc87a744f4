//! A rate limit service (`envoy.service.ratelimit.v3`) as the tests play it, until the process ends: of each descriptor it allows
//! so many requests, and it can be down.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::json;
use xds_protos::envoy::service::ratelimit::v3::RateLimitRequest;
use xds_protos::prost::Message;

/// What it allows of each descriptor.
pub const ALLOWED: u32 = 2;

/// The service.
#[derive(Clone)]
pub struct Service {
    pub port: u16,
    down: Arc<AtomicBool>,
    /// How often each descriptor came, as `domain:key=value,key=value`.
    counted: Arc<Mutex<HashMap<String, u32>>>,
}

impl Service {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = Self {
            port: listener.local_addr().unwrap().port(),
            down: Arc::default(),
            counted: Arc::default(),
        };
        let own = service.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(own.serve(listener));
        });
        service
    }

    /// Whether every question is answered with an error from now on.
    pub fn down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// The descriptors that came.
    pub fn descriptors(&self) -> Vec<String> {
        let mut all: Vec<_> = self.counted.lock().unwrap().keys().cloned().collect();
        all.sort();
        all
    }

    async fn serve(self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let own = self.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(own.clone().answer(request, respond));
                }
            });
        }
    }

    async fn answer(
        self,
        request: http::Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
    ) {
        let mut stream = request.into_body();
        let mut data = Vec::new();
        while let Some(Ok(piece)) = stream.data().await {
            let _ = stream.flow_control().release_capacity(piece.len());
            data.extend_from_slice(&piece);
        }
        let down = self.down.load(Ordering::Relaxed);
        let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let Ok(mut stream) = respond.send_response(head, false) else { return };
        if !down {
            let question = RateLimitRequest::decode(data.get(5..).unwrap_or_default()).unwrap_or_default();
            let over = question.descriptors.iter().any(|descriptor| {
                let entries: Vec<_> =
                    descriptor.entries.iter().map(|e| format!("{}={}", e.key, e.value)).collect();
                let name = format!("{}:{}", question.domain, entries.join(","));
                let mut counted = self.counted.lock().unwrap();
                let count = counted.entry(name).or_default();
                *count += descriptor.hits_addend.map_or(1, |hits| u32::try_from(hits).unwrap());
                *count > ALLOWED
            });
            let answer = json!({"overall_code": if over { "OVER_LIMIT" } else { "OK" }});
            let kind = "envoy.service.ratelimit.v3.RateLimitResponse";
            let message = xds_protos::json::encode(kind, &answer).unwrap();
            let mut frame = BytesMut::new();
            frame.put_u8(0);
            frame.put_u32(u32::try_from(message.len()).unwrap());
            frame.extend_from_slice(&message);
            let _ = stream.send_data(frame.freeze(), false);
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static(if down { "14" } else { "0" }));
        let _ = stream.send_trailers(trailers);
    }
}
