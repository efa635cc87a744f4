//! Upstream clusters: slots, host sets, balancers, limits, ejection, pools, upstream connections.
