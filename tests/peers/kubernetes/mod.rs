//! The control plane on a real Kubernetes API server.

mod bound_tokens;
mod certificates;
mod commands;
mod csr_api;
mod gateway_api;
mod gateway_secret;
mod inspection;
mod made;
mod mesh;
mod registration;
mod replicas;
mod roles;
mod server;
mod several;
mod shipped;
mod trials;
mod webhooks;

pub use server::Server;
pub use webhooks::installation;
