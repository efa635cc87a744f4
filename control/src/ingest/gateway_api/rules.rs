//! Rules of HTTPRoutes and GRPCRoutes as rules of a VirtualService: one for each match, since each match has a precedence of its
//! own.

use std::collections::BTreeMap;

use super::known::{Known, nowhere};
use super::order::Rank;
use super::paths::{self, Change};
use crate::model::gateway_api::{
    BackendRef, CorsFilter, Filter, GrpcRoute, GrpcRouteMatch, HeaderFilter, HttpRoute, HttpRouteMatch,
    HttpRouteRule, MatchKind, PathKind, RedirectFilter, Retry, ValueMatch,
};
use crate::model::mesh_config::MeshConfig;
use crate::model::meta::{Kind, Meta, Object};
use crate::model::values::{Percent, StringMatch, Timespan};
use crate::model::virtual_service as istio;

/// Where rules are to hold.
#[derive(Clone, Copy, Default)]
pub(super) struct Site<'a> {
    /// The one host, if it is one.
    pub(super) host: Option<&'a str>,
    /// Port of the listener; none in the mesh.
    pub(super) listener: Option<u16>,
    /// The listener ends TLS.
    pub(super) secure: bool,
    /// Requests to this port of the service alone, in the mesh.
    pub(super) port: Option<u16>,
}

pub(super) type Candidate = (Rank, istio::HttpRoute);

/// Retries where a route asks for them and does not say how many.
const ATTEMPTS: u32 = 2;
/// What is tried again beside answers with the codes that a route names: the connection failed, or broke.
const CONNECTION: &str = "connect-failure,refused-stream,reset";
/// For how long an answer to a preflight request holds where a route does not say, in seconds.
const MAX_AGE: u32 = 5;

pub(super) fn http(
    known: &Known<'_>,
    mesh: Option<&MeshConfig>,
    route: &Object<HttpRoute>,
    site: Site<'_>,
) -> Vec<Candidate> {
    let from = (Kind::HttpRoute, route.meta.namespace.as_str());
    let mut all = Vec::new();
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let name = name(&route.meta, &rule.name, index);
        let everything = [HttpRouteMatch::default()];
        let matches = if rule.matches.is_empty() { &everything[..] } else { &rule.matches };
        for wanted in matches {
            let prefix = match &wanted.path {
                Some(path) if path.kind == PathKind::PathPrefix => path.value.as_deref().unwrap_or("/"),
                _ => "/",
            };
            let mut made = istio::HttpRoute {
                name: name.clone(),
                matches: vec![http_match(wanted, site)],
                origin: Some(origin(&route.meta, "http-route")),
                ..istio::HttpRoute::default()
            };
            filters(known, from, &rule.filters, prefix, site, &mut made);
            if made.redirect.is_none() {
                destinations(known, from, &rule.backend_refs, &mut made);
                times(mesh, rule, &mut made);
            }
            all.push((http_rank(wanted), made));
        }
    }
    all
}

pub(super) fn grpc(known: &Known<'_>, route: &Object<GrpcRoute>, site: Site<'_>) -> Vec<Candidate> {
    let from = (Kind::GrpcRoute, route.meta.namespace.as_str());
    let mut all = Vec::new();
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let name = name(&route.meta, &rule.name, index);
        let everything = [GrpcRouteMatch::default()];
        let matches = if rule.matches.is_empty() { &everything[..] } else { &rule.matches };
        for wanted in matches {
            let mut made = istio::HttpRoute {
                name: name.clone(),
                matches: vec![grpc_match(wanted, site)],
                origin: Some(origin(&route.meta, "grpc-route")),
                ..istio::HttpRoute::default()
            };
            filters(known, from, &rule.filters, "/", site, &mut made);
            destinations(known, from, &rule.backend_refs, &mut made);
            all.push((grpc_rank(wanted), made));
        }
    }
    all
}

