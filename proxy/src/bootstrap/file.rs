//! An Envoy bootstrap file: node, admin, static resources, ADS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use xds_protos::ResourceType;
use xds_protos::envoy::config::bootstrap::v3::Bootstrap;
use xds_protos::envoy::config::cluster::v3::Cluster;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::config::core::v3::api_config_source::ApiType;
use xds_protos::prost::{Message, Name};

use super::args::ProxyArgs;
use super::{Ads, Start, StatsArgs};
use crate::admin::prometheus::Tags;
use crate::state::error::join;
use crate::state::fields;
use crate::xds::Variant;

pub(super) fn read(path: &Path, args: &ProxyArgs, concurrency: usize) -> anyhow::Result<Start> {
    let text = std::fs::read_to_string(path)?;
    // As in Envoy the name says what it is. Not all JSON is YAML: there are characters that only one of them allows.
    let bootstrap: Bootstrap = match path.extension().is_some_and(|e| e == "json") {
        true => xds_protos::json::from_value(serde_json::from_str(&text)?)?,
        false => xds_protos::json::from_yaml_str(&text)?,
    };
    let errors = fields::check(&Bootstrap::full_name(), &bootstrap.encode_to_vec());
    if !errors.is_empty() {
        bail!("{}", join(&errors));
    }
    let mut resources = Vec::new();
    let statics = bootstrap.static_resources.clone().unwrap_or_default();
    for (i, secret) in statics.secrets.iter().enumerate() {
        named(&secret.name, &format!("static_resources.secrets[{i}]"))?;
        resources.push((ResourceType::Secret, secret.name.clone(), secret.encode_to_vec().into()));
    }
    for (i, cluster) in statics.clusters.iter().enumerate() {
        named(&cluster.name, &format!("static_resources.clusters[{i}]"))?;
        resources.push((ResourceType::Cluster, cluster.name.clone(), cluster.encode_to_vec().into()));
    }
    for (i, listener) in statics.listeners.iter().enumerate() {
        // Envoy makes up a name for a static listener without one.
        let mut listener = listener.clone();
        if listener.name.is_empty() {
            listener.name = format!("static-listener-{i}");
        }
        resources.push((ResourceType::Listener, listener.name.clone(), listener.encode_to_vec().into()));
    }
    let admin = match bootstrap.admin.as_ref().and_then(|a| a.address.as_ref()) {
        Some(address) => Some(socket(address).context("admin.address")?),
        None => None,
    };
    let node = match &bootstrap.node {
        Some(node) => core::Node {
            user_agent_name: if node.user_agent_name.is_empty() {
                "weft".to_owned()
            } else {
                node.user_agent_name.clone()
            },
            ..node.clone()
        },
        None => args.node.node()?,
    };
    Ok(Start {
        node,
        concurrency,
        admin,
        status: None,
        prometheus: None,
        // Istio's bootstrap has an agent of its own at that port.
        agent: args.agent_port.map(|port| SocketAddr::new(args.probes_ip(), port)),
        metrics_tls: args.metrics_tls_port.map(|port| SocketAddr::new(args.probes_ip(), port)),
        pod: args.node.ip,
        resources,
        outlier_log: bootstrap
            .cluster_manager
            .as_ref()
            .and_then(|c| c.outlier_detection.as_ref())
            .map(|o| o.event_log_path.as_str().into())
            .filter(|path: &std::path::PathBuf| !path.as_os_str().is_empty()),
        ads: ads(&bootstrap)?,
        sds: sds(&bootstrap),
        identity: None,
        ending: args.ending.read()?,
        state_dir: args.control.state_dir.clone(),
        state_key: args.state_key.clone(),
        listener_drain: args.listener_drain_time,
        recheck: !args.no_recheck,
        shed: !args.no_shedding,
        // A bootstrap of one's own stands in Envoy's place; its statistics are Envoy's.
        stats: StatsArgs { stat_tags: args.stats.stat_tags.or(Some(Tags::Envoy)), ..args.stats.clone() },
        record: args.record.clone(),
        file: Some(Box::new(bootstrap)),
    })
}

fn named(name: &str, path: &str) -> anyhow::Result<()> {
    if name.is_empty() {
        bail!("{path}.name: is required");
    }
    Ok(())
}

fn socket(address: &core::Address) -> anyhow::Result<SocketAddr> {
    let Some(core::address::Address::SocketAddress(socket)) = &address.address else {
        bail!("only socket addresses are supported");
    };
    let Some(core::socket_address::PortSpecifier::PortValue(port)) = &socket.port_specifier else {
        bail!("socket_address.port_value: is required");
    };
    let ip =
        socket.address.parse().with_context(|| format!("socket_address.address: {:?}", socket.address))?;
    Ok(SocketAddr::new(ip, u16::try_from(*port).context("socket_address.port_value")?))
}

/// The control plane: a static cluster that dynamic_resources.ads_config names.
fn ads(bootstrap: &Bootstrap) -> anyhow::Result<Option<Ads>> {
    let Some(config) = bootstrap.dynamic_resources.as_ref().and_then(|d| d.ads_config.as_ref()) else {
        return Ok(None);
    };
    let variant = match ApiType::try_from(config.api_type) {
        Ok(ApiType::Grpc) => Variant::StateOfTheWorld,
        Ok(ApiType::DeltaGrpc) => Variant::Delta,
        _ => bail!("dynamic_resources.ads_config.api_type: must be GRPC or DELTA_GRPC"),
    };
    let service = config.grpc_services.first();
    let service = service.context("dynamic_resources.ads_config.grpc_services: has no service")?;
    let name = match &service.target_specifier {
        Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy)) => &envoy.cluster_name,
        _ => bail!("dynamic_resources.ads_config.grpc_services[0].envoy_grpc: is required"),
    };
    let clusters = bootstrap.static_resources.iter().flat_map(|s| &s.clusters);
    let cluster = clusters.into_iter().find(|c| c.name == *name).with_context(|| {
        format!(
            "dynamic_resources.ads_config names the cluster {name:?}, which static_resources does not have"
        )
    })?;
    let headers = metadata(&service.initial_metadata)?;
    Ok(Some(Ads { variant, headers, ..server(cluster)? }))
}

