//! The HTTP connection manager: what happens to each request around its filters.
