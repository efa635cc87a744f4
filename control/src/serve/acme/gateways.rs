//! The gateways that answer an ACME server's questions: who is connected, and what they have taken.

use std::time::Duration;

use tokio::time::Instant;

use crate::queue::Queue;
use crate::render::ProxyKind;
use crate::serve::Proxies;
use crate::serve::proxies::Proxy;

/// How long gateways are waited for.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);

/// Looks at the connected gateways.
#[derive(Clone)]
pub(super) struct Gateways {
    pub(super) queue: Queue,
    pub(super) proxies: Proxies,
}

impl Gateways {
    fn of(&self, namespace: &str) -> Vec<Proxy> {
        let mut all = self.proxies.list();
        all.retain(|p| p.node.kind == ProxyKind::Router && p.node.namespace == namespace);
        all
    }

    /// Whether there is one.
    pub(super) fn there(&self, namespace: &str) -> bool {
        !self.of(namespace).is_empty()
    }

    /// Waits until each has taken the state with these open questions. One that does not in time is not waited for: others may
    /// be asked.
    pub(super) async fn have(&mut self, namespace: &str, challenges_version: u64) {
        let end = Instant::now() + PATIENCE;
        loop {
            let latest = self.queue.latest();
            let behind = |p: &Proxy| p.revision < latest.number || p.types.iter().any(|t| !t.synced);
            let sent = latest.world.acme().challenges_version() == challenges_version;
            if sent && !self.of(namespace).iter().any(behind) {
                return;
            }
            if Instant::now() > end {
                tracing::warn!(namespace, "not every gateway has taken the answer for the ACME server");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
