//! Asking a service by gRPC: one unary call, its frames written here, over the cluster's own HTTP/2 connections.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::prost::Message;

use super::call;
use crate::cluster::Cluster;
use crate::codec::{Body, Headers, Protocol, RequestHead};
use crate::io::ConnectionInfo;
use crate::route::config::duration;
use crate::state::{CompileContext, ConfigError, Slot};

const TRAILERS: HeaderName = HeaderName::from_static("te");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The most of an answer that is read, in bytes.
const LONGEST: usize = 4 << 20;

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nobody answered, or not in time.
    #[error("there was no answer; is it there, and does its cluster have hosts?")]
    Unanswered,
    /// The service answered with an error of its own.
    #[error("it answered with the gRPC status {code}: {message:?}")]
    Status {
        /// The number of gRPC.
        code: u32,
        /// Its words.
        message: String,
    },
    /// Something answered that does not take such requests.
    #[error("it answered with the HTTP status {0}; is that the right port and path?")]
    Http(u16),
    /// An answer that is none of gRPC's.
    #[error("its answer is none of the called method's; is that the right port?")]
    Malformed,
}

/// The most of a status's words that is kept, in bytes.
const WORDS: usize = 512;

impl CallError {
    /// Whether somebody answered.
    pub fn is_answer(&self) -> bool {
        *self != Self::Unanswered
    }

    /// The error that an answer's fields tell of; none for success.
    fn of_fields(fields: &Headers) -> Option<Result<(), Self>> {
        let status = fields.get_str(&GRPC_STATUS)?;
        if status == "0" {
            return Some(Ok(()));
        }
        // What is no number is UNKNOWN, as in gRPC's own libraries.
        let code = status.parse().unwrap_or(2);
        let message = fields.get_str(&GRPC_MESSAGE).unwrap_or_default();
        let message = percent_encoding::percent_decode_str(message).decode_utf8_lossy();
        let end = message.floor_char_boundary(message.len().min(WORDS));
        Some(Err(Self::Status { code, message: message[..end].to_owned() }))
    }
}

/// A gRPC service.
#[derive(Debug)]
pub struct GrpcService {
    /// Its cluster.
    pub cluster: Arc<Slot<Cluster>>,
    /// What it is called there.
    pub authority: Bytes,
    /// For the whole call; zero for no limit.
    pub timeout: Duration,
    /// Further fields of calls.
    pub metadata: Vec<(HeaderName, HeaderValue)>,
}

