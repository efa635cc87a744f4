//! Spans of tries, where each try has one.

use http::HeaderName;

use super::attempt::{Failure, Outcome, reset_words};
use super::flow::Flow;
use crate::codec::RequestHead;
use crate::telemetry::Flags;
use crate::telemetry::trace::Trace;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// A try begins: the upstream is told of its span.
pub fn begin(trace: &Trace, head: &mut RequestHead) {
    let ids = trace.begin();
    if trace.settings.propagate {
        trace.inject(&ids, &mut head.headers);
    }
}

/// It brought an answer's head, or failed.
pub fn outcome(trace: &Trace, flow: &Flow, outcome: &Outcome) {
    if !trace.ids.sampled {
        return;
    }
    if matches!(outcome.result, Err(Failure::NoCluster | Failure::NoHost)) {
        return trace.forget();
    }
    let protocol = flow.info(|i| i.upstream_protocol);
    trace.note(|attempt| {
        attempt.canceled = false;
        attempt.host = outcome.seen.as_ref().and_then(|seen| seen.address);
        match &outcome.result {
            Ok(reply) => {
                attempt.protocol = protocol;
                attempt.status = reply.head.status.as_u16();
                attempt.grpc = reply.head.headers.get_str(&GRPC_STATUS).and_then(|s| s.parse().ok());
                if reply.body.is_empty() {
                    attempt.end = Some(std::time::Instant::now());
                }
            }
            Err(failure) => {
                attempt.end = Some(std::time::Instant::now());
                attempt.reason = reason(failure);
                let mut flags = Flags::default();
                flags.set(failure.flag());
                attempt.flags = flags;
            }
        }
    });
}

/// Why there is no answer, in Envoy's words.
fn reason(failure: &Failure) -> Option<&'static str> {
    match failure {
        Failure::Connect { timeout: true, .. } => Some("connection timeout"),
        Failure::Connect { .. } => Some("remote connection failure"),
        Failure::Overflow => Some("overflow"),
        Failure::Reset { reason, .. } => Some(reset_words(*reason).0),
        _ => None,
    }
}
