//! Makes what the Gateways of the Gateway API that are ours need: for each a ServiceAccount, a Deployment and a Service, which belong
//! to it and go with it. Only the leader writes.
//!
//! What is written is ours field by field (server-side apply): what others add, such as the number of replicas that an autoscaler
//! chooses, stays. It is written when it changes, and again after a while, since somebody may have changed it. An object of the
//! same name that does not belong to the Gateway is somebody else's: it is looked for first, and left alone. What stands in the way is
//! for the Gateway's status (`hindrance`). What is needed no more is taken away (`leftover`) when what comes after it serves
//! (`successor`).

mod hindrance;
mod leftover;
mod objects;
mod successor;
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
use crate::ingest::gateway_api::{Plan, Wanted};
pub use hindrance::{Hindrance, Hindrances, Known, none};
use leftover::Leftovers;
use trouble::Trouble;

/// How often everything is written again.
const AGAIN: Duration = Duration::from_secs(60);
/// When to try again what could not be written.
const RETRY: Duration = Duration::from_secs(3);
/// How often other words for the same trouble are taken.
const REWORD: Duration = Duration::from_secs(60);
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

/// Namespace and name of a Gateway.
type Key = (String, String);

/// What has been said of a Gateway: a mark of the trouble, what that is, and when it was put into these words.
struct Told {
    mark: String,
    hindrance: Hindrance,
    since: Instant,
}

/// Makes what is wanted.
pub struct GatewayMaker {
    client: Client,
    /// What has been written.
    made: BTreeMap<Key, Wanted>,
    /// Of which Gateways it has been said what stands in the way.
    told: BTreeMap<Key, Told>,
    leftovers: Leftovers,
    /// When to try again, if anything is left to do.
    retry: Option<Instant>,
    hindrances: watch::Sender<Known>,
}

impl GatewayMaker {
    /// Writes by `client`.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            made: BTreeMap::new(),
            told: BTreeMap::new(),
            leftovers: Leftovers::default(),
            retry: None,
            hindrances: watch::Sender::new(None),
        }
    }

    /// What stands in the way, while this control plane leads and once it has tried.
    pub fn hindrances(&self) -> watch::Receiver<Known> {
        self.hindrances.subscribe()
    }

    /// Does what is to be done while this control plane leads.
    pub async fn run(mut self, mut judged: watch::Receiver<Arc<Judged>>, mut leads: watch::Receiver<bool>) {
        // However often something else changes, this comes.
        let mut again = Instant::now() + AGAIN;
        loop {
            let mut next = again;
            if *leads.borrow_and_update() {
                let now = judged.borrow_and_update().clone();
                self.make(&now.gateways).await;
                next = self.retry.map_or(again, |retry| again.min(retry));
            } else {
                // Whoever led meanwhile may have done otherwise.
                self.made.clear();
                self.leftovers.forget();
                self.hindrances.send_if_modified(|known| known.take().is_some());
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

    /// Whether all is there, and nothing else.
    async fn make(&mut self, plan: &Plan) -> bool {
        let key = |one: &Wanted| (one.namespace.clone(), one.gateway.clone());
        let all: BTreeSet<_> = plan.wanted.iter().map(key).collect();
        self.made.retain(|key, _| all.contains(key));
        self.told.retain(|key, _| all.contains(key));
        let mut complete = true;
        for one in &plan.wanted {
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
                    let mark = trouble.mark();
                    let hindrance = trouble.hindrance();
                    // Words that vary (a time, a number of attempts) are no news.
                    let is_news = |told: &Told| {
                        told.mark != mark || told.hindrance != hindrance && told.since.elapsed() >= REWORD
                    };
                    if self.told.get(&key).is_none_or(is_news) {
                        trouble.say(one);
                        self.told.insert(key, Told { mark, hindrance, since: Instant::now() });
                    }
                }
            }
        }
        self.tell(plan);
        let is_made =
            |one: &Wanted| self.made.get(&(one.namespace.clone(), one.gateway.clone())) == Some(one);
        let left = self.leftovers.tidy(&self.client, leftover::due(plan, is_made)).await;
        let failed = (!complete).then(|| Instant::now() + RETRY);
        self.retry = failed.into_iter().chain(left).min();
        self.retry.is_none()
    }

    /// Says what stands in the way.
    fn tell(&self, plan: &Plan) {
        let refused = plan.hindered.iter().map(|one| {
            let message = format!("nothing is made for the Gateway, and nothing is changed: {}", one.why);
            let hindrance = Hindrance { reason: "Invalid", message, passes: false };
            ((one.namespace.clone(), one.gateway.clone()), hindrance)
        });
        let failed = self.told.iter().map(|(key, told)| (key.clone(), told.hindrance.clone()));
        let now: Hindrances = refused.chain(failed).collect();
        self.hindrances.send_if_modified(|known| {
            let new = known.as_deref() != Some(&now);
            if new {
                *known = Some(Arc::new(now));
            }
            new
        });
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
