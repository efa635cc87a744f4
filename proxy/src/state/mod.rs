//! Applies resources: walk, check, compile, warm, publish.
