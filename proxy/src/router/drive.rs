//! The retry loop: tries one after the other until one brings an answer to keep, or none may follow.

use std::mem;
use std::time::Instant;

use http::{HeaderName, HeaderValue};

use super::attempt::{Attempt, Event, Failure, Outcome, Upstreams};
use super::flow::Flow;
use super::replay::Replay;
use super::retry::{Pause, Retries};
use super::timeouts::{Announce, Timeouts};
use super::trace;
use crate::codec::{Body, Protocol, Reply, Request, RequestHead, digits};
use crate::route::retry::RetryPolicy;
use crate::telemetry::record::Try;
use crate::telemetry::{Flag, Flags};

/// `x-envoy-attempt-count`.
pub const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// `x-envoy-is-timeout-retry`.
const IS_TIMEOUT_RETRY: HeaderName = HeaderName::from_static("x-envoy-is-timeout-retry");

/// What the loop works on.
pub struct Tries<'a> {
    /// The stream's record.
    pub flow: &'a Flow,
    /// The route's policy, if it has one.
    pub policy: Option<&'a RetryPolicy>,
    /// Whether and when to retry.
    pub retries: Option<Retries>,
    /// The request's head, ready to be sent.
    pub head: RequestHead,
    /// The request's body.
    pub body: Body,
    /// The most of the body that is kept for retries, in bytes.
    pub buffer_limit: u64,
    /// The limits of the request and of each try.
    pub limits: Timeouts,
    /// Which of them the upstream is told.
    pub announce: Announce,
    /// Tell the upstream the number of the try.
    pub attempt_count: bool,
    /// Tell the upstream of a retry whether the try before it took too long.
    pub timeout_retry: bool,
    /// Random numbers for the pauses.
    pub random: fn() -> u64,
}

/// A try's request until it is sent. One that never is, for the try fails or the request is given up before, leaves its head to
/// those who tell of the request. (As in Envoy, whose one head each try goes on changing.)
struct Unsent<'a> {
    request: &'a mut Request,
    flow: &'a Flow,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.flow.keep_unsent(&mut self.request.head);
    }
}

enum Source {
    Once(Body),
    Again(Replay),
}

