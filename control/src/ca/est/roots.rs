//! The roots of a server of EST. One that is gone from `cacerts` stays until the last certificate under it has ended: a server that
//! forgets a root, for a moment or too early, must not part a mesh.

use std::path::Path;

use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::Est;
use crate::ca::roots::{Change, HEARS, Roots};
use crate::ca::store::{self, ROOT_CERTIFICATE};

/// Where they are kept.
pub(super) const KEPT: &str = "est-roots.json";

impl Est {
    /// Takes up the roots that were kept here.
    pub(super) fn take_up_roots(&self, directory: &Path) {
        let kept = store::read(directory, KEPT).ok().and_then(|text| serde_json::from_str(&text).ok());
        let plain = || store::read(directory, ROOT_CERTIFICATE).ok().map(|pem| Roots::known(&pem));
        if let Some(roots) = kept.or_else(plain) {
            *self.trusted.lock() = roots;
        }
    }

    /// Keeps them, where they changed.
    pub(super) fn keep_roots(&self, roots: &Roots) {
        let Some(directory) = self.directory.get() else { return };
        let Ok(text) = serde_json::to_string_pretty(roots) else { return };
        if store::read(directory, KEPT).is_ok_and(|kept| kept == text) {
            return;
        }
        if let Err(error) = store::write(directory, KEPT, &text) {
            tracing::warn!(%error, "the EST server's roots are not kept; after a start one that it hands out no more is forgotten");
        }
    }

    pub(super) fn tell_of(&self, change: &Change) {
        for root in &change.new {
            tracing::info!(root, after = ?HEARS, "the EST server has a root that is new; the mesh is told of it, and what leads to it is handed out after a while");
        }
        for root in &change.ended {
            tracing::info!(root, "a root that the EST server hands out no more is trusted no more");
        }
        for root in &change.gone {
            let words = format!(
                "the EST server hands out the root {root} no more; it stays trusted until every certificate under it has ended ({} days,                  --max-workload-cert-ttl): if it went by mistake, have cacerts hand it out again; if it must not be trusted from now on,                  name the roots that are in --ca-trust",
                self.settings.longest.whole_days()
            );
            tracing::warn!("{words}");
            emit(Kind::Certificate, || {
                Event::new(Kind::Certificate, Outcome::Failed, Severity::Medium, "est", &words)
            });
        }
    }
}
