//! The kinds of events.

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A request or a connection was not let in.
    Denied,
    /// TLS was not established.
    HandshakeFailed,
    /// Configuration was refused.
    ConfigRejected,
    /// A certificate was renewed, issued, or was not.
    Certificate,
    /// Somebody changed something by an administrator's interface, or was refused there.
    Admin,
    /// A workload was put under quarantine, or released.
    Quarantine,
    /// A host was ejected from its cluster, or returned.
    Ejection,
    /// A circuit breaker refuses.
    Breaker,
    /// A version on trial got another share.
    Canary,
    /// Events that were not told because there were too many of their kind.
    Suppressed,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Denied,
        Self::HandshakeFailed,
        Self::ConfigRejected,
        Self::Certificate,
        Self::Admin,
        Self::Quarantine,
        Self::Ejection,
        Self::Breaker,
        Self::Canary,
        Self::Suppressed,
    ];

    /// Its name in every output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::HandshakeFailed => "handshake-failed",
            Self::ConfigRejected => "config-rejected",
            Self::Certificate => "certificate",
            Self::Admin => "admin",
            Self::Quarantine => "quarantine",
            Self::Ejection => "ejection",
            Self::Breaker => "breaker",
            Self::Canary => "canary",
            Self::Suppressed => "suppressed",
        }
    }

    /// The kind of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether the security event log has it; the others are operations' alone.
    pub const fn is_security(self) -> bool {
        !matches!(self, Self::Ejection | Self::Breaker | Self::Canary)
    }

    /// Whether strangers' requests and connections make events of it, many in a second: one is made only if there is room for it.
    pub(crate) const fn is_of_traffic(self) -> bool {
        matches!(self, Self::Denied | Self::HandshakeFailed | Self::Ejection | Self::Breaker)
    }

    /// Whether what was done is told however much there is of it: who does it has been let in.
    pub(crate) const fn is_of_hands(self) -> bool {
        matches!(self, Self::Admin | Self::Quarantine)
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name_and_place() {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!((Kind::of(kind.name()), kind.index()), (Some(kind), place));
        }
        assert_eq!(Kind::of("other"), None);
    }
}
