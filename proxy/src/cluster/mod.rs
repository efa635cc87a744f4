//! Upstream clusters: slots, host sets, balancers, limits, ejection, pools, upstream connections.

/// A cluster as it serves.
#[derive(Debug)]
pub struct Cluster {}
