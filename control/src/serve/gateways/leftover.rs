//! Takes away what was made for Gateways and is needed no more: of those that are somebody else's to serve now, and what bears the
//! name of an earlier class.
//!
//! Only what belongs to the Gateway by its owner, and was written by nobody else, goes; and only when what serves the Gateway instead
//! does so (`successor`), for which the Gateway is asked for once more: what is known of it may be old. What cannot go yet is looked
//! at again, less and less often.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, Preconditions};
use kube::{Api, Client};
use tokio::time::Instant;

use super::{MANAGER, objects, successor};
use crate::ingest::gateway_api::{Because, Plan, Wanted};
use crate::model::gateway_api::GATEWAY_NAME;

/// When to look again at what is left, at first.
const SHORTEST: Duration = Duration::from_secs(3);
/// And at the longest.
const LONGEST: Duration = Duration::from_secs(300);
/// Controllers of Kubernetes that write what others ask them for into any object.
const CONTROLLERS: [&str; 2] = ["kube-controller-manager", "cloud-controller-manager"];

/// What may go that belongs to a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) namespace: String,
    pub(super) gateway: String,
    /// What has this name stays.
    pub(super) stays: Option<String>,
    pub(super) because: Because,
}

/// By owner.
pub(super) type AllDue = BTreeMap<String, Due>;

/// An object that may go.
pub(super) struct Found {
    pub(super) owner: String,
    pub(super) name: String,
    pub(super) kind: String,
    resource: ApiResource,
    meta: ObjectMeta,
}

/// What came of it.
#[derive(Default)]
struct Left {
    /// Of these Gateways something is left, by owner.
    owners: BTreeSet<String>,
    /// Of what it is to be said why it is left; by what is the same each time, and whether somebody has to mend it.
    said: Vec<(String, String, bool)>,
}

/// Takes away what is due, and knows what has been.
#[derive(Default)]
pub(super) struct Leftovers {
    /// What has been taken away as far as it was there.
    done: AllDue,
    /// What is left, when to look at it again, and how long that is after the last time.
    open: AllDue,
    again: Option<Instant>,
    pause: Duration,
    /// What has been said.
    told: BTreeSet<String>,
}

