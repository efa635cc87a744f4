//! The span of a question that a filter asks a service, of authorization or of rate limits, below the request's; and what the
//! service is told of it: with Envoy's names and tags.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::SystemTime;

use http::StatusCode;

use crate::codec::{Headers, Protocol};
use crate::router::Flow;
use crate::router::grpc::CallError;
use crate::telemetry::trace::{Ids, Kind, Span, Trace, ids, tags};

/// A question that is under way.
pub(super) struct Question {
    trace: Rc<Trace>,
    ids: Ids,
    start: SystemTime,
}

impl Question {
    /// A question about this request; none where it has no trace.
    pub(super) fn begin(flow: &Flow) -> Option<Self> {
        let trace = flow.info(|info| info.trace.clone())?;
        let ids = Ids { span: ids::fresh(), parent: Some(trace.ids.span), ..trace.ids };
        Some(Self { trace, ids, start: SystemTime::now() })
    }

    /// Tells the service.
    pub(super) fn tell(&self, headers: &mut Headers) {
        if self.trace.settings.propagate {
            self.trace.inject(&self.ids, headers);
        }
    }

    fn span(&self, name: String, cluster: &str) -> Span {
        let mut span = Span {
            ids: self.ids,
            remote: false,
            state: tags::kept(&self.trace),
            name: Some(name),
            authority: String::new(),
            egress: true,
            kind: Kind::Client,
            start: self.start,
            end: SystemTime::now().max(self.start),
            tags: Vec::with_capacity(12),
            moments: Vec::new(),
            status: 0,
            grpc: None,
        };
        span.tag("component", "proxy");
        span.tag("upstream_cluster", cluster);
        span
    }

    /// It was asked by gRPC, by this method, and answered or not. `verdict` is the tag that says what the answer was.
    pub(super) fn of_grpc<A>(
        self,
        method: &str,
        cluster: &str,
        answer: &Result<A, CallError>,
        verdict: impl FnOnce(&A) -> (&'static str, &'static str),
    ) {
        if !self.ids.sampled {
            return;
        }
        let mut span =
            self.span(format!("async {} egress", method.trim_start_matches('/').replace('/', ".")), cluster);
        span.tag("upstream_address", cluster);
        let code = match answer {
            Ok(_) => 0,
            Err(CallError::Status { code, .. }) => *code,
            Err(CallError::Malformed) => 13,
            Err(CallError::Unanswered | CallError::Http(_)) => 14,
        };
        span.grpc = Some(code);
        span.tag("grpc.status_code", code.to_string());
        match answer {
            Ok(answer) => {
                let (name, value) = verdict(answer);
                span.tag(name, value);
            }
            Err(_) => span.tag("error", "true"),
        }
        self.trace.tracer.report(span);
    }

    /// It was asked by HTTP, and answered with this status; where nobody did, with the proxy's own.
    pub(super) fn of_http(
        self,
        cluster: &str,
        host: Option<SocketAddr>,
        protocol: Option<Protocol>,
        status: StatusCode,
        verdict: (&'static str, &'static str),
    ) {
        if !self.ids.sampled {
            return;
        }
        let mut span = self.span(format!("async {cluster} egress"), cluster);
        span.tag("upstream_cluster.name", cluster);
        if let Some(host) = host {
            span.tag("upstream_address", host.to_string());
            span.tag("peer.address", host.to_string());
        }
        span.tag("http.protocol", protocol.map_or("-", |protocol| protocol.as_str()));
        span.status = status.as_u16();
        span.tag("http.status_code", span.status.to_string());
        span.tag("response_flags", "-");
        span.tag("ext_authz_http_status", status.canonical_reason().unwrap_or("Unknown"));
        span.tag(verdict.0, verdict.1);
        if status.is_server_error() {
            span.tag("error", "true");
        }
        self.trace.tracer.report(span);
    }
}
