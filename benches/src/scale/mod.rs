//! The scale benchmark: a control plane that reads a mesh of a thousand services from an API server, a thousand proxies that
//! follow it, and how long a change takes from the API server to the last acknowledgement.
//!
//! The control plane is the program itself, in a process of its own. The API server and the proxies are simulated here, and
//! share the machine with it: what they need is part of the times, and not of the control plane's processor time.

pub mod api;
pub mod fleet;
pub mod mesh;
pub mod proxy;
mod run;
pub mod stream;

pub use run::{Options, Report, run};
