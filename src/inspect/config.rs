//! `weft proxy-config`: what a proxy has of each kind, by its admin interface.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http_body_util::Full;
use serde_json::Value;
use weft_control::model::World;

use crate::configuration;
use crate::explain::seen::Sources;

use super::proxies::Target;
use super::through::Through;
use super::{Output, PATIENCE, address, ask_target, rows};

/// Shows what a proxy has: its listeners, routes, clusters, endpoints, secrets, bootstrap, or what it logs
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// What of it
    #[arg(value_enum)]
    what: What,
    /// The proxy's admin interface, IP:PORT; IP alone is port 15000. In a cluster: kubectl port-forward POD 15000. With --token-file:
    /// the proxy, NAME.NAMESPACE or its whole id, which is asked through its control plane
    #[arg(value_name = "ADDRESS | PROXY")]
    address: String,
    #[command(flatten)]
    through: Through,
    /// Only what has this in its name
    #[arg(long)]
    name: Option<String>,
    /// log: what is to be logged from now on, such as debug, or info,weft_proxy::xds=debug
    #[arg(long, value_name = "RULES")]
    level: Option<String>,
    /// clusters: the directory of YAML that describes the mesh, to tell where each cluster's DestinationRule is written
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Where it listens, and where connections go from there.
    Listeners,
    /// Which requests go where.
    Routes,
    /// Where it can go.
    Clusters,
    /// Who is there, and how well.
    Endpoints,
    /// Its certificates.
    Secrets,
    /// What it was started with.
    Bootstrap,
    /// What it logs.
    Log,
}

/// Prints it.
///
/// # Errors
/// The proxy does not answer.
pub fn main(args: &ConfigArgs) -> anyhow::Result<()> {
    let target = match args.through.is_meant() {
        true => args.through.target(&args.address)?,
        false => {
            let at = address(&args.address, 15000)?;
            Target::at(at.to_string(), at)
        }
    };
    let hint = format!("is a proxy's admin interface at {}?", target.name);
    if args.what == What::Log {
        let now = match &args.level {
            Some(_) if args.through.is_meant() => bail!(
                "--level changes the proxy, and through the control plane pages are only read: ask its admin interface (kubectl port-forward \
                 POD 15000)"
            ),
            Some(level) => set_level(target.site.address, level)?,
            None => ask_target(&target, "/logging", &hint)?,
        };
        match args.output {
            Output::Text => println!("{}", now.trim()),
            Output::Json => println!("{:#}", serde_json::json!({"log": now.trim()})),
        }
        return Ok(());
    }
    if args.level.is_some() {
        bail!("--level is for weft proxy-config log");
    }
    if args.dir.is_some() && args.what != What::Clusters {
        bail!("--dir is for weft proxy-config clusters");
    }
    let world = args.dir.as_ref().map(|dir| configuration::read(dir)).transpose()?;
    let page = match args.what {
        What::Endpoints => "/clusters?format=json",
        What::Secrets => "/certs",
        _ => "/config_dump",
    };
    let found = ask_target(&target, page, &hint)?;
    let found: Value = serde_json::from_str(&found)
        .with_context(|| format!("{page} of {} gives no JSON; is it what was meant?", target.name))?;
    let mut all = pick(args.what, &found);
    if let Some(part) = &args.name {
        all.retain(|(name, _)| name.contains(part));
    }
    if args.what == What::Clusters {
        name_rules(&mut all, world.as_ref());
    }
    match (args.output, args.what) {
        (Output::Json, _) => {
            println!("{:#}", Value::from(all.into_iter().map(|(_, value)| value).collect::<Vec<_>>()));
        }
        (_, What::Bootstrap) => all.iter().for_each(|(_, value)| println!("{value:#}")),
        (_, what) => print!("{}", table(what, &all)),
    }
    Ok(())
}

fn set_level(at: SocketAddr, level: &str) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let escaped: String = level
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect();
    let request = hyper::Request::post(format!("/logging?level={escaped}"))
        .header("host", at.to_string())
        .body(Full::<Bytes>::default())?;
    let exchange = async { crate::client::Connection::open(at).await?.send(request).await };
    let answer =
        runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await }).context("no answer")??;
    if !answer.status.is_success() {
        bail!("--level {level}: {}", answer.text().trim());
    }
    Ok(answer.text().into_owned())
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

