//! The control plane on a real Kubernetes API server.

mod certificates;
mod mesh;
mod server;

use server::Server;
