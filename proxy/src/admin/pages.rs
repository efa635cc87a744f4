//! Which path answers what.

use std::collections::BTreeMap;

use http::StatusCode;
use regex::Regex;
use serde_json::json;

use super::serve::Page;
use super::stats::Filter;
use super::{
    AdminState, certs, clusters, config_dump, events, process, prometheus, requests, snapshot, stats,
};
use crate::state::DrainScope;
use crate::telemetry::access_log::Sink;

/// Paths, whether they change something (and so want POST), and what they do.
const INDEX: &[(&str, bool, &str)] = &[
    ("/", false, "this list"),
    ("/help", false, "this list"),
    ("/ready", false, "LIVE with 200 when the proxy serves, else why not with 503"),
    ("/healthz/ready", false, "the same, as Istio's agent answers it"),
    ("/stats", false, "all statistics (?filter=REGEX, ?usedonly, ?type=, ?format=json|prometheus)"),
    ("/stats/prometheus", false, "all statistics for Prometheus"),
    ("/clusters", false, "clusters and their hosts (?format=json)"),
    ("/listeners", false, "listeners and their addresses (?format=json)"),
    ("/config_dump", false, "all resources as they came (?resource=FIELD, ?name_regex=REGEX)"),
    ("/certs", false, "certificates in use"),
    ("/dns", false, "the names of the mesh as the pod's DNS has them, and the servers for all others"),
    (
        "/weft/requests",
        false,
        "requests that are kept, and what was decided (?id=, ?class=failed|refused|slow|good, ?listener=, ?limit=)",
    ),
    (
        "/weft/tap",
        false,
        "requests as they end, a line of JSON each (?method=, ?path=, ?status=, ?from=, ?header=, ?direction=, ?max=)",
    ),
    ("/weft/events", false, "what happened lately (?since=NUMBER, ?kind=KIND)"),
    ("/server_info", false, "version, state, uptime, node"),
    ("/memory", false, "memory of the process"),
    ("/logging", true, "what is logged (?level=RULES changes it)"),
    ("/reopen_logs", true, "open log files anew, after they were rotated"),
    ("/healthcheck/fail", true, "be not ready"),
    ("/healthcheck/ok", true, "be ready again"),
    (
        "/drain_listeners",
        true,
        "end connections with their next answer, and stop accepting (?graceful: go on accepting, ?inboundonly)",
    ),
    ("/quitquitquit", true, "drain and end the process"),
];

/// All parameters of a query.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|p| !p.is_empty()).map(|p| {
        let (key, value) = p.split_once('=').unwrap_or((p, ""));
        (key.to_owned(), unescape(value))
    })
}

