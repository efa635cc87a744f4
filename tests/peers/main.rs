//! The peers tier: Weft against the real programs that `tests/peers/install` brings.

mod differential;
mod programs;
