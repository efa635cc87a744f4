//! HTTPRoute, GRPCRoute and TLSRoute: which requests go where.

use serde::Deserialize;

use crate::model::values::Timespan;

/// What a route attaches to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ParentRef {
    /// Its group, the Gateway API's unless given; empty for Kubernetes' own.
    pub group: Option<String>,
    /// Its kind, `Gateway` unless given.
    pub kind: Option<String>,
    /// Its namespace, the route's unless given.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// One listener of a Gateway.
    pub section_name: Option<String>,
    /// One port.
    pub port: Option<u16>,
}

impl ParentRef {
    /// Whether it is a Gateway.
    pub fn is_gateway(&self) -> bool {
        self.group.as_deref().is_none_or(|group| group == super::GROUP)
            && self.kind.as_deref().is_none_or(|kind| kind == "Gateway")
    }

    /// Whether it is a Service.
    pub fn is_service(&self) -> bool {
        self.group.as_deref() == Some("") && self.kind.as_deref() == Some("Service")
    }
}

/// The specification of an HTTPRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRoute {
    /// What it attaches to.
    pub parent_refs: Vec<ParentRef>,
    /// The hosts that it is for; empty for those of its parents.
    pub hostnames: Vec<String>,
    /// Its rules.
    pub rules: Vec<HttpRouteRule>,
}

/// One rule of an HTTPRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRouteRule {
    /// Its name.
    pub name: String,
    /// Any of these must match; empty for all requests.
    pub matches: Vec<HttpRouteMatch>,
    /// What is done to requests and responses.
    pub filters: Vec<Filter>,
    /// Where requests go.
    pub backend_refs: Vec<BackendRef>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// When to try again.
    pub retry: Option<Retry>,
}

/// What a request must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRouteMatch {
    /// Its path.
    pub path: Option<HttpPathMatch>,
    /// Its headers.
    pub headers: Vec<ValueMatch>,
    /// Its query parameters.
    pub query_params: Vec<ValueMatch>,
    /// Its method.
    pub method: Option<String>,
}

/// What a path must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpPathMatch {
    /// How it is compared.
    #[serde(rename = "type")]
    pub kind: PathKind,
    /// With what; `/` unless given.
    pub value: Option<String>,
}

/// How paths are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PathKind {
    /// Segment by segment from the first.
    #[default]
    PathPrefix,
    /// As a whole.
    Exact,
    /// By a regular expression.
    RegularExpression,
}

/// What a header or query parameter must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ValueMatch {
    /// How it is compared.
    #[serde(rename = "type")]
    pub kind: MatchKind,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// How values are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum MatchKind {
    /// As a whole.
    #[default]
    Exact,
    /// By a regular expression.
    RegularExpression,
}

/// Something that is done to requests or responses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Filter {
    /// What; it says which of the others is given.
    #[serde(rename = "type")]
    pub kind: Option<FilterKind>,
    /// Headers of the request are changed.
    pub request_header_modifier: Option<HeaderFilter>,
    /// Headers of the response are changed.
    pub response_header_modifier: Option<HeaderFilter>,
    /// Somebody else gets a copy.
    pub request_mirror: Option<MirrorFilter>,
    /// The client is sent elsewhere.
    pub request_redirect: Option<RedirectFilter>,
    /// Host or path are changed.
    pub url_rewrite: Option<RewriteFilter>,
    /// Pages of other origins may ask.
    pub cors: Option<CorsFilter>,
}

/// The filters that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum FilterKind {
    /// `request_header_modifier`.
    RequestHeaderModifier,
    /// `response_header_modifier`.
    ResponseHeaderModifier,
    /// `request_mirror`.
    RequestMirror,
    /// `request_redirect`.
    RequestRedirect,
    /// `url_rewrite`.
    URLRewrite,
    /// `cors`.
    CORS,
    /// Not honoured.
    ExtensionRef,
    /// Not honoured.
    ExternalAuth,
}

/// Changes to headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HeaderFilter {
    /// Replaced or added.
    pub set: Vec<HeaderValue>,
    /// Appended.
    pub add: Vec<HeaderValue>,
    /// Removed.
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HeaderValue {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Copies for somebody else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MirrorFilter {
    /// For whom.
    pub backend_ref: BackendRef,
    /// Of how many requests, in percent; all unless given.
    pub percent: Option<u32>,
    /// The same as a fraction.
    pub fraction: Option<Fraction>,
}

/// A share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Fraction {
    /// Of so many.
    pub numerator: u32,
    /// Out of so many; 100 unless given.
    pub denominator: Option<u32>,
}

