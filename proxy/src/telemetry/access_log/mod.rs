//! The access log: one line for each finished stream, in Envoy's format strings.
//!
//! Formats are compiled when configuration is; a line is written into a buffer of the worker's own, which a thread of the
//! log's own carries to the file. A slow disk costs lines (counted), never a request. Entries for collectors wait in a [`queue`]
//! until the control thread sends them (`router::logs`).

pub mod config;
pub mod entry;
pub mod filter;
pub mod format;
mod operator;
pub mod otlp;
pub mod queue;
pub mod sink;
mod sizes;
mod time;
mod tls;
pub mod wanted;

pub use config::AccessLogConfig;
pub use filter::Filter;
pub use format::{Format, FormatError};
pub use sink::Sink;
pub use wanted::Wanted;

use std::net::SocketAddr;
use std::sync::Arc;

use xds_protos::envoy::data::accesslog::v3 as entries;
use xds_protos::opentelemetry::proto::logs::v1::LogRecord;
use xds_protos::prost_types::Struct;

use self::entry::Extras;
use self::otlp::Record;
use self::queue::Queue;
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

/// Of what configuration says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The cluster.
    Cluster,
    /// The route.
    Route,
    /// The upstream host.
    Host,
    /// The virtual host.
    VirtualHost,
    /// The listener.
    Listener,
    /// The filter chain.
    Chain,
}

/// What configuration says of where a stream goes. (Of where it came in, its connection knows.)
pub trait Configured {
    /// The fields of a namespace of metadata.
    fn namespace(&self, of: Of, stream: &StreamInfo, namespace: &str) -> Option<Struct>;

    /// The name of the cluster's host that has this address, if it has one.
    fn host_name(&self, address: SocketAddr) -> Option<Arc<str>>;

    /// What the cluster is called in statistics.
    fn stat_name(&self) -> Option<Arc<str>>;
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
    /// What configuration says of where it goes.
    pub configured: Option<&'a dyn Configured>,
}

impl<'a> LogContext<'a> {
    /// A stream of which nothing is there but its record.
    pub fn new(stream: &'a StreamInfo, connection: &'a ConnectionInfo) -> Self {
        let (request, response, trailers, body) = (None, None, None, None);
        Self {
            stream,
            connection,
            request,
            response,
            trailers,
            body,
            occasion: LogType::NotSet,
            configured: None,
        }
    }
}

/// An object of the filter state: the request's, or else the connection's.
fn object<'a>(context: &LogContext<'a>, key: &str) -> Option<&'a str> {
    let (stream, connection) = (context.stream, context.connection);
    stream.filter_state.get(key).or_else(|| connection.filter_state.get(key))
}

/// One configured access log.
#[derive(Clone)]
pub struct AccessLog {
    /// Which streams are logged; all if there is none.
    pub filter: Option<Filter>,
    /// What is told of them, and to whom.
    pub destination: Destination,
}

/// What is told of a stream, and to whom.
#[derive(Clone)]
pub enum Destination {
    /// A line, to a file.
    Line(Arc<Format>, Arc<Sink>),
    /// A record, to a collector of OTLP.
    Otlp(Arc<Record>, Arc<Queue<LogRecord>>),
    /// An entry, to an access log service.
    Http(Arc<Extras>, Arc<Queue<entries::HttpAccessLogEntry>>),
    /// The same of a connection.
    Tcp(Arc<Extras>, Arc<Queue<entries::TcpAccessLogEntry>>),
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Line(..) => "Line",
            Self::Otlp(..) => "Otlp",
            Self::Http(..) => "Http",
            Self::Tcp(..) => "Tcp",
        })
    }
}

impl AccessLog {
    /// Adds what it speaks of.
    pub fn wants(&self, wanted: &mut Wanted) {
        self.filter.iter().for_each(|filter| filter.wants(wanted));
        match &self.destination {
            Destination::Line(format, _) => format.wants(wanted),
            Destination::Otlp(record, _) => {
                wanted.whole();
                record.wants(wanted);
            }
            // Entries tell the bytes on the wire as well.
            Destination::Http(..) | Destination::Tcp(..) => {
                wanted.whole();
                wanted.wire.get_or_insert("downstream_wire_bytes_sent");
                wanted.upstream_wire = true;
            }
        }
    }

    /// Tells of the stream, if the filter wants it. Never blocks on whom it is told.
    pub fn log(&self, context: &LogContext<'_>) {
        if !self.filter.as_ref().is_none_or(|f| f.matches(context)) {
            return;
        }
        match &self.destination {
            Destination::Line(format, sink) => sink.append(|line| format.write(context, line)),
            Destination::Otlp(record, queue) => queue.push(record.of(context)),
            Destination::Http(extras, queue) => queue.push(extras.http(context)),
            Destination::Tcp(extras, queue) => queue.push(extras.tcp(context)),
        }
    }
}

#[cfg(test)]
mod operators_tests;
#[cfg(test)]
mod tests;
