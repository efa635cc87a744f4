//! `weft agent`: identity and xDS for a foreign proxy such as Envoy, on Istio's UNIX sockets.
//!
//! What [`app`](crate::app) does inside our own proxy, this does beside another: it makes the key, has it certified and keeps
//! the certificate fresh ([`IdentityClient`](crate::identity::workload::IdentityClient), so that the key never leaves the
//! machine), hands both out by SDS ([`sds`]), and relays the proxy's ADS stream to the control plane with the credentials
//! that the proxy does not have ([`relay`]). [`bootstrap`] writes the configuration with which Envoy finds all this. For programs
//! that take their identity from files there is [`fetch`](mod@fetch). The pod's DNS is answered by [`dns`], for our own proxy, too.

mod args;
mod bootstrap;
pub mod dns;
mod fetch;
mod relay;
mod run;
mod sds;
mod socket;
mod stats;
mod status;

pub use args::AgentArgs;
pub use fetch::{FetchArgs, Output as FetchOutput, main as fetch};
pub use run::main;
