//! What becomes of a case's request on its connection: the route that takes it, and the request as it goes on.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use weft_proxy::codec::headers::Headers;
use weft_proxy::codec::{RequestHead, h1};
use weft_proxy::io::ConnectionInfo;
use weft_proxy::listen::decide::Caller;
use weft_proxy::route::action::{Action, ClusterName, Forward, Target};
use weft_proxy::route::matching::PathMatch;
use weft_proxy::route::redirect::Redirect;
use weft_proxy::route::{Asked, Matched, RouteConfig};
use weft_proxy::router::{Flow, change_response, head::prepare};
use weft_proxy::telemetry::StreamInfo;

use super::Case;
use super::cluster;
use super::proxy::Proxy;

/// As many virtual hosts are named where none is the request's.
const NAMED: usize = 12;

/// The connection that a request comes on.
pub(super) struct Way<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) caller: &'a Caller,
    /// Where it was going, as far as the proxy knows.
    pub(super) dialled: Option<SocketAddr>,
    /// It came by TLS.
    pub(super) secure: bool,
    /// The route configuration as it was rendered.
    pub(super) written: &'a Value,
    /// It comes to a workload.
    pub(super) inbound: bool,
}

/// Finds the route of a case's request, and tells of it.
pub(super) fn route(
    way: &Way<'_>,
    routes: &Arc<RouteConfig>,
    case: &Case,
    found: &mut Value,
) -> anyhow::Result<()> {
    let text = if way.inbound {
        let (method, path) = case.request()?.unwrap_or(("GET", "/"));
        let fields = case.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let host =
            if case.headers.keys().any(|k| k.eq_ignore_ascii_case("host")) { "" } else { "host: to\r\n" };
        format!("{method} {path} HTTP/1.1\r\n{host}{}\r\n", fields.collect::<String>())
    } else {
        case.asked()?.map(|asked| asked.head(&case.headers)).unwrap_or_default()
    };
    let head = h1::read_head(text.as_bytes(), &h1::H1Options::default(), way.secure)
        .map_err(|(status, why)| anyhow::anyhow!("request: it cannot be read ({status}, {why})"))?;
    // The middle of what chance could say.
    let asked = Asked { secure: way.secure, random: u64::MAX / 2, ..Asked::new(&head) };
    let Value::Object(fields) = found else { return Ok(()) };
    passed_over(routes, &asked, fields);
    match Matched::find(routes, &asked) {
        Ok(matched) => {
            let written = routes.find(&asked).and_then(|found| {
                let (_, index) = found.route?;
                Some(&way.written["virtual_hosts"][found.host_index as usize]["routes"][index as usize])
            });
            told(way, &matched, head, written.unwrap_or(&Value::Null), fields)
        }
        Err(true) => {
            let location = Redirect::to_https(&head).location(
                &head,
                &PathMatch::Prefix(b"/".as_slice().into()),
                b"http",
            );
            fields.insert("status".into(), 301.into());
            fields.insert("location".into(), lossy(&location).into());
            Ok(())
        }
        Err(false) => {
            fields.insert("status".into(), 404.into());
            fields.insert("why".into(), "no virtual host or route takes it".into());
            Ok(())
        }
    }
}

