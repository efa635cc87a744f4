//! When a change goes out, and to how many proxies at once.
//!
//! The directory's reader has merged what was written together (it waits until the directory has been still). Here each good
//! state becomes a [`Revision`]; every connection waits for the next one, skips those that it was too slow for, and takes a
//! permit before it renders and sends: a change among thousands of proxies is a queue, not a stampede.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::ingest::Snapshot;
use crate::model::{Change, Trust, World};

/// One state of the mesh that proxies are brought to.
#[derive(Clone, Debug)]
pub struct Revision {
    /// What the mesh is.
    pub world: World,
    /// Whom it trusts.
    pub trust: Arc<Trust>,
    /// Counts states since the start, from 1.
    pub number: u64,
    /// Which of the reader's states it has.
    pub generation: u64,
    /// `version_info` of what is sent: when it was read, and its number.
    pub version: Arc<str>,
    /// When it was read, for convergence times.
    pub read: Instant,
}

impl Revision {
    fn of(snapshot: &Snapshot, trust: Arc<Trust>, number: u64) -> Self {
        let now = time::OffsetDateTime::now_utc();
        let stamp = now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
        Self {
            world: snapshot.world.clone(),
            trust,
            number,
            generation: snapshot.generation,
            version: format!("{stamp}/{number}").into(),
            read: Instant::now(),
        }
    }
}

/// Istio's word for why something is sent.
fn trigger(change: &Change) -> &'static str {
    match change {
        Change::Endpoints(_) => "endpoint",
        Change::Anything => "config",
    }
}

/// The queue's end at which connections wait. Cloning it shares the permits.
#[derive(Clone, Debug)]
pub struct Queue {
    revisions: watch::Receiver<Arc<Revision>>,
    permits: Arc<Semaphore>,
}

impl Queue {
    /// Follows `snapshots`, and whom the authority says to `trust`; at most `throttle` connections render and send at once.
    pub fn follow(
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        mut trust: watch::Receiver<Arc<Trust>>,
        throttle: usize,
    ) -> Self {
        let first = Revision::of(&snapshots.borrow_and_update(), trust.borrow_and_update().clone(), 1);
        let trust_domain = first.world.mesh().trust_domain.clone();
        let (sender, revisions) = watch::channel(Arc::new(first));
        tokio::spawn(async move {
            loop {
                let goes_on = tokio::select! {
                    changed = snapshots.changed() => changed.is_ok(),
                    // An authority that is gone changes nothing any more.
                    Ok(()) = trust.changed() => true,
                };
                if !goes_on {
                    return;
                }
                let (number, trusted) = (sender.borrow().number + 1, trust.borrow_and_update().clone());
                let next = Revision::of(&snapshots.borrow_and_update(), trusted, number);
                let why = {
                    let last = sender.borrow();
                    match (next.world.version() == last.world.version(), next.trust == last.trust) {
                        (true, true) => continue,
                        (true, false) => "secret",
                        (false, _) => trigger(&next.world.since(&last.world)),
                    }
                };
                metrics::counter!("pilot_push_triggers", "type" => why).increment(1);
                if next.world.mesh().trust_domain != trust_domain {
                    tracing::error!(
                        issued = %trust_domain,
                        configured = %next.world.mesh().trust_domain,
                        "trustDomain was changed: certificates are issued for the old one until the control plane is \
                         started again"
                    );
                }
                if sender.send(Arc::new(next)).is_err() {
                    return;
                }
            }
        });
        Self { revisions, permits: Arc::new(Semaphore::new(throttle.max(1))) }
    }

    /// The latest revision; [`Self::changed`] waits for one after it.
    pub fn latest(&mut self) -> Arc<Revision> {
        self.revisions.borrow_and_update().clone()
    }

    /// Waits for a revision after the last one that was asked for. Ends only with the process.
    pub async fn changed(&mut self) {
        if self.revisions.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes one of the permits to push; it is given back when dropped.
    pub async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().acquire_owned().await.ok()
    }
}
