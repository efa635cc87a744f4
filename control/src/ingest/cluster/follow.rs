//! Gathers what changes, and makes a state of it when it has been quiet for a moment.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::super::diagnostic::{Diagnostic, Severity};
use super::super::watch::{Snapshot, Watcher, report};
use super::store::{Judged, Store};
use super::watch as watches;
use super::watch::{DEFINITIONS, Event};

/// How long it must be quiet when nothing has changed lately: a lone change is on its way at once.
const LONE: Duration = Duration::from_millis(5);
/// How long it must be quiet while much changes.
const QUIET: Duration = Duration::from_millis(100);
/// What counts as lately.
const LATELY: Duration = Duration::from_secs(1);
/// Where it is never quiet, there is a new state at least this often.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
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
}

/// Reads everything and follows it until the watcher is dropped. Waits, as long as need be, for an API server that answers.
pub async fn start(client: Client, settings: &Settings) -> (Watcher, watch::Receiver<Arc<Judged>>) {
    let (sender, events) = mpsc::channel(BACKLOG);
    let tasks = watches::start(&client, &settings.namespace, &sender);
    drop(sender);
    let mut follower = Follower {
        events,
        store: Store::default(),
        unread: HashSet::new(),
        defined: false,
        lost: BTreeMap::new(),
        unserved: BTreeMap::new(),
    };
    follower.first().await;
    let built = follower.store.build();
    report(&built.diagnostics);
    let first = Snapshot {
        world: built.world,
        generation: 1,
        attempts: 1,
        refused: false,
        diagnostics: built.diagnostics.into(),
        skipped: built.skipped.into(),
    };
    let (verdicts_sender, verdicts) =
        watch::channel(Arc::new(Judged { generation: 1, verdicts: built.verdicts }));
    let (sender, snapshots) = watch::channel(Arc::new(first));
    let task = tokio::spawn(async move {
        follower.follow(sender, verdicts_sender).await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    });
    (Watcher::of(snapshots, task), verdicts)
}

struct Follower {
    events: mpsc::Receiver<Event>,
    store: Store,
    /// Kinds of which not everything has been read yet.
    unread: HashSet<&'static str>,
    defined: bool,
    /// What the API server does not answer for, and why.
    lost: BTreeMap<&'static str, String>,
    /// Kinds that are defined and not served, and why.
    unserved: BTreeMap<&'static str, String>,
}

impl Follower {
    /// Takes an event. Whether that may change the state.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Expect(kind) => {
                self.unread.insert(kind.id());
                false
            }
            Event::Object(raw) => self.store.take(*raw),
            Event::All(kind, names) => {
                self.unread.remove(kind.id());
                self.unserved.remove(kind.called());
                self.store.keep(kind, &names)
            }
            Event::Gone(kind) => {
                self.unread.remove(kind.id());
                self.lost.remove(kind.called());
                self.unserved.remove(kind.called());
                self.store.keep(kind, &HashSet::new())
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
                let Some(wrong) = self.store.mesh_refused() else { return };
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

    async fn follow(mut self, sender: watch::Sender<Arc<Snapshot>>, verdicts: watch::Sender<Arc<Judged>>) {
        let mut last = Instant::now();
        loop {
            let event = tokio::select! {
                event = self.events.recv() => event,
                () = sender.closed() => return,
            };
            let Some(event) = event else { return };
            if !self.take(event) {
                continue;
            }
            let quiet = if last.elapsed() > LATELY { LONE } else { QUIET };
            let deadline = Instant::now() + LONGEST_WAIT;
            // A kind that is being read is taken whole: half of it would take the other half away.
            while let Ok(Some(event)) = tokio::time::timeout(quiet, self.events.recv()).await {
                self.take(event);
                let late = Instant::now().saturating_duration_since(deadline);
                if late > LONGEST_READ || (late > Duration::ZERO && self.unread.is_empty()) {
                    break;
                }
            }
            last = Instant::now();
            self.publish(&sender, &verdicts);
        }
    }

    fn publish(&mut self, sender: &watch::Sender<Arc<Snapshot>>, verdicts: &watch::Sender<Arc<Judged>>) {
        let began = Instant::now();
        let built = self.store.build();
        report(&built.news);
        let before = sender.borrow().clone();
        let changed = built.world.version() != before.world.version();
        let generation = before.generation + u64::from(changed);
        if changed {
            metrics::counter!("pilot_k8s_reg_events").increment(1);
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
            let new = now.verdicts != built.verdicts;
            if new {
                *now = Arc::new(Judged { generation, verdicts: built.verdicts });
            }
            new
        });
    }
}
