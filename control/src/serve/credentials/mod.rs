//! Credentials that are kept outside the configuration (certificates and keys of gateways, and for services outside the mesh): read
//! here, and pushed as secrets to the proxies that may have them.
//!
//! Read is what the configuration names and has no Secret of. A state of the mesh goes out when each of its credentials has been
//! tried once; they are read again from time to time, and what cannot be read, or cannot be used, leaves the one that was last
//! good. Those of OpenBao are kept in the state directory as well, for a start while it is away.

mod flags;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::flags::CredentialArgs;
use self::source::{Kept, Source};
use crate::ingest::Snapshot;
use crate::model::credentials::CredentialName;
use crate::model::{Credential, Credentials, World};

/// How long after a failure a credential is read again, at first and at most; never later than its next reading.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A credential's state.
struct State {
    /// What was last good.
    good: Option<Arc<Credential>>,
    /// Its version at the source, if that counts them.
    version: Option<u64>,
    due: Instant,
    /// How long the next failure is waited after.
    pause: Duration,
    /// Why it was last refused, if it was.
    error: Option<String>,
    tried: bool,
    asked: bool,
}

/// What became of a reading: nothing new, or a credential with its version.
type Answer = (CredentialName, anyhow::Result<Option<(Option<u64>, Arc<Credential>)>>);

/// Reads credentials and keeps the last good ones.
pub struct CredentialReader {
    source: Source,
    every: Duration,
    kept: Option<Kept>,
    all: HashMap<CredentialName, State>,
    under_way: JoinSet<Answer>,
}

impl CredentialReader {
    /// A reader of this source, again after `every`. What is good is kept below `state`.
    pub fn new(source: Source, every: Duration, state: Option<&Path>) -> Self {
        let kept = state.map(|directory| Kept(directory.join("credentials")));
        Self { source, every, kept, all: HashMap::new(), under_way: JoinSet::new() }
    }

    /// What `snapshots` say, with the credentials that they name; again whenever credentials change.
    pub async fn follow(
        mut self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> watch::Receiver<Arc<Snapshot>> {
        if let Source::OpenBao { openbao, .. } = &self.source {
            tokio::spawn(openbao.clone().keep_token());
        }
        let with = |snapshot: &Snapshot, world: World| Arc::new(Snapshot { world, ..snapshot.clone() });
        let first = snapshots.borrow_and_update().clone();
        let world = self.settle(&first.world).await;
        let (sender, receiver) = watch::channel(with(&first, world));
        tokio::spawn(async move {
            loop {
                let due = self.all.values().filter(|state| !state.asked).map(|state| state.due).min();
                let idle = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = snapshots.changed() => if changed.is_err() { return },
                    Some(answer) = self.under_way.join_next() => self.take(answer.ok()),
                    () = idle => {}
                }
                let snapshot = snapshots.borrow_and_update().clone();
                self.ask(&snapshot.world);
                if self.all.values().all(|state| state.tried) {
                    let world = self.world(&snapshot.world);
                    sender.send_if_modified(|now| {
                        let changed = now.world.version() != world.version();
                        *now = with(&snapshot, world);
                        changed
                    });
                }
            }
        });
        receiver
    }

    /// The world with its credentials: all that are due are read, and waited for.
    async fn settle(&mut self, world: &World) -> World {
        self.ask(world);
        while let Some(answer) = self.under_way.join_next().await {
            self.take(answer.ok());
        }
        self.world(world)
    }

    /// Begins to read the credentials of this world that are due, and forgets all others.
    fn ask(&mut self, world: &World) {
        let wanted = world.wanted_credentials();
        let kept = self.kept.clone();
        self.all.retain(|name, _| {
            let stays = wanted.contains(name);
            if !stays {
                metrics::gauge!("weft_credential_stale", "credential" => label(name)).set(0.0);
                kept.iter().for_each(|kept| kept.forget(name));
            }
            stays
        });
        let now = Instant::now();
        for name in wanted {
            let state = self.all.entry(name.clone()).or_insert_with(|| State {
                good: None,
                version: None,
                due: now,
                pause: RETRY.0,
                error: None,
                tried: false,
                asked: false,
            });
            if state.asked || state.due > now {
                continue;
            }
            state.asked = true;
            let (source, version) = (self.source.clone(), state.version);
            self.under_way.spawn(async move {
                let answer = source.read(&name, version).await;
                (name, answer)
            });
        }
    }

    /// Takes what has come of a reading.
    fn take(&mut self, answer: Option<Answer>) {
        let Some((name, answer)) = answer else { return };
        // It may not be wanted any more.
        let Some(state) = self.all.get_mut(&name) else { return };
        let first = !state.tried;
        (state.asked, state.tried) = (false, true);
        let stale = metrics::gauge!("weft_credential_stale", "credential" => label(&name));
        let place = self.source.place(&name);
        match answer {
            Ok(new) => {
                state.due = Instant::now() + self.every;
                (state.pause, state.error) = (RETRY.0, None);
                stale.set(0.0);
                let Some((version, new)) = new else { return };
                state.version = version;
                if state.good.as_ref() == Some(&new) {
                    return;
                }
                tracing::info!(place, version, "a credential was read");
                if let Some(kept) = &self.kept
                    && let Err(error) = kept.save(&name, &new)
                {
                    tracing::warn!(place, %error, "a credential cannot be kept; a start while its source is away would lack it");
                }
                state.good = Some(new);
            }
            Err(error) => {
                stale.set(1.0);
                let error = format!("{error:#}");
                let known = state.error.replace(error.clone());
                if first && state.good.is_none() {
                    state.good = self.kept.as_ref().and_then(|kept| kept.load(&name));
                    if state.good.is_some() {
                        tracing::warn!(place, error, "a credential is taken from the state directory");
                    }
                }
                match &state.good {
                    // It was said.
                    _ if known.as_ref() == Some(&error) => {}
                    Some(_) => {
                        tracing::warn!(place, error, "a credential cannot be read; the last good one stays")
                    }
                    None => tracing::error!(place, error, "a credential cannot be read; who needs it waits"),
                }
                state.due = Instant::now() + state.pause.min(self.every);
                state.pause = (state.pause * 2).min(RETRY.1);
            }
        }
    }

    fn world(&self, world: &World) -> World {
        if self.all.is_empty() {
            return world.clone();
        }
        let known = |(name, state): (&CredentialName, &State)| Some((name.clone(), state.good.clone()?));
        let known: BTreeMap<_, _> = self.all.iter().filter_map(known).collect();
        world.with_credentials(Arc::new(Credentials::new(known)))
    }
}

fn label((namespace, name): &CredentialName) -> String {
    format!("{namespace}/{name}")
}
