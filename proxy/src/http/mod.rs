//! The HTTP connection manager: what happens to a request before and after it is routed.
//!
//! A codec calls a [`ConnectionManager`] with each request of a connection. [`exchange`] is the story of one request:
//! check and normalise, find the route, run the filters, let the router get an answer, make the answer ours, and record
//! how it ended.

pub mod config;
mod date;
pub mod decide;
mod ending;
pub mod exchange;
pub mod local_reply;
mod manager;
pub mod normalize;
mod recheck;
pub mod record;
mod request;
mod request_id;
mod response;
mod serve;
pub mod stats;
pub mod trace;
mod xfcc;
mod xff;

pub use config::HcmConfig;
pub use manager::ConnectionManager;
pub use recheck::Newest;
pub use serve::serve;

#[cfg(test)]
mod tests;
