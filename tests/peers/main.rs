//! The peers tier: Weft against the real programs that `tests/peers/install` brings.

mod differential;
mod envoy_sidecar;
mod meshes;
mod postgres;
mod programs;
