//! The load benchmarks. [`scale`] loads the control plane; all else is the side-by-side one: our proxy, Envoy, nginx and haproxy in turn on the same paths.
//!
//! A row is a path (one plaintext hop, a pair with mutual TLS ...). For each row every contender's proxy is started with one
//! worker on CPU 0; the load generator and the backend, raw epoll both, run on CPU 1. Rounds are interleaved (A B C, A B C),
//! and what counts is the processor time of the proxy process divided by the requests that it served: it hardly depends on
//! what else the machine does, as requests per second do.

pub mod backend;
pub mod collector;
pub mod contender;
pub mod exchange;
pub mod generator;
pub mod measure;
pub mod null;
pub mod poll;
pub mod process;
pub mod report;
pub mod rows;
pub mod scale;
pub mod tls;
pub mod token;
