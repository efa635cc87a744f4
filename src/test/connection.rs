//! What becomes of a case's connection: its listener and filter chain, and where these lead.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use weft_control::model::{Workload, World};
use weft_proxy::listen::decide::{Caller, Hello};
use weft_proxy::network::Terminal;

use super::proxy::{Proxy, SOMEWHERE, hello};
use super::{Case, cluster, request, tls};

/// What applications and gateways' clients offer where a case does not say.
const USUAL: [&str; 2] = ["h2", "http/1.1"];
/// What sidecars offer for the mesh's mutual TLS, for requests and for bytes.
const MESH_HTTP: [&str; 3] = ["istio-http/1.1", "istio", "http/1.1"];
const MESH_BYTES: [&str; 2] = ["istio-peer-exchange", "istio"];

/// How the case's connection begins TLS, if it does. `name`: the server name where the case gives none; `usual`: the protocols.
fn begun(case: &Case, secure: bool, name: Option<&str>, usual: &[&str]) -> Option<Hello> {
    if !secure && case.sni.is_none() && case.alpn.is_empty() {
        return None;
    }
    let given: Vec<&str> = case.alpn.iter().map(String::as_str).collect();
    // A client asks for names, not for addresses.
    let name = case.sni.as_deref().or(name).filter(|name| name.parse::<std::net::IpAddr>().is_err());
    Some(hello(name, if given.is_empty() { usual } else { &given }))
}

/// Where a connection goes that a workload's application makes, or that comes to a gateway.
pub(super) fn outwards(world: &World, proxy: &Proxy, case: &Case) -> anyhow::Result<Value> {
    let asked = case.asked()?;
    let (local, host) = if proxy.gateway {
        if case.connect.is_some() {
            bail!("connect is for a sidecar's application; a connection that comes to a gateway has a port");
        }
        let port = asked.map(|asked| asked.port).or(case.port);
        let port = port.context("request is missing (METHOD URL), or port for a connection without one")?;
        let address = proxy.node.address().parse().context("the gateway's address")?;
        (SocketAddr::new(address, port), asked.map(|asked| asked.host))
    } else {
        if case.port.is_some() {
            bail!("port is a proxy's own; what a sidecar's application dials is connect: HOST:PORT");
        }
        let (host, port) = match (&case.connect, asked) {
            (Some(connect), _) => {
                let (host, port) = connect.rsplit_once(':').context("connect: write HOST:PORT")?;
                (host, port.parse().with_context(|| format!("connect: port {port:?}"))?)
            }
            (None, Some(asked)) => (asked.host, asked.port),
            (None, None) => bail!("request is missing (METHOD URL), or connect: HOST:PORT"),
        };
        (SocketAddr::new(proxy.resolve(world, host)?, port), Some(host))
    };
    let secure = asked.is_some_and(|asked| asked.secure);
    let caller = Caller {
        remote: SocketAddr::new(SOMEWHERE, 40_000),
        local,
        hello: begun(case, secure, asked.map(|asked| asked.host).or(host), &USUAL),
    };
    told(proxy, &caller, case, false)
}

/// Where a connection goes that comes to a workload.
pub(super) fn inwards(
    world: &World,
    proxy: &Proxy,
    workload: &Workload,
    case: &Case,
) -> anyhow::Result<Value> {
    let address = workload.address().parse().context("the workload's address")?;
    let port = match case.port {
        Some(port) => port,
        None => match served(world, workload).as_slice() {
            [only] => *only,
            several => bail!("port is missing: the workload serves {several:?}"),
        },
    };
    let usual: &[&str] = match (&case.identity, &case.request) {
        (Some(_), Some(_)) => &MESH_HTTP,
        (Some(_), None) => &MESH_BYTES,
        (None, _) => &USUAL,
    };
    let caller = Caller {
        remote: SocketAddr::new(SOMEWHERE, 40_000),
        local: SocketAddr::new(address, port),
        hello: begun(case, case.identity.is_some(), None, usual),
    };
    told(proxy, &caller, case, true)
}

/// The workload's own ports.
fn served(world: &World, workload: &Workload) -> Vec<u16> {
    let of = |(service, endpoint): (&std::sync::Arc<weft_control::model::Service>, _)| {
        service.ports.iter().filter_map(|p| service.endpoint_port(p, endpoint)).collect::<Vec<_>>()
    };
    let mut ports: Vec<u16> = world.served_at(workload.address()).flat_map(|(s, e)| of((s, e))).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn told(proxy: &Proxy, caller: &Caller, case: &Case, inbound: bool) -> anyhow::Result<Value> {
    let secure = caller.hello.is_some();
    let Some(taken) = proxy.take(caller, inbound, case.request.is_some() && !secure)? else {
        let ports: Vec<_> = proxy.ports().iter().map(u16::to_string).collect();
        return Ok(json!({
            "dialled": caller.local.to_string(), "refused": "nothing listens there", "listeningAt": ports,
        }));
    };
    let mut found = json!({"dialled": caller.local.to_string(), "listener": taken.listener.name});
    let Some((chain, rendered)) = taken.chain else {
        found["refused"] = "no filter chain takes it".into();
        return Ok(found);
    };
    if !chain.name.is_empty() {
        found["chain"] = (*chain.name).into();
    }
    let ends = &rendered["transport_socket"];
    let http = matches!(chain.network.terminal, Terminal::Http(_));
    found["as"] = if http { "http" } else { "tcp" }.into();
    found["downstreamTls"] = tls::downstream(ends, secure);
    if !ends.is_null() && !secure {
        found["refused"] = "it takes TLS, and the connection is plain text".into();
        return Ok(found);
    }
    if ends.is_null() && secure && http {
        found["refused"] = "it takes requests in plain text, and the connection is TLS".into();
        return Ok(found);
    }
    let dialled = (!taken.listener.bound).then_some(caller.local);
    match &chain.network.terminal {
        Terminal::Tcp(config) => {
            let clusters = config.clusters();
            let share = |weight: u32| if clusters.len() == 1 { 100 } else { u64::from(weight) };
            let all = clusters
                .iter()
                .map(|(slot, weight)| cluster::destination(proxy, slot.name(), share(*weight), dialled));
            found["destinations"] = all.collect::<anyhow::Result<Vec<_>>>()?.into();
        }
        Terminal::Http(config) => {
            let routes = config.route_config();
            let hcm = &rendered["filters"]
                .as_array()
                .and_then(|filters| filters.last())
                .unwrap_or(&Value::Null)["typed_config"];
            let name = hcm["rds"]["route_config_name"].as_str();
            if let Some(name) = name {
                found["routes"] = name.into();
            }
            let (Some(routes), true) = (routes, case.request.is_some()) else { return Ok(found) };
            let written = match name {
                Some(name) => proxy.rendered(xds_protos::ResourceType::Route, name),
                None => Some(&hcm["route_config"]),
            };
            let way = request::Way {
                proxy,
                caller,
                dialled,
                secure,
                written: written.unwrap_or(&Value::Null),
                inbound,
            };
            request::route(&way, &routes, case, &mut found)?;
        }
    }
    Ok(found)
}
