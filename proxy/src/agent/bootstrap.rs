//! The Envoy bootstrap with which a foreign proxy finds the agent.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};
use xds_protos::envoy::config::core::v3::Node;

use super::AgentArgs;
use crate::bootstrap::XdsMode;

/// The bootstrap as JSON: Istio's names for the clusters, because the control plane's resources refer to them.
pub(super) fn json(args: &AgentArgs, node: &Node) -> anyhow::Result<Value> {
    let api_type = match args.control.xds_mode {
        XdsMode::Delta => "DELTA_GRPC",
        XdsMode::Sotw => "GRPC",
    };
    let ads = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    let xds = grpc("xds-grpc", &absolute(&args.xds_socket)?, 300);
    let sds = grpc("sds-grpc", &absolute(&args.sds_socket)?, 0);
    Ok(json!({
        "node": xds_protos::json::to_value(node),
        "admin": {"address": socket(args.admin_address)},
        "layered_runtime": {"layers": [{"name": "defaults", "static_layer": {
            "re2.max_program_size.error_level": 32768,
            "envoy.reloadable_features.http_reject_path_with_fragment": false,
        }}]},
        "dynamic_resources": {
            "lds_config": ads,
            "cds_config": ads,
            "ads_config": {
                "api_type": api_type,
                "set_node_on_first_message_only": true,
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
        },
        "static_resources": {
            "clusters": [
                xds,
                sds,
                tcp("agent", args.status_address),
                tcp("prometheus_stats", args.admin_address),
            ],
            "listeners": [
                page("ready", args.ready_address, "/healthz/ready", "agent"),
                page("prometheus", args.prometheus_address, "/stats/prometheus", "prometheus_stats"),
            ],
        },
    }))
}

/// Writes it in one step; `-` is standard output.
pub(super) fn write(path: &Path, bootstrap: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(bootstrap)? + "\n";
    if path == Path::new("-") {
        return Ok(std::io::stdout().write_all(text.as_bytes())?);
    }
    let partial = PathBuf::from(format!("{}.partial", path.display()));
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&partial, text))
        .and_then(|()| std::fs::rename(&partial, path));
    written.with_context(|| format!("cannot write the bootstrap {} (--bootstrap)", path.display()))
}

fn absolute(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path)?;
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn cluster(name: &str, address: &Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    })
}

fn tcp(name: &str, address: SocketAddr) -> Value {
    cluster(name, &socket(address))
}

/// A cluster of HTTP/2 over a UNIX socket; `keepalive` in seconds, if not 0.
fn grpc(name: &str, path: &str, keepalive: u32) -> Value {
    let mut cluster = cluster(name, &json!({"pipe": {"path": path}}));
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        },
    });
    if keepalive > 0 {
        cluster["upstream_connection_options"] = json!({"tcp_keepalive": {"keepalive_time": keepalive}});
        let limits = |priority: &str| {
            json!({
                "priority": priority,
                "max_connections": 100_000,
                "max_pending_requests": 100_000,
                "max_requests": 100_000,
            })
        };
        cluster["circuit_breakers"] = json!({"thresholds": [limits("DEFAULT"), limits("HIGH")]});
    }
    cluster
}

/// A listener that answers one path from a cluster.
fn page(name: &str, address: SocketAddr, path: &str, cluster: &str) -> Value {
    json!({
        "name": name,
        "address": socket(address),
        "bypass_overload_manager": true,
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": name,
                "route_config": {"virtual_hosts": [{
                    "name": name,
                    "domains": ["*"],
                    "routes": [{"match": {"path": path}, "route": {"cluster": cluster}}],
                }]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    },
                }],
            },
        }]}],
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use xds_protos::envoy::config::bootstrap::v3::Bootstrap;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        agent: AgentArgs,
    }

    #[test]
    fn the_bootstrap_is_one_that_names_sockets_node_and_variant() {
        let arguments =
            "agent --name u-1 --namespace shop --label app=user --ip 127.0.0.9 --xds-socket /run/weft/XDS";
        for (more, api_type) in [("", "DELTA_GRPC"), (" --xds-mode sotw", "GRPC")] {
            let line = format!("{arguments}{more}");
            let args = Cli::parse_from(line.split(' ')).agent;
            let node = args.node.foreign_node(&[]).unwrap();
            let written = json(&args, &node).unwrap();
            let read: Bootstrap = xds_protos::json::from_value(written.clone()).unwrap();
            let node = read.node.unwrap();
            assert_eq!(node.id, "sidecar~127.0.0.9~u-1.shop~shop.svc.cluster.local");
            let metadata = &node.metadata.as_ref().unwrap().fields;
            assert!(metadata.contains_key("INSTANCE_IPS") && !metadata.contains_key("WEFT_EXTENSIONS"));
            assert_eq!(written["dynamic_resources"]["ads_config"]["api_type"], api_type);
            let clusters = written["static_resources"]["clusters"].as_array().unwrap();
            let path = |name: &str| {
                let cluster = clusters.iter().find(|c| c["name"] == name).unwrap();
                let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
                endpoint["address"]["pipe"]["path"].as_str().unwrap().to_owned()
            };
            assert_eq!(path("xds-grpc"), "/run/weft/XDS");
            // A relative path would be looked up where Envoy starts.
            assert!(path("sds-grpc").starts_with('/'), "{}", path("sds-grpc"));
        }
    }
}
