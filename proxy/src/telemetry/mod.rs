//! The metrics registry, the metrics vocabularies (Envoy's names, Istio's), the access log, traces, security events.

pub mod access_log;
pub mod cel;
pub mod closing;
pub mod codes;
pub mod details;
pub mod events;
pub mod flags;
pub mod istio;
pub mod peer;
pub mod pressure;
pub mod record;
pub mod registry;
pub mod stream;
pub mod tap;
pub mod trace;

pub use closing::Closing;
pub use details::Details;
pub use flags::{Flag, Flags};
pub use stream::{StreamInfo, Wire};
