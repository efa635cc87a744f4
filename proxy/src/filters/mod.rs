//! HTTP filters: the closed enum and the chain runner, one file per filter.
