//! Bad input: each kind is answered with what is wrong, where, and what to do, by a non-zero exit or a NACK; and what worked
//! before goes on working.

pub(crate) mod config;
mod credentials;
mod ports;
mod xds;
