//! Gathers what changes, and makes a state of it when it has been quiet for a moment.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::super::debounce::{Debounce, DebounceArgs};
use super::super::diagnostic::{Diagnostic, Severity};
use super::super::watch::{Snapshot, Watcher, report};
use super::outlook::Beside;
use super::store::{Judged, Store};
use super::watch as watches;
use super::watch::{DEFINITIONS, Event};

/// A kind that is being read holds a state back no longer than this.
const LONGEST_READ: Duration = Duration::from_secs(10);
/// How often to say at the start what is still waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events on their way from the watches.
const BACKLOG: usize = 1024;

/// What is read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of the ConfigMap `istio`, which has the mesh's settings.
    pub namespace: String,
    /// How changes are gathered.
    pub debounce: DebounceArgs,
}

/// What follows an API server.
pub struct Following {
    /// Gives the states; who drops it ends the rest.
    pub watcher: Watcher,
    /// What is to be said of each object.
    pub verdicts: watch::Receiver<Arc<Judged>>,
    /// Tells what would be, were an object stored.
    pub beside: Beside,
}

/// Reads everything and follows it until the watcher is dropped. Waits, as long as need be, for an API server that answers.
pub async fn start(client: Client, settings: &Settings) -> Following {
    let (sender, events) = mpsc::channel(BACKLOG);
    let tasks = watches::start(&client, &settings.namespace, &sender);
    drop(sender);
    let debounce = Debounce::new(settings.debounce);
    let mut follower = Follower {
        events,
        store: Arc::default(),
        unread: HashSet::new(),
        defined: false,
        lost: BTreeMap::new(),
        unserved: BTreeMap::new(),
    };
    follower.first().await;
    let built = follower.store.lock().build();
    let beside = Beside::new(follower.store.clone());
    report(&built.diagnostics);
    let first = Snapshot {
        world: built.world,
        generation: 1,
        attempts: 1,
        refused: false,
        diagnostics: built.diagnostics.into(),
        skipped: built.skipped.into(),
    };
    let (verdicts_sender, verdicts) = watch::channel(Arc::new(Judged {
        generation: 1,
        verdicts: built.verdicts,
        gateways: built.gateways,
    }));
    let (sender, snapshots) = watch::channel(Arc::new(first));
    let task = tokio::spawn(async move {
        follower.follow(debounce, sender, verdicts_sender).await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    });
    Following { watcher: Watcher::of(snapshots, task), verdicts, beside }
}

struct Follower {
    events: mpsc::Receiver<Event>,
    /// Nobody holds it for long: who asks what would be takes what is there and goes.
    store: Arc<Mutex<Store>>,
    /// Kinds of which not everything has been read yet.
    unread: HashSet<&'static str>,
    defined: bool,
    /// What the API server does not answer for, and why.
    lost: BTreeMap<&'static str, String>,
    /// Kinds that are defined and not served, and why.
    unserved: BTreeMap<&'static str, String>,
}

/// Counts a change of an object, by Istio's names: what stands behind services is the registry's, all else is configuration.
fn count(kind: &'static str, gone: bool, known: bool) {
    let event = match (gone, known) {
        (true, _) => "delete",
        (false, true) => "update",
        (false, false) => "add",
    };
    let (metric, of, update) = match kind {
        "Service" if gone => ("pilot_k8s_reg_events", "Services", "svcdelete"),
        "Service" => ("pilot_k8s_reg_events", "Services", "svc"),
        "EndpointSlice" => ("pilot_k8s_reg_events", "EndpointSlice", "eds"),
        "Pod" => ("pilot_k8s_reg_events", "Pods", "eds"),
        "Node" => ("pilot_k8s_reg_events", "Nodes", "eds"),
        kind => ("pilot_k8s_cfg_events", kind, "config"),
    };
    metrics::counter!(metric, "type" => of, "event" => event).increment(1);
    metrics::counter!("pilot_inbound_updates", "type" => update).increment(1);
}

