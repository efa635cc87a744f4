//! What proxies and operators are served.
//!
//! [`ads`] answers xDS on the plaintext and the secure port, whose connections are [`transport`]'s; each stream is a `connection`,
//! whose protocol is in [`session`]; [`spread`] sends streams to other control planes;
//! [`cache`] renders for all of them, [`dispatch`] wakes those that a change is for, and [`proxies`] knows who is there. [`keys`] fetches what tokens are checked by, and
//! [`status`] writes into objects of Kubernetes what has become of them. [`registration`] has proxies enter their workloads. [`http`] has the metrics and debug ports, [`inspect`] lets operators read proxies' admin pages,
//! [`gateways`] makes workloads for Gateways, [`admission`] answers a Kubernetes API server, and [`publish`] tells it, and pods, whom to trust.

pub mod acme;
pub mod admission;
pub mod ads;
pub mod authority;
pub mod cache;
pub mod canary;
mod connection;
pub mod credentials;
pub mod deny_lists;
pub mod dispatch;
mod frames;
pub mod gateway_names;
pub mod gateways;
pub mod http;
#[cfg(test)]
mod incremental_tests;
pub mod inspect;
pub mod keys;
mod pace;
pub mod proxies;
pub mod publish;
mod pushes;
pub mod quarantine;
pub mod reading;
pub mod registration;
mod requests;
pub mod session;
pub mod set;
pub mod spread;
pub mod status;
#[cfg(test)]
mod tests;
pub mod transport;

pub use ads::AdsService;
pub use cache::RenderCache;
pub use proxies::Proxies;
