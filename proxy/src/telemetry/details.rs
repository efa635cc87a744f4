//! The words of `%RESPONSE_CODE_DETAILS%` and `%CONNECTION_TERMINATION_DETAILS%`.

use std::ops::Deref;
use std::sync::Arc;

/// Envoy's detail of how a stream ended. Most are fixed words; those that name a part of the configuration, such as a
/// policy, are made when it is compiled, so that a request that ends with one copies a pointer.
#[derive(Clone, Debug)]
pub enum Details {
    /// Words that are always the same.
    Fixed(&'static str),
    /// Words with a name in them.
    Made(Arc<str>),
}

impl Deref for Details {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Fixed(words) => words,
            Self::Made(words) => words,
        }
    }
}

impl From<&'static str> for Details {
    fn from(words: &'static str) -> Self {
        Self::Fixed(words)
    }
}

impl From<Arc<str>> for Details {
    fn from(words: Arc<str>) -> Self {
        Self::Made(words)
    }
}

impl PartialEq for Details {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Details {}

impl PartialEq<&str> for Details {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}
