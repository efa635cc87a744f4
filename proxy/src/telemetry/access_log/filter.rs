//! Which streams an access log takes (`envoy.config.accesslog.v3.AccessLogFilter`).

use std::sync::Arc;

use super::{LogContext, LogType, Wanted};
use crate::codec::headers::HeaderName;
use crate::codec::{Headers, Protocol, RequestHead};
use crate::route::config::{Chance, HeaderMatch};
use crate::telemetry::cel::{Expression, Seen};
use crate::telemetry::flags::Flags;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How a number is compared with a configured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Equal to it.
    Equal(u32),
    /// At least it.
    AtLeast(u32),
    /// At most it.
    AtMost(u32),
    /// Different from it.
    NotEqual(u32),
}

impl Comparison {
    fn holds(self, n: u64) -> bool {
        match self {
            Self::Equal(m) => n == u64::from(m),
            Self::AtLeast(m) => n >= u64::from(m),
            Self::AtMost(m) => n <= u64::from(m),
            Self::NotEqual(m) => n != u64::from(m),
        }
    }
}

/// A compiled filter.
#[derive(Clone, Debug)]
pub enum Filter {
    /// The response status, 0 where there is none.
    Status(Comparison),
    /// The stream's duration in milliseconds.
    Duration(Comparison),
    /// Any of these response flags; any flag at all if the set is empty.
    ResponseFlags(Flags),
    /// The request's field obeys.
    Header(Box<HeaderMatch>),
    /// The gRPC status is one of these.
    GrpcStatus(Vec<u32>),
    /// The occasion is one of these.
    Occasion(Vec<LogType>),
    /// By chance; by the request's id where it has one, unless told otherwise.
    Chance(Chance, bool),
    /// Every stream.
    Any,
    /// Not this.
    Not(Box<Filter>),
    /// All of these.
    And(Vec<Filter>),
    /// One of these.
    Or(Vec<Filter>),
    /// An expression is true.
    Expression(Arc<Expression>),
}

impl Filter {
    /// Adds what it reads of the heads.
    pub fn wants(&self, wanted: &mut Wanted) {
        match self {
            Self::Header(_) => wanted.request.all(),
            Self::GrpcStatus(_) => wanted.response.add(&GRPC_STATUS),
            Self::Chance(_, independent) if !independent => wanted.request.add(&REQUEST_ID),
            Self::Not(filter) => filter.wants(wanted),
            Self::And(filters) | Self::Or(filters) => filters.iter().for_each(|f| f.wants(wanted)),
            Self::Expression(_) => wanted.whole(),
            Self::Status(_)
            | Self::Duration(_)
            | Self::ResponseFlags(_)
            | Self::Occasion(_)
            | Self::Chance(..)
            | Self::Any => {}
        }
    }

    /// Whether the stream is to be logged.
    pub fn matches(&self, context: &LogContext<'_>) -> bool {
        let stream = context.stream;
        match self {
            Self::Status(c) => c.holds(stream.status.map_or(0, |s| u64::from(s.as_u16()))),
            Self::Duration(c) => c.holds(stream.took().as_millis() as u64),
            Self::ResponseFlags(wanted) => {
                if wanted.is_empty() {
                    !stream.flags.is_empty()
                } else {
                    stream.flags.intersects(*wanted)
                }
            }
            Self::Header(rule) => match context.request {
                Some(head) => rule.matches(head),
                None => rule.matches(&RequestHead::empty(Protocol::Http11)),
            },
            Self::GrpcStatus(wanted) => wanted.contains(&grpc_status(context)),
            Self::Occasion(wanted) => wanted.contains(&context.occasion),
            Self::Chance(chance, independent) => {
                let id =
                    context.request.filter(|_| !independent).and_then(|r| r.headers.get_str(&REQUEST_ID));
                chance.hits(id.and_then(number).unwrap_or_else(|| fastrand::u64(..)))
            }
            Self::Any => true,
            Self::Not(filter) => !filter.matches(context),
            Self::And(all) => all.iter().all(|f| f.matches(context)),
            Self::Or(any) => any.iter().any(|f| f.matches(context)),
            Self::Expression(expression) => expression.holds(Seen {
                stream,
                connection: context.connection,
                request: context.request,
                response: context.response,
                trailers: context.trailers,
                far: None,
            }),
        }
    }
}

/// The gRPC status that the answer has, or that stands for its HTTP status.
fn grpc_status(context: &LogContext<'_>) -> u32 {
    let written = |h: &Headers| h.get_str(&GRPC_STATUS).and_then(|s| s.parse().ok());
    let from_http = |status: http::StatusCode| match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    };
    let fields = context.trailers.and_then(written).or_else(|| context.response.and_then(written));
    fields.or(context.stream.grpc_status).or(context.stream.status.map(from_http)).unwrap_or(2)
}

/// The number that an id decides fractions by: its first eight digits.
fn number(id: &str) -> Option<u64> {
    if id.len() < 36 {
        return None;
    }
    u64::from_str_radix(id.get(..8)?, 16).ok()
}
