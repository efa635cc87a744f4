//! The control-plane client: ADS streams, subscriptions, ACK and NACK.
//!
//! Runs on the control thread. [`Client::run`] keeps one aggregated stream open to the control plane, delta by default, and
//! hands what arrives to a [`ResourceSink`] (the state engine), which says what it refuses. The rules of the two protocols
//! are in `delta` and `sotw`, free of IO; `client` moves their requests and responses; `channel` connects.
//!
//! Fail static: when the stream is lost the sink hears nothing. What worked stays, and a new stream tells the server what
//! is held, so that only changes come.

mod backoff;
mod channel;
mod client;
mod credentials;
mod delta;
mod detail;
mod protocol;
mod sotw;
mod stats;
mod subscriptions;
#[cfg(test)]
mod testing;

use bytes::Bytes;
use xds_protos::ResourceType;

pub use channel::{Address, Beside, ChannelError, Endpoint, Tls};
pub use client::{Client, ClientConfig, Report, Service, Shared};
pub use credentials::{Credentials, CredentialsError};
pub use stats::{Stats, TypeStats};
pub use subscriptions::Subscriptions;

/// Which of xDS's two ways of sending resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// Only what changed, with a version for each resource (`DELTA_GRPC`).
    #[default]
    Delta,
    /// For clusters and listeners always the whole set (`GRPC`).
    StateOfTheWorld,
}

/// The request by which a stream of this variant says how the workload is, in bytes, for streams that are relayed.
pub fn health_report(variant: Variant, report: &Result<(), String>) -> Bytes {
    use prost::Message;
    use protocol::Protocol;
    match variant {
        Variant::Delta => delta::Delta::report(report).encode_to_vec().into(),
        Variant::StateOfTheWorld => sotw::Sotw::report(report).encode_to_vec().into(),
    }
}

/// A resource that was not taken, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The resource.
    pub name: String,
    /// The reason, for the operator and for the control plane's log: what, where, and what would be right.
    pub reason: String,
}

/// Where resources go: the state engine.
pub trait ResourceSink {
    /// Takes one response's resources of one kind: `(name, version, encoded message)`, and the names of those that are no
    /// more. With `full_set` the upserts are all that there are, and `removed` names those that this client held and that
    /// are missing.
    ///
    /// Rejection is per resource: the good ones apply, a refused one keeps its last good version. The bytes are a part of
    /// the whole response's buffer: copy what is to be kept.
    fn apply(
        &mut self,
        kind: ResourceType,
        upserts: Vec<(String, String, Bytes)>,
        removed: Vec<String>,
        full_set: bool,
    ) -> Vec<Rejection>;
}

/// An error with its causes: tonic's own text says "transport error" and no more.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
