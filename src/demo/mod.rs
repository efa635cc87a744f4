//! `weft demo`: the example mesh, live on a terminal.
//!
//! [`embedded`] is the mesh's configuration, [`crate::up`] runs it, `traffic` sends requests through the ingress, `scrape`
//! reads what each proxy counts, `measure` makes rates and percentiles of it, `screen` and `lines` show them. [`check`] is the acceptance journey over the
//! same mesh.

pub mod check;
pub mod embedded;
mod lines;
mod measure;
mod run;
mod scrape;
mod screen;
mod traffic;

pub use run::{DemoArgs, Output, main};
