//! What is found out of a connection only where a format speaks of it: it costs something, and few want it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static WANTED: [AtomicBool; 4] = [const { AtomicBool::new(false) }; 4];

/// A fact of a connection that few ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rare {
    /// The id of a client's TLS session.
    DownstreamSession,
    /// That of a TLS session with an upstream.
    UpstreamSession,
    /// The certificate of whoever issued the peer's.
    Issuer,
    /// How long a segment and its acknowledgement take.
    RoundTrip,
}

impl Rare {
    /// Somebody speaks of it: it is found out of every connection that comes from here on. What was compiled once may be in
    /// force for long, so this is never taken back.
    pub fn want(self) {
        WANTED[self as usize].store(true, Relaxed);
    }

    /// Whether anybody speaks of it.
    pub fn is_wanted(self) -> bool {
        WANTED[self as usize].load(Relaxed)
    }
}