/// The static clusters that can be asked for secrets, which are all those with a single address.
fn sds(bootstrap: &Bootstrap) -> Vec<(String, Ads)> {
    let clusters = bootstrap.static_resources.iter().flat_map(|s| &s.clusters);
    clusters.filter_map(|c| Some((c.name.clone(), server(c).ok()?))).collect()
}

/// How a static cluster is connected to by this proxy itself.
fn server(cluster: &Cluster) -> anyhow::Result<Ads> {
    let name = &cluster.name;
    let (roots, server_name) = match &cluster.transport_socket {
        None => (None, None),
        Some(socket) => tls(socket).with_context(|| format!("cluster {name}: transport_socket"))?,
    };
    let endpoints = cluster.load_assignment.iter().flat_map(|a| &a.endpoints).flat_map(|l| &l.lb_endpoints);
    let address = endpoints.into_iter().find_map(|e| match &e.host_identifier {
        Some(xds_protos::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier::Endpoint(e)) => {
            e.address.as_ref()
        }
        _ => None,
    });
    let address = address.with_context(|| format!("cluster {name} has no endpoint"))?;
    let address = match &address.address {
        Some(core::address::Address::SocketAddress(socket)) => match &socket.port_specifier {
            Some(core::socket_address::PortSpecifier::PortValue(port)) => {
                format!("{}:{port}", socket.address)
            }
            _ => bail!("cluster {name}: the endpoint has no port"),
        },
        Some(core::address::Address::Pipe(pipe)) => format!("unix:{}", pipe.path),
        _ => bail!("cluster {name}: this kind of address is not supported"),
    };
    Ok(Ads {
        address,
        variant: Variant::StateOfTheWorld,
        roots,
        server_name,
        token: None,
        headers: Vec::new(),
    })
}

/// The roots' file and the server's name of a TLS transport socket.
fn tls(socket: &core::TransportSocket) -> anyhow::Result<(Option<PathBuf>, Option<String>)> {
    use xds_protos::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
    use xds_protos::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
    use xds_protos::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        bail!("typed_config: is required");
    };
    if any.is::<RawBuffer>() {
        return Ok((None, None));
    }
    let context: UpstreamTlsContext = any.unpack().context("typed_config")?;
    let common = context.common_tls_context.unwrap_or_default();
    if !common.tls_certificates.is_empty() || !common.tls_certificate_sds_secret_configs.is_empty() {
        bail!("a client certificate for the control plane is not supported; use a token in initial_metadata");
    }
    let Some(ValidationContextType::ValidationContext(rules)) = &common.validation_context_type else {
        bail!("common_tls_context.validation_context: is required, with trusted_ca");
    };
    let Some(core::data_source::Specifier::Filename(roots)) =
        rules.trusted_ca.as_ref().and_then(|ca| ca.specifier.as_ref())
    else {
        bail!("common_tls_context.validation_context.trusted_ca.filename: is required");
    };
    let name = (!context.sni.is_empty()).then_some(context.sni);
    Ok((Some(roots.into()), name))
}

/// Metadata as name and value; what cannot be sent is found out here, not at the first stream.
fn metadata(fields: &[core::HeaderValue]) -> anyhow::Result<Vec<(String, String)>> {
    let path = |i: usize| format!("dynamic_resources.ads_config.grpc_services[0].initial_metadata[{i}]");
    let one = |(i, field): (usize, &core::HeaderValue)| {
        let name = http::HeaderName::from_bytes(field.key.as_bytes())
            .with_context(|| format!("{}.key: {:?} is no name of a header field", path(i), field.key))?;
        if name.as_str().ends_with("-bin") {
            bail!("{}: binary metadata is not supported", path(i));
        }
        let value = if field.raw_value.is_empty() { field.value.as_bytes() } else { &field.raw_value[..] };
        let value =
            http::HeaderValue::from_bytes(value).ok().and_then(|v| v.to_str().ok().map(str::to_owned));
        let value = value.with_context(|| format!("{}: the value is not visible ASCII", path(i)))?;
        Ok((name.as_str().to_owned(), value))
    };
    fields.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(key: &str, value: &str) -> core::HeaderValue {
        core::HeaderValue { key: key.into(), value: value.into(), ..core::HeaderValue::default() }
    }

    #[test]
    fn metadata_goes_with_the_stream_and_what_cannot_be_sent_is_refused_by_its_place() {
        let taken = metadata(&[field("ClusterID", "one"), field("authorization", "Bearer x")]).unwrap();
        assert_eq!(taken, [("clusterid".into(), "one".into()), ("authorization".into(), "Bearer x".into())]);
        for (bad, words) in [
            (field("two words", "x"), "initial_metadata[1].key: \"two words\""),
            (field("key-bin", "x"), "initial_metadata[1]: binary"),
            (field("key", "a\nb"), "initial_metadata[1]: the value"),
        ] {
            let error = format!("{:#}", metadata(&[field("good", "x"), bad]).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
