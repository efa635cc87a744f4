//! Whether memory is so scarce that the proxy must do less: beyond the first mark requests are answered with 503, beyond the second
//! connections are not taken. Set by who watches memory ([`crate::app`]); asked once for each request and connection.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Of the memory that the process may have, in percent: requests are answered with 503.
pub const REQUESTS: u64 = 90;
/// Connections are closed as they come.
pub const CONNECTIONS: u64 = 95;

static PERCENT: AtomicU8 = AtomicU8::new(0);

/// How much of the memory that the process may have is in use.
pub fn set(percent: u64) {
    PERCENT.store(u8::try_from(percent).unwrap_or(u8::MAX), Relaxed);
}

/// Requests are to be answered with 503.
#[inline]
pub fn sheds_requests() -> bool {
    u64::from(PERCENT.load(Relaxed)) >= REQUESTS
}

/// Connections are not to be taken.
#[inline]
pub fn sheds_connections() -> bool {
    u64::from(PERCENT.load(Relaxed)) >= CONNECTIONS
}
