//! Why a pod is not injected although it should be.

use std::fmt;

/// One reason: where it stands, what is wrong, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The field, as `metadata.annotations[sidecar.istio.io/logLevel]`.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub help: String,
}

impl Refusal {
    pub(super) fn new(path: impl Into<String>, reason: impl Into<String>, help: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into(), help: help.into() }
    }

    /// Of an annotation.
    pub(super) fn annotation(name: &str, reason: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(format!("metadata.annotations[{name}]"), reason, help)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, reason, help } = self;
        write!(f, "{path}: {reason}; {help}")
    }
}
