//! What must hold for bytes that come from anybody: each module has one function, `check`, that panics where it does not.
//!
//! The fuzzer calls it with what it thinks of, and `e2e::fuzz_corpus` with what is kept in `corpus`, so this file is part of
//! both. Only what the crates export is used here: what is checked is what runs.

pub mod certificates;
pub mod heads;
pub mod paths;
mod proxy;
pub mod spiffe;
pub mod tokens;

/// A target's name, and what checks an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target by the name of its corpus.
pub const TARGETS: [Target; 5] = [
    ("certificates", certificates::check),
    ("spiffe", spiffe::check),
    ("tokens", tokens::check),
    ("paths", paths::check),
    ("heads", heads::check),
];
