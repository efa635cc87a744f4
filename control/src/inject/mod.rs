//! Puts a sidecar into a pod, as Istio's injector does: a pod comes in, the pod with proxy, redirection, probes and volumes goes
//! out, or the reason why not.
//!
//! A pure function of pod and settings. `weft inject` calls it for files ([`text`]), the control plane's webhook for what the
//! API server asks ([`crate::serve::admission`]). `annotations` is the table of what a pod may say; `policy` decides whether it
//! is injected at all; `proxy_config`, `traffic`, `probes` and `metrics` understand a part each; `container` writes the
//! containers, and `pod` puts everything in its place. [docs/injection.md](../../../docs/injection.md) is the operator's page.

mod annotations;
mod container;
mod error;
mod image;
mod merge;
mod metrics;
mod pod;
mod policy;
mod probes;
mod proxy_config;
mod settings;
#[cfg(test)]
mod tests;
pub mod text;
mod traffic;
mod workload;

pub use error::Refusal;
pub use pod::{Injection, inject};
pub use policy::{Why, label_selectors};
pub use settings::Settings;
pub use workload::{Owner, Workload};
