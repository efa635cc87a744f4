//! `weft agent`: identity and xDS for a foreign proxy such as Envoy, on Istio's UNIX sockets.
//!
//! What [`app`](crate::app) does inside our own proxy, this does beside another: it makes the key, has it certified and keeps
//! the certificate fresh ([`IdentityClient`](crate::identity::workload::IdentityClient), so that the key never leaves the
//! machine), hands both out by SDS ([`sds`]), and relays the proxy's ADS stream to the control plane with the credentials
//! that the proxy does not have ([`relay`]). [`bootstrap`] writes the configuration with which Envoy finds all this. For programs
//! that take their identity from files there is [`fetch`](mod@fetch). The pod's DNS is answered by [`dns`], for our own proxy, too.
//!
//! Beside our own proxy there is no such process: what kubelet and Prometheus ask an agent for, the proxy answers itself
//! ([`sidecar`]), probes of the application ([`health`]) and its metrics ([`scrape`]) among it; [`wait`](mod@wait) holds an
//! application back until its sidecar serves, and [`request`](mod@request) is for hooks that have no HTTP client.

mod args;
mod bootstrap;
mod by_tls;
pub mod dns;
mod exposition;
mod fetch;
mod health;
mod relay;
mod request;
mod run;
mod scrape;
mod sds;
mod sidecar;
mod socket;
mod stats;
mod status;
mod wait;

pub use args::AgentArgs;
pub use by_tls::Door;
pub(crate) use health::Reporter;

pub use fetch::{FetchArgs, Output as FetchOutput, main as fetch};
pub use request::{RequestArgs, main as request};
pub use run::main;
pub use sidecar::Sidecar;
pub use wait::{WaitArgs, main as wait};
