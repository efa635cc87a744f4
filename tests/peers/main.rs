//! The peers tier: Weft against the real programs that `tests/peers/install` brings.
// A test that cannot go on panics.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod acme;
mod authz;
#[path = "../chain/mod.rs"]
mod chain;
mod clocks;
#[path = "../collectors/mod.rs"]
mod collectors;
mod conformance;
mod described_once;
mod differential;
mod ecotrack;
mod envoy_sidecar;
mod gateway;
mod h2spec;
mod helm;
mod integrations;
mod istio_validation;
mod istiod;
mod istiod_rendering;
mod kafka;
mod kubernetes;
#[path = "../rate_limits/mod.rs"]
mod limits;
mod logs;
mod meshes;
mod mutants;
mod netns;
mod networks;
mod opa;
mod openbao;
mod postgres;
mod programs;
mod prometheus;
mod pushing;
mod rate_limits;
mod rendering;
mod scarce;
mod stores;
mod streams;
#[path = "../authz/mod.rs"]
mod tables;
mod tracing;
mod trials;
