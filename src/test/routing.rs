//! Cases with `from`: which way a request takes out of a workload, or through a gateway.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};
use weft_control::model::{Workload, World};
use weft_control::render::{Interception, Memo, ProxyKind, render};
use weft_proxy::codec::{RequestHead, h1};
use weft_proxy::route::action::{Action, ClusterName, Forward, HostRewrite, Target};
use weft_proxy::route::matching::PathMatch;
use weft_proxy::route::redirect::Redirect;
use weft_proxy::route::rewrite::rewrite_path;
use weft_proxy::route::{Asked, Matched, RouteConfig};
use weft_proxy::state::{CompileContext, NodeInfo, Role, Tables};
use xds_protos::ResourceType;
use xds_protos::envoy::config::route::v3::RouteConfiguration;

use super::Case;

/// A proxy, as far as it decides where requests go.
pub(super) struct Router {
    gateway: bool,
    routes: BTreeMap<String, Arc<RouteConfig>>,
}

impl Router {
    /// The proxy of a workload: a sidecar in a pod whose connections the kernel redirects, or a gateway.
    pub(super) fn new(world: &World, workload: &Workload) -> anyhow::Result<Self> {
        let mut node = crate::up::plan::node(workload, workload.meta.name.clone());
        let gateway = node.kind == ProxyKind::Router;
        if !gateway {
            node.interception = Interception::Redirect;
        }
        let resources = render(world, &node, false, &Memo::default());
        let role = if gateway { Role::Gateway } else { Role::Sidecar };
        let info = Arc::new(NodeInfo { id: node.id.clone(), role, ..NodeInfo::default() });
        let mut routes = BTreeMap::new();
        for (name, resource) in resources.get(&ResourceType::Route).into_iter().flatten() {
            let kind = xds_protos::type_url::name(ResourceType::Route.type_url());
            let value = xds_protos::json::bytes_to_value(kind, &resource.bytes);
            let proto: RouteConfiguration = xds_protos::json::from_value(value)?;
            let context = CompileContext::new(&Tables::default(), info.clone(), SystemTime::now());
            let compiled = RouteConfig::compile(&proto, &context).map_err(|errors| {
                let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
                anyhow::anyhow!(
                    "the proxy does not take its route configuration {name}: {}",
                    errors.join("; ")
                )
            })?;
            routes.insert(name.to_string(), Arc::new(compiled));
        }
        Ok(Self { gateway, routes })
    }