/// Drives tries to their end. The failure is that of the last one; the record has the flags.
///
/// # Errors
/// No try brought an answer.
pub async fn drive<U: Upstreams>(upstreams: &U, tries: &mut Tries<'_>) -> Result<Reply, Failure> {
    let Tries { flow, policy, retries, head, body, buffer_limit, limits, .. } = tries;
    let (flow, policy) = (*flow, *policy);
    let mut source = match (&retries, mem::take(body)) {
        (Some(_), body) if !body.is_empty() => {
            Source::Again(Replay::new(body, *buffer_limit, upstreams.abandoned()))
        }
        (_, body) => Source::Once(body),
    };
    let (avoid, repicks) = policy.map_or((false, 0), |p| (p.avoid_tried_hosts, p.host_attempts));
    let omit = policy.and_then(|p| p.omit.as_deref());
    let mut tried: Vec<u64> = Vec::new();
    // Tries that have spans of their own.
    let spanned = flow.info(|i| i.trace.clone()).filter(|t| t.settings.spawn);
    let mut permit = None;
    for number in 1u32.. {
        let began = Instant::now();
        flow.info(|i| {
            i.attempts = number;
            i.trail.began = Some(began);
        });
        if tries.attempt_count {
            head.headers.set(ATTEMPT_COUNT, digits::value(number.into()));
        }
        if number > 1
            && let Some(end) = flow.request_end()
        {
            limits.announce(&mut head.headers, tries.announce, end.elapsed());
        }
        let last = retries.as_ref().is_none_or(|r| !r.any_left());
        let body = match &mut source {
            Source::Once(body) => mem::take(body),
            Source::Again(replay) => replay.body(),
        };
        let own = if last { mem::replace(head, RequestHead::empty(Protocol::Http11)) } else { head.clone() };
        let mut request = Request { head: own, body };
        if let Some(trace) = &spanned {
            trace::begin(trace, &mut request.head);
        }
        let hosts: &[u64] = if avoid { &tried } else { &[] };
        let omit = omit.filter(|_| number > 1);
        flow.begin_try();
        let unsent = Unsent { request: &mut request, flow };
        let timeout = limits.per_try;
        let attempt = Attempt { request: &mut *unsent.request, tried: hosts, omit, repicks, timeout };
        let outcome = upstreams.attempt(attempt).await;
        if matches!(outcome.result, Err(Failure::NoCluster | Failure::NoHost)) {
            // Envoy looks for a host before it says which try it is: the head of the one before stays, if there was any.
            match number {
                1 if tries.attempt_count => {
                    unsent.request.head.headers.remove(&ATTEMPT_COUNT);
                }
                1 => {}
                _ => flow.keep_no_other(),
            }
        }
        drop(unsent);
        drop(request);
        if let Some(trace) = &spanned {
            trace::outcome(trace, flow, &outcome);
        }
        if let Some(seen) = &outcome.seen {
            flow.info(|i| {
                i.upstream_host = seen.address;
                i.upstream_local = seen.local;
                i.upstream_tls.clone_from(&seen.tls);
                i.trail.line.clone_from(&seen.line);
            });
            tried.push(seen.host);
        }
        drop(permit.take());
        let wanted = retries.as_ref().is_some_and(|r| match &outcome.result {
            Ok(reply) => r.wants_after_response(policy, &reply.head),
            Err(failure) => r.wants_after_failure(failure),
        });
        let again = wanted && {
            let replayable = match &source {
                Source::Once(_) => true,
                Source::Again(replay) => replay.can_replay(),
            };
            replayable && {
                permit = allowed(upstreams, flow, retries.as_mut());
                permit.is_some()
            }
        };
        if !again {
            if let Source::Again(replay) = &source {
                replay.abandon();
            }
            // The log speaks of the last try; how those before it failed is forgotten.
            if let Err(failure) = &outcome.result {
                note(flow, began, &outcome);
                flow.info(|i| {
                    i.flags.set(failure.flag());
                    i.upstream_failure = failure.words().map(|w| w.replace(' ', "_").into());
                });
            }
            // Envoy's idea of success: what followed the retry was judged, and asked for no other.
            let judged =
                !matches!(outcome.result, Err(Failure::NoCluster | Failure::NoHost | Failure::Downstream(_)));
            if number > 1 && !wanted && judged {
                upstreams.count(Event::RetrySuccess);
            }
            return outcome.result;
        }
        note(flow, began, &outcome);
        upstreams.count(Event::Retry);
        if let Some(trace) = &spanned {
            trace.note(|attempt| attempt.canceled = true);
        }
        if tries.timeout_retry {
            let late = matches!(outcome.result, Err(Failure::PerTryTimeout));
            let value = HeaderValue::from_static(if late { "true" } else { "false" });
            head.headers.set(IS_TIMEOUT_RETRY, value);
        }
        if let (Ok(reply), Some(retries)) = (&outcome.result, retries.as_mut()) {
            upstreams.count(Event::Retried(reply.head.status));
            retries.heed(policy, &reply.head.headers);
        }
        // The unwanted answer's stream ends before the pause, not after it.
        drop(outcome);
        if let Some(retries) = retries.as_mut() {
            let (event, pause) = match retries.pause(policy, (tries.random)()) {
                Pause::BackOff(pause) => (Event::BackOff, pause),
                Pause::Asked(pause) => (Event::RateLimitedBackOff, pause),
            };
            upstreams.count(event);
            flow.info(|i| i.trail.pause(pause));
            tokio::time::sleep(pause).await;
        }
    }
    Err(Failure::NoHost)
}

/// Lists a try that failed, or whose answer is not kept.
fn note(flow: &Flow, began: Instant, outcome: &Outcome) {
    let failure = outcome.result.as_ref().err();
    let mut flags = Flags::default();
    if let Some(failure) = failure {
        flags.set(failure.flag());
    }
    flow.info(|i| {
        let choice = i.trail.choice.take();
        i.trail.tries.push(Try {
            began,
            took: began.elapsed(),
            host: outcome.seen.as_ref().and_then(|seen| seen.address),
            connection: outcome.seen.as_ref().and_then(|seen| seen.line.as_deref()).map(|line| line.id),
            status: outcome.result.as_ref().ok().map(|reply| reply.head.status.as_u16()),
            failure: failure.map(Failure::name),
            words: failure.and_then(Failure::words).map(Into::into),
            flags,
            choice,
            pause: None,
        });
    });
}

fn allowed<U: Upstreams>(upstreams: &U, flow: &Flow, retries: Option<&mut Retries>) -> Option<U::Permit> {
    if !retries.is_some_and(Retries::take) {
        upstreams.count(Event::RetryLimitExceeded);
        flow.flag(Flag::UpstreamRetryLimitExceeded);
        return None;
    }
    let permit = upstreams.retry_permit();
    if permit.is_none() {
        upstreams.count(Event::RetryOverflow);
        flow.flag(Flag::UpstreamOverflow);
    }
    permit
}
