//! Envoy-compatible admin endpoints, served on the control thread.
