//! Placeholder module documentation, replaced as the crate grows.
