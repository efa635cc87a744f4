//! What our control plane renders for a workload, as one bootstrap: routes and endpoints in their places, certificates of the
//! test in the place of secrets, and the PROXY protocol in the place of the kernel's redirection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use serde_json::{Value, json};
use weft_control::model::{Workload, World};
use weft_control::render::{Memo, render};
use xds_protos::ResourceType;

use super::played_at;

/// The port at which sidecars take requests as an HTTP proxy, on a loopback address that several share here.
const HTTP_PROXY: u64 = 15080;

/// An authority that everybody trusts, and what it signed.
#[derive(Clone)]
pub struct Pki(Arc<Inner>);

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    /// By their names: certificate and key.
    signed: Mutex<BTreeMap<Vec<String>, Signed>>,
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Signed {
    pub certificate: String,
    pub key: String,
}

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        // Not the name that all others have: a certificate of its issuer's name counts as signed by itself.
        params.distinguished_name.push(DnType::CommonName, "authority of the cases");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().pem();
        Self(Arc::new(Inner { issuer: Issuer::new(params, key), root, signed: Mutex::default() }))
    }

    /// A certificate of these names, URIs or host names.
    pub fn of(&self, names: &[String]) -> Signed {
        let mut signed = self.0.signed.lock().unwrap();
        let made = || {
            let mut params = CertificateParams::default();
            params.subject_alt_names = names
                .iter()
                .map(|name| match name.contains("://") {
                    true => SanType::URI(name.as_str().try_into().unwrap()),
                    false => SanType::DnsName(name.as_str().try_into().unwrap()),
                })
                .collect();
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.0.issuer).unwrap();
            Signed { certificate: certificate.pem(), key: key.serialize_pem() }
        };
        signed.entry(names.to_vec()).or_insert_with(made).clone()
    }
}

/// The host name in the certificate that stands for a secret.
fn stand_in(secret: &str) -> String {
    let plain: String = secret.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{plain}.secret.test")
}

/// Whether a certificate is the one that stands for the secret.
pub fn carries(der: &[u8], secret: &str) -> bool {
    let name = stand_in(secret);
    der.windows(name.len()).any(|window| window == name.as_bytes())
}

