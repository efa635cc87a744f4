//! The terminal filter: attempts, retries, timeouts, replay body.