/// `namespace.route.rule`, for logs and statistics.
fn name(meta: &Meta, rule: &str, index: usize) -> String {
    let rule = if rule.is_empty() { index.to_string() } else { rule.to_owned() };
    format!("{}.{}.{rule}", meta.namespace, meta.name)
}

fn origin(meta: &Meta, kind: &str) -> String {
    let group = crate::model::gateway_api::GROUP;
    format!("/apis/{group}/v1/namespaces/{}/{kind}/{}", meta.namespace, meta.name)
}

fn http_match(wanted: &HttpRouteMatch, site: Site<'_>) -> istio::HttpMatch {
    let mut made = istio::HttpMatch { port: site.port, ..istio::HttpMatch::default() };
    if let Some(path) = &wanted.path {
        let value = path.value.as_deref().unwrap_or("/");
        made.uri = match path.kind {
            PathKind::Exact => Some(StringMatch::Exact(value.to_owned())),
            PathKind::RegularExpression => Some(StringMatch::Regex(value.to_owned())),
            // Of whole segments, so that a slash at its end says nothing.
            PathKind::PathPrefix => {
                let segments = value.trim_end_matches('/');
                made.whole_segments = !segments.is_empty();
                (!segments.is_empty()).then(|| StringMatch::Prefix(segments.to_owned()))
            }
        };
    }
    made.headers = values(&wanted.headers, true);
    made.query_params = values(&wanted.query_params, false);
    made.method = wanted.method.clone().map(StringMatch::Exact);
    made
}

fn values(all: &[ValueMatch], header: bool) -> BTreeMap<String, StringMatch> {
    all.iter()
        .map(|one| {
            let name = if header { one.name.to_ascii_lowercase() } else { one.name.clone() };
            let value = match one.kind {
                MatchKind::Exact => StringMatch::Exact(one.value.clone()),
                MatchKind::RegularExpression => StringMatch::Regex(one.value.clone()),
            };
            (name, value)
        })
        .collect()
}

fn http_rank(wanted: &HttpRouteMatch) -> Rank {
    let (path, length) = match &wanted.path {
        None => (2, 1),
        Some(path) => {
            let length = path.value.as_deref().unwrap_or("/").len();
            match path.kind {
                PathKind::Exact => (3, length),
                PathKind::PathPrefix => (2, length),
                PathKind::RegularExpression => (1, length),
            }
        }
    };
    let (headers, parameters) = (wanted.headers.len(), wanted.query_params.len());
    Rank { path, length, method_length: 0, method: wanted.method.is_some(), headers, parameters }
}

/// A method of gRPC is a path of two segments.
fn grpc_match(wanted: &GrpcRouteMatch, site: Site<'_>) -> istio::HttpMatch {
    let mut made = istio::HttpMatch { port: site.port, ..istio::HttpMatch::default() };
    if let Some(method) = &wanted.method {
        let part = |given: &Option<String>| given.clone().filter(|text| !text.is_empty());
        made.uri = match (method.kind, part(&method.service), part(&method.method)) {
            (_, None, None) => None,
            (MatchKind::Exact, Some(service), Some(name)) => {
                Some(StringMatch::Exact(format!("/{service}/{name}")))
            }
            (MatchKind::Exact, Some(service), None) => Some(StringMatch::Prefix(format!("/{service}/"))),
            (MatchKind::Exact, None, Some(name)) => {
                Some(StringMatch::Regex(format!("/[^/]+/{}", regex::escape(&name))))
            }
            (MatchKind::RegularExpression, service, name) => {
                let any = || "[^/]+".to_owned();
                let (service, name) = (service.unwrap_or_else(any), name.unwrap_or_else(any));
                Some(StringMatch::Regex(format!("/(?:{service})/(?:{name})")))
            }
        };
    }
    made.headers = values(&wanted.headers, true);
    made
}

