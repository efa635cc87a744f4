//! A request of the past as a tree, for people.

use serde_json::Value;

use super::join::Hop;
use super::sources::Sources;
use crate::explain::Origin;
use crate::explain::text::Node;
use crate::inspect::{plain, what};

/// The tree.
pub(super) fn text(id: &str, hops: &[Hop], sources: &Sources<'_>) -> String {
    let first = hops.first().map(|hop| &hop.seen.request);
    let when = first.map(|request| word(&request["start"])).unwrap_or_default();
    let what = if first.is_some_and(is_connection) { "connection" } else { "request" };
    let mut root = Node::new(format!("{what} {id}, {when}"));
    root.below.extend(hops.iter().map(|one| hop(one, sources)));
    let mut out = format!("{}\n", plain(&root.line));
    root.print(&mut out, "");
    out
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn written(origin: &Origin) -> String {
    if origin.at.is_empty() { origin.object.clone() } else { format!("{}, {}", origin.object, origin.at) }
}

/// `, WHAT VALUE` where there is one.
fn also(what: &str, value: &Value) -> String {
    if value.is_null() { String::new() } else { format!(", {what}{}", word(value)) }
}

fn is_connection(request: &Value) -> bool {
    request["kind"] == "connection"
}

fn hop(hop: &Hop, sources: &Sources<'_>) -> Node {
    let request = &hop.seen.request;
    let connection = is_connection(request);
    let status = match request["status"].as_u64() {
        Some(0) | None => "no answer".to_owned(),
        Some(status) => status.to_string(),
    };
    let side = match request["direction"].as_str() {
        Some("unspecified") | None => "gateway",
        Some(side) => side,
    };
    let outcome = match connection {
        true => {
            format!(
                "{} bytes received, {} sent",
                word(&request["bytesReceived"]),
                word(&request["bytesSent"])
            )
        }
        false => format!("{status}{}", also("gRPC status ", &request["grpcStatus"])),
    };
    let mut node = Node::new(format!(
        "{} ({side}): {}: {outcome} in {} ms ({})",
        hop.seen.proxy,
        what(request),
        word(&request["durationMs"]),
        word(&request["class"]),
    ));
    let mut say = |line: String| node.below.push(Node::new(line));
    let chain = request["filterChain"].as_str().filter(|chain| !chain.is_empty());
    say(format!(
        "listener {}{}, from {}{}{}{}",
        word(&request["listener"]),
        chain.map_or_else(String::new, |chain| format!(", filter chain {chain}")),
        word(&request["remote"]),
        also("", &request["tls"]),
        also("peer ", &request["peer"]),
        also("server name ", &request["serverName"]),
    ));
    for decision in request["decisions"].as_array().into_iter().flatten() {
        say(decided(decision, sources));
    }
    if !connection {
        node.below.extend(route(request, sources));
    }
    node.below.extend(cluster(request, sources));
    for (number, one) in request["attempts"].as_array().into_iter().flatten().enumerate() {
        node.below.push(attempt(number + 1, one));
    }
    if let Some(local) = request["upstreamLocal"].as_str() {
        let (tls, peer) = (also("", &request["upstreamTls"]), also("peer ", &request["upstreamPeer"]));
        node.below.push(Node::new(format!("went on from {local}{tls}{peer}")));
    }
    let mut times: Vec<String> = Vec::new();
    for (key, what) in [
        ("receivedMs", "request whole"),
        ("sentUpstreamMs", "sent upstream"),
        ("answerBeganMs", "answer began"),
    ] {
        if !request[key].is_null() {
            times.push(format!("{what} at {} ms", word(&request[key])));
        }
    }
    times.push(format!("end at {} ms", word(&request["durationMs"])));
    node.below.push(Node::new(times.join(", ")));
    let ended = if connection { format!("connection {}", word(&request["connectionId"])) } else { status };
    node.below.push(Node::new(format!(
        "ended by {}: {ended}, flags {}, details {}{}{}",
        word(&request["endedBy"]),
        word(&request["flags"]),
        word(&request["details"]),
        also("", &request["termination"]),
        also("", &request["said"]),
    )));
    node.below.extend(hop.below.iter().map(|below| self::hop(below, sources)));
    node
}

fn decided(decision: &Value, sources: &Sources<'_>) -> String {
    let filter = word(&decision["filter"]);
    // Rules by which somebody else is asked are put as ones that are only tried, with a name that says so.
    let asks = decision["name"].as_str().is_some_and(|name| name.starts_with("istio-ext-authz-"));
    let verdict = if asks { "somebody else is asked".to_owned() } else { word(&decision["verdict"]) };
    let by = match decision["name"].as_str() {
        Some(name) => match sources.policy(name) {
            Some((origin, rule)) => format!(" by {rule} of {}", written(&origin)),
            None => format!(" by {name}"),
        },
        None if filter == "rbac" => ": no rule of the policies that allow matches".to_owned(),
        None => String::new(),
    };
    format!("{filter}: {verdict}{by}")
}

fn route(request: &Value, sources: &Sources<'_>) -> Option<Node> {
    let route = &request["route"];
    if route.is_null() {
        return Some(Node::new("no route"));
    }
    let name = route["name"].as_str().filter(|name| !name.is_empty());
    let mut node = Node::new(format!(
        "route {} of virtual host {} in {}",
        name.unwrap_or("without a name"),
        word(&route["virtualHost"]),
        word(&route["configuration"])
    ));
    let origin = route["origin"].as_str().and_then(|path| sources.object(path));
    node.below.extend(origin.map(|origin| Node::new(written(&origin))));
    Some(node)
}

fn cluster(request: &Value, sources: &Sources<'_>) -> Option<Node> {
    let cluster = request["cluster"].as_str()?;
    let mut node = Node::new(format!("cluster {cluster}"));
    let origin = request["clusterOrigin"].as_str().and_then(|path| sources.object(path));
    node.below.extend(origin.map(|origin| Node::new(written(&origin))));
    Some(node)
}

fn attempt(number: usize, one: &Value) -> Node {
    let host = one["host"].as_str().map_or_else(String::new, |host| format!(" at {host}"));
    let took =
        if one["tookMs"].is_null() { String::new() } else { format!(" after {} ms", word(&one["tookMs"])) };
    let mut node = Node::new(format!(
        "try {number}{host}: {}{}{took}{}{}{}",
        word(&one["outcome"]),
        one["status"].as_u64().map_or_else(String::new, |status| format!(" {status}")),
        also("flags ", &one["flags"]),
        also("", &one["said"]),
        if one["retriedAfterMs"].is_null() {
            String::new()
        } else {
            format!("; tried again {} ms later", word(&one["retriedAfterMs"]))
        }
    ));
    if let Some(policy) = one["policy"].as_str() {
        let mut choice =
            Node::new(format!("chosen by {policy} among {} hosts, {} healthy", one["hosts"], one["healthy"]));
        let candidates = one["candidates"].as_array().into_iter().flatten();
        choice.below.extend(candidates.map(|c| {
            Node::new(format!(
                "{}: {} active requests, {}{}",
                word(&c["address"]),
                c["activeRequests"],
                word(&c["health"]),
                also("in ", &c["locality"])
            ))
        }));
        node.below.push(choice);
    }
    node
}
