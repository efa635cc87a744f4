//! The operator's side of Weft: the command line, the supervisor that runs a whole mesh on one machine, the example service
//! and the demonstration. The only place that sees both the proxy and the control plane.

pub mod app;
pub mod authz;
pub mod cli;
pub mod client;
pub mod configuration;
pub mod demo;
pub mod describe;
pub mod drift;
pub mod explain;
pub mod inspect;
pub mod install;
pub mod plan;
pub mod test;
pub mod up;
