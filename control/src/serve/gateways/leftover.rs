//! Takes away what was made for Gateways and is needed no more: of those that are somebody else's to serve now, and what bears the
//! name of an earlier class.
//!
//! Only what belongs to the Gateway by its owner, and was made here by its manager of fields, goes; and the Gateway is asked for
//! once more before, since what is known of it may be old.

use std::collections::BTreeMap;

use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, ObjectMeta, Preconditions,
};
use kube::{Api, Client};

use super::{MANAGER, objects};
use crate::ingest::gateway_api::{Because, Plan, Wanted};
use crate::model::gateway_api::{GATEWAY_NAME, GROUP};

/// What may go that belongs to a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    namespace: String,
    gateway: String,
    /// What has this name stays.
    stays: Option<String>,
    because: Because,
}

/// By owner. Of Gateways for which something is wanted only those that have it: the old goes when the new is there.
pub(super) fn due(plan: &Plan, made: impl Fn(&Wanted) -> bool) -> BTreeMap<String, Due> {
    let spare = plan.spare.iter().map(|one| {
        let due = Due {
            namespace: one.namespace.clone(),
            gateway: one.gateway.clone(),
            stays: None,
            because: one.because.clone(),
        };
        (one.owner.clone(), due)
    });
    let wanted = plan.wanted.iter().filter(|one| made(one)).map(|one| {
        let due = Due {
            namespace: one.namespace.clone(),
            gateway: one.gateway.clone(),
            stays: Some(objects::name(one)),
            because: Because::Class(one.class.clone()),
        };
        (one.owner.clone(), due)
    });
    spare.chain(wanted).collect()
}

/// Takes away what is due. Whether nothing is left.
pub(super) async fn take_away(client: &Client, due: &BTreeMap<String, Due>) -> kube::Result<bool> {
    let mut complete = true;
    // Nobody is led to what is about to end.
    for of in objects::kinds().into_iter().rev() {
        let resource = ApiResource::from_gvk_with_plural(&of.kind, of.plural);
        let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        for found in all.list_metadata(&ListParams::default().labels(GATEWAY_NAME)).await?.items {
            let meta = found.metadata;
            let mut owners = meta.owner_references.iter().flatten();
            let Some((owner, one)) = owners.find_map(|owner| due.get_key_value(&owner.uid)) else { continue };
            let here = meta.namespace.as_deref() == Some(one.namespace.as_str());
            let (Some(name), true) = (&meta.name, here && is_made_here(&meta)) else { continue };
            if meta.deletion_timestamp.is_some() || one.stays.as_ref() == Some(name) {
                continue;
            }
            if !still(client, owner, one).await? {
                complete = false;
                continue;
            }
            // It is this one that was looked at, and nothing of it has changed since.
            let params = DeleteParams::background().preconditions(Preconditions {
                resource_version: meta.resource_version.clone(),
                uid: meta.uid.clone(),
            });
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &one.namespace, &resource);
            let (gateway, kind) = (format!("{}/{}", one.namespace, one.gateway), &of.kind.kind);
            match api.delete(name, &params).await {
                Ok(_) => tracing::info!(%gateway, because = %one.because, "the {kind} {name} is taken away"),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(kube::Error::Api(status)) if status.code == 409 => complete = false,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(complete)
}

/// Whether its fields were written here.
fn is_made_here(meta: &ObjectMeta) -> bool {
    meta.managed_fields.iter().flatten().any(|fields| fields.manager.as_deref() == Some(MANAGER))
}

/// Whether the Gateway says what it is known to say.
async fn still(client: &Client, owner: &str, due: &Due) -> kube::Result<bool> {
    let of = GroupVersionKind::gvk(GROUP, "v1", "Gateway");
    let resource = ApiResource::from_gvk_with_plural(&of, "gateways");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &due.namespace, &resource);
    let named = ListParams::default().fields(&format!("metadata.name={}", due.gateway));
    let found = api.list(&named).await?.items;
    let same = found.iter().find(|gateway| gateway.metadata.uid.as_deref() == Some(owner));
    Ok(same.and_then(|one| serde_json::to_value(one).ok()).is_some_and(|one| due.because.holds(&one)))
}