/// Where a client is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RedirectFilter {
    /// `http` or `https`; the request's unless given.
    pub scheme: Option<String>,
    /// The host; the request's unless given.
    pub hostname: Option<String>,
    /// The path; the request's unless given.
    pub path: Option<PathModifier>,
    /// The port; that of the scheme, else the listener's, unless given.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308; 302 unless given.
    pub status_code: Option<u16>,
}

/// What host and path become.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RewriteFilter {
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathModifier>,
}

/// What a path becomes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PathModifier {
    /// Which of both.
    #[serde(rename = "type")]
    pub kind: Option<PathModifierKind>,
    /// The whole path.
    pub replace_full_path: Option<String>,
    /// In the place of the prefix that matched.
    pub replace_prefix_match: Option<String>,
}

/// How a path is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum PathModifierKind {
    /// As a whole.
    ReplaceFullPath,
    /// Its prefix that matched.
    ReplacePrefixMatch,
}

/// What pages of other origins may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CorsFilter {
    /// Origins that may: whole, `*`, or with a star for the first labels of the host.
    pub allow_origins: Vec<String>,
    /// Whether they may send credentials.
    pub allow_credentials: Option<bool>,
    /// Methods that they may use.
    pub allow_methods: Vec<String>,
    /// Headers that they may send.
    pub allow_headers: Vec<String>,
    /// Headers that they may read.
    pub expose_headers: Vec<String>,
    /// Seconds for which the answer to a preflight request holds; 5 unless given.
    pub max_age: Option<u32>,
}

/// Where requests or connections go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BackendRef {
    /// Group of its kind; empty, as it is unless given, for Kubernetes' own.
    pub group: Option<String>,
    /// Its kind, `Service` unless given.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// Its namespace, the route's unless given.
    pub namespace: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// Its share; 1 unless given.
    pub weight: Option<u32>,
    /// What is done to its requests and responses alone.
    pub filters: Vec<Filter>,
}

/// How long a request may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Timeouts {
    /// With all its attempts; 0 for ever.
    pub request: Option<Timespan>,
    /// Each attempt; 0 for ever.
    pub backend_request: Option<Timespan>,
}

/// When to try again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Retry {
    /// After which status codes, beside failed connections.
    pub codes: Vec<u16>,
    /// How often.
    pub attempts: Option<u32>,
    /// After how long.
    pub backoff: Option<Timespan>,
}

/// The specification of a GRPCRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcRoute {
    /// What it attaches to.
    pub parent_refs: Vec<ParentRef>,
    /// The hosts that it is for; empty for those of its parents.
    pub hostnames: Vec<String>,
    /// Its rules.
    pub rules: Vec<GrpcRouteRule>,
}

/// One rule of a GRPCRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcRouteRule {
    /// Its name.
    pub name: String,
    /// Any of these must match; empty for all calls.
    pub matches: Vec<GrpcRouteMatch>,
    /// What is done to calls and answers.
    pub filters: Vec<Filter>,
    /// Where calls go.
    pub backend_refs: Vec<BackendRef>,
}

/// What a call must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcRouteMatch {
    /// Its method.
    pub method: Option<MethodMatch>,
    /// Its metadata.
    pub headers: Vec<ValueMatch>,
}

/// What a method must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MethodMatch {
    /// How both are compared.
    #[serde(rename = "type")]
    pub kind: MatchKind,
    /// The service, with its package; any unless given.
    pub service: Option<String>,
    /// The method; any unless given.
    pub method: Option<String>,
}

/// The specification of a TLSRoute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TlsRoute {
    /// What it attaches to.
    pub parent_refs: Vec<ParentRef>,
    /// The server names that it is for; empty for those of its parents.
    pub hostnames: Vec<String>,
    /// Its rules; all connections match each of them, so only the first counts.
    pub rules: Vec<TlsRouteRule>,
}

/// The rule of a TLSRoute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TlsRouteRule {
    /// Its name.
    pub name: String,
    /// Where connections go.
    pub backend_refs: Vec<BackendRef>,
}
