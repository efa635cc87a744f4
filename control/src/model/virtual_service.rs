//! VirtualService: which requests go where, with which timeout and retries (networking.istio.io).

use serde::Deserialize;
use std::collections::BTreeMap;

use super::values::{Labels, Percent, StringMatch, Timespan};

/// The specification of a VirtualService. Lists keep the order of the file, which is semantic.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VirtualService {
    /// Hosts that it speaks for; short names are resolved by the reader, so these are full or wildcards.
    pub hosts: Vec<String>,
    /// Gateways that it binds, as `namespace/name` or `mesh`; never empty once read (`mesh` by default).
    pub gateways: Vec<String>,
    /// Rules for HTTP traffic, first match wins.
    pub http: Vec<HttpRoute>,
    /// Rules for TLS passed through, by SNI.
    pub tls: Vec<TlsRoute>,
    /// Rules for plain TCP.
    pub tcp: Vec<TcpRoute>,
    /// Namespaces that see it: `.`, `*`, or names. Empty means the mesh's default.
    pub export_to: Vec<String>,
}

impl VirtualService {
    /// Whether it binds this gateway (`namespace/name`, or `mesh` for sidecars).
    pub fn binds(&self, gateway: &str) -> bool {
        self.gateways.iter().any(|bound| bound == gateway)
    }
}

/// The claim of a token that a match names in the place of a header: `@request.auth.claims.A.B`, or `@request.auth.claims[A][B]`
/// for names with dots. None if it is no such name; an error if it is a broken one.
pub fn routing_claim(header: &str) -> Option<Result<Vec<&str>, &'static str>> {
    let rest = header.strip_prefix("@request.auth.claims")?;
    let parts: Vec<&str> = match rest.strip_prefix('.') {
        Some(dotted) => dotted.split('.').collect(),
        None => match rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner.split("][").collect(),
            None => {
                return Some(Err("it is neither @request.auth.claims.NAME nor @request.auth.claims[NAME]"));
            }
        },
    };
    Some(if parts.iter().all(|part| !part.is_empty()) { Ok(parts) } else { Err("a claim has no name") })
}

/// One HTTP rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRoute {
    /// Name for logs and statistics.
    pub name: String,
    /// Any of these must match; empty matches everything.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Where requests go; several share by weight.
    pub route: Vec<HttpRouteDestination>,
    /// Answer with a redirect instead.
    pub redirect: Option<HttpRedirect>,
    /// Answer with a fixed response instead.
    pub direct_response: Option<HttpDirectResponse>,
    /// Change path or authority before forwarding.
    pub rewrite: Option<HttpRewrite>,
    /// Time for the whole request, all attempts included; unset or 0 means none.
    pub timeout: Option<Timespan>,
    /// When and how often to try again; unset means the mesh's default policy.
    pub retries: Option<HttpRetry>,
    /// Changes to headers.
    pub headers: Option<Headers>,
    /// Failures made on purpose.
    pub fault: Option<HttpFault>,
    /// Who else gets a copy of the request, its answer thrown away. The old form of `mirrors`; the reader moves it there, so
    /// that it is empty in a World.
    pub mirror: Option<Destination>,
    /// Share of requests that `mirror` gets; moved with it.
    pub mirror_percentage: Option<Percent>,
    /// The oldest form of `mirror_percentage`, in whole percents; moved as well.
    pub mirror_percent: Option<u32>,
    /// Who else gets a copy of the request, its answers thrown away.
    pub mirrors: Vec<HttpMirror>,
    /// What pages of other origins may ask for.
    pub cors_policy: Option<CorsPolicy>,
    /// The rules of another VirtualService stand here, which has no hosts itself. Resolved when a World is built.
    pub delegate: Option<Delegate>,
    /// What it was made of, by the path that an API server has for it; unset for a VirtualService's own rule.
    #[serde(skip)]
    pub origin: Option<String>,
    /// Destinations that are not there answer 500, as in the Gateway API, not 503.
    #[serde(skip)]
    pub broken_is_500: bool,
}

/// Failures made on purpose, before a request is forwarded.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpFault {
    /// The request waits.
    pub delay: Option<FaultDelay>,
    /// The request is answered with an error.
    pub abort: Option<FaultAbort>,
}

/// A wait made on purpose.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FaultDelay {
    /// How long.
    pub fixed_delay: Option<Timespan>,
    /// Share of requests; unset means none.
    pub percentage: Option<Percent>,
    /// The old form of `percentage`, in whole percents; the reader moves it there.
    pub percent: Option<u32>,
}