/// The virtual host that the request's host leads to, and those of its routes that stand before the one that takes it, each with why it
/// does not.
fn passed_over(routes: &RouteConfig, asked: &Asked<'_>, fields: &mut Map<String, Value>) {
    let Some(host) = routes.hosts.find(&asked.head.authority, routes.ignore_port) else {
        let known = routes.virtual_hosts.iter().take(NAMED).map(|h| Value::from(&*h.name));
        fields.insert("knownHosts".into(), known.collect());
        return;
    };
    let Some(host) = routes.virtual_hosts.get(host as usize) else { return };
    fields.insert("searched".into(), (*host.name).into());
    let misses = host.routes.iter().map(|r| (r, r.matching.misses(asked, routes.ignore_path_parameters)));
    let before = misses.take_while(|(_, why)| why.is_some());
    let told: Vec<_> = before.map(|(route, why)| json!({"route": &*route.name, "because": why})).collect();
    if !told.is_empty() {
        fields.insert("passedOver".into(), told.into());
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A length of time in one unit, so that it can be compared.
pub(super) fn time(duration: Duration) -> String {
    match (duration.is_zero(), duration.subsec_nanos()) {
        (true, _) => "none".to_owned(),
        (_, 0) => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

fn told(
    way: &Way<'_>,
    matched: &Matched,
    mut head: RequestHead,
    written: &Value,
    fields: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    let route = matched.route();
    fields.insert("virtualHost".into(), (*matched.virtual_host().name).into());
    fields.insert("route".into(), (*route.name).into());
    let config = written["metadata"]["filter_metadata"]["istio"]["config"].as_str().unwrap_or_default();
    if let [.., namespace, _, name] = config.split('/').collect::<Vec<_>>().as_slice() {
        fields.insert("rules".into(), format!("{namespace}/{name}").into());
    }
    of_filters(&written["typed_per_filter_config"], fields);
    let connection = ConnectionInfo::between(way.caller.remote, way.caller.local);
    let flow = Rc::new(Flow::new(StreamInfo::new(Some(head.protocol))));
    match &route.action {
        Action::Forward(forward) => forwarded(way, forward, written, fields)?,
        Action::Redirect(redirect) => {
            let proto = head.scheme.to_vec();
            fields.insert("status".into(), redirect.status.as_u16().into());
            let location = redirect.location(&head, &route.matching.path, &proto);
            fields.insert("location".into(), lossy(&location).into());
        }
        Action::Direct(direct) => {
            fields.insert("status".into(), direct.status.as_u16().into());
            fields.insert("body".into(), lossy(&direct.body).into());
        }
    }
    if let Action::Forward(forward) = &route.action {
        prepare(&mut head, matched, forward, &flow, &connection, false);
        fields.insert("path".into(), lossy(&head.path).into());
        fields.insert("host".into(), lossy(&head.authority).into());
        fields.insert("headers".into(), values(&head.headers));
    }
    let mut answer = Headers::default();
    change_response(matched, &flow, &connection, &mut answer);
    fields.insert("responseHeaders".into(), values(&answer));
    let removed = &written["response_headers_to_remove"];
    if !removed.is_null() {
        fields.insert("responseHeadersRemoved".into(), removed.clone());
    }
    Ok(())
}

/// Header fields by name, several of one name joined.
fn values(headers: &Headers) -> Value {
    let mut all: Map<String, Value> = Map::new();
    for (name, value) in headers.iter() {
        let text = lossy(value.as_bytes());
        let joined = match all.get(name.as_str()).and_then(Value::as_str) {
            Some(before) => format!("{before},{text}"),
            None => text,
        };
        all.insert(name.as_str().to_owned(), joined.into());
    }
    all.into()
}

fn forwarded(
    way: &Way<'_>,
    forward: &Forward,
    written: &Value,
    fields: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    let dialled = way.dialled;
    let of = |name: &ClusterName, weight: u64| match name {
        ClusterName::Slot(slot) => cluster::destination(way.proxy, slot.name(), weight, dialled),
        ClusterName::Header(header, _) => Ok(json!({"clusterHeader": header.to_string(), "weight": weight})),
    };
    let destinations: Vec<Value> = match &forward.target {
        Target::Cluster(slot) => vec![cluster::destination(way.proxy, slot.name(), 100, dialled)?],
        Target::Weighted { clusters, .. } if clusters.len() == 1 => vec![of(&clusters[0].cluster, 100)?],
        Target::Weighted { clusters, .. } => {
            clusters.iter().map(|c| of(&c.cluster, c.weight.into())).collect::<anyhow::Result<_>>()?
        }
        Target::Header(header, _) => vec![json!({"clusterHeader": header.to_string(), "weight": 100})],
    };
    // As the proxy answers: none of them is there.
    if destinations.iter().all(|d| d["missing"] == true) {
        fields.insert("status".into(), forward.cluster_not_found.as_u16().into());
    }
    fields.insert("destinations".into(), destinations.into());
    fields.insert("timeout".into(), time(forward.timeout).into());
    let action = &written["route"];
    if let Some(retry) = &forward.retry {
        let policy = &action["retry_policy"];
        let mut retries = json!({"attempts": retry.retries, "perTryTimeout": time(retry.per_try_timeout)});
        retries["on"] = policy["retry_on"].clone();
        if !policy["retriable_status_codes"].is_null() {
            retries["statusCodes"] = policy["retriable_status_codes"].clone();
        }
        retries["avoidsTriedHosts"] = policy["retry_host_predicate"].is_array().into();
        if !policy["retry_back_off"].is_null() {
            retries["backoff"] = policy["retry_back_off"]["base_interval"].clone();
        }
        fields.insert("retries".into(), retries);
    }
    let hashes: Vec<String> = action["hash_policy"].as_array().into_iter().flatten().map(hashed).collect();
    if !hashes.is_empty() {
        fields.insert("hash".into(), hashes.into());
    }
    if !forward.mirrors.is_empty() {
        let shares = action["request_mirror_policies"].as_array().into_iter().flatten();
        let shares = shares.map(|m| percent(&m["runtime_fraction"]["default_value"]));
        let mirrors = forward.mirrors.iter().zip(shares).map(|(mirror, share)| {
            let mut told = mirror.cluster.fixed().map_or(Value::Null, |slot| cluster::name(slot.name()));
            told["percent"] = share;
            told
        });
        fields.insert("mirrors".into(), mirrors.collect());
    }
    Ok(())
}

/// What makes requests alike.
fn hashed(policy: &Value) -> String {
    if let Some(name) = policy["header"]["header_name"].as_str() {
        return format!("header {name}");
    }
    if let Some(name) = policy["cookie"]["name"].as_str() {
        return format!("cookie {name}");
    }
    if let Some(name) = policy["query_parameter"]["name"].as_str() {
        return format!("query parameter {name}");
    }
    "source address".to_owned()
}

/// A fraction as a percentage.
fn percent(fraction: &Value) -> Value {
    let of = match fraction["denominator"].as_str() {
        Some("MILLION") => 10_000.0,
        Some("TEN_THOUSAND") => 100.0,
        _ => 1.0,
    };
    let share = fraction["numerator"].as_f64().unwrap_or_default() / of;
    if share.fract() == 0.0 { (share as u64).into() } else { share.into() }
}

/// What filters do with requests of the route.
fn of_filters(configs: &Value, fields: &mut Map<String, Value>) {
    let fault = &configs["envoy.filters.http.fault"];
    if !fault.is_null() {
        let mut told = json!({});
        if !fault["delay"].is_null() {
            let delay = &fault["delay"];
            told["delay"] = json!({"time": delay["fixed_delay"], "percent": percent(&delay["percentage"])});
        }
        if !fault["abort"].is_null() {
            let abort = &fault["abort"];
            told["abort"] = json!({"percent": percent(&abort["percentage"])});
            for (key, field) in [("status", "http_status"), ("grpcStatus", "grpc_status")] {
                if !abort[field].is_null() {
                    told["abort"][key] = abort[field].clone();
                }
            }
        }
        fields.insert("fault".into(), told);
    }
    let cors = &configs["envoy.filters.http.cors"];
    if !cors.is_null() {
        let origins = cors["allow_origin_string_match"].as_array().into_iter().flatten();
        let origin = |o: &Value| match o.as_object()?.iter().next()? {
            (key, Value::String(text)) => Some(format!("{key} {text}")),
            (_, other) => Some(format!("regex {}", other["regex"].as_str()?)),
        };
        let mut told = json!({"origins": origins.filter_map(origin).collect::<Vec<_>>()});
        for (key, field) in [
            ("methods", "allow_methods"),
            ("headers", "allow_headers"),
            ("exposed", "expose_headers"),
            ("maxAge", "max_age"),
            ("credentials", "allow_credentials"),
        ] {
            if !cors[field].is_null() {
                told[key] = cors[field].clone();
            }
        }
        told["forwardsUnmatched"] = (cors["forward_not_matching_preflights"] != false).into();
        fields.insert("cors".into(), told);
    }
}
