//! The explanation as a tree, for people.

use serde_json::Value;

use super::{Arrival, Destination, Explanation, Origin};
use crate::authz::{Answer, Decision};
use crate::inspect::plain;

/// A line and those below it.
pub(super) struct Node {
    pub(super) line: String,
    pub(super) below: Vec<Node>,
}

impl Node {
    pub(super) fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), below: Vec::new() }
    }

    fn with(mut self, below: impl IntoIterator<Item = Node>) -> Self {
        self.below.extend(below);
        self
    }

    pub(super) fn print(&self, out: &mut String, before: &str) {
        for (index, node) in self.below.iter().enumerate() {
            let last = index + 1 == self.below.len();
            let (mark, rest) = if last { ("└ ", "  ") } else { ("├ ", "│ ") };
            out.push_str(&format!("{before}{mark}{}\n", plain(&node.line)));
            node.print(out, &format!("{before}{rest}"));
        }
    }
}

/// A tree of what happens, in order.
pub fn text(told: &Explanation) -> String {
    let whose = if told.gateway { "comes to gateway" } else { "from" };
    let mut root = Node::new(format!("{} {whose} {} ({})", told.asked, told.from, told.identity));
    if let Some(answer) = &told.admitted {
        root.below.push(decision("the gateway's policies", answer));
    }
    root.below.push(way(told));
    for destination in &told.destinations {
        root.below.push(to(destination));
    }
    let verdict = if told.arrives() { "it can arrive" } else { "it does not arrive" };
    root.below.push(Node::new(verdict));
    let mut out = format!("{}\n", plain(&root.line));
    root.print(&mut out, "");
    out
}

/// A value without quotes.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Object(fields) => {
            let all: Vec<_> = fields.iter().map(|(key, value)| format!("{key} {}", word(value))).collect();
            all.join(", ")
        }
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn written(origin: &Origin) -> Node {
    Node::new(format!("{}, {}", origin.object, origin.at))
}

/// A line for a field that is there.
fn said(found: &Value, key: &str, what: &str) -> Option<Node> {
    let value = &found[key];
    (!value.is_null() && *value != Value::Array(Vec::new()))
        .then(|| Node::new(format!("{what} {}", word(value))))
}

fn way(told: &Explanation) -> Node {
    let found = &told.way.found;
    let side = if told.gateway { "its routes" } else { "its own proxy" };
    let mut node = Node::new(format!("{side}: dialled {}", word(&found["dialled"])));
    node.below.extend(said(found, "listener", "listener"));
    node.below.extend(said(found, "chain", "filter chain"));
    node.below.extend(said(found, "as", "carries"));
    if found["downstreamTls"]["mode"] != "none" {
        node.below.extend(said(&found["downstreamTls"], "mode", "ends TLS:"));
    }
    if let Some(host) = said(found, "searched", "virtual host") {
        let passed = found["passedOver"].as_array().into_iter().flatten();
        let named = |route: &Value| match route.as_str() {
            Some("") | None => "a route without a name".to_owned(),
            Some(name) => format!("route {name}"),
        };
        node.below.push(host.with(
            passed.map(|one| Node::new(format!("not {}: {}", named(&one["route"]), word(&one["because"])))),
        ));
    }
    node.below.extend(said(found, "knownHosts", "no virtual host is for it; there are"));
    if let Some(route) = said(found, "route", "takes it: route") {
        node.below.push(route.with(told.way.rules.iter().map(written)));
    }
    for (key, what) in [
        ("refused", "refused:"),
        ("status", "answered here:"),
        ("why", "because"),
        ("location", "leads to"),
        ("body", "with"),
        ("fault", "injected:"),
        ("path", "goes on as"),
        ("timeout", "timeout"),
        ("retries", "retries:"),
        ("hash", "alike by"),
        ("mirrors", "copies to"),
    ] {
        node.below.extend(said(found, key, what));
    }
    node
}

fn to(destination: &Destination) -> Node {
    let found = &destination.found;
    let named = match found["host"].as_str() {
        Some(host) => {
            let subset = word(&found["subset"]);
            let subset = if subset.is_empty() { String::new() } else { format!(", subset {subset}") };
            format!("{host} port {}{subset}", found["port"])
        }
        None if !found["clusterHeader"].is_null() => {
            format!("the cluster that header {} names", word(&found["clusterHeader"]))
        }
        None => format!("cluster {}", word(&found["cluster"])),
    };
    let mut node = Node::new(format!("to {named} ({} %)", found["weight"]));
    node.below.extend(destination.origins.iter().map(written));
    if found["missing"] == true {
        node.below.push(Node::new("the proxy has no such cluster: 503"));
    }
    node.below.extend(said(found, "balancer", "balanced by"));
    if found["limits"] != serde_json::json!({}) {
        node.below.extend(said(found, "limits", "limits:"));
    }
    node.below.extend(said(found, "outlierDetection", "ejected:"));
    node.below.extend(said(&found["tls"], "mode", "secured by TLS:"));
    if destination.arrivals.is_empty() && found["missing"] != true {
        node.below.push(Node::new("there is no endpoint: 503, no healthy upstream"));
    }
    let tls = found["endpoints"].as_array().into_iter().flatten().map(|endpoint| &endpoint["tls"]);
    node.below.extend(destination.arrivals.iter().zip(tls).map(|(arrival, tls)| at(arrival, tls)));
    if destination.more > 0 {
        node.below.push(Node::new(format!("{} more endpoints were not asked", destination.more)));
    }
    node
}

fn at(arrival: &Arrival, tls: &Value) -> Node {
    let workload = arrival.workload.as_ref().map_or_else(String::new, |name| format!(" {name}"));
    let place = format!("{}{workload} (TLS {})", arrival.address, word(tls));
    match (&arrival.answer, &arrival.unasked) {
        (Some(answer), _) => decision(&place, answer),
        (None, why) => Node::new(format!("{place}: {}", why.as_deref().unwrap_or("not asked"))),
    }
}

fn decision(place: &str, answer: &Answer) -> Node {
    let verdict = match answer.decision {
        Decision::Allow => "let in",
        Decision::Deny => "refused",
        Decision::Ask => "somebody else is asked",
    };
    let status = answer.status.map_or_else(String::new, |status| format!(" ({status})"));
    let mut node = Node::new(format!("{place}: {verdict}{status}, {}", answer.reason));
    node.below.extend(answer.by.iter().map(|rule| Node::new(format!("by {rule}"))));
    node.below.extend(answer.audited_by.iter().map(|rule| Node::new(format!("noted by {rule}"))));
    node.below.extend(answer.tried.iter().chain(&answer.notes).map(Node::new));
    node
}
