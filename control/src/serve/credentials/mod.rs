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
use crate::serve::reading::Reads;

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

    /// What `snapshots` say, with the credentials that they name; again whenever credentials change. Meanwhile our token at the source
    /// is kept alive.
    pub async fn follow(self, snapshots: watch::Receiver<Arc<Snapshot>>) -> watch::Receiver<Arc<Snapshot>> {
        if let Source::OpenBao { openbao, .. } = &self.source {
            tokio::spawn(openbao.clone().keep_token());
        }
        Reads::follow(self, snapshots).await
    }
}

impl Reads for CredentialReader {
    type Answer = Answer;

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

    fn under_way(&mut self) -> &mut JoinSet<Answer> {
        &mut self.under_way
    }

    fn due(&self) -> Option<Instant> {
        self.all.values().filter(|state| !state.asked).map(|state| state.due).min()
    }

    fn is_settled(&self) -> bool {
        self.all.values().all(|state| state.tried)
    }

    fn take(&mut self, (name, answer): Answer) {
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
                metrics::counter!("pilot_sds_certificate_errors_total").increment(1);
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

    async fn world(&mut self, world: &World) -> World {
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
