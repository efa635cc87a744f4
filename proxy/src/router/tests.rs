use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::attempt::{Attempt, Event, Failure, Outcome, Seen, Upstreams, within};
use super::drive::{Tries, drive};
use super::reply::LocalReply;
use super::retry::{Pause, Retries};
use super::timeouts;
use super::{Flow, RequestBody};
use crate::codec::{Body, Frame, Headers, Protocol, Reply, RequestHead, ResetReason, ResponseHead};
use crate::route::retry::{ResetHeader, RetryOn, RetryPolicy};
use crate::telemetry::{Flag, StreamInfo};

fn head(fields: &[(&'static str, &'static str)]) -> RequestHead {
    RequestHead {
        method: Method::POST,
        scheme: "http".into(),
        authority: "a".into(),
        path: "/".into(),
        protocol: Protocol::Http11,
        upgrade: None,
        headers: headers(fields),
    }
}

fn headers(fields: &[(&'static str, &'static str)]) -> Headers {
    fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

fn answer(status: u16, fields: &[(&'static str, &'static str)]) -> Result<Reply, Failure> {
    let status = StatusCode::from_u16(status).unwrap();
    Ok(Reply {
        head: ResponseHead { status, protocol: Protocol::Http11, headers: headers(fields) },
        body: Body::Empty,
        close: false,
        reset: None,
    })
}

fn reset(reason: ResetReason, head_sent: bool) -> Result<Reply, Failure> {
    Err(Failure::Reset { reason, head_sent, text: None })
}

fn refused() -> Result<Reply, Failure> {
    Err(Failure::Connect { timeout: false, reason: "connection refused".into() })
}

/// Answers by a script; remembers what it was asked.
#[derive(Default)]
struct Script {
    answers: RefCell<VecDeque<Result<Reply, Failure>>>,
    bodies: RefCell<Vec<Vec<u8>>>,
    tried: RefCell<Vec<Vec<u64>>>,
    counts: RefCell<Vec<Event>>,
    permits: Cell<u32>,
}

impl Script {
    fn new(answers: Vec<Result<Reply, Failure>>) -> Self {
        Self { answers: RefCell::new(answers.into()), permits: Cell::new(100), ..Self::default() }
    }
}

impl Upstreams for Script {
    type Permit = ();

    async fn attempt(&self, attempt: Attempt<'_>) -> Outcome {
        let mut body = Vec::new();
        while let Some(Ok(Frame::Data(data))) = attempt.request.body.frame().await {
            body.extend_from_slice(&data);
        }
        self.bodies.borrow_mut().push(body);
        self.tried.borrow_mut().push(attempt.tried.to_vec());
        let host = self.tried.borrow().len() as u64;
        let result = self.answers.borrow_mut().pop_front().unwrap();
        Outcome { seen: Some(Seen { host, address: None, local: None, tls: None, line: None }), result }
    }

    fn retry_permit(&self) -> Option<()> {
        self.permits.set(self.permits.get().checked_sub(1)?);
        Some(())
    }

    fn count(&self, event: Event) {
        self.counts.borrow_mut().push(event);
    }

    fn abandoned(&self) -> Box<dyn FnOnce()> {
        Box::new(|| {})
    }
}

fn policy(on: &str, retries: u32) -> RetryPolicy {
    RetryPolicy { on: RetryOn::parse(on).0, retries, avoid_tried_hosts: true, ..RetryPolicy::default() }
}

async fn run(
    script: &Script,
    policy: &RetryPolicy,
    body: Body,
    limit: u64,
) -> (Result<Reply, Failure>, Rc<Flow>) {
    let flow = Rc::new(Flow::new(StreamInfo::new(None)));
    let mut head = head(&[]);
    let retries = Retries::of(Some(policy), &mut head);
    let body = RequestBody::wrap(body, &flow);
    let mut tries = Tries {
        flow: &flow,
        policy: Some(policy),
        retries,
        head,
        body,
        buffer_limit: limit,
        limits: timeouts::Timeouts::default(),
        announce: timeouts::Announce::default(),
        attempt_count: true,
        timeout_retry: true,
        random: || 0,
    };
    let result = drive(script, &mut tries).await;
    (result, flow)
}

fn frames(parts: &[&'static str]) -> Body {
    Body::Frames(parts.iter().map(|p| Frame::Data(Bytes::from_static(p.as_bytes()))).collect())
}

#[tokio::test(start_paused = true)]
async fn a_retry_sends_the_same_body_to_another_host_and_its_answer_hides_the_failure() {
    let script = Script::new(vec![refused(), answer(503, &[]), answer(200, &[])]);
    let (result, flow) = run(&script, &policy("connect-failure,5xx", 2), frames(&["ab", "cd"]), 100).await;
    assert_eq!(result.unwrap().head.status, 200);
    assert_eq!(*script.bodies.borrow(), [b"abcd".to_vec(), b"abcd".to_vec(), b"abcd".to_vec()]);
    assert_eq!(*script.tried.borrow(), [vec![], vec![1], vec![1, 2]]);
    assert_eq!(
        *script.counts.borrow(),
        [
            Event::Retry,
            Event::BackOff,
            Event::Retry,
            Event::Retried(StatusCode::SERVICE_UNAVAILABLE),
            Event::BackOff,
            Event::RetrySuccess
        ]
    );
    flow.info(|i| {
        assert_eq!((i.attempts, i.flags.to_string().as_str(), i.bytes_received), (3, "-", 4));
        assert!(i.upstream_failure.is_none());
    });
}

#[tokio::test(start_paused = true)]
async fn when_no_retry_is_left_the_last_answer_is_the_answer_and_the_log_says_so() {
    let script = Script::new(vec![answer(503, &[]), answer(502, &[])]);
    let (result, flow) = run(&script, &policy("5xx", 1), Body::Empty, 100).await;
    assert_eq!(result.unwrap().head.status, 502);
    assert!(flow.info(|i| i.flags.has(Flag::UpstreamRetryLimitExceeded)));
    assert_eq!(script.counts.borrow().last(), Some(&Event::RetryLimitExceeded));

    let script = Script::new(vec![refused()]);
    script.permits.set(0);
    let (result, flow) = run(&script, &policy("5xx", 1), Body::Empty, 100).await;
    assert!(result.is_err());
    assert_eq!(flow.info(|i| i.flags.to_string()), "UO,UF");
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_limit_ends_retries() {
    let script = Script::new(vec![answer(503, &[]), answer(200, &[])]);
    let (result, _) = run(&script, &policy("5xx", 1), frames(&["abc", "def"]), 4).await;
    assert_eq!(result.unwrap().head.status, 503);
    assert_eq!(*script.bodies.borrow(), [b"abcdef".to_vec()]);
}

#[test]
fn the_retry_conditions_decide_as_envoys_do() {
    use ResetReason::{ConnectionTermination, Overflow, Remote, RemoteRefused};
    let cases: &[(&str, Result<Reply, Failure>, bool)] = &[
        ("5xx", answer(500, &[]), true),
        ("5xx", answer(404, &[]), false),
        ("5xx", answer(503, &[("x-envoy-ratelimited", "true")]), false),
        ("5xx,envoy-ratelimited", answer(429, &[("x-envoy-ratelimited", "true")]), true),
        ("gateway-error", answer(500, &[]), false),
        ("gateway-error", answer(502, &[]), true),
        ("gateway-error", answer(504, &[]), true),
        ("retriable-4xx", answer(409, &[]), true),
        ("retriable-status-codes", answer(418, &[]), true),
        ("retriable-status-codes", answer(419, &[]), false),
        ("unavailable", answer(200, &[("grpc-status", "14")]), true),
        ("cancelled", answer(200, &[("grpc-status", "14")]), false),
        ("deadline-exceeded", answer(200, &[("grpc-status", "4")]), true),
        ("5xx", reset(Remote, true), true),
        ("reset", reset(ConnectionTermination, true), true),
        ("reset", reset(Overflow, false), false),
        ("reset-before-request", reset(Remote, false), true),
        ("reset-before-request", reset(Remote, true), false),
        ("refused-stream", reset(RemoteRefused, true), true),
        ("refused-stream", reset(Remote, true), false),
        ("connect-failure", refused(), true),
        ("refused-stream", refused(), false),
        ("connect-failure", reset(Remote, true), false),
        ("5xx", Err(Failure::PerTryTimeout), true),
        ("connect-failure", Err(Failure::PerTryTimeout), false),
        ("5xx,reset,connect-failure", Err(Failure::NoHost), false),
        ("5xx,reset,connect-failure", Err(Failure::Overflow), false),
    ];
    for (on, result, expected) in cases {
        let policy = RetryPolicy { status_codes: vec![418], ..policy(on, 1) };
        let retries = Retries::of(Some(&policy), &mut head(&[])).unwrap();
        let wants = match result {
            Ok(reply) => retries.wants_after_response(Some(&policy), &reply.head),
            Err(failure) => retries.wants_after_failure(failure),
        };
        assert_eq!(wants, *expected, "{on} {result:?}");
    }
}

#[test]
fn what_must_not_be_done_twice_is_tried_again_only_where_nothing_was_done() {
    use ResetReason::{Remote, RemoteRefused};
    // The conditions, what became of the first try, and whether a POST is sent again. Whatever may be repeated always is.
    let cases: &[(&str, Result<Reply, Failure>, bool)] = &[
        ("5xx", answer(500, &[]), false),
        ("5xx", refused(), true),
        ("5xx", reset(Remote, false), true),
        ("5xx", reset(Remote, true), false),
        ("5xx", reset(RemoteRefused, true), true),
        ("5xx", Err(Failure::PerTryTimeout), false),
        ("reset", reset(Remote, true), false),
        ("reset", reset(RemoteRefused, true), true),
        ("gateway-error", answer(503, &[]), false),
        ("gateway-error", refused(), true),
        ("retriable-4xx", answer(409, &[]), false),
        ("retriable-status-codes", answer(418, &[]), false),
        ("retriable-4xx,connect-failure", refused(), true),
        ("connect-failure", refused(), true),
        ("unavailable", answer(200, &[("grpc-status", "14")]), true),
        ("envoy-ratelimited", answer(429, &[("x-envoy-ratelimited", "true")]), true),
    ];
    for (on, result, post) in cases {
        let policy = RetryPolicy { careful: true, status_codes: vec![418], ..policy(on, 1) };
        let wants = |mut head: RequestHead| {
            Retries::of(Some(&policy), &mut head).is_some_and(|retries| match result {
                Ok(reply) => retries.wants_after_response(Some(&policy), &reply.head),
                Err(failure) => retries.wants_after_failure(failure),
            })
        };
        assert_eq!(wants(head(&[])), *post, "POST {on} {result:?}");
        assert!(wants(head(&[("idempotency-key", "7")])), "POST with a key {on} {result:?}");
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            assert!(wants(RequestHead { method, ..head(&[]) }), "{on} {result:?}");
        }
        assert!(!wants(RequestHead { method: Method::PATCH, ..head(&[]) }) || *post, "PATCH {on} {result:?}");
    }
    // Who asks by header fields means this request.
    let policy = RetryPolicy { careful: true, ..policy("5xx", 1) };
    let mut asked = head(&[("x-envoy-retry-on", "5xx")]);
    let retries = Retries::of(Some(&policy), &mut asked).unwrap();
    assert!(retries.wants_after_response(Some(&policy), &answer(500, &[]).unwrap().head));
}

#[test]
fn pauses_are_a_random_part_of_a_range_that_doubles_up_to_ten_times_the_base() {
    let policy = policy("5xx", 9);
    let mut retries = Retries::of(Some(&policy), &mut head(&[])).unwrap();
    let longest: Vec<_> = (0..6).map(|_| retries.clone_pause(&policy)).collect();
    assert_eq!(longest, [24, 49, 99, 199, 249, 249]);
}

impl Retries {
    /// The longest pause of the next range.
    fn clone_pause(&mut self, policy: &RetryPolicy) -> u64 {
        let mut other = self.clone();
        let longest = (0..1000).map(|random| {
            let mut at = other.clone();
            match at.pause(Some(policy), random) {
                Pause::BackOff(pause) => pause.as_millis() as u64,
                Pause::Asked(_) => panic!("no answer asked for a pause"),
            }
        });
        let longest = longest.max().unwrap();
        other.pause(Some(policy), 0);
        *self = other;
        longest
    }
}

#[test]
fn callers_may_ask_for_retries_by_header_fields_which_do_not_go_upstream() {
    let mut asked = head(&[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "0")]);
    let retries = Retries::of(None, &mut asked).unwrap();
    assert!(!retries.any_left() && asked.headers.is_empty());
    assert!(Retries::of(None, &mut head(&[])).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_trys_time_starts_when_the_request_is_complete() {
    let flow = Flow::new(StreamInfo::new(None));
    let work = pin!(std::future::pending::<()>());
    let waiting = within(&flow, Duration::from_secs(1), work);
    let early = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    assert!(early.is_err(), "the request is not complete, so the clock stands");
    flow.end_request();
    let work = pin!(std::future::pending::<()>());
    let over = within(&flow, Duration::from_secs(1), work).await;
    assert_eq!(over, Err(Failure::PerTryTimeout));
}

#[test]
fn grpc_timeouts_are_read_and_bounded() {
    let read = |text| timeouts::grpc_timeout(&headers(&[("grpc-timeout", text)]));
    assert_eq!(read("5S"), Some(Duration::from_secs(5)));
    assert_eq!(read("250m"), Some(Duration::from_millis(250)));
    assert_eq!(read("1500u"), Some(Duration::from_millis(2)));
    assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
    for bad in ["", "S", "5", "5x", "123456789S", "-5S"] {
        assert_eq!(read(bad), None, "{bad}");
    }
}

#[test]
fn local_replies_speak_the_clients_protocol() {
    let reply =
        || LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream", "no_healthy_upstream");
    let plain = reply().into_reply(&head(&[]));
    assert_eq!(plain.head.status, 503);
    assert_eq!(plain.head.headers, headers(&[("content-length", "19"), ("content-type", "text/plain")]));
    let grpc = reply().into_reply(&head(&[("content-type", "application/grpc")]));
    assert_eq!(grpc.head.status, 200);
    assert!(grpc.body.is_empty());
    assert_eq!(
        grpc.head.headers,
        headers(&[
            ("content-type", "application/grpc"),
            ("grpc-status", "14"),
            ("grpc-message", "no healthy upstream")
        ])
    );
    let reply =
        Failure::Connect { timeout: false, reason: "delayed connect error: Connection refused".into() };
    assert_eq!(
        reply.reply(true, StatusCode::SERVICE_UNAVAILABLE, true).body,
        "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: \
         remote connection failure"
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_say_when_to_try_again_and_is_not_believed_beyond_a_limit() {
    let reset = |name, timestamp| ResetHeader { name: HeaderName::from_static(name), timestamp };
    let policy = RetryPolicy {
        reset_headers: vec![reset("x-reset", true), reset("retry-after", false)],
        reset_max: Duration::from_secs(60),
        ..policy("5xx", 3)
    };
    let mut retries = Retries::of(Some(&policy), &mut head(&[])).unwrap();
    let mut asked = |fields: &[(&'static str, &'static str)]| {
        retries.heed(Some(&policy), &headers(fields));
        retries.pause(Some(&policy), 999)
    };
    let millis = Duration::from_millis;
    // At least what is asked for, and up to half of it more.
    assert_eq!(asked(&[("retry-after", "2")]), Pause::Asked(millis(2999)));
    for nothing in ["61", "0", "", "soon", "-1"] {
        assert!(matches!(asked(&[("retry-after", nothing)]), Pause::BackOff(_)), "{nothing}");
    }
    // A time that is over is none, and the next field counts.
    assert_eq!(asked(&[("x-reset", "1"), ("retry-after", "10")]), Pause::Asked(millis(10_999)));
    let now = std::time::UNIX_EPOCH + Duration::from_millis(100_500);
    let at = |text| reset("x-reset", true).interval(&headers(&[("x-reset", text)]), now);
    assert_eq!([at("103"), at("99")], [Some(millis(2500)), None]);
}

#[test]
fn callers_name_conditions_codes_and_fields_in_the_headers_meant_for_them() {
    let mut head = head(&[
        ("x-envoy-retry-on", "retriable-headers,cancelled"),
        ("x-envoy-retry-grpc-on", "unavailable,5xx"),
        ("x-envoy-retriable-header-names", "x-again, x-more"),
        ("x-envoy-max-retries", "0"),
    ]);
    let retries = Retries::of(None, &mut head).unwrap();
    assert!(head.headers.is_empty() && !retries.any_left());
    let wants = |status, fields: &[(&'static str, &'static str)]| {
        retries.wants_after_response(None, &answer(status, fields).unwrap().head)
    };
    assert!(wants(200, &[("x-more", "")]) && wants(200, &[("grpc-status", "14")]));
    // Each field has its own vocabulary.
    assert!(!wants(503, &[]) && !wants(200, &[("grpc-status", "1")]));
}

/// Takes no request: those that it does not know where to send fail, others wait for a connection for ever.
struct Stuck(bool);

impl Upstreams for Stuck {
    type Permit = ();

    async fn attempt(&self, attempt: Attempt<'_>) -> Outcome {
        attempt.request.head.headers.append(HeaderName::from_static("x-try"), HeaderValue::from_static("1"));
        if self.0 {
            std::future::pending::<()>().await;
        }
        Outcome { seen: None, result: Err(Failure::NoHost) }
    }

    fn retry_permit(&self) -> Option<()> {
        None
    }

    fn count(&self, _: Event) {}

    fn abandoned(&self) -> Box<dyn FnOnce()> {
        Box::new(|| {})
    }
}

#[tokio::test(start_paused = true)]
async fn logs_have_the_head_of_a_request_that_is_never_sent_as_its_try_left_it() {
    for (waits, wanted) in [(false, true), (true, true), (false, false), (true, false)] {
        let flow = Rc::new(Flow::new(StreamInfo::new(None)));
        if wanted {
            flow.keep_for_logs(Arc::default());
        }
        let mut tries = Tries {
            flow: &flow,
            policy: None,
            retries: None,
            head: head(&[("x-a", "1")]),
            body: Body::Empty,
            buffer_limit: 0,
            limits: timeouts::Timeouts::default(),
            announce: timeouts::Announce::default(),
            attempt_count: false,
            timeout_retry: false,
            random: || 0,
        };
        let stuck = Stuck(waits);
        let given_up = tokio::time::timeout(Duration::from_secs(1), drive(&stuck, &mut tries)).await;
        assert_eq!(given_up.is_err(), waits);
        let kept = flow.kept_head.borrow();
        assert_eq!(
            kept.as_ref().map(|head| head.headers.clone()),
            wanted.then(|| headers(&[("x-a", "1"), ("x-try", "1")]))
        );
    }
}

#[test]
fn logs_have_the_head_of_the_last_try_sent_or_not() {
    let flow = Flow::new(StreamInfo::new(None));
    flow.keep_sent(head(&[("x-a", "1")]));
    assert!(flow.kept_head.borrow().is_none(), "nobody wants it");
    flow.keep_for_logs(Arc::default());
    let kept = || flow.kept_head.borrow().as_ref().unwrap().headers.clone();
    for try_ in ["1", "2"] {
        flow.begin_try();
        flow.keep_sent(head(&[("x-try", try_)]));
        flow.keep_unsent(&mut RequestHead::empty(Protocol::Http11));
        assert_eq!(kept(), headers(&[("x-try", try_)]));
    }
    for try_ in ["3", "4"] {
        flow.begin_try();
        flow.keep_unsent(&mut head(&[("x-try", try_)]));
        assert_eq!(kept(), headers(&[("x-try", try_)]));
    }
    flow.begin_try();
    flow.keep_no_other();
    flow.keep_unsent(&mut head(&[("x-try", "5")]));
    assert_eq!(kept(), headers(&[("x-try", "4")]));
    // A log that names no field needs none of them while a stream lives.
    flow.shrink_kept();
    assert_eq!(kept(), headers(&[]));
}
