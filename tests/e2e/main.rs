//! End-to-end tests of the whole mesh, one binary, modules by tier.
