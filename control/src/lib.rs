//! Weft's control plane: it takes the place of istiod.
//!
//! A change of configuration goes through the modules in this order: `ingest` reads it, `model` holds what the mesh is
//! now, `queue` says when a change goes out, `render` makes resources of it and `serve` brings them to proxies. No stage
//! imports a later one (a test in the root package holds that), but all speak of `model`, which imports none. `kubernetes` is
//! the way to an API server. `ca` stands
//! beside them: it signs, and says who calls. So does `analyze`, which says of a state what is probably not meant so.

pub mod analyze;
pub mod app;
pub mod ca;
mod environment;
pub mod ingest;
pub mod inject;
pub mod kubernetes;
pub mod model;
mod purge;
pub mod queue;
pub mod render;
pub mod serve;
