//! How the two connections of a connection of bytes ended, in Envoy's words.

/// How a connection was seen to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseType {
    /// In order, or not yet.
    #[default]
    Normal,
    /// By a reset of ours.
    LocalReset,
    /// By a reset of the peer's.
    RemoteReset,
}

impl CloseType {
    /// The name in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::LocalReset => "LocalReset",
            Self::RemoteReset => "RemoteReset",
        }
    }
}

/// The end of one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// How.
    pub how: CloseType,
    /// Why we closed it, where we did.
    pub why: Option<&'static str>,
}

/// The end of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closing {
    /// From the client.
    pub downstream: Closed,
    /// To the upstream.
    pub upstream: Closed,
}

impl Closing {
    /// One of them was reset by its peer. Envoy writes the line when the client's has ended, and so of the one to the upstream, which
    /// it resets then, that nothing has happened to it.
    pub fn reset(by_downstream: bool) -> Self {
        let (downstream, upstream) = match by_downstream {
            true => (CloseType::RemoteReset, CloseType::Normal),
            false => (CloseType::LocalReset, CloseType::RemoteReset),
        };
        let closed = |how| Closed { how, why: None };
        Self { downstream: closed(downstream), upstream: closed(upstream) }
    }

    /// We closed the client's connection for this reason, and so the one to the upstream, if there was one.
    pub fn ours(why: &'static str, upstream: bool) -> Self {
        let closed = |why| Closed { how: CloseType::Normal, why };
        Self { downstream: closed(Some(why)), upstream: closed(upstream.then_some(why)) }
    }
}
