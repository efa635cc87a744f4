//! The access log: one line for each finished stream, in Envoy's format strings.
//!
//! Formats are compiled when configuration is; a line is written into a buffer of the worker's own, which a thread of the
//! log's own carries to the file. A slow disk costs lines (counted), never a request.

pub mod config;
pub mod filter;
pub mod format;
mod operator;
pub mod sink;

pub use config::AccessLogConfig;
pub use filter::Filter;
pub use format::{Format, FormatError};
pub use sink::Sink;

use std::sync::Arc;

use super::stream::StreamInfo;
use crate::codec::{Headers, RequestHead};
use crate::io::ConnectionInfo;

/// On which occasion a line is written (`envoy.data.accesslog.v3.AccessLogType`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Envoy's")]
pub enum LogType {
    #[default]
    NotSet,
    TcpConnectionEnd,
    DownstreamStart,
    DownstreamPeriodic,
    DownstreamEnd,
}

impl LogType {
    /// The name in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSet => "NotSet",
            Self::TcpConnectionEnd => "TcpConnectionEnd",
            Self::DownstreamStart => "DownstreamStart",
            Self::DownstreamPeriodic => "DownstreamPeriodic",
            Self::DownstreamEnd => "DownstreamEnd",
        }
    }
}

/// What a line may speak of.
#[derive(Clone, Copy)]
pub struct LogContext<'a> {
    /// The stream's record.
    pub stream: &'a StreamInfo,
    /// Its connection.
    pub connection: &'a ConnectionInfo,
    /// The request's head as the filters left it.
    pub request: Option<&'a RequestHead>,
    /// The response's header fields as they were sent.
    pub response: Option<&'a Headers>,
    /// The response's trailers.
    pub trailers: Option<&'a Headers>,
    /// The text of an answer of the proxy's own, while it is made.
    pub body: Option<&'a [u8]>,
    /// The occasion.
    pub occasion: LogType,
}

impl<'a> LogContext<'a> {
    /// A stream of which nothing is there but its record.
    pub fn new(stream: &'a StreamInfo, connection: &'a ConnectionInfo) -> Self {
        let (request, response, trailers, body) = (None, None, None, None);
        Self { stream, connection, request, response, trailers, body, occasion: LogType::NotSet }
    }
}

/// One configured access log.
#[derive(Clone)]
pub struct AccessLog {
    /// Which streams are logged; all if there is none.
    pub filter: Option<Filter>,
    /// What a line says.
    pub format: Arc<Format>,
    /// Where it goes.
    pub sink: Arc<Sink>,
}

impl AccessLog {
    /// Writes the stream's line, if the filter wants it. Never blocks on the file.
    pub fn log(&self, context: &LogContext<'_>) {
        if self.filter.as_ref().is_none_or(|f| f.matches(context)) {
            self.sink.append(|line| self.format.write(context, line));
        }
    }
}

#[cfg(test)]
mod tests;
