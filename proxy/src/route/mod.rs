//! Routing: matching and rewriting, as pure functions.

/// A compiled route configuration.
#[derive(Debug)]
pub struct RouteConfig {}
