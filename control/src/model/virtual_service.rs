//! VirtualService: which requests go where, with which timeout and retries (networking.istio.io).

use serde::Deserialize;
use std::collections::BTreeMap;

use super::values::{Labels, StringMatch, Timespan};

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
