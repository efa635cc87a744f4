//! End-to-end tests of the whole mesh, one binary, modules by tier.

mod app;
mod cli;
mod support;