    /// What becomes of a case's request.
    pub(super) fn route(&self, case: &Case) -> anyhow::Result<Value> {
        let (method, url) = case.request()?.context("request is missing: write METHOD URL")?;
        let (scheme, rest) = url
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
            .with_context(|| format!("request: {url:?} is no URL; write http://HOST:PORT/path"))?;
        let secure = scheme == "https";
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let port = match authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            Some((_, port)) => port.parse().with_context(|| format!("request: port {port:?} of {url:?}"))?,
            None if secure => 443,
            None => 80,
        };
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {authority}\r\n");
        for (name, value) in &case.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        let head = h1::read_head(text.as_bytes(), &h1::H1Options::default(), secure)
            .map_err(|(status, why)| anyhow::anyhow!("request: it cannot be read ({status}, {why})"))?;
        // The middle of what chance could say.
        let asked = Asked { secure, random: u64::MAX / 2, ..Asked::new(&head) };
        let mut last = None;
        for config in self.at(port, secure)? {
            match Matched::find(config, &asked) {
                Ok(matched) => return Ok(told(&matched, &head)),
                Err(true) => {
                    let redirect = Redirect::to_https(&head);
                    let location = redirect.location(
                        &head,
                        &PathMatch::Prefix(b"/".as_slice().into()),
                        scheme.as_bytes(),
                    );
                    return Ok(json!({"status": 301, "location": lossy(&location)}));
                }
                Err(false) => last = Some(json!({"status": 404, "why": "no virtual host or route takes it"})),
            }
        }
        last.context("no route configuration")
    }

    /// The route configurations at a port, most of the time one. A gateway has one for each TLS server.
    fn at(&self, port: u16, secure: bool) -> anyhow::Result<Vec<&Arc<RouteConfig>>> {
        let is = |name: &str| match (self.gateway, secure) {
            (false, false) => name == port.to_string(),
            // What a workload sends by TLS of its own has no routes for requests.
            (false, true) => false,
            (true, false) => name == format!("http.{port}"),
            (true, true) => name.starts_with(&format!("https.{port}.")),
        };
        let found: Vec<_> =
            self.routes.iter().filter(|(name, _)| is(name)).map(|(_, config)| config).collect();
        if found.is_empty() {
            let known: Vec<_> = self.routes.keys().map(String::as_str).collect();
            let why = match (self.gateway, secure) {
                (false, true) => "TLS that the application makes itself is not routed by requests",
                (false, false) => "it goes as bytes, to where it was sent",
                (true, _) => "nothing listens there (it is the gateway's own port, not its Service's)",
            };
            bail!("no routes at port {port}: {why}; there are routes {}", known.join(", "));
        }
        Ok(found)
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A length of time in one unit, so that it can be compared.
fn time(duration: Duration) -> String {
    match (duration.is_zero(), duration.subsec_nanos()) {
        (true, _) => "none".to_owned(),
        (_, 0) => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

fn told(matched: &Matched, head: &RequestHead) -> Value {
    let route = matched.route();
    let mut found = json!({"virtualHost": &*matched.virtual_host().name, "route": &*route.name});
    let Value::Object(fields) = &mut found else { return found };
    match &route.action {
        Action::Forward(forward) => forwarded(forward, matched, head, fields),
        Action::Redirect(redirect) => {
            let proto = head.scheme.to_vec();
            fields.insert("status".into(), redirect.status.as_u16().into());
            let location = redirect.location(head, &route.matching.path, &proto);
            fields.insert("location".into(), lossy(&location).into());
        }
        Action::Direct(direct) => {
            fields.insert("status".into(), direct.status.as_u16().into());
            fields.insert("body".into(), lossy(&direct.body).into());
        }
    }
    found
}

fn forwarded(forward: &Forward, matched: &Matched, head: &RequestHead, fields: &mut Map<String, Value>) {
    let of = |name: &ClusterName, weight: u64| match name {
        ClusterName::Slot(slot) => destination(slot.name(), weight),
        ClusterName::Header(header, _) => json!({"clusterHeader": header.to_string(), "weight": weight}),
    };
    let destinations: Vec<Value> = match &forward.target {
        Target::Cluster(slot) => vec![destination(slot.name(), 100)],
        Target::Weighted { clusters, .. } => {
            clusters.iter().map(|c| of(&c.cluster, c.weight.into())).collect()
        }
        Target::Header(header, _) => vec![json!({"clusterHeader": header.to_string(), "weight": 100})],
    };
    fields.insert("destinations".into(), destinations.into());
    fields.insert("timeout".into(), time(forward.timeout).into());
    if let Some(retry) = &forward.retry {
        let retries = json!({"attempts": retry.retries, "perTryTimeout": time(retry.per_try_timeout)});
        fields.insert("retries".into(), retries);
    }
    let path = rewrite_path(&forward.path_rewrite, &matched.route().matching.path, &head.path);
    fields.insert("path".into(), lossy(path.as_deref().unwrap_or(&head.path)).into());
    let host = match &forward.host_rewrite {
        HostRewrite::Literal(host) => lossy(host),
        _ => lossy(&head.authority),
    };
    fields.insert("host".into(), host.into());
    if !forward.mirrors.is_empty() {
        let mirrors: Vec<Value> = forward.mirrors.iter().map(|mirror| of(&mirror.cluster, 100)).collect();
        fields.insert("mirrors".into(), mirrors.into());
    }
}

/// A cluster by its parts, as Istio names them: `outbound|PORT|SUBSET|HOST`.
fn destination(cluster: &str, weight: u64) -> Value {
    match cluster.split('|').collect::<Vec<_>>().as_slice() {
        ["outbound", port, subset, host] => json!({
            "host": host, "subset": subset, "port": port.parse::<u16>().ok(), "weight": weight,
        }),
        _ => json!({"cluster": cluster, "weight": weight}),
    }
}