impl Follower {
    /// Takes an event. Whether that may change the state.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Expect(kind) => {
                self.unread.insert(kind.id());
                false
            }
            Event::Object(raw) => {
                let (kind, gone) = (raw.kind.kind, raw.json.is_none());
                let mut store = self.store.lock();
                let known = store.knows(&raw);
                let changes = store.take(*raw);
                if changes {
                    count(kind, gone, known);
                }
                changes
            }
            Event::All(kind, names) => {
                self.unread.remove(kind.id());
                self.unserved.remove(kind.called());
                self.store.lock().keep(kind, &names)
            }
            Event::Gone(kind) => {
                self.unread.remove(kind.id());
                self.lost.remove(kind.called());
                self.unserved.remove(kind.called());
                self.store.lock().keep(kind, &HashSet::new())
            }
            Event::Defined => {
                self.defined = true;
                false
            }
            Event::Lost(kind, why) => {
                let first = self.lost.is_empty();
                if self.lost.insert(kind, why.clone()).as_ref() != Some(&why) {
                    if first {
                        tracing::error!(%kind, why, "the Kubernetes API does not answer; the last state stays");
                    } else {
                        tracing::debug!(%kind, why, "the Kubernetes API does not answer for this either");
                    }
                }
                metrics::gauge!("weft_kubernetes_watches_lost").set(self.lost.len() as f64);
                first
            }
            Event::Unserved(kind, why) => {
                self.unread.remove(kind.id());
                tracing::error!(kind = kind.called(), why, "objects of this kind have no effect");
                self.unserved.insert(kind.called(), why);
                true
            }
            Event::Back(kind) => {
                let was = self.lost.contains_key(kind);
                if was {
                    self.lost.clear();
                    tracing::info!("the Kubernetes API answers again");
                }
                metrics::gauge!("weft_kubernetes_watches_lost").set(self.lost.len() as f64);
                was
            }
        }
    }

    /// Until everything that is there has been read once.
    async fn first(&mut self) {
        let mut said = Instant::now();
        let mut told = None;
        loop {
            if self.defined && self.unread.is_empty() {
                // The trust domain stands there, and who may go where: a mesh with other settings is not this mesh.
                let Some(wrong) = self.store.lock().mesh_refused() else { return };
                if told.as_ref() != Some(&wrong) {
                    tracing::error!(
                        wrong,
                        "the ConfigMap istio is refused, and nothing is served before it is mended"
                    );
                    told = Some(wrong);
                }
            }
            match tokio::time::timeout_at(said + PATIENCE, self.events.recv()).await {
                Ok(Some(event)) => drop(self.take(event)),
                Ok(None) => return,
                Err(_) => {
                    said = Instant::now();
                    let mut waiting: Vec<_> = self.unread.iter().copied().collect();
                    waiting.sort_unstable();
                    let why =
                        self.lost.values().next().map(String::as_str).unwrap_or("the list is on its way");
                    let waiting = match (waiting.is_empty(), self.defined) {
                        (true, true) => "a ConfigMap istio that is right".to_owned(),
                        (true, false) => DEFINITIONS.to_owned(),
                        (false, _) => waiting.join(", "),
                    };
                    let why = told.as_deref().unwrap_or(why);
                    tracing::warn!(%waiting, why, "waiting for the Kubernetes API; nothing is served before its state is known");
                }
            }
        }
    }

    async fn follow(
        mut self,
        mut debounce: Debounce,
        sender: watch::Sender<Arc<Snapshot>>,
        verdicts: watch::Sender<Arc<Judged>>,
    ) {
        loop {
            let event = tokio::select! {
                event = self.events.recv() => event,
                () = sender.closed() => return,
            };
            let Some(event) = event else { return };
            if !self.take(event) {
                continue;
            }
            let began = Instant::now();
            let quiet = debounce.quiet(began);
            let mut end = began + debounce.longest(quiet);
            loop {
                let now = Instant::now();
                // A kind that is being read is taken whole: half of it would take the other half away.
                let until = if self.unread.is_empty() {
                    // Nobody is to be sent where nobody answers: this waits for nothing else.
                    if self.store.lock().lost() {
                        end = end.min(now + Debounce::urgent(quiet));
                    }
                    end.min(now + quiet)
                } else {
                    (began + LONGEST_READ).min(now + debounce.whole())
                };
                match tokio::time::timeout_at(until, self.events.recv()).await {
                    Ok(Some(event)) => drop(self.take(event)),
                    Ok(None) | Err(_) => break,
                }
                if Instant::now() >= until {
                    break;
                }
            }
            let quiet_at = Instant::now();
            metrics::histogram!("pilot_debounce_time").record((quiet_at - began).as_secs_f64());
            self.publish(&sender, &verdicts);
            let now = Instant::now();
            metrics::histogram!("pilot_pushcontext_init_seconds").record((now - quiet_at).as_secs_f64());
            debounce.made(now);
        }
    }

    fn publish(&mut self, sender: &watch::Sender<Arc<Snapshot>>, verdicts: &watch::Sender<Arc<Judged>>) {
        let began = Instant::now();
        let built = self.store.lock().build();
        report(&built.news);
        let before = sender.borrow().clone();
        let changed = built.world.version() != before.world.version();
        let generation = before.generation + u64::from(changed);
        if changed {
            let services = built.world.services().len();
            tracing::debug!(generation, services, took = ?began.elapsed(), "state of the mesh");
        }
        let mut diagnostics = built.diagnostics;
        if let Some((kind, why)) = self.lost.first_key_value() {
            diagnostics.push(Diagnostic {
                severity: Severity::Warning,
                ..Diagnostic::file_error(
                    super::SOURCE,
                    format!("the API server does not answer for {} kinds ({kind}: {why})", self.lost.len()),
                    "the last state stays; look at the API server, and at the way to it",
                )
            });
        }
        for (kind, why) in &self.unserved {
            diagnostics.push(Diagnostic {
                severity: Severity::Warning,
                ..Diagnostic::file_error(
                    super::SOURCE,
                    format!("{kind}: {why}"),
                    "its objects have no effect; look at the CustomResourceDefinition's conditions (kubectl describe crd)",
                )
            });
        }
        sender.send_replace(Arc::new(Snapshot {
            world: built.world,
            generation,
            attempts: before.attempts + 1,
            refused: false,
            diagnostics: diagnostics.into(),
            skipped: built.skipped.into(),
        }));
        verdicts.send_if_modified(|now| {
            let new = now.verdicts != built.verdicts || now.gateways != built.gateways;
            if new {
                *now = Arc::new(Judged { generation, verdicts: built.verdicts, gateways: built.gateways });
            }
            new
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::kinds::BUILT_IN;
    use super::super::store::Raw;
    use super::*;
    use crate::model::World;

    const MS: Duration = Duration::from_millis(1);

    fn event(kind: &str, name: &str, mut object: Value) -> Event {
        let kind = BUILT_IN.iter().find(|k| k.kind == kind).unwrap();
        object["metadata"]["name"] = name.into();
        object["metadata"]["namespace"] = "shop".into();
        Event::Object(Box::new(Raw {
            kind,
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            json: Some(object),
        }))
    }

    fn slice(addresses: &[String]) -> Event {
        let endpoints: Vec<_> =
            addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
        event(
            "EndpointSlice",
            "cart-x",
            json!({"addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"labels": {"kubernetes.io/service-name": "cart"}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}),
        )
    }

    /// A follower of events that come from here.
    fn follower() -> (mpsc::Sender<Event>, watch::Receiver<Arc<Snapshot>>) {
        let (events, receiver) = mpsc::channel(BACKLOG);
        let mut follower = Follower {
            events: receiver,
            store: Arc::default(),
            unread: HashSet::new(),
            defined: true,
            lost: BTreeMap::new(),
            unserved: BTreeMap::new(),
        };
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]}});
        follower.take(event("Service", "cart", service));
        let first = Snapshot {
            world: follower.store.lock().build().world,
            generation: 1,
            attempts: 1,
            refused: false,
            diagnostics: Arc::new([]),
            skipped: Arc::new([]),
        };
        let (sender, snapshots) = watch::channel(Arc::new(first));
        let (verdicts, _) = watch::channel(Arc::default());
        tokio::spawn(follower.follow(Debounce::new(DebounceArgs::default()), sender, verdicts));
        (events, snapshots)
    }

    fn endpoints(world: &World) -> usize {
        world.services()[0].endpoints.len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_change_is_on_its_way_at_once_and_a_burst_goes_together() {
        let (events, mut snapshots) = follower();
        let began = Instant::now();
        let mut addresses = vec!["10.0.0.1".to_owned()];
        events.send(slice(&addresses)).await.unwrap();
        snapshots.changed().await.unwrap();
        assert!(began.elapsed() <= 2 * MS, "{:?}", began.elapsed());
        assert_eq!(endpoints(&snapshots.borrow_and_update().world), 1);

        // A thousand edits, one each millisecond.
        let before = snapshots.borrow().generation;
        for n in 0..1000 {
            addresses.push(format!("10.1.{}.{}", n / 250, n % 250));
            events.send(slice(&addresses)).await.unwrap();
            tokio::time::sleep(MS).await;
        }
        let last = Instant::now();
        while endpoints(&snapshots.borrow_and_update().world) < 1001 {
            snapshots.changed().await.unwrap();
        }
        assert!(last.elapsed() <= 100 * MS, "{:?}", last.elapsed());
        let states = snapshots.borrow().generation - before;
        assert!((5..=60).contains(&states), "{states} states of a thousand edits");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_goes_does_not_wait_for_those_that_come() {
        let (events, mut snapshots) = follower();
        let mut addresses: Vec<String> = Vec::new();
        for n in 0..1000 {
            addresses.push(format!("10.1.{}.{}", n / 250, n % 250));
            events.send(slice(&addresses)).await.unwrap();
            tokio::time::sleep(MS).await;
        }
        tokio::time::sleep(200 * MS).await;
        snapshots.borrow_and_update();
        // It has been lively: one more waits, and one less does not.
        let began = Instant::now();
        addresses.push("10.2.0.1".to_owned());
        events.send(slice(&addresses)).await.unwrap();
        snapshots.changed().await.unwrap();
        assert!(began.elapsed() > 5 * MS, "{:?}", began.elapsed());
        snapshots.borrow_and_update();
        let began = Instant::now();
        addresses.remove(0);
        events.send(slice(&addresses)).await.unwrap();
        snapshots.changed().await.unwrap();
        assert!(began.elapsed() <= 3 * MS, "{:?}", began.elapsed());
        assert_eq!(endpoints(&snapshots.borrow().world), 1000);
    }
}
