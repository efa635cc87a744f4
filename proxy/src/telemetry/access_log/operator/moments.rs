//! Moments of a stream, and the time between two of them.

use std::time::{Duration, Instant};

use super::super::{FormatError, LogContext};
use super::{Operator, number};
use crate::codec::digits::millis;

/// A moment of a stream that `%COMMON_DURATION%` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Point {
    /// Of the client's TLS handshake.
    HelloCame,
    Secured,
    RequestStart,
    RequestEnd,
    ConnectStart,
    ConnectEnd,
    HandshakeEnd,
    SendStart,
    RequestSent,
    ResponseStart,
    BodyStart,
    ResponseEnd,
    AnswerStart,
    Now,
}

impl Point {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "DS_HS_BEG" => Self::HelloCame,
            "DS_HS_END" => Self::Secured,
            "DS_RX_BEG" => Self::RequestStart,
            "DS_RX_END" => Self::RequestEnd,
            "US_CX_BEG" => Self::ConnectStart,
            "US_CX_END" => Self::ConnectEnd,
            "US_HS_END" => Self::HandshakeEnd,
            "US_TX_BEG" => Self::SendStart,
            "US_TX_END" => Self::RequestSent,
            "US_RX_BEG" => Self::ResponseStart,
            "US_RX_BODY_BEG" => Self::BodyStart,
            "US_RX_END" => Self::ResponseEnd,
            "DS_TX_BEG" => Self::AnswerStart,
            "DS_TX_END" => Self::Now,
            _ => return None,
        })
    }

    /// Whether it is only noted where somebody asks for it.
    pub(super) fn is_rare(self) -> bool {
        matches!(self, Self::SendStart | Self::BodyStart | Self::ResponseEnd | Self::AnswerStart)
    }

    fn of(self, context: &LogContext<'_>) -> Option<Instant> {
        let stream = context.stream;
        let trail = &stream.trail;
        let line = trail.line.as_deref();
        let handshake = || context.connection.tls.as_deref().and_then(|tls| tls.handshake);
        match self {
            Self::HelloCame => handshake().map(|(came, _)| came),
            Self::Secured => handshake().map(|(_, done)| done),
            Self::RequestStart => Some(stream.start),
            Self::RequestEnd => stream.request_end,
            Self::ConnectStart => line.map(|line| line.began),
            Self::ConnectEnd => line.map(|line| line.connected),
            Self::HandshakeEnd => line.and_then(|line| line.secured),
            Self::SendStart => trail.ready,
            Self::RequestSent => stream.request_sent,
            Self::ResponseStart => stream.upstream_first_byte,
            Self::BodyStart => trail.body_began,
            Self::ResponseEnd => trail.answer_came,
            Self::AnswerStart => trail.answering,
            Self::Now => Some(stream.now()),
        }
    }
}

/// What a duration is counted in.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Unit {
    Millis,
    Micros,
    Nanos,
}

impl Unit {
    fn count(self, duration: Duration) -> u128 {
        match self {
            Self::Millis => duration.as_millis(),
            Self::Micros => duration.as_micros(),
            Self::Nanos => duration.as_nanos(),
        }
    }
}

/// `%COMMON_DURATION(from:to:unit)%`.
pub(super) fn parse(arguments: &str) -> Result<Operator, FormatError> {
    let bad = || FormatError::Arguments("COMMON_DURATION".to_owned(), xds_protos::format::POINTS_AND_UNIT);
    let mut parts = arguments.split(':');
    let mut next = || parts.next().ok_or_else(bad);
    let (from, to) = (Point::parse(next()?).ok_or_else(bad)?, Point::parse(next()?).ok_or_else(bad)?);
    let unit = match next()? {
        "ms" => Unit::Millis,
        "us" => Unit::Micros,
        "ns" => Unit::Nanos,
        _ => return Err(bad()),
    };
    Ok(Operator::CommonDuration(from, to, unit))
}

/// Appends the time between two moments; nothing where the second came first, as those of a connection may that was there before.
pub(super) fn write(
    context: &LogContext<'_>,
    (from, to): (Point, Point),
    unit: Unit,
    out: &mut Vec<u8>,
) -> bool {
    match (from.of(context), to.of(context)) {
        (Some(from), Some(to)) if to >= from => number(out, unit.count(to.duration_since(from))),
        _ => false,
    }
}

/// Appends how many milliseconds a moment is after another.
pub(super) fn since(out: &mut Vec<u8>, start: Option<Instant>, end: Option<Instant>) -> bool {
    match (start, end) {
        (Some(start), Some(end)) => number(out, millis(end.saturating_duration_since(start))),
        _ => false,
    }
}
