//! What stands in the way of what a Gateway needs, for its status.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Why something is not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hindrance {
    /// The reason of `Programmed`.
    pub reason: &'static str,
    /// What it is, and what to do.
    pub message: String,
    /// It may go away by itself: what was made before is none the worse for it.
    pub passes: bool,
}

/// By namespace and name of the Gateway.
pub type Hindrances = BTreeMap<(String, String), Hindrance>;

/// What is known of them; nothing before it has been tried.
pub type Known = Option<Arc<Hindrances>>;

/// Where nobody makes anything, nothing stands in the way.
pub fn none() -> watch::Receiver<Known> {
    watch::channel(Some(Arc::default())).1
}