/// The bootstrap of an Envoy that stands beside the workload.
pub fn bootstrap(world: &World, workload: &Workload, pki: &Pki, admin: SocketAddr) -> Value {
    let mut node = weft::test::node(workload);
    node.extensions = false;
    let resources = render(world, &node, false, &Memo::default());
    let of = |kind: ResourceType| -> BTreeMap<String, Value> {
        let name = xds_protos::type_url::name(kind.type_url());
        let all = resources.get(&kind).into_iter().flatten();
        all.map(|(key, r)| (key.to_string(), xds_protos::json::bytes_to_value(name, &r.bytes))).collect()
    };
    let (routes, assignments) = (of(ResourceType::Route), of(ResourceType::Endpoint));
    let own = format!(
        "spiffe://{}/ns/{}/sa/{}",
        world.mesh().trust_domain,
        workload.meta.namespace,
        workload.service_account()
    );
    let mut listeners: Vec<Value> = of(ResourceType::Listener).into_values().collect();
    listeners.retain(|listener| listener["address"]["socket_address"]["port_value"] != HTTP_PROXY);
    for listener in &mut listeners {
        here(listener, workload);
        inline_routes(listener, &routes);
        with_certificates(listener, pki, &own);
    }
    let mut clusters: Vec<Value> = of(ResourceType::Cluster).into_values().collect();
    for cluster in &mut clusters {
        with_endpoints(cluster, &assignments);
        with_certificates(cluster, pki, &own);
    }
    json!({
        "node": {"id": node.id, "cluster": "cases"},
        "admin": {"address": {"socket_address": {"address": admin.ip().to_string(), "port_value": admin.port()}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

/// Listens at the workload's own address, where it would at every address; what is captured says where it was going.
fn here(listener: &mut Value, workload: &Workload) {
    let captured = ["virtualOutbound", "virtualInbound"].iter().any(|name| listener["name"] == *name);
    let binds = listener["bind_to_port"] != false;
    let address = &mut listener["address"]["socket_address"]["address"];
    if binds && *address == "0.0.0.0" {
        *address = workload.address().into();
    }
    if !captured {
        return;
    }
    let said = json!({"name": "envoy.filters.listener.proxy_protocol", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"}});
    let filters = listener["listener_filters"].as_array().cloned().unwrap_or_default();
    let others = filters.into_iter().filter(|f| f["name"] != "envoy.filters.listener.original_dst");
    listener["listener_filters"] = std::iter::once(said).chain(others).collect();
}

fn inline_routes(value: &mut Value, routes: &BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            if let Some(rds) = fields.remove("rds") {
                let name = rds["route_config_name"].as_str().unwrap();
                let empty = || json!({"name": name});
                fields.insert("route_config".to_owned(), routes.get(name).cloned().unwrap_or_else(empty));
            }
            fields.values_mut().for_each(|field| inline_routes(field, routes));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| inline_routes(item, routes)),
        _ => {}
    }
}

/// Endpoints stand in the cluster; names are addresses at which they are played.
fn with_endpoints(cluster: &mut Value, assignments: &BTreeMap<String, Value>) {
    let kind = cluster["type"].as_str().unwrap_or("STATIC").to_owned();
    let fields = cluster.as_object_mut().unwrap();
    if kind == "EDS" {
        let name = fields.remove("eds_cluster_config").unwrap()["service_name"].as_str().unwrap().to_owned();
        fields.insert("load_assignment".to_owned(), assignments[&name].clone());
    }
    if kind != "ORIGINAL_DST" {
        fields.insert("type".to_owned(), "STATIC".into());
    }
    for key in ["dns_refresh_rate", "respect_dns_ttl", "dns_lookup_family"] {
        fields.remove(key);
    }
    let groups = fields.get_mut("load_assignment").and_then(|a| a["endpoints"].as_array_mut());
    for group in groups.into_iter().flatten() {
        for endpoint in group["lb_endpoints"].as_array_mut().into_iter().flatten() {
            let socket = &mut endpoint["endpoint"]["address"]["socket_address"];
            let Some(host) = socket["address"].as_str() else { continue };
            let played = played_at(&format!("{host}:{}", socket["port_value"])).unwrap();
            socket["address"] = played.ip().to_string().into();
        }
    }
}

fn with_certificates(value: &mut Value, pki: &Pki, own: &str) {
    match value {
        Value::Object(fields) => {
            if let Some(common) = fields.get_mut("common_tls_context").and_then(Value::as_object_mut) {
                let sds = common.remove("tls_certificate_sds_secret_configs");
                let files = common.remove("tls_certificates");
                let names: Vec<String> = match (&sds, &files) {
                    (Some(list), _) => {
                        let all = list.as_array().into_iter().flatten();
                        all.filter_map(|s| s["name"].as_str().map(str::to_owned)).collect()
                    }
                    (None, Some(list)) => {
                        let all = list.as_array().into_iter().flatten();
                        all.filter_map(|c| c["certificate_chain"]["filename"].as_str().map(str::to_owned))
                            .collect()
                    }
                    (None, None) => Vec::new(),
                };
                let pairs: Vec<Value> = names
                    .iter()
                    .map(|name| {
                        let name = if name == "default" { own.to_owned() } else { stand_in(name) };
                        let signed = pki.of(&[name]);
                        json!({"certificate_chain": {"inline_string": signed.certificate},
                               "private_key": {"inline_string": signed.key}})
                    })
                    .collect();
                if !pairs.is_empty() {
                    common.insert("tls_certificates".to_owned(), pairs.into());
                }
                let rules = match common.remove("combined_validation_context") {
                    Some(mut combined) => Some(combined["default_validation_context"].take()),
                    None => common.remove("validation_context"),
                };
                if let Some(rules) = rules {
                    let mut rules = if rules.is_null() { json!({}) } else { rules };
                    rules["trusted_ca"] = json!({"inline_string": pki.0.root});
                    common.insert("validation_context".to_owned(), rules);
                }
            }
            fields.values_mut().for_each(|field| with_certificates(field, pki, own));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| with_certificates(item, pki, own)),
        _ => {}
    }
}
