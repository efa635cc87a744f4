//! The connection manager of one downstream connection.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, StatusCode};

use super::config::{ClientCert, HcmConfig};
use super::recheck::Newest;
use super::record::{self, Heads};
use super::{exchange, local_reply, response, xfcc};
use crate::codec::{
    ConnectionLimit, Downstream, Headers, HttpService, Meter, Protocol, Reply, Request, RequestHead,
    WireBytes,
};
use crate::io::{Alarm, ConnectionInfo};
use crate::router::{Flow, LocalReply, Scratch};
use crate::telemetry::access_log::{LogContext, LogType};
use crate::telemetry::peer::Caller;
use crate::telemetry::{Flag, StreamInfo, Wire};

const KEPT_ALARMS: usize = 4;

/// What the requests of a connection share.
pub struct Shared {
    /// The configuration that the connection was accepted with.
    pub config: Arc<HcmConfig>,
    /// The connection.
    pub connection: Arc<ConnectionInfo>,
    /// What new connections get, where streams are to be looked at again when that changes.
    pub newest: Option<Rc<dyn Newest>>,
    opened: Instant,
    /// The codec's version, known from the first request on.
    protocol: OnceCell<Protocol>,
    client_cert: OnceCell<Option<HeaderValue>>,
    /// What is remembered of the caller.
    pub caller: Rc<Caller>,
    /// Alarms of streams that have ended, for those to come.
    alarms: RefCell<Vec<Alarm>>,
}

/// Handles the requests of one downstream connection.
pub struct ConnectionManager {
    shared: Rc<Shared>,
}

impl ConnectionManager {
    /// For a connection that has just been accepted.
    pub fn new(
        config: Arc<HcmConfig>,
        connection: Arc<ConnectionInfo>,
        newest: Option<Rc<dyn Newest>>,
    ) -> Rc<Self> {
        let stats = &config.stats;
        stats.downstream_cx_total.inc();
        stats.downstream_cx_active.add(1);
        if connection.tls.is_some() {
            stats.downstream_cx_ssl_total.inc();
            stats.downstream_cx_ssl_active.add(1);
        }
        let shared = Shared {
            config,
            connection,
            newest,
            opened: Instant::now(),
            protocol: OnceCell::new(),
            client_cert: OnceCell::new(),
            caller: Rc::default(),
            alarms: RefCell::default(),
        };
        Rc::new(Self { shared: Rc::new(shared) })
    }

    /// What its requests share.
    pub(super) fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    pub(super) fn handling(
        &self,
        request: Request,
        downstream: Downstream,
    ) -> impl Future<Output = Reply> + use<> {
        exchange::handle(self.shared.clone(), request, downstream)
    }
}

impl HttpService for ConnectionManager {
    async fn call(self: Rc<Self>, request: Request, downstream: Downstream) -> Reply {
        // Boxed, so that a connection without a request does not carry the room for one.
        Box::pin(self.handling(request, downstream)).await
    }

    fn bad_request(
        &self,
        status: StatusCode,
        details: &'static str,
        protocol: Protocol,
        meter: Option<Rc<Meter>>,
    ) -> Reply {
        self.shared.bad_request(status, details, protocol, meter)
    }

    fn wants_bytes(&self) -> bool {
        self.shared.config.wants_bytes()
    }

    fn ending(&self, why: ConnectionLimit) {
        let stats = &self.shared.config.stats;
        match why {
            ConnectionLimit::Idle => stats.downstream_cx_idle_timeout.inc(),
            ConnectionLimit::Age => stats.downstream_cx_max_duration_reached.inc(),
            ConnectionLimit::Resets => stats.downstream_rq_too_many_premature_resets.inc(),
        }
    }
}

