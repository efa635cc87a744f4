//! IPDenyLists as the first filters of a gateway's chains: whoever is on a list gets no byte of an answer.
//!
//! The lists are long. They are put into the encoded listener, for as JSON they would be many times their size.

use std::sync::Arc;

use bytes::Bytes;
use xds_protos::Any;
use xds_protos::envoy::config::core::v3::CidrRange;
use xds_protos::envoy::config::listener::v3::{Filter, Listener, filter};
use xds_protos::envoy::config::rbac::v3::principal::Identifier;
use xds_protos::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac, permission, rbac};
use xds_protos::envoy::extensions::filters::network::rbac::v3 as network;
use xds_protos::prost::Message;

use crate::model::{AddressSet, IpDenyList, Object};

const TYPE: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";

/// The listener with these lists before everything else.
pub(super) fn before(
    lists: &[(&Arc<Object<IpDenyList>>, &Arc<AddressSet>)],
    listener: Bytes,
) -> Option<Bytes> {
    let filters: Vec<Filter> =
        lists.iter().filter(|(_, set)| !set.nets().is_empty()).map(|(list, set)| filter(list, set)).collect();
    if filters.is_empty() {
        return Some(listener);
    }
    let mut message = match Listener::decode(listener) {
        Ok(message) => message,
        Err(error) => {
            tracing::error!(%error, "a rendered listener cannot be read");
            return None;
        }
    };
    for chain in message.filter_chains.iter_mut().chain(&mut message.default_filter_chain) {
        chain.filters.splice(0..0, filters.iter().cloned());
    }
    Some(message.encode_to_vec().into())
}

/// One filter for each list: it counts for itself.
fn filter(list: &Object<IpDenyList>, set: &AddressSet) -> Filter {
    let (namespace, name) = (&list.meta.namespace, &list.meta.name);
    let principal = |net: &ipnet::IpNet| Principal {
        // The client by address, behind a PROXY protocol too.
        identifier: Some(Identifier::RemoteIp(CidrRange {
            address_prefix: net.network().to_string(),
            prefix_len: Some(u32::from(net.prefix_len())),
        })),
    };
    let policy = Policy {
        permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
        principals: set.nets().iter().map(principal).collect(),
        ..Policy::default()
    };
    let rules = Rbac {
        action: rbac::Action::Deny.into(),
        policies: [(format!("deny-list[{namespace}/{name}]"), policy)].into(),
        ..Rbac::default()
    };
    let config = network::Rbac {
        rules: Some(rules),
        stat_prefix: format!("deny_list.{namespace}.{name}."),
        ..network::Rbac::default()
    };
    Filter {
        name: "envoy.filters.network.rbac".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(Any {
            type_url: TYPE.to_owned(),
            value: config.encode_to_vec().into(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use xds_protos::ResourceType;

    use super::super::tests::{node, value};
    use super::super::{Memo, render};
    use crate::model::{AddressSet, DenyLists, World};

    fn world(list: &str, denied: &str) -> World {
        let text = format!(
            "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: g, namespace: edge, annotations: {{weft.dev/role: gateway}}}}
spec: {{address: 127.0.2.9, labels: {{istio: ingress}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: g, namespace: edge}}
spec: {{selector: {{istio: ingress}}, servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['*']}}]}}
---
apiVersion: weft.dev/v1alpha1
kind: IPDenyList
metadata: {list}
"
        );
        let world = crate::ingest::load_str("mesh.yaml", &text).into_result().unwrap();
        let source = world.ip_deny_lists()[0].list_source();
        let set = AddressSet::parse(denied).unwrap();
        world.with_deny_lists(DenyLists::new([(source, set.into())].into()).into())
    }

    #[test]
    fn lists_stand_before_all_filters_of_the_gateways_that_they_are_for() {
        let memo = Memo::default();
        let filters = |list: &str, denied: &str| -> Vec<(String, String)> {
            let resources = render(&world(list, denied), &node("router", "127.0.2.9", "edge"), true, &memo);
            let listener = value(&resources, ResourceType::Listener, "127.0.2.9_80");
            let filters = listener["filter_chains"][0]["filters"].as_array().unwrap();
            let of = |f: &serde_json::Value| {
                let policies = f["typed_config"]["rules"]["policies"].as_object();
                let networks = policies.into_iter().flatten().flat_map(|(name, policy)| {
                    let networks = policy["principals"].as_array().into_iter().flatten();
                    networks.map(move |p| format!("{name} {}", p["remote_ip"]["address_prefix"]))
                });
                (f["name"].as_str().unwrap().to_owned(), networks.collect::<Vec<_>>().join(" "))
            };
            filters.iter().map(of).collect()
        };
        let hcm = ("envoy.filters.network.http_connection_manager".to_owned(), String::new());
        let list = |networks: &str| {
            vec![("envoy.filters.network.rbac".to_owned(), networks.to_owned()), hcm.clone()]
        };
        let source = "spec: {source: {file: a}";
        let of_all = format!("{{name: l, namespace: istio-system}}\n{source}}}");
        let of_edge = format!(
            "{{name: l, namespace: edge}}\n{source}, selector: {{matchLabels: {{istio: ingress}}}}}}"
        );
        let of_others =
            format!("{{name: l, namespace: edge}}\n{source}, selector: {{matchLabels: {{istio: other}}}}}}");
        let elsewhere = format!("{{name: l, namespace: shop}}\n{source}}}");
        // One memory for all: what is asked for is not what another list left there.
        assert_eq!(filters(&of_all, "10.0.0.1"), list("deny-list[istio-system/l] \"10.0.0.1\""));
        assert_eq!(filters(&of_all, "10.0.0.2"), list("deny-list[istio-system/l] \"10.0.0.2\""));
        assert_eq!(filters(&of_all, "# nobody"), std::slice::from_ref(&hcm));
        assert_eq!(filters(&of_edge, "10.0.0.2"), list("deny-list[edge/l] \"10.0.0.2\""));
        assert_eq!(filters(&of_others, "10.0.0.2"), std::slice::from_ref(&hcm));
        assert_eq!(filters(&of_edge, "10.0.0.2"), list("deny-list[edge/l] \"10.0.0.2\""));
        assert_eq!(filters(&elsewhere, "10.0.0.2"), std::slice::from_ref(&hcm));
    }
}