/// By owner. Of Gateways for which something is wanted only those that have it: the old goes when the new is there.
pub(super) fn due(plan: &Plan, made: impl Fn(&Wanted) -> bool) -> AllDue {
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

impl Leftovers {
    /// Somebody else may have done otherwise.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes away what is due. When to look again, if anything of it is left.
    pub(super) async fn tidy(&mut self, client: &Client, mut due: AllDue) -> Option<Instant> {
        self.done.retain(|owner, one| due.get(owner) == Some(one));
        due.retain(|owner, _| !self.done.contains_key(owner));
        if due.is_empty() {
            self.open.clear();
            self.told.clear();
            return None;
        }
        if due == self.open {
            if let Some(again) = self.again.filter(|again| Instant::now() < *again) {
                return Some(again);
            }
            self.pause = (self.pause * 2).min(LONGEST);
        } else {
            self.pause = SHORTEST;
        }
        let left = take_away(client, &due).await;
        for (mark, text, amiss) in left.said {
            if !self.told.insert(mark) {
                continue;
            }
            if amiss {
                tracing::warn!("{text}");
            } else {
                tracing::info!("{text}");
            }
        }
        (self.open, due) = due.into_iter().partition(|(owner, _)| left.owners.contains(owner));
        self.done.extend(due);
        self.again = (!self.open.is_empty()).then(|| Instant::now() + self.pause);
        self.again
    }
}

/// Takes away what is due. What cannot go keeps nothing else.
async fn take_away(client: &Client, due: &AllDue) -> Left {
    let mut left = Left::default();
    let found = found(client, due, &mut left).await;
    let mut waits: BTreeMap<&str, bool> = BTreeMap::new();
    for one in &found {
        let Some(of) = due.get(&one.owner) else { continue };
        let gateway = format!("{}/{}", of.namespace, of.gateway);
        if !waits.contains_key(one.owner.as_str()) {
            let why = successor::missing(client, &one.owner, of, &found).await;
            waits.insert(&one.owner, !matches!(why, Ok(None)));
            match why {
                Ok(None) => {}
                Ok(Some(why)) => {
                    let text = format!("what was made for the Gateway {gateway} before stays until {why}");
                    left.said.push((text.clone(), text, false));
                }
                Err(error) => left.fails(&format!("what was made for the Gateway {gateway} before"), &error),
            }
        }
        if waits.get(one.owner.as_str()) == Some(&true) {
            left.owners.insert(one.owner.clone());
            continue;
        }
        match one.end(client, of).await {
            Ok(true) => {
                tracing::info!(%gateway, because = %of.because, "the {} {} is taken away", one.kind, one.name);
            }
            Ok(false) => {
                left.owners.insert(one.owner.clone());
            }
            Err(error) => {
                left.owners.insert(one.owner.clone());
                left.fails(
                    &format!("the {} {}/{} of the Gateway {gateway}", one.kind, of.namespace, one.name),
                    &error,
                );
            }
        }
    }
    left
}

/// What may go. Nobody is led to what is about to end: Services come first.
async fn found(client: &Client, due: &AllDue, left: &mut Left) -> Vec<Found> {
    let mut all = Vec::new();
    for of in objects::kinds().into_iter().rev() {
        let resource = ApiResource::from_gvk_with_plural(&of.kind, of.plural);
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let items = match api.list_metadata(&ListParams::default().labels(GATEWAY_NAME)).await {
            Ok(list) => list.items,
            Err(error) => {
                left.owners.extend(due.keys().cloned());
                left.fails(&format!("whatever there is of {}", of.plural), &error);
                continue;
            }
        };
        for item in items {
            let meta = item.metadata;
            let mut owners = meta.owner_references.iter().flatten();
            let Some((owner, one)) = owners.find_map(|owner| due.get_key_value(&owner.uid)) else { continue };
            let here = meta.namespace.as_deref() == Some(one.namespace.as_str());
            let Some(name) = meta.name.clone().filter(|name| here && one.stays.as_ref() != Some(name)) else {
                continue;
            };
            if meta.deletion_timestamp.is_some() || !is_by(&meta, MANAGER) {
                continue;
            }
            let kind = of.kind.kind.clone();
            if let Some(other) = also_by(&meta) {
                let text = format!(
                    "the {kind} {}/{name} was made for the Gateway {} and is needed no more; it stays, since {other} has written to it \
                     (metadata.managedFields): delete it if nobody needs it",
                    one.namespace, one.gateway
                );
                left.said.push((text.clone(), text, false));
                continue;
            }
            all.push(Found { owner: owner.clone(), name, kind, resource: resource.clone(), meta });
        }
    }
    all
}

impl Left {
    fn fails(&mut self, what: &str, error: &kube::Error) {
        let code = if let kube::Error::Api(status) = error { status.code } else { 0 };
        let text = format!(
            "{what} is needed no more, and cannot be taken away: {error}; may the control plane's service account list Gateways, and \
             get, list and delete Deployments, Services and ServiceAccounts (deploy/rbac), and does a policy or a webhook stand against \
             it? Trying again, less and less often"
        );
        self.said.push((format!("{code} {what}"), text, true));
    }
}

impl Found {
    /// Whether it has ended. Not if the Gateway says otherwise by now, or somebody wrote to it.
    async fn end(&self, client: &Client, due: &Due) -> kube::Result<bool> {
        if successor::gateway(client, &self.owner, due).await?.is_none() {
            return Ok(false);
        }
        // It is this one that was looked at, and nothing of it has changed since.
        let params = DeleteParams::background().preconditions(Preconditions {
            resource_version: self.meta.resource_version.clone(),
            uid: self.meta.uid.clone(),
        });
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &due.namespace, &self.resource);
        match api.delete(&self.name, &params).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_by(meta: &ObjectMeta, manager: &str) -> bool {
    meta.managed_fields.iter().flatten().any(|fields| fields.manager.as_deref() == Some(manager))
}

/// Who else has written to it, other than its status.
fn also_by(meta: &ObjectMeta) -> Option<&str> {
    let mut all = meta.managed_fields.iter().flatten();
    let other = all.find(|fields| {
        let manager = fields.manager.as_deref().unwrap_or_default();
        fields.subresource.as_deref() != Some("status")
            && manager != MANAGER
            && !CONTROLLERS.contains(&manager)
    });
    other.map(|fields| fields.manager.as_deref().unwrap_or("somebody"))
}
