//! `/config_dump`: every resource as it came, in Envoy's shape. Private keys are never shown.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;

use crate::state::{Dumped, Engine};

fn section(kind: ResourceType) -> Option<(&'static str, &'static str, &'static str, &'static str)> {
    // The dump's type, its list for static and for dynamic resources, and the field of the resource itself.
    Some(match kind {
        ResourceType::Cluster => {
            ("ClustersConfigDump", "static_clusters", "dynamic_active_clusters", "cluster")
        }
        ResourceType::Listener => {
            ("ListenersConfigDump", "static_listeners", "dynamic_listeners", "listener")
        }
        ResourceType::Route => {
            ("RoutesConfigDump", "static_route_configs", "dynamic_route_configs", "route_config")
        }
        ResourceType::Endpoint => {
            ("EndpointsConfigDump", "static_endpoint_configs", "dynamic_endpoint_configs", "endpoint_config")
        }
        ResourceType::Secret => ("SecretsConfigDump", "static_secrets", "dynamic_active_secrets", "secret"),
        // Names are not of Envoy: /dns shows them.
        ResourceType::Extension | ResourceType::Names => return None,
    })
}

pub(super) fn dump(
    engine: &Engine,
    node: &Node,
    parameters: &BTreeMap<String, String>,
) -> Result<Value, String> {
    let only = parameters.get("resource");
    let names = parameters.get("name_regex").map(|r| Regex::new(r)).transpose();
    let names = names.map_err(|e| format!("name_regex: {e}"))?;
    let all = engine.dump();
    let kinds = [
        ResourceType::Cluster,
        ResourceType::Endpoint,
        ResourceType::Listener,
        ResourceType::Route,
        ResourceType::Secret,
    ];
    let mut configs = Vec::new();
    if only.is_none() {
        let node = xds_protos::json::to_value(node);
        configs.push(json!({
            "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"node": node},
        }));
    }
    let mut found = only.is_none();
    for (message, statics, dynamics, field) in kinds.into_iter().filter_map(section) {
        let of_kind = |d: &&Dumped| section(d.kind).is_some_and(|s| s.0 == message);
        let wanted = |d: &&Dumped| names.as_ref().is_none_or(|n| n.is_match(&d.name));
        let mut lists: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for dumped in all.iter().filter(of_kind).filter(wanted) {
            let list = if dumped.is_static { statics } else { dynamics };
            lists.entry(list).or_default().push(entry(dumped, field));
        }
        if let Some(only) = only {
            if only == statics || only == dynamics {
                found = true;
                configs.extend(lists.remove(only.as_str()).unwrap_or_default());
            }
            continue;
        }
        let mut dump = json!({"@type": format!("type.googleapis.com/envoy.admin.v3.{message}")});
        for (list, entries) in lists {
            dump[list] = entries.into();
        }
        configs.push(dump);
    }
    if !found {
        let lists: Vec<_> = kinds.into_iter().filter_map(section).flat_map(|s| [s.1, s.2]).collect();
        return Err(format!("resource: there is none of that name; there are {}", lists.join(", ")));
    }
    Ok(json!({"configs": configs}))
}

fn entry(dumped: &Dumped, field: &str) -> Value {
    let name = dumped.kind.type_url().rsplit('/').next().unwrap_or_default();
    let resource = xds_protos::json::bytes_to_value(name, &dumped.bytes);
    let updated = OffsetDateTime::from(dumped.updated).format(&Rfc3339).unwrap_or_default();
    let mut inner = json!({"version_info": dumped.version, "last_updated": updated, field: resource});
    if let Some(refused) = &dumped.refused {
        inner["error_state"] = json!({"details": refused});
    }
    if dumped.warming {
        inner["client_status"] = "REQUESTED".into();
    }
    if field == "listener" && !dumped.is_static {
        return json!({"name": dumped.name, "active_state": inner});
    }
    if field == "secret" {
        inner["name"] = dumped.name.clone().into();
    }
    inner
}
