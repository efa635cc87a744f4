//! Whether what serves a Gateway instead does so: only then goes what was made for it before (`leftover`).

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client};
use serde_json::Value;

use super::leftover::{Due, Found};
use super::objects;
use crate::ingest::gateway_api::Because;
use crate::model::gateway_api::GROUP;
use crate::model::networks::REMOTE_CLASS;
use crate::serve::status;

/// The Gateway, if it says what it is known to say.
pub(super) async fn gateway(client: &Client, owner: &str, due: &Due) -> kube::Result<Option<Value>> {
    let of = GroupVersionKind::gvk(GROUP, "v1", "Gateway");
    let resource = ApiResource::from_gvk_with_plural(&of, "gateways");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &due.namespace, &resource);
    let named = ListParams::default().fields(&format!("metadata.name={}", due.gateway));
    let found = api.list(&named).await?.items;
    let same = found.iter().find(|gateway| gateway.metadata.uid.as_deref() == Some(owner));
    Ok(same.and_then(|one| serde_json::to_value(one).ok()).filter(|one| due.because.holds(one)))
}

/// What is to come before anything of it goes.
pub(super) async fn missing(
    client: &Client,
    owner: &str,
    due: &Due,
    found: &[Found],
) -> kube::Result<Option<String>> {
    let Some(gateway) = gateway(client, owner, due).await? else {
        return Ok(Some("it is known what the Gateway says now".to_owned()));
    };
    if let Some(new) = &due.stays {
        let old = found.iter().filter(|one| one.owner == owner && one.kind == "Service");
        return made_missing(client, &due.namespace, new, old).await;
    }
    Ok(match &due.because {
        // Nobody serves it in this cluster, and nobody will say that he does.
        Because::Class(class) if class == REMOTE_CLASS => None,
        Because::Class(class) => (!is_programmed_by_another(&gateway)).then(|| {
            format!("the controller of the class {class} says Programmed: True in its status, of its present generation")
        }),
        // A pod behind it is ready, or it would not be due.
        Because::Address(_) => None,
    })
}

/// What is to come of what was made under the name `new`.
async fn made_missing(
    client: &Client,
    namespace: &str,
    new: &str,
    old: impl Iterator<Item = &Found>,
) -> kube::Result<Option<String>> {
    let [_, deployment, service] = objects::kinds();
    let get = async |of: &objects::Of, name: &str| -> kube::Result<Value> {
        let resource = ApiResource::from_gvk_with_plural(&of.kind, of.plural);
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let found = api.get_opt(name).await?;
        Ok(found.and_then(|one| serde_json::to_value(one).ok()).unwrap_or_default())
    };
    let available = get(&deployment, new).await?["status"]["availableReplicas"].as_u64();
    if available.is_none_or(|count| count < 1) {
        return Ok(Some(format!("a replica of the Deployment {new} is available")));
    }
    let has_address = |service: &Value| {
        service["status"]["loadBalancer"]["ingress"].as_array().is_some_and(|all| !all.is_empty())
    };
    for old in old {
        if !has_address(&get(&service, &old.name).await?) {
            continue;
        }
        let now = get(&service, new).await?;
        if now["spec"]["type"] == "LoadBalancer" && !has_address(&now) {
            return Ok(Some(format!("the Service {new} has an address, as {} has", old.name)));
        }
    }
    Ok(None)
}

/// Whether another controller says of it, as it is now, that it is served. What this one said before may still stand there.
fn is_programmed_by_another(gateway: &Value) -> bool {
    let generation = &gateway["metadata"]["generation"];
    let conditions = gateway["status"]["conditions"].as_array().into_iter().flatten();
    let programmed = conditions.into_iter().any(|one| {
        one["type"] == "Programmed"
            && one["status"] == "True"
            && generation.is_number()
            && one["observedGeneration"] == *generation
    });
    let mut writers = gateway["metadata"]["managedFields"].as_array().into_iter().flatten();
    programmed
        && writers.any(|one| {
            let all = &one["fieldsV1"]["f:status"]["f:conditions"];
            one["subresource"] == "status"
                && one["manager"] != status::MANAGER
                // Where the definition has no schema, whoever writes one condition has written them all.
                && all.as_object().is_some_and(|all| all.is_empty() || all.contains_key(r#"k:{"type":"Programmed"}"#))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn another_controller_says_that_it_serves_the_gateway_as_it_is_now() {
        let gateway = |manager: &str, status: &str, observed: u64| {
            json!({
                "metadata": {"generation": 3, "managedFields": [{
                    "manager": manager, "subresource": "status",
                    "fieldsV1": {"f:status": {"f:conditions": {r#"k:{"type":"Programmed"}"#: {"f:status": {}}}}},
                }]},
                "status": {"conditions": [{"type": "Programmed", "status": status, "observedGeneration": observed}]},
            })
        };
        assert!(is_programmed_by_another(&gateway("theirs", "True", 3)));
        for (manager, status, observed) in
            [("theirs", "False", 3), ("theirs", "True", 2), (status::MANAGER, "True", 3)]
        {
            assert!(
                !is_programmed_by_another(&gateway(manager, status, observed)),
                "{manager} {status} {observed}"
            );
        }
        let mut whole = gateway("theirs", "True", 3);
        whole["metadata"]["managedFields"][0]["fieldsV1"] = json!({"f:status": {"f:conditions": {}}});
        assert!(is_programmed_by_another(&whole));
        whole["metadata"]["managedFields"][0]["fieldsV1"] =
            json!({"f:status": {"f:conditions": {r#"k:{"type":"Other"}"#: {}}}});
        assert!(!is_programmed_by_another(&whole));
        assert!(!is_programmed_by_another(&json!({})));
    }
}
