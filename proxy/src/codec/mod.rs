//! HTTP/1, HTTP/2, upgrades, bodies, trailers, 1xx: the only place that imports `h2` or `hyper`, for both directions.
//!
//! The seam over HTTP that the rest of the proxy sees is here: [`RequestHead`], [`ResponseHead`], [`Headers`], [`Body`],
//! [`Reply`]. A downstream codec turns bytes into a [`Request`] and calls its [`HttpService`]; an upstream codec takes a
//! [`Request`] and gives back a [`Reply`] whose body pulls the rest. Nothing here is `Send`: a connection and all its
//! requests live on one worker thread, so a message needs no channel, no spawn and no lock.

pub mod body;
pub(crate) mod digits;
pub mod drain;
pub mod h1;
pub mod h2;
pub mod headers;
pub mod message;
pub mod meter;
mod names;
pub mod spelling;

pub use body::{Body, BodyError, BodyStream, Frame};
pub use drain::{Drain, DrainPhase};
pub use headers::Headers;
pub use message::{
    ConnectionLimit, Downstream, HttpService, InformationalSink, Progress, Protocol, Release, Reply, Request,
    RequestHead, ResetReason, ResponseHead, UpstreamError,
};
pub use meter::{Meter, WireBytes, Wish};
pub use spelling::{KeyFormat, Spelling};
