//! Routing: matching and rewriting, as pure functions.
