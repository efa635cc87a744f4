//! Weft's data plane: the proxy that takes the place of Envoy.
//!
//! The modules stand in the order of a request's path. A stage calls the stages after it and never imports the runtime of
//! one before it (a test in the root package holds that). `io`, `codec`, `identity`, `telemetry`, `route` (pure functions)
//! and every `config` module are vocabulary that any stage may use. `xds`, `state`, `admin`, `agent`, `bootstrap` and `app`
//! run on the control thread; of them the path knows only how configuration is compiled and found: `state`'s errors,
//! context, slots and tables. `capture` stands apart: it prepares a pod's network before a proxy runs.
#![deny(unsafe_code)]

pub mod io;

pub mod listen;

pub mod identity;

pub mod network;

pub mod codec;

pub mod http;

pub mod route;

pub mod filters;

pub mod router;

pub mod cluster;

pub mod xds;

pub mod state;

pub mod telemetry;

pub mod admin;

pub mod agent;

pub mod bootstrap;

pub mod app;

pub mod capture;
