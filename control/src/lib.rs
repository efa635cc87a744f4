//! Weft's control plane: it takes the place of istiod.
//!
//! A change of configuration goes through the modules in this order: `ingest` reads it, `model` holds what the mesh is
//! now, and later stages decide who needs what, render it and serve it. No stage imports a later one.

pub mod ca;
pub mod ingest;
pub mod model;
pub mod render;