impl Shared {
    /// An alarm for a stream.
    pub fn take_alarm(&self) -> Alarm {
        self.alarms.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes it back; what many streams at once needed is not kept.
    pub fn put_alarm(&self, alarm: Alarm) {
        let mut alarms = self.alarms.borrow_mut();
        if alarms.len() < KEPT_ALARMS {
            alarms.push(alarm);
        }
    }

    /// Counts a request by version.
    pub fn count_request(&self, protocol: Protocol) {
        let stats = &self.config.stats;
        let first = self.protocol.set(protocol).is_ok();
        match (protocol, first) {
            (Protocol::Http2, first) => {
                stats.downstream_rq_http2_total.inc();
                if first {
                    stats.downstream_cx_http2_total.inc();
                    stats.downstream_cx_http2_active.add(1);
                }
            }
            (_, first) => {
                stats.downstream_rq_http1_total.inc();
                if first {
                    stats.downstream_cx_http1_total.inc();
                    stats.downstream_cx_http1_active.add(1);
                }
            }
        }
    }

    /// Whether the connection should end after the request of this number.
    pub fn is_spent(&self, stream: u64, protocol: Protocol) -> bool {
        let config = &self.config;
        let most = u64::from(config.max_requests_per_connection);
        let longest = config.max_connection_duration;
        let old = !longest.is_zero() && self.opened.elapsed() >= longest;
        // HTTP/2 has a clock for it, which does not wait for a request's end.
        if old && protocol != Protocol::Http2 {
            config.stats.downstream_cx_max_duration_reached.inc();
        }
        old || (most > 0 && stream + 1 >= most)
    }

    /// Treats `x-forwarded-client-cert`.
    pub fn client_cert(&self, headers: &mut Headers) {
        if self.config.client_cert == ClientCert::Sanitize && !headers.contains(&xfcc::CLIENT_CERT) {
            return;
        }
        let tls = self.connection.tls.as_deref();
        let has_cert = tls.is_some_and(|t| !t.peer_chain.is_empty());
        xfcc::apply(headers, self.config.client_cert, has_cert, || {
            // The certificate is the connection's, so its text is made once.
            self.client_cert
                .get_or_init(|| tls.and_then(|t| xfcc::element(t, self.config.client_cert_fields)))
                .clone()
        });
    }

    fn bad_request(
        self: &Rc<Self>,
        status: StatusCode,
        details: &'static str,
        protocol: Protocol,
        meter: Option<Rc<Meter>>,
    ) -> Reply {
        let stats = &self.config.stats;
        // A head that takes too long is slow, not wrong.
        let slow = details == "request_header_timeout";
        if !slow {
            stats.downstream_cx_protocol_error.inc();
        }
        stats.downstream_rq_total.inc();
        stats.downstream_rq_completed.inc();
        stats.status(status);
        let text = match details {
            "request_header_timeout" => "request header timeout",
            _ => status.canonical_reason().unwrap_or_default(),
        };
        let flow = Flow::new(StreamInfo::new(Some(protocol)));
        let reply = LocalReply::new(status, text, details);
        let mut reply = local_reply::reply(self, &flow, &RequestHead::empty(protocol), reply);
        reply.close = true;
        response::shape(&mut reply.head, &self.config, None);
        let mut info = flow.info(|i| i.clone());
        info.status = Some(reply.head.status);
        info.bytes_sent = reply.body.remaining().unwrap_or(0);
        if !slow {
            info.flags.set(Flag::DownstreamProtocolError);
        }
        let heads = Heads { request: None, response: Some(&reply.head.headers) };
        record::ended(&self.connection, &flow, &info, &Scratch::default(), info.start.elapsed(), heads);
        match meter {
            None => self.log_refused(&info, &reply.head.headers),
            Some(meter) => {
                let (shared, headers) = (self.clone(), reply.head.headers.clone());
                info.took = Some(info.start.elapsed());
                meter.then(Box::new(move |downstream| {
                    let upstream = Some(WireBytes::default());
                    info.wire = Some(Box::new(Wire { downstream, upstream }));
                    shared.log_refused(&info, &headers);
                }));
            }
        }
        reply
    }
}

impl Shared {
    /// Logs a request that the codec refused.
    fn log_refused(&self, info: &StreamInfo, response: &Headers) {
        let context = LogContext {
            response: Some(response),
            occasion: LogType::DownstreamEnd,
            ..LogContext::new(info, &self.connection)
        };
        self.config.logs().iter().for_each(|log| log.log(&context));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let stats = &self.config.stats;
        stats.downstream_cx_active.add(-1);
        if self.connection.tls.is_some() {
            stats.downstream_cx_ssl_active.add(-1);
        }
        match self.protocol.get() {
            Some(Protocol::Http2) => stats.downstream_cx_http2_active.add(-1),
            Some(_) => stats.downstream_cx_http1_active.add(-1),
            None => {}
        }
        stats.downstream_cx_length_ms.record(self.opened.elapsed().as_secs_f64() * 1000.0);
    }
}
