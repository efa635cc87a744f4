//! Questions that rendering asks of a [`World`](super::World): pure functions, one file per kind of object.

mod authentication;
mod authorization;
mod delegates;
mod deny_lists;
mod destination_rules;
mod gateways;
mod peer;
mod services;
mod sidecars;
#[cfg(test)]
mod tests;
mod virtual_services;

pub(super) use delegates::resolve as resolve_delegates;
pub(super) use destination_rules::merge;
pub use destination_rules::{MergedRule, PortPolicy, RETURN_WINDOW_ANNOTATION, effective_policy};
pub use gateways::{MissingSecret, served_hosts};
pub use virtual_services::MESH_GATEWAY;