impl GrpcService {
    /// Compiles a service; `timeout` is for one that names none.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(
        service: &core::GrpcService,
        timeout: Duration,
        context: &CompileContext,
    ) -> Result<Self, Vec<ConfigError>> {
        use core::grpc_service::TargetSpecifier;
        let target = match &service.target_specifier {
            Some(TargetSpecifier::EnvoyGrpc(target)) => target,
            Some(TargetSpecifier::GoogleGrpc(_)) => {
                return Err(ConfigError::unsupported("google_grpc", "a client of another library").into());
            }
            None => return Err(ConfigError::missing("envoy_grpc").into()),
        };
        if target.cluster_name.is_empty() {
            return Err(ConfigError::missing("envoy_grpc.cluster_name").into());
        }
        let mut metadata = Vec::with_capacity(service.initial_metadata.len());
        for (index, entry) in service.initial_metadata.iter().enumerate() {
            let pair = HeaderName::from_bytes(entry.key.as_bytes())
                .ok()
                .zip(HeaderValue::from_str(&entry.value).ok());
            metadata.push(pair.ok_or_else(|| {
                ConfigError::new(format!("initial_metadata[{index}]"), "is no header field")
            })?);
        }
        let authority = if target.authority.is_empty() { &target.cluster_name } else { &target.authority };
        Ok(Self {
            cluster: context.clusters.slot(&target.cluster_name),
            authority: Bytes::from(authority.clone()),
            timeout: duration(service.timeout.as_ref(), "timeout")?.unwrap_or(timeout),
            metadata,
        })
    }

    fn head(&self, method: &'static str, timeout: Duration) -> RequestHead {
        let mut head =
            call::head(Method::POST, self.authority.clone(), Bytes::from_static(method.as_bytes()));
        head.protocol = Protocol::Http2;
        let headers = &mut head.headers;
        headers.append(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.append(TRAILERS, HeaderValue::from_static("trailers"));
        if !timeout.is_zero()
            && let Ok(value) = HeaderValue::try_from(format!("{}m", timeout.as_millis()))
        {
            headers.append(GRPC_TIMEOUT, value);
        }
        for (name, value) in &self.metadata {
            headers.append(name.clone(), value.clone());
        }
        head
    }

    /// Sends a stream of messages, framed already, and waits until the other side has ended it. The service's timeout is not for
    /// streams.
    pub async fn stream(&self, method: &'static str, messages: Body, connection: &Arc<ConnectionInfo>) {
        let head = self.head(method, Duration::ZERO);
        let called = call::call(&self.cluster, head, messages, Duration::ZERO, connection.clone()).await;
        if let Ok(mut reply) = called {
            let _ = call::read(&mut reply.body, LONGEST).await;
        }
    }

    /// Calls a method, by its path.
    ///
    /// # Errors
    /// There is no answer, or one of an error.
    pub async fn ask<A: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
        connection: &Arc<ConnectionInfo>,
    ) -> Result<A, CallError> {
        self.ask_with(method, request, connection, |_| ()).await
    }

    /// The same with further fields.
    ///
    /// # Errors
    /// There is no answer, or one of an error.
    pub async fn ask_with<A: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
        connection: &Arc<ConnectionInfo>,
        tell: impl FnOnce(&mut Headers),
    ) -> Result<A, CallError> {
        let mut head = self.head(method, self.timeout);
        tell(&mut head.headers);
        let work = async {
            let body = Body::Full(framed(request));
            let mut reply = call::call(&self.cluster, head, body, self.timeout, connection.clone())
                .await
                .map_err(|_| CallError::Unanswered)?;
            let in_head = CallError::of_fields(&reply.head.headers);
            if reply.head.status != StatusCode::OK && in_head.is_none() {
                return Err(CallError::Http(reply.head.status.as_u16()));
            }
            let read = call::read(&mut reply.body, LONGEST).await;
            let (bytes, trailers) = read.map_err(|_| CallError::Unanswered)?;
            trailers
                .as_ref()
                .and_then(CallError::of_fields)
                .or(in_head)
                .unwrap_or(Err(CallError::Malformed))?;
            unframed(&bytes).and_then(|message| A::decode(message).ok()).ok_or(CallError::Malformed)
        };
        if self.timeout.is_zero() {
            return work.await;
        }
        tokio::time::timeout(self.timeout, work).await.unwrap_or(Err(CallError::Unanswered))
    }
}

/// A message behind its five bytes: not compressed, and its length.
pub fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // A buffer that grows has room.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// The message behind its five bytes.
fn unframed(bytes: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = bytes.split_at_checked(5)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    (prefix[0] == 0 && message.len() == length as usize).then_some(message)
}

/// Notes that only version 3 of the service is spoken.
pub fn only_v3(version: i32, errors: &mut Vec<ConfigError>) {
    match core::ApiVersion::try_from(version) {
        Ok(core::ApiVersion::V3) => {}
        other => errors.push(ConfigError::new(
            "transport_api_version",
            format!("{other:?} is not supported; only V3 is, and it must be said"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use xds_protos::envoy::service::auth::v3 as auth;

    use super::*;

    #[test]
    fn a_status_is_told_with_its_words() {
        let fields = |status: &'static str, message: &'static str| {
            let mut fields = Headers::new();
            fields.append(GRPC_STATUS, HeaderValue::from_static(status));
            fields.append(GRPC_MESSAGE, HeaderValue::from_static(message));
            CallError::of_fields(&fields)
        };
        assert_eq!(fields("0", ""), Some(Ok(())));
        let error = fields("7", "no%20token").unwrap().unwrap_err();
        assert_eq!(error, CallError::Status { code: 7, message: "no token".into() });
        assert_eq!(error.to_string(), "it answered with the gRPC status 7: \"no token\"");
        assert!(matches!(fields("x", ""), Some(Err(CallError::Status { code: 2, .. }))));
        assert_eq!(CallError::of_fields(&Headers::new()), None);
    }

    #[test]
    fn a_message_is_framed_and_only_a_whole_one_is_taken() {
        let message = auth::CheckResponse { status: Some(Default::default()), ..Default::default() };
        let bytes = framed(&message);
        assert_eq!(auth::CheckResponse::decode(unframed(&bytes).unwrap()).unwrap(), message);
        assert!(unframed(&bytes[..bytes.len() - 1]).is_none());
        assert!(unframed(&[1, 0, 0, 0, 0]).is_none(), "compressed");
        assert!(unframed(&[]).is_none());
    }
}