/// An error made on purpose.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FaultAbort {
    /// Answer with this status, 200 to 600.
    pub http_status: Option<u16>,
    /// Answer with this gRPC status, by its name.
    pub grpc_status: Option<String>,
    /// Share of requests; unset means none.
    pub percentage: Option<Percent>,
}

/// The names of gRPC's status codes, each at the place of its number (gRPC, statuscodes.md).
pub const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The number of a gRPC status.
pub fn grpc_status(name: &str) -> Option<u32> {
    GRPC_STATUSES.iter().zip(0..).find(|(known, _)| **known == name).map(|(_, number)| number)
}

/// A copy of requests for another service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpMirror {
    /// Where it goes.
    pub destination: Destination,
    /// Share of requests; unset means all.
    pub percentage: Option<Percent>,
}

/// What pages of other origins may ask for (Fetch standard, CORS protocol).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CorsPolicy {
    /// The old form of `allow_origins`: exact origins, or `*`. The reader moves them there.
    pub allow_origin: Vec<String>,
    /// Origins that may.
    pub allow_origins: Vec<StringMatch>,
    /// Methods that they may use.
    pub allow_methods: Vec<String>,
    /// Headers that they may send.
    pub allow_headers: Vec<String>,
    /// Headers that they may read.
    pub expose_headers: Vec<String>,
    /// How long the answer to a preflight request holds.
    pub max_age: Option<Timespan>,
    /// Whether they may send credentials.
    pub allow_credentials: Option<bool>,
    /// What happens to preflight requests of other origins.
    pub unmatched_preflights: UnmatchedPreflights,
}

/// What happens to preflight requests of origins that are not allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum UnmatchedPreflights {
    /// As FORWARD.
    #[default]
    #[serde(rename = "UNSPECIFIED")]
    Unspecified,
    /// They go to the service.
    #[serde(rename = "FORWARD")]
    Forward,
    /// They are answered without permission.
    #[serde(rename = "IGNORE")]
    Ignore,
}

/// Names the VirtualService whose rules stand in a rule's place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; never empty once read (the root's own by default).
    pub namespace: String,
}

/// What a request must look like; every given field must match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpMatch {
    /// Name, appended to the route's.
    pub name: String,
    /// The path.
    pub uri: Option<StringMatch>,
    /// The path's case does not matter (exact and prefix matches).
    pub ignore_uri_case: bool,
    /// A prefix is made of whole segments, as in the Gateway API: `/a` is none of `/ab`.
    #[serde(skip)]
    pub whole_segments: bool,
    /// The scheme.
    pub scheme: Option<StringMatch>,
    /// The method.
    pub method: Option<StringMatch>,
    /// The authority.
    pub authority: Option<StringMatch>,
    /// Headers by lower-case name.
    pub headers: BTreeMap<String, StringMatch>,
    /// Headers that must not match.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Query parameters by name.
    pub query_params: BTreeMap<String, StringMatch>,
    /// The port on which the request came.
    pub port: Option<u16>,
    /// Labels of the client's workload.
    pub source_labels: Labels,
    /// Namespace of the client's workload; empty for any.
    pub source_namespace: String,
    /// Gateways to which this match applies; empty for all of the VirtualService's.
    pub gateways: Vec<String>,
    /// Under which name the route's requests are counted apart; empty counts them with the others.
    pub stat_prefix: String,
}

/// One weighted destination of an HTTP rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRouteDestination {
    /// Where.
    pub destination: Destination,
    /// Share among its siblings; 0 gets nothing when there are several.
    pub weight: u32,
    /// Changes to headers for this destination only.
    pub headers: Option<Headers>,
}

/// A service, with subset and port if need be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Destination {
    /// Full host name (short ones are resolved by the reader).
    pub host: String,
    /// Subset of the DestinationRule; empty for all endpoints.
    pub subset: String,
    /// Port of the service, needed when it has several.
    pub port: Option<PortSelector>,
}

/// Names a port by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PortSelector {
    /// 1 to 65535.
    pub number: u16,
}

/// An HTTP redirect.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRedirect {
    /// New path, replacing the whole; empty keeps it.
    pub uri: String,
    /// New authority; empty keeps it.
    pub authority: String,
    /// New port.
    pub port: Option<u16>,
    /// Which port the redirect names when none is given.
    pub derive_port: Option<DerivePort>,
    /// New scheme (`http` or `https`); empty keeps it.
    pub scheme: String,
    /// 301, 302, 303, 307 or 308; unset means 301.
    pub redirect_code: Option<u16>,
    /// Replaces what a regular expression matches in the path; the Gateway API's, instead of `uri`.
    #[serde(skip)]
    pub regex: Option<RegexRewrite>,
}

