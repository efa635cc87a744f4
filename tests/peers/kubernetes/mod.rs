//! The control plane on a real Kubernetes API server.

mod certificates;
mod gateway_api;
mod commands;
mod mesh;
mod roles;
mod server;
mod several;
mod webhooks;

use server::Server;
