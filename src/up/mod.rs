//! `weft up`: runs the mesh that a directory of YAML describes on one machine, each proxy a process of its own.
//!
//! [`plan`] reads from the configuration what has to run and where it listens; [`commands`] says how each process is
//! started; [`process`] keeps one process, [`supervisor`] all of them; [`mesh`] is the whole as a value, for the command line
//! and for tests alike.

mod commands;
pub(crate) mod ending;
pub mod events;
mod files;
pub mod mesh;
pub mod plan;
mod ports;
pub mod process;
mod proxy_config;
pub mod report;
pub mod rewrite;
mod run;
mod supervisor;
mod tokens;

pub use mesh::{ControlAddresses, Mesh, Options, Signal};
pub use plan::Workload;
pub use process::{Death, Part, State};
pub use run::{UpArgs, main};