fn grpc_rank(wanted: &GrpcRouteMatch) -> Rank {
    let length = |of: fn(&crate::model::gateway_api::MethodMatch) -> &Option<String>| {
        wanted.method.as_ref().and_then(|m| of(m).as_ref()).map_or(0, String::len)
    };
    let (length, method_length) = (length(|m| &m.service), length(|m| &m.method));
    Rank { path: 2, length, method_length, headers: wanted.headers.len(), ..Rank::default() }
}

fn filters(
    known: &Known<'_>,
    from: (Kind, &str),
    all: &[Filter],
    prefix: &str,
    site: Site<'_>,
    made: &mut istio::HttpRoute,
) {
    made.headers = headers(all);
    for filter in all {
        if let Some(mirror) = &filter.request_mirror
            && let Ok(destination) = known.backend(from, &mirror.backend_ref)
        {
            let share = mirror
                .fraction
                .map(|f| f64::from(f.numerator) * 100.0 / f64::from(f.denominator.unwrap_or(100).max(1)));
            let percentage = share.or(mirror.percent.map(f64::from)).map(|value| Percent { value });
            made.mirrors.push(istio::HttpMirror { destination, percentage });
        }
        if let Some(redirect) = &filter.request_redirect {
            made.redirect = Some(redirected(redirect, prefix, site));
        }
        if let Some(rewrite) = &filter.url_rewrite {
            let mut done = istio::HttpRewrite {
                authority: rewrite.hostname.clone().unwrap_or_default(),
                ..Default::default()
            };
            match paths::change(rewrite.path.as_ref(), prefix) {
                Change::None => {}
                Change::Whole(path) => done.uri_regex_rewrite = Some(paths::whole(&path)),
                Change::Prefix(path) => done.uri = path,
                Change::Regex(regex) => done.uri_regex_rewrite = Some(regex),
            }
            made.rewrite = Some(done);
        }
        if let Some(cors) = &filter.cors {
            made.cors_policy = Some(allowed(cors));
        }
    }
}

/// The changes to headers of a rule or of one of its backends.
fn headers(all: &[Filter]) -> Option<istio::Headers> {
    let operations = |given: &HeaderFilter| {
        let list = |headers: &[crate::model::gateway_api::HeaderValue]| {
            // Here a value means itself; where it goes, a percent sign begins a command.
            let value = |h: &crate::model::gateway_api::HeaderValue| h.value.replace('%', "%%");
            headers.iter().map(|h| (h.name.clone(), value(h))).collect::<BTreeMap<_, _>>()
        };
        istio::HeaderOperations { set: list(&given.set), add: list(&given.add), remove: given.remove.clone() }
    };
    let request = all.iter().find_map(|f| f.request_header_modifier.as_ref()).map(operations);
    let response = all.iter().find_map(|f| f.response_header_modifier.as_ref()).map(operations);
    (request.is_some() || response.is_some()).then_some(istio::Headers { request, response })
}

/// A scheme brings its own port; without one the listener's stays, unless it goes without saying.
fn redirected(redirect: &RedirectFilter, prefix: &str, site: Site<'_>) -> istio::HttpRedirect {
    let mut made = istio::HttpRedirect {
        authority: redirect.hostname.clone().unwrap_or_default(),
        scheme: redirect.scheme.clone().unwrap_or_default(),
        port: redirect.port,
        redirect_code: Some(redirect.status_code.unwrap_or(302)),
        ..istio::HttpRedirect::default()
    };
    let natural = |port: u16, secure: bool| port == if secure { 443 } else { 80 };
    match (&redirect.scheme, redirect.port) {
        (Some(_), None) => {
            made.derive_port = Some(istio::DerivePort::FromProtocolDefault);
            // The client's host may carry the listener's port.
            if let Some(host) = site.host.filter(|_| made.authority.is_empty()) {
                made.authority = host.to_owned();
            }
        }
        (None, None) => match site.listener {
            Some(port) if natural(port, site.secure) => {}
            Some(port) => made.port = Some(port),
            None => made.derive_port = Some(istio::DerivePort::FromRequestPort),
        },
        (None, Some(port)) if natural(port, site.secure) && site.listener.is_some() => {
            // Said with its scheme, the port goes without saying.
            made.scheme = if site.secure { "https" } else { "http" }.to_owned();
        }
        _ => {}
    }
    match paths::change(redirect.path.as_ref(), prefix) {
        Change::None => {}
        Change::Whole(path) => made.uri = path,
        Change::Prefix(path) => made.uri = format!("%PREFIX()%{path}"),
        Change::Regex(regex) => made.regex = Some(regex),
    }
    made
}