/// The same by name; of several the last counts.
fn parameters(query: &str) -> BTreeMap<String, String> {
    pairs(query).collect()
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[at], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (other, _) => out.push(other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether a request is to change something, whether it may or not.
pub(super) fn changes<B>(request: &http::Request<B>) -> bool {
    let path = request.uri().path();
    let changes = INDEX.iter().any(|(p, changes, _)| *p == path && *changes);
    // Reading the level changes nothing.
    (changes && !(path == "/logging" && request.uri().query().is_none()))
        || request.method() != http::Method::GET
}

/// Whether a page only reads, and grows with the configuration.
pub(super) fn is_long(path: &str) -> bool {
    matches!(path, "/stats" | "/stats/prometheus" | "/clusters" | "/config_dump" | "/weft/requests")
}

pub(super) fn page(path: &str, query: &str, post: bool, open: bool, state: &AdminState) -> Page {
    let parameters = parameters(query);
    let json_wanted = parameters.get("format").is_some_and(|f| f == "json");
    let changes = INDEX.iter().any(|(p, changes, _)| *p == path && *changes);
    // Reading the level changes nothing.
    if changes && !post && !(path == "/logging" && parameters.is_empty()) {
        return Page::error(StatusCode::METHOD_NOT_ALLOWED, format!("{path} changes something: use POST"));
    }
    match path {
        "/" | "/help" => Page::text(index()),
        "/ready" => match state.unready() {
            None => Page::text("LIVE\n"),
            Some(reason) => Page::error(StatusCode::SERVICE_UNAVAILABLE, reason),
        },
        "/healthz/ready" => match state.why_unready() {
            None => Page::text("LIVE\n"),
            Some(reason) => Page::error(StatusCode::SERVICE_UNAVAILABLE, reason),
        },
        "/stats" | "/stats/prometheus" => statistics(path, &parameters, open, state),
        "/clusters" if json_wanted => Page::json(&clusters::json(&state.engine)),
        "/clusters" => Page::text(clusters::text(&state.engine)),
        "/listeners" => listeners(state, json_wanted),
        "/config_dump" => match config_dump::dump(&state.engine, &state.node, &parameters) {
            Ok(value) => Page::json(&value),
            Err(message) => Page::error(StatusCode::BAD_REQUEST, message),
        },
        "/certs" => Page::json(&certs::json(state)),
        "/dns" => match &state.dns {
            Some(dns) => Page::json(&dns.page()),
            None => Page::error(
                StatusCode::NOT_FOUND,
                "DNS is not answered here; ISTIO_META_DNS_CAPTURE=true in the environment turns it on\n",
            ),
        },
        "/weft/requests" => match requests::page(state, &parameters) {
            Ok(value) => Page::json(&value),
            Err(message) => Page::error(StatusCode::BAD_REQUEST, message),
        },
        "/weft/events" => match events::page(&parameters) {
            Ok(value) => Page::json(&value),
            Err(message) => Page::error(StatusCode::BAD_REQUEST, message),
        },
        "/server_info" => server_info(state),
        "/memory" => memory(),
        "/logging" => match (state.level)(parameters.get("level").map(String::as_str)) {
            Ok(now) => Page::text(format!("active rules: {now}\n")),
            Err(message) => Page::error(StatusCode::BAD_REQUEST, message),
        },
        "/reopen_logs" => {
            Sink::reopen_all();
            Page::text("OK\n")
        }
        "/healthcheck/fail" | "/healthcheck/ok" => {
            state.readiness.fail(path.ends_with("fail"));
            Page::text("OK\n")
        }
        "/drain_listeners" => {
            let inbound = parameters.contains_key("inboundonly");
            let scope = if inbound { DrainScope::Inbound } else { DrainScope::All };
            state.drain(scope);
            if !parameters.contains_key("graceful") {
                state.engine.close_listeners(scope);
            }
            Page::text("OK\n")
        }
        "/quitquitquit" => {
            state.quit.notify_one();
            Page::text("OK\n")
        }
        _ => Page::error(StatusCode::NOT_FOUND, format!("there is no {path}; there are:\n{}", index())),
    }
}

fn index() -> String {
    INDEX
        .iter()
        .map(|(path, changes, what)| format!("  {path}{}: {what}\n", if *changes { " (POST)" } else { "" }))
        .collect()
}

/// All statistics for Prometheus, as `/stats/prometheus` with this query gives them; `open`: in OpenMetrics, without its end.
///
/// # Errors
/// What is wrong with the query.
pub fn metrics(query: &str, open: bool, state: &AdminState) -> Result<String, String> {
    let filter = filter(&parameters(query))?;
    Ok(prometheus::write(&samples(state), &filter, state.tags, open))
}

fn filter(parameters: &BTreeMap<String, String>) -> Result<Filter, String> {
    let regex = parameters.get("filter").map(|f| Regex::new(f)).transpose();
    let regex = regex.map_err(|error| format!("filter: {error}"))?;
    let used_only = parameters.contains_key("usedonly");
    Ok(Filter { regex, used_only, kind: parameters.get("type").cloned() })
}

/// Everything that is counted, as it is now. Of clusters that nobody has called there is but how many hosts they have.
pub(super) fn samples(state: &AdminState) -> Vec<snapshot::Sample> {
    read(state, None)
}

/// The same; with a filter also the zeros of clusters that nobody has called.
fn read(state: &AdminState, zeros: Option<&stats::Filter>) -> Vec<snapshot::Sample> {
    let mut samples = snapshot::read_with(state.engine.tables().clusters.all(), zeros);
    samples.extend(process::samples(state, &samples));
    if state.tcp_aliases {
        process::aliases(&mut samples);
    }
    samples
}

fn statistics(path: &str, parameters: &BTreeMap<String, String>, open: bool, state: &AdminState) -> Page {
    let filter = match filter(parameters) {
        Ok(filter) => filter,
        Err(wrong) => return Page::error(StatusCode::BAD_REQUEST, wrong),
    };
    let format = parameters.get("format").map(String::as_str);
    let all = path == "/stats" && format != Some("prometheus");
    let samples = read(state, all.then_some(&filter));
    match (path, format) {
        ("/stats/prometheus", _) | (_, Some("prometheus")) if open => Page {
            kind: prometheus::OPEN_METRICS,
            ..Page::text(prometheus::render_open(&samples, &filter, state.tags))
        },
        ("/stats/prometheus", _) | (_, Some("prometheus")) => Page {
            kind: "text/plain; version=0.0.4; charset=UTF-8",
            ..Page::text(prometheus::render(&samples, &filter, state.tags))
        },
        (_, Some("json")) => Page::json(&stats::json(&samples, &filter)),
        (_, None | Some("text")) => Page::text(stats::text(&samples, &filter)),
        (_, Some(other)) => Page::error(
            StatusCode::BAD_REQUEST,
            format!("format {other:?}: there are text, json and prometheus"),
        ),
    }
}

fn listeners(state: &AdminState, json_wanted: bool) -> Page {
    let all = state.engine.listeners();
    if json_wanted {
        let statuses: Vec<_> = all
            .iter()
            .map(|(name, addresses)| {
                let address = |a: &std::net::SocketAddr| {
                    json!({"socket_address": {"address": a.ip().to_string(), "port_value": a.port()}})
                };
                let additional: Vec<_> = addresses.iter().skip(1).map(address).collect();
                json!({"name": name, "local_address": addresses.first().map(address),
                       "additional_local_addresses": additional})
            })
            .collect();
        return Page::json(&json!({"listener_statuses": statuses}));
    }
    Page::text(
        all.iter()
            .flat_map(|(name, addresses)| addresses.iter().map(move |a| format!("{name}::{a}\n")))
            .collect::<String>(),
    )
}

fn server_info(state: &AdminState) -> Page {
    let mut node = xds_protos::json::to_value(&state.node);
    if node.is_null() {
        node = json!({});
    }
    Page::json(&json!({
        "version": concat!("weft/", env!("CARGO_PKG_VERSION")),
        "state": state.unready().unwrap_or("LIVE"),
        "uptime_current_epoch": format!("{}s", state.started.elapsed().as_secs()),
        "uptime_all_epochs": format!("{}s", state.started.elapsed().as_secs()),
        "command_line_options": {"concurrency": state.concurrency},
        "control_plane": state.ads.as_ref().map(|a| json!({"connected": a.connected(), "streams": a.streams()})),
        "node": node,
    }))
}

/// A line of the kernel's account of this process's memory, in bytes.
pub(super) fn memory_of(line: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let found = status.lines().find(|l| l.starts_with(line))?;
    found.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn memory() -> Page {
    let bytes = |line| memory_of(line).map(|bytes| bytes.to_string());
    Page::json(
        &json!({"resident": bytes("VmRSS:"), "peak_resident": bytes("VmHWM:"), "virtual": bytes("VmSize:")}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_unescaped() {
        let p = parameters("filter=a%7C%2Bb&usedonly&x=1+2&bad=%zz");
        assert_eq!((p["filter"].as_str(), p["x"].as_str(), p["bad"].as_str()), ("a|+b", "1 2", "%zz"));
        assert!(p.contains_key("usedonly"));
    }
}
