//! Destinations in words: a cluster by its parts, its endpoints, and how each of them is spoken to.

use std::net::SocketAddr;

use serde_json::{Value, json};
use weft_proxy::cluster::endpoint::Metadata;
use weft_proxy::cluster::{ClusterConfig, Discovery, HttpMode};
use xds_protos::ResourceType;
use xds_protos::envoy::config::cluster::v3::Cluster;
use xds_protos::envoy::config::core::v3::{address, socket_address};
use xds_protos::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, lb_endpoint};

use super::proxy::{Proxy, leave_files_alone};
use super::tls;

/// What istiod writes for "no limit".
const UNLIMITED: u64 = u32::MAX as u64;

/// A cluster by its parts, as Istio names them: `outbound|PORT|SUBSET|HOST`, or `outbound_.PORT_.SUBSET_.HOST`, which is a server name
/// as well.
pub(super) fn name(cluster: &str) -> Value {
    let by_name = cluster.strip_prefix("outbound_.").map(|rest| rest.splitn(3, "_.").collect::<Vec<_>>());
    if let Some([port, subset, host]) = by_name.as_deref() {
        return json!({"host": host, "subset": subset, "port": port.parse::<u16>().ok(), "byServerName": true});
    }
    match cluster.split('|').collect::<Vec<_>>().as_slice() {
        ["outbound", port, subset, host] => json!({
            "host": host, "subset": subset, "port": port.parse::<u16>().ok(),
        }),
        _ => json!({"cluster": cluster}),
    }
}

/// The cluster and its endpoints. `dialled`: where the client wanted to go, if that is known.
pub(super) fn destination(
    proxy: &Proxy,
    cluster: &str,
    weight: u64,
    dialled: Option<SocketAddr>,
) -> anyhow::Result<Value> {
    let mut found = name(cluster);
    found["weight"] = weight.into();
    let Some(rendered) = proxy.rendered(ResourceType::Cluster, cluster) else {
        // As in Envoy: 503, or the connection is closed.
        found["missing"] = true.into();
        return Ok(found);
    };
    let mut bare = rendered.clone();
    leave_files_alone(&mut bare);
    let proto: Cluster = xds_protos::json::from_value(bare)?;
    let compiled = ClusterConfig::compile(&proto, &proxy.context()).map_err(|errors| {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the proxy does not take its cluster {cluster}: {}", errors.join("; "))
    })?;
    let assignment: Option<ClusterLoadAssignment> = match &compiled.discovery {
        Discovery::Eds(name) => match proxy.rendered(ResourceType::Endpoint, name) {
            Some(value) => Some(xds_protos::json::from_value(value.clone())?),
            None => None,
        },
        Discovery::OriginalDst => None,
        _ => proto.load_assignment.clone(),
    };
    let mut endpoints = Vec::new();
    if let (Discovery::OriginalDst, Some(dialled)) = (&compiled.discovery, dialled) {
        let transport = transport(rendered, compiled.transport_for(None));
        endpoints.push(json!({"address": dialled.to_string(), "tls": tls::mode(transport)}));
    }
    for group in assignment.iter().flat_map(|a| &a.endpoints) {
        for endpoint in &group.lb_endpoints {
            let Some(mut told) = told(endpoint) else { continue };
            let metadata = endpoint.metadata.clone().and_then(|m| Metadata::new(m.filter_metadata));
            let transport = transport(rendered, compiled.transport_for(metadata.as_deref()));
            told["tls"] = tls::mode(transport).into();
            told["priority"] = group.priority.into();
            let place = group.locality.clone().unwrap_or_default();
            let place = [place.region, place.zone, place.sub_zone].join("/");
            if place.len() > 2 {
                told["locality"] = place.trim_end_matches('/').into();
                told["localityWeight"] = group.load_balancing_weight.into();
            }
            endpoints.push(told);
        }
    }
    endpoints.sort_by_key(|e| (e["priority"].as_u64(), e["address"].to_string()));
    found["endpoints"] = endpoints.into();
    found["tls"] = tls::upstream(rendered);
    policy(rendered, &compiled, &mut found);
    Ok(found)
}

/// The transport socket of this place among a cluster's.
fn transport(cluster: &Value, index: usize) -> &Value {
    let of_match = &cluster["transport_socket_matches"][index]["transport_socket"];
    if of_match.is_null() { &cluster["transport_socket"] } else { of_match }
}

fn told(endpoint: &LbEndpoint) -> Option<Value> {
    let Some(lb_endpoint::HostIdentifier::Endpoint(inner)) = &endpoint.host_identifier else { return None };
    let address = match inner.address.as_ref()?.address.as_ref()? {
        address::Address::SocketAddress(socket) => {
            let port = match socket.port_specifier {
                Some(socket_address::PortSpecifier::PortValue(port)) => port,
                _ => 0,
            };
            match socket.address.contains(':') {
                true => format!("[{}]:{port}", socket.address),
                false => format!("{}:{port}", socket.address),
            }
        }
        address::Address::Pipe(pipe) => format!("unix://{}", pipe.path),
        _ => return None,
    };
    let mut told = json!({"address": address});
    if let Some(weight) = endpoint.load_balancing_weight.filter(|weight| *weight != 1) {
        told["weight"] = weight.into();
    }
    if endpoint.health_status != 0 {
        told["health"] = endpoint.health_status().as_str_name().into();
    }
    Some(told)
}

/// What the cluster's DestinationRule makes of it.
fn policy(rendered: &Value, compiled: &ClusterConfig, found: &mut Value) {
    found["discovery"] = rendered["type"].as_str().unwrap_or("STATIC").into();
    found["balancer"] = rendered["lb_policy"].as_str().unwrap_or("ROUND_ROBIN").into();
    found["connectTimeout"] = super::request::time(compiled.connect_timeout).into();
    found["http"] = match compiled.http {
        HttpMode::Http1 => "HTTP/1.1",
        HttpMode::Http2 => "HTTP/2",
        HttpMode::Downstream => "as the client",
        HttpMode::Auto => "by ALPN",
    }
    .into();
    let threshold = &rendered["circuit_breakers"]["thresholds"][0];
    let mut limits = json!({});
    for (key, field) in [
        ("connections", "max_connections"),
        ("pendingRequests", "max_pending_requests"),
        ("requests", "max_requests"),
        ("retries", "max_retries"),
    ] {
        if let Some(limit) = threshold[field].as_u64().filter(|limit| *limit != UNLIMITED) {
            limits[key] = limit.into();
        }
    }
    found["limits"] = limits;
    let outlier = &rendered["outlier_detection"];
    if !outlier.is_null() {
        let mut told = json!({});
        for (key, field) in [
            ("consecutive5xxErrors", "consecutive_5xx"),
            ("consecutiveGatewayErrors", "consecutive_gateway_failure"),
            ("interval", "interval"),
            ("baseEjectionTime", "base_ejection_time"),
            ("maxEjectionPercent", "max_ejection_percent"),
        ] {
            if !outlier[field].is_null() {
                told[key] = outlier[field].clone();
            }
        }
        found["outlierDetection"] = told;
    }
    if let Some(idle) = compiled.idle_timeout {
        found["idleTimeout"] = super::request::time(idle).into();
    }
    if let Some(most) = compiled.max_requests {
        found["requestsPerConnection"] = most.into();
    }
}
