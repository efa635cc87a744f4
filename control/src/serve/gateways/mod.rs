//! Makes what the Gateways of the Gateway API that are ours need: for each a ServiceAccount, a Deployment and a Service, which belong
//! to it and go with it. Only the leader writes.
//!
//! What is written is ours field by field (server-side apply): what others add, such as the number of replicas that an autoscaler
//! chooses, stays. It is written when it changes, and again after a while, since somebody may have changed it. An object of the
//! same name that does not belong to the Gateway is somebody else's: it is looked for first, and left alone.

mod objects;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ingest::cluster::Judged;
use crate::ingest::gateway_api::Wanted;
use trouble::Trouble;

/// How often everything is written again.
const AGAIN: Duration = Duration::from_secs(60);
/// When to try again what could not be written.
const RETRY: Duration = Duration::from_secs(3);
/// By which name the API server knows whose fields they are.
const MANAGER: &str = "weft-gateways";

/// The flag.
#[derive(Args, Debug, Default)]
pub struct GatewayArgs {
    /// Make a Deployment and a Service for each Gateway of the Gateway API whose class is Weft's and that names no Service under
    /// addresses
    #[arg(
        long,
        value_name = "BOOL",
        env = "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub gateway_deployments: bool,
}

/// Makes what is wanted.
pub struct GatewayMaker {
    client: Client,
    /// What has been written, by namespace and name of the Gateway.
    made: BTreeMap<(String, String), Wanted>,
    /// Of which Gateways it has been said what stands in the way, and what that is.
    told: BTreeMap<(String, String), String>,
}

impl GatewayMaker {
    /// Writes by `client`.
    pub fn new(client: Client) -> Self {
        Self { client, made: BTreeMap::new(), told: BTreeMap::new() }
    }

    /// Makes what is wanted while this control plane leads.
    pub async fn run(mut self, mut judged: watch::Receiver<Arc<Judged>>, mut leads: watch::Receiver<bool>) {
        // However often something else changes, this comes.
        let mut again = Instant::now() + AGAIN;
        loop {
            let mut next = again;
            if *leads.borrow_and_update() {
                let now = judged.borrow_and_update().clone();
                if !self.make(&now.wanted).await {
                    next = again.min(Instant::now() + RETRY);
                }
            } else {
                self.made.clear();
            }
            let goes_on = tokio::select! {
                changed = judged.changed() => changed.is_ok(),
                changed = leads.changed() => changed.is_ok(),
                () = tokio::time::sleep_until(next) => true,
            };
            if !goes_on {
                return;
            }
            if Instant::now() >= again {
                self.made.clear();
                again = Instant::now() + AGAIN;
            }
        }
    }

    /// Whether all is there.
    async fn make(&mut self, wanted: &[Wanted]) -> bool {
        let key = |one: &Wanted| (one.namespace.clone(), one.gateway.clone());
        let all: BTreeSet<_> = wanted.iter().map(key).collect();
        self.made.retain(|key, _| all.contains(key));
        self.told.retain(|key, _| all.contains(key));
        let mut complete = true;
        for one in wanted {
            let key = key(one);
            if self.made.get(&key) == Some(one) {
                continue;
            }
            match self.write(one).await {
                Ok(()) => {
                    self.told.remove(&key);
                    self.made.insert(key, one.clone());
                }
                Err(trouble) => {
                    complete = false;
                    if self.told.insert(key, trouble.mark()).as_ref() != Some(&trouble.mark()) {
                        trouble.say(one);
                    }
                }
            }
        }
        complete
    }

    async fn write(&self, wanted: &Wanted) -> Result<(), Trouble> {
        let name = objects::name(wanted);
        let all = objects::of(wanted).into_iter().map(|(of, object)| {
            let resource = ApiResource::from_gvk_with_plural(&of.kind, of.plural);
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &wanted.namespace, &resource);
            (of.kind.kind, api, object)
        });
        let all: Vec<_> = all.collect();
        // All are looked at before any is written: half of what a Gateway needs is of no use.
        for (kind, api, _) in &all {
            let Some(found) = api.get_metadata_opt(&name).await? else { continue };
            let owners = found.metadata.owner_references.unwrap_or_default();
            if !owners.iter().any(|owner| owner.uid == wanted.owner) {
                let earlier =
                    owners.iter().any(|owner| owner.kind == "Gateway" && owner.name == wanted.gateway);
                return Err(Trouble::Taken { kind: kind.clone(), name, earlier });
            }
        }
        let parameters = PatchParams::apply(MANAGER).force();
        for (_, api, object) in &all {
            api.patch(&name, &parameters, &Patch::Apply(object)).await?;
        }
        Ok(())
    }
}
