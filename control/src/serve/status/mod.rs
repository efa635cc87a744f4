//! Writes into objects of Kubernetes what has become of them: the conditions `Valid` and `Effective`, and what is wrong with
//! them in the form of Istio's `validationMessages`. Only the leader writes.
//!
//! A status is written when it is due (the object is new, was changed, or is judged differently) and proxies have had a moment to
//! take the state; it is not written again because proxies come and go.

mod gateway_api;
mod text;

pub(in crate::serve) use text::message_of;

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

use super::gateways::{Hindrances, Known};
use super::proxies::Proxies;
use crate::ingest::cluster::{DEFINED, Judged, Verdict};
use crate::ingest::gateway_api::Standing;
use crate::queue::Queue;

/// How long proxies may take before it is written how many have taken a state.
const DELIVERY: Duration = Duration::from_secs(3);
/// How often to look.
const LOOK: Duration = Duration::from_millis(50);
/// By which name the API server knows who wrote a status.
pub(in crate::serve) const MANAGER: &str = "weft-status";
/// When to try again what could not be written.
const AGAIN: Duration = Duration::from_secs(10);

/// Kind, namespace and name.
type Key = (&'static str, String, String);

/// The writer.
pub struct StatusWriter {
    client: Client,
    proxies: Proxies,
    queue: Queue,
    hindrances: watch::Receiver<Known>,
    /// What was written last, by hash, and whether all proxies had taken it.
    written: HashMap<Key, (u64, bool)>,
    /// It has been said that statuses cannot be written.
    told: bool,
}

impl StatusWriter {
    /// Writes by `client`; who has taken what, `proxies` and `queue` know, and what cannot be made for Gateways, `hindrances`.
    pub fn new(client: Client, proxies: Proxies, queue: Queue, hindrances: watch::Receiver<Known>) -> Self {
        Self { client, proxies, queue, hindrances, written: HashMap::new(), told: false }
    }

    /// Writes while this control plane leads.
    pub async fn run(mut self, mut judged: watch::Receiver<Arc<Judged>>, mut leads: watch::Receiver<bool>) {
        let mut told = true;
        loop {
            let mut again = None;
            if *leads.borrow_and_update() {
                let now = judged.borrow_and_update().clone();
                let hindrances = self.hindrances.borrow_and_update().clone();
                if !self.write(&now, hindrances.as_deref()).await {
                    again = Some(AGAIN);
                }
            } else {
                // Whoever led meanwhile may have written something else.
                self.written.clear();
            }
            let timer = async {
                match again {
                    Some(again) => tokio::time::sleep(again).await,
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                changed = judged.changed() => changed.is_ok(),
                changed = leads.changed() => changed.is_ok(),
                // Nobody makes anything, or no more: what was said last stays.
                changed = self.hindrances.changed(), if told => {
                    told = changed.is_ok();
                    true
                }
                () = timer => true,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Whether all is written that was due.
    async fn write(&mut self, judged: &Judged, hindrances: Option<&Hindrances>) -> bool {
        self.written.retain(|key, _| judged.verdicts.contains_key(key));
        let all = || {
            judged.verdicts.iter().filter_map(move |(key, verdict)| {
                let verdict = with_hindrance(key, verdict, hindrances)?;
                let print = fingerprint(&verdict);
                Some((key, verdict, print))
            })
        };
        let mut due: Vec<_> = all()
            .filter(|(key, verdict, print)| match (self.written.get(*key), &verdict.standing) {
                // Whoever wrote over it is answered, once.
                (Some((written, _)), Some(standing)) => {
                    written != print && !gateway_api::says_the_same(verdict, standing)
                }
                (Some((written, _)), None) => written != print,
                (None, Some(standing)) => !gateway_api::says_the_same(verdict, standing),
                (None, None) => !text::says_the_same(verdict),
            })
            .collect();
        let late: Vec<_> =
            all().filter(|(key, _, print)| self.written.get(*key) == Some(&(*print, false))).collect();
        if due.is_empty() && late.is_empty() {
            return true;
        }
        let (taken, all) = self.delivered(judged.generation).await;
        let everybody = taken == all;
        // Those that some proxies had not taken yet are told when they have, and are looked at again until then.
        let mut complete = everybody;
        if everybody {
            due.extend(late);
        }
        let mut failed = false;
        for (key, verdict, print) in due {
            let status = match &verdict.standing {
                Some(standing) => gateway_api::status(&verdict, standing),
                None => text::status(&verdict, taken, all),
            };
            match self.patch(key, &verdict, &status).await {
                Ok(()) => {
                    let complete = everybody || verdict.standing.is_some();
                    self.written.insert(key.clone(), (print, complete));
                }
                // It is gone; so will its verdict be.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                // Somebody wrote at the same time; what that is will be told, and then looked at.
                Err(kube::Error::Api(status)) if status.code == 409 && verdict.standing.is_some() => {
                    complete = false;
                }
                Err(error) => {
                    (complete, failed) = (false, true);
                    if !std::mem::replace(&mut self.told, true) {
                        let object = format!("{} {}/{}", key.0, key.1, key.2);
                        tracing::warn!(
                            %object, %error,
                            "the status of objects cannot be written; may the control plane's service account patch \
                             their status?"
                        );
                    }
                }
            }
        }
        self.told &= failed;
        complete
    }

    /// How many of the connected proxies have taken the state; waits a while for all.
    async fn delivered(&mut self, generation: u64) -> (usize, usize) {
        let end = Instant::now() + DELIVERY;
        loop {
            let revision = self.queue.latest();
            let (taken, all) = self.proxies.following(revision.number);
            if (revision.generation >= generation && taken == all) || Instant::now() >= end {
                return (taken, all);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn patch(&self, key: &Key, verdict: &Verdict, status: &serde_json::Value) -> kube::Result<()> {
        let Some(kind) = DEFINED.iter().find(|kind| kind.id() == key.0) else { return Ok(()) };
        let version = verdict.api_version.rsplit('/').next().unwrap_or_default();
        let of = GroupVersionKind::gvk(kind.group, version, kind.kind);
        let resource = ApiResource::from_gvk_with_plural(&of, kind.plural);
        let client = self.client.clone();
        let api: Api<DynamicObject> = match kind.is_cluster_scoped() {
            true => Api::all_with(client, &resource),
            false => Api::namespaced_with(client, &key.1, &resource),
        };
        let mut patch = serde_json::json!({"status": status});
        if verdict.standing.is_some() {
            // Other controllers write into it as well: it must be as it was seen.
            patch["metadata"] = serde_json::json!({"resourceVersion": verdict.resource_version});
        }
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        api.patch_status(&key.2, &params, &Patch::Merge(patch)).await?;
        Ok(())
    }
}

/// With what cannot be made for it, where it is a Gateway; nothing as long as that is not known.
fn with_hindrance<'v>(
    key: &Key,
    verdict: &'v Verdict,
    hindrances: Option<&Hindrances>,
) -> Option<Cow<'v, Verdict>> {
    let Some(standing @ Standing::Gateway { .. }) = &verdict.standing else {
        return Some(Cow::Borrowed(verdict));
    };
    let Some(one) = hindrances?.get(&(key.1.clone(), key.2.clone())) else {
        return Some(Cow::Borrowed(verdict));
    };
    let standing = standing.hindered(one.reason, &one.message, one.passes);
    Some(Cow::Owned(Verdict { standing: Some(standing), ..verdict.clone() }))
}

fn fingerprint(verdict: &Verdict) -> u64 {
    let mut hasher = DefaultHasher::new();
    (verdict.generation, verdict.earlier, &verdict.standing).hash(&mut hasher);
    if verdict.standing.is_some() {
        // Others write there, too: what was seen is part of why it was written.
        verdict.status.to_string().hash(&mut hasher);
        return hasher.finish();
    }
    verdict.findings.iter().for_each(|finding| finding.to_string().hash(&mut hasher));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::gateways::Hindrance;
    use super::*;

    #[test]
    fn a_gateway_is_told_nothing_before_it_is_known_what_can_be_made() {
        let verdict = |standing| Verdict {
            generation: None,
            api_version: String::new(),
            findings: Vec::new(),
            earlier: false,
            status: serde_json::Value::Null,
            resource_version: String::new(),
            standing,
        };
        let key: Key = ("Gateway", "shop".to_owned(), "edge".to_owned());
        let rule = verdict(None);
        assert!(with_hindrance(&key, &rule, None).is_some(), "what is no Gateway waits for nothing");
        let gateway = verdict(Some(Standing::Gateway {
            conditions: vec![crate::ingest::gateway_api::Condition {
                kind: "Programmed",
                holds: true,
                reason: "Programmed",
                message: String::new(),
            }],
            listeners: Vec::new(),
            addresses: Vec::new(),
        }));
        assert!(with_hindrance(&key, &gateway, None).is_none());
        let mut hindrances = Hindrances::new();
        let print = |hindrances: &Hindrances| {
            fingerprint(&with_hindrance(&key, &gateway, Some(hindrances)).expect("known"))
        };
        let free = print(&hindrances);
        let hindrance = Hindrance { reason: "Invalid", message: "taken".to_owned(), passes: false };
        hindrances.insert(("shop".to_owned(), "other".to_owned()), hindrance.clone());
        assert_eq!(print(&hindrances), free);
        hindrances.insert(("shop".to_owned(), "edge".to_owned()), hindrance);
        assert_ne!(print(&hindrances), free, "it is due");
    }
}