/// How a redirect finds its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum DerivePort {
    /// The default port of the new scheme.
    #[serde(rename = "FROM_PROTOCOL_DEFAULT")]
    FromProtocolDefault,
    /// The port on which the request came.
    #[serde(rename = "FROM_REQUEST_PORT")]
    FromRequestPort,
}

/// A fixed response.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpDirectResponse {
    /// 200 to 600.
    pub status: u16,
    /// Its body.
    pub body: Option<HttpBody>,
}

/// Body of a fixed response.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpBody {
    /// Text.
    pub string: Option<String>,
    /// Bytes in base64.
    pub bytes: Option<String>,
}

/// Changes made to a request's target before it is forwarded.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRewrite {
    /// Replaces the matched path, or the matched prefix; empty keeps it.
    pub uri: String,
    /// Replaces the authority; empty keeps it.
    pub authority: String,
    /// Replaces what a regular expression matches in the path.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A substitution by regular expression.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RegexRewrite {
    /// RE2 pattern.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Replacement, with `\1` for groups.
    pub rewrite: String,
}

/// Annotation of a VirtualService: `true` has its retries repeat every request, a POST that was processed included.
pub const RETRY_ANY_ANNOTATION: &str = "weft.dev/retry-any-request";

/// When and how often to try again.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRetry {
    /// Attempts after the first; 0 turns retries off.
    pub attempts: u32,
    /// Time for each attempt.
    pub per_try_timeout: Option<Timespan>,
    /// Conditions, comma-separated, in Envoy's words; also plain status codes. Empty means the default set.
    pub retry_on: String,
    /// Whether other localities may be tried.
    pub retry_remote_localities: Option<bool>,
    /// Whether attempts avoid hosts already tried; unset means they do.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Base interval between attempts.
    pub backoff: Option<Timespan>,
}

impl HttpRetry {
    /// The conditions by which a try is followed by another although its request may have been processed.
    pub fn after_processing(&self) -> impl Iterator<Item = &str> {
        let conditions = self.retry_on.split(',').map(str::trim);
        conditions.filter(|one| {
            let named = [
                "5xx",
                "gateway-error",
                "reset",
                "retriable-4xx",
                "retriable-status-codes",
                "retriable-headers",
            ];
            named.contains(one) || one.parse::<u16>().is_ok()
        })
    }
}

/// Changes to the headers of request and response.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Headers {
    /// Before the request is forwarded.
    pub request: Option<HeaderOperations>,
    /// Before the response is returned.
    pub response: Option<HeaderOperations>,
}

/// Changes to one set of headers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HeaderOperations {
    /// Replace or add.
    pub set: BTreeMap<String, String>,
    /// Append.
    pub add: BTreeMap<String, String>,
    /// Remove.
    pub remove: Vec<String>,
}

/// One rule for TLS passed through.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TlsRoute {
    /// Any of these must match.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatch>,
    /// Where connections go; several share by weight.
    pub route: Vec<RouteDestination>,
}

/// What a TLS connection must look like.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TlsMatch {
    /// Server names, wildcards allowed.
    pub sni_hosts: Vec<String>,
    /// Destination addresses, IP or CIDR.
    pub destination_subnets: Vec<String>,
    /// Destination port.
    pub port: Option<u16>,
    /// Labels of the client's workload.
    pub source_labels: Labels,
    /// Namespace of the client's workload; empty for any.
    pub source_namespace: String,
    /// Gateways to which this match applies; empty for all.
    pub gateways: Vec<String>,
}

/// One rule for plain TCP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpRoute {
    /// Any of these must match; empty matches everything.
    #[serde(rename = "match")]
    pub matches: Vec<L4Match>,
    /// Where connections go; several share by weight.
    pub route: Vec<RouteDestination>,
}

/// What a TCP connection must look like.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct L4Match {
    /// Destination addresses, IP or CIDR.
    pub destination_subnets: Vec<String>,
    /// Destination port.
    pub port: Option<u16>,
    /// Labels of the client's workload.
    pub source_labels: Labels,
    /// Namespace of the client's workload; empty for any.
    pub source_namespace: String,
    /// Gateways to which this match applies; empty for all.
    pub gateways: Vec<String>,
}

/// One weighted destination of a TLS or TCP rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouteDestination {
    /// Where.
    pub destination: Destination,
    /// Share among its siblings.
    pub weight: u32,
}
