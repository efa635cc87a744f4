//! The oracle for "takes the place of Envoy": the same configuration and the same bytes through a real Envoy and through
//! our proxy. What the client got and what the upstream saw must be equal.
//!
//! A case (see [`case::Case`]) stands in one place, with its listener's settings, what the client does and what the upstream
//! does. All cases share one Envoy and one proxy of ours; each has a listener and a cluster of its own.

mod case;
mod cases;
mod client;
pub mod configured;
mod coverage;
mod explained;
mod h2;
mod lines;
mod normalize;
mod pair;
mod registry;
mod run;
mod upstream;