/// The resources of a kind, by name. Envoy and Weft say both static and dynamic ones, in lists of their own.
fn pick(what: What, page: &Value) -> Vec<(String, Value)> {
    let named = |field: &str, value: &Value| (text(&value[field]), value.clone());
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let field = match what {
        What::Endpoints => {
            return list(&page["cluster_statuses"]).iter().map(|one| named("name", one)).collect();
        }
        What::Secrets => {
            return list(&page["certificates"])
                .iter()
                .flat_map(|one| {
                    let of = |kind: &str, name: &str| {
                        list(&one[kind])
                            .into_iter()
                            .map(move |cert| (name.to_owned(), cert))
                            .collect::<Vec<_>>()
                    };
                    [of("cert_chain", "certificate"), of("ca_cert", "root")].concat()
                })
                .collect();
        }
        What::Bootstrap => {
            return list(&page["configs"])
                .into_iter()
                .filter(|one| text(&one["@type"]).ends_with("BootstrapConfigDump"))
                .map(|one| ("bootstrap".to_owned(), one["bootstrap"].clone()))
                .collect();
        }
        What::Listeners => "listener",
        What::Routes => "route_config",
        What::Clusters | What::Log => "cluster",
    };
    let mut all = Vec::new();
    for dump in list(&page["configs"]) {
        for entries in dump.as_object().into_iter().flat_map(|o| o.values()).filter_map(Value::as_array) {
            for entry in entries {
                // A dynamic listener's resource is one level deeper.
                let found =
                    [&entry[field], &entry["active_state"][field]].into_iter().find(|one| one.is_object());
                all.extend(found.map(|one| named("name", one)));
            }
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Says of each cluster which DestinationRule it follows, from the path that control planes write into its metadata.
fn name_rules(clusters: &mut [(String, Value)], world: Option<&World>) {
    let sources = Sources { world };
    for (_, cluster) in clusters {
        let path = cluster["metadata"]["filter_metadata"]["istio"]["config"].as_str();
        let Some(rule) = path.and_then(|path| sources.object(path)) else { continue };
        cluster["weft.dev/rule"] = serde_json::json!({"object": rule.object, "at": rule.at});
    }
}

/// The same in a cell.
fn rule(cluster: &Value) -> String {
    let rule = &cluster["weft.dev/rule"];
    match (text(&rule["object"]), text(&rule["at"])) {
        (object, _) if object.is_empty() => dash(""),
        (object, at) if at.is_empty() => object,
        (object, at) => format!("{object} ({at})"),
    }
}

/// Host and port.
fn socket(address: &Value) -> String {
    let socket = &address["socket_address"];
    if socket.is_object() {
        format!("{}:{}", text(&socket["address"]), text(&socket["port_value"]))
    } else {
        text(&address["pipe"]["path"])
    }
}

fn table(what: What, all: &[(String, Value)]) -> String {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    let head: &[&str] = match what {
        What::Listeners => {
            for (name, one) in all {
                let chains =
                    list(&one["filter_chains"]).into_iter().chain(one.get("default_filter_chain").cloned());
                for chain in chains {
                    found.push(vec![
                        name.clone(),
                        socket(&one["address"]),
                        matched(&chain["filter_chain_match"]),
                        leads(&chain),
                    ]);
                }
            }
            &["LISTENER", "ADDRESS", "MATCH", "DESTINATION"]
        }
        What::Routes => {
            for (name, one) in all {
                for host in list(&one["virtual_hosts"]) {
                    let domains: Vec<_> = list(&host["domains"]).iter().map(text).collect();
                    let shown = match domains.len() {
                        0..=2 => domains.join(", "),
                        more => format!("{}, and {} more", domains[0], more - 1),
                    };
                    for route in list(&host["routes"]) {
                        found.push(vec![name.clone(), shown.clone(), path(&route["match"]), target(&route)]);
                    }
                }
            }
            &["ROUTES", "HOSTS", "MATCH", "DESTINATION"]
        }
        What::Clusters => {
            for (name, one) in all {
                let parts: Vec<&str> = name.split('|').collect();
                let kind = if one["type"].is_null() { "STATIC".to_owned() } else { text(&one["type"]) };
                found.push(match parts.as_slice() {
                    [direction, port, subset, host] => vec![
                        (*host).to_owned(),
                        (*port).to_owned(),
                        dash(subset),
                        (*direction).to_owned(),
                        kind,
                        rule(one),
                    ],
                    _ => vec![name.clone(), dash(""), dash(""), dash(""), kind, rule(one)],
                });
            }
            &["HOST", "PORT", "SUBSET", "DIRECTION", "TYPE", "RULE"]
        }
        What::Endpoints => {
            for (name, one) in all {
                for host in list(&one["host_statuses"]) {
                    let health = &host["health_status"];
                    let bad: Vec<_> = health
                        .as_object()
                        .into_iter()
                        .flatten()
                        .filter(|(_, v)| **v == true)
                        .map(|(k, _)| k.clone())
                        .collect();
                    let health = match text(&health["eds_health_status"]) {
                        eds if bad.is_empty() => {
                            if eds.is_empty() {
                                "HEALTHY".to_owned()
                            } else {
                                eds
                            }
                        }
                        _ => bad.join(", "),
                    };
                    found.push(vec![socket(&host["address"]), health, name.clone()]);
                }
            }
            &["ENDPOINT", "HEALTH", "CLUSTER"]
        }
        _ => {
            for (name, one) in all {
                let names: Vec<_> = list(&one["subject_alt_names"])
                    .iter()
                    .map(|san| text(&san["uri"]) + &text(&san["dns"]))
                    .collect();
                found.push(vec![
                    name.clone(),
                    text(&one["serial_number"]),
                    text(&one["valid_from"]),
                    text(&one["expiration_time"]),
                    names.join(", "),
                ]);
            }
            &["KIND", "SERIAL", "NOT BEFORE", "NOT AFTER", "NAMES"]
        }
    };
    rows::table(head, &found)
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// What a filter chain is for.
fn matched(rule: &Value) -> String {
    let mut parts = Vec::new();
    let list = |name: &str| {
        rule[name]
            .as_array()
            .map(|all| all.iter().map(text).collect::<Vec<_>>().join(","))
            .unwrap_or_default()
    };
    let port = &rule["destination_port"];
    if !port.is_null() {
        parts.push(format!("port {}", text(port)));
    }
    let networks: Vec<_> = rule["prefix_ranges"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| format!("{}/{}", text(&one["address_prefix"]), text(&one["prefix_len"])))
        .collect();
    for (word, value) in [
        ("to", networks.join(",")),
        ("SNI", list("server_names")),
        ("ALPN", list("application_protocols")),
        ("over", text(&rule["transport_protocol"])),
    ] {
        if !value.is_empty() {
            parts.push(format!("{word} {value}"));
        }
    }
    if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
}

/// Where a filter chain leads.
fn leads(chain: &Value) -> String {
    for filter in chain["filters"].as_array().into_iter().flatten() {
        let config = &filter["typed_config"];
        if let Some(name) = config["rds"]["route_config_name"].as_str() {
            return format!("routes {name}");
        }
        if config["route_config"].is_object() {
            let routes = config["route_config"]["virtual_hosts"].as_array().into_iter().flatten();
            let mut targets: Vec<_> =
                routes.flat_map(|host| host["routes"].as_array().into_iter().flatten()).map(target).collect();
            targets.dedup();
            return targets.join(", ");
        }
        if let Some(name) = config["cluster"].as_str() {
            return format!("cluster {name}");
        }
        if config["weighted_clusters"].is_object() {
            return weights(&config["weighted_clusters"]);
        }
    }
    "-".to_owned()
}

/// What a route takes.
fn path(rule: &Value) -> String {
    let mut shown = String::new();
    for (field, mark) in [("prefix", "*"), ("path_separated_prefix", "/*"), ("path", "")] {
        if let Some(path) = rule[field].as_str() {
            shown = format!("{path}{mark}");
        }
    }
    if let Some(regex) = rule["safe_regex"]["regex"].as_str() {
        shown = format!("~{regex}");
    }
    let headers: Vec<_> =
        rule["headers"].as_array().into_iter().flatten().map(|one| text(&one["name"])).collect();
    if !headers.is_empty() {
        shown.push_str(&format!(" by {}", headers.join(", ")));
    }
    dash(&shown)
}

fn weights(all: &Value) -> String {
    let parts = all["clusters"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| format!("{} {}", text(&one["weight"]), text(&one["name"])));
    parts.collect::<Vec<_>>().join(", ")
}

/// Where a route leads.
fn target(route: &Value) -> String {
    let action = &route["route"];
    if let Some(name) = action["cluster"].as_str() {
        return format!("cluster {name}");
    }
    if action["weighted_clusters"].is_object() {
        return weights(&action["weighted_clusters"]);
    }
    if route["redirect"].is_object() {
        return "redirect".to_owned();
    }
    if route["direct_response"].is_object() {
        return format!("answer {}", text(&route["direct_response"]["status"]));
    }
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_proxys_resources_are_found_wherever_the_dump_has_them() {
        let listener = json!({"name": "virtualInbound", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
            "filter_chains": [{"filter_chain_match": {"destination_port": 80, "transport_protocol": "tls", "prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
                "filters": [{"typed_config": {"cluster": "inbound|80||"}}]}]});
        let page = json!({"configs": [
            {"@type": "t/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"node": {"id": "n"}}},
            {"@type": "t/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": [{"name": "virtualInbound", "active_state": {"listener": listener}}],
                "static_listeners": [{"listener": {"name": "a"}}]},
            {"@type": "t/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": [{"cluster": {"name": "outbound|80|v1|a.b", "type": "EDS"}}]},
            {"@type": "t/envoy.admin.v3.RoutesConfigDump", "dynamic_route_configs": [{"route_config": {"name": "80", "virtual_hosts": [
                {"domains": ["a", "b", "c"], "routes": [{"match": {"prefix": "/x", "headers": [{"name": "canary"}]}, "route": {"weighted_clusters": {"clusters": [{"name": "c1", "weight": 9}]}}}]}]}}]},
        ]});
        let names = |what| pick(what, &page).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(What::Listeners), ["a", "virtualInbound"]);
        assert_eq!(pick(What::Bootstrap, &page)[0].1["node"]["id"], "n");
        let of = |what| {
            table(what, &pick(what, &page))
                .lines()
                .nth(1)
                .unwrap_or_default()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            of(What::Listeners),
            "virtualInbound 0.0.0.0:15006 port 80, to 10.0.0.0/8, over tls cluster inbound|80||"
        );
        assert_eq!(of(What::Clusters), "a.b 80 v1 outbound EDS -");
        assert_eq!(of(What::Routes), "80 a, and 2 more /x* by canary 9 c1");
    }

    #[test]
    fn a_clusters_rule_is_named_with_its_place_where_that_is_known() {
        let path = "/apis/networking.istio.io/v1/namespaces/shop/destination-rule/cart";
        let clusters = || {
            let metadata = json!({"filter_metadata": {"istio": {"config": path}}});
            let cluster = json!({"name": "outbound|80||a.b", "type": "EDS", "metadata": metadata});
            vec![("outbound|80||a.b".to_owned(), cluster)]
        };
        let shown = |world: Option<&World>| {
            let mut all = clusters();
            name_rules(&mut all, world);
            table(What::Clusters, &all).lines().nth(1).unwrap_or_default().to_owned()
        };
        assert!(shown(None).ends_with("DestinationRule shop/cart"), "{}", shown(None));
        let rule = "\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: cart, namespace: shop}\nspec: {host: a.b}\n";
        let world = weft_control::ingest::load_str("mesh.yaml", rule).into_result().unwrap();
        assert!(
            shown(Some(&world)).contains("DestinationRule shop/cart (mesh.yaml:2)"),
            "{}",
            shown(Some(&world))
        );
    }
}