fn allowed(cors: &CorsFilter) -> istio::CorsPolicy {
    let origin = |origin: &String| match origin.split_once('*') {
        None => StringMatch::Exact(origin.clone()),
        Some(("", "")) => StringMatch::Regex(".*".to_owned()),
        Some((before, after)) => {
            StringMatch::Regex(format!("{}.+{}", regex::escape(before), regex::escape(after)))
        }
    };
    istio::CorsPolicy {
        allow_origins: cors.allow_origins.iter().map(origin).collect(),
        allow_methods: cors.allow_methods.clone(),
        allow_headers: cors.allow_headers.clone(),
        expose_headers: cors.expose_headers.clone(),
        max_age: Some(Timespan::secs(u64::from(cors.max_age.unwrap_or(MAX_AGE)))),
        allow_credentials: cors.allow_credentials,
        ..istio::CorsPolicy::default()
    }
}

/// The shares of backends. What is for a backend that is not there, or that nobody may refer to, is answered with 500.
fn destinations(known: &Known<'_>, from: (Kind, &str), all: &[BackendRef], made: &mut istio::HttpRoute) {
    let (mut good, mut route) = (false, Vec::new());
    for backend in all {
        let weight = backend.weight.unwrap_or(1);
        if weight == 0 {
            continue;
        }
        let destination = known.backend(from, backend);
        good |= destination.is_ok();
        made.broken_is_500 |= destination.is_err();
        route.push(istio::HttpRouteDestination {
            destination: destination.unwrap_or_else(|_| nowhere()),
            weight,
            headers: headers(&backend.filters),
        });
    }
    if good {
        made.route = route;
    } else {
        made.broken_is_500 = false;
        made.rewrite = None;
        made.mirrors.clear();
        made.direct_response = Some(istio::HttpDirectResponse { status: 500, body: None });
    }
}

fn times(mesh: Option<&MeshConfig>, rule: &HttpRouteRule, made: &mut istio::HttpRoute) {
    let given = |time: Option<Timespan>| time.filter(|t| !t.get().is_zero());
    let (whole, each) = (given(rule.timeouts.request), given(rule.timeouts.backend_request));
    made.timeout = whole;
    let mut retries = match &rule.retry {
        Some(retry) => Some(tried_again(retry)),
        None => each.map(|_| {
            let ordinary = istio::HttpRetry { attempts: ATTEMPTS, ..istio::HttpRetry::default() };
            mesh.and_then(|mesh| mesh.default_http_retry_policy.clone()).unwrap_or(ordinary)
        }),
    };
    if let (Some(retries), Some(each)) = (&mut retries, each) {
        retries.per_try_timeout = Some(each);
        if retries.attempts == 0 {
            made.timeout = whole.map_or(Some(each), |whole| Some(whole.min(each)));
        }
    }
    made.retries = retries;
}

fn tried_again(retry: &Retry) -> istio::HttpRetry {
    let mut conditions = CONNECTION.to_owned();
    for code in &retry.codes {
        conditions += &format!(",{code}");
    }
    istio::HttpRetry {
        attempts: retry.attempts.unwrap_or(ATTEMPTS),
        retry_on: conditions,
        backoff: retry.backoff,
        ..istio::HttpRetry::default()
    }
}
