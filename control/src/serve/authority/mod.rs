//! The authority among its proxies: does the steps of what is under way as they become possible, and answers the operator's
//! commands on a socket in the state directory, which only the owner of the keys can open.

pub mod federation;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::watch;
use xds_protos::ResourceType;

use super::Proxies;
use crate::ca::rotation::{Followers, Step, Wait};
use crate::ca::status::Status;
use crate::ca::{Audit, CertificateAuthority};
use crate::model::Trust;
use crate::render;

pub use socket::{SOCKET, listen};

/// How often the next step is looked for.
const TICK: Duration = Duration::from_millis(500);
/// How long proxies of an earlier life of the control plane have to come back, before their absence says anything; they try
/// again at least every 30 s.
const GATHERING: Duration = Duration::from_secs(35);
/// How often it is said that somebody has to bring another intermediate.
const REMINDER: Duration = Duration::from_secs(3600);
/// A proxy that has just connected may not have asked for its secrets yet.
const SETTLING: time::Duration = time::Duration::seconds(5);

/// The one who keeps an authority going.
#[derive(Clone)]
pub struct Keeper {
    authority: Arc<CertificateAuthority>,
    /// What proxies are told, other trust domains included.
    trust: watch::Receiver<Arc<Trust>>,
    proxies: Proxies,
    audit: Arc<Audit>,
    gathering_until: OffsetDateTime,
}

impl Keeper {
    /// Keeps `authority`. `trust` is what `proxies` are told, of it and of others. It has just started.
    pub fn new(
        authority: Arc<CertificateAuthority>,
        trust: watch::Receiver<Arc<Trust>>,
        proxies: Proxies,
        audit: Arc<Audit>,
    ) -> Self {
        let gathering_until = OffsetDateTime::now_utc() + GATHERING;
        Self { authority, trust, proxies, audit, gathering_until }
    }

    /// Works for ever.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(TICK);
        let mut reminded: Option<tokio::time::Instant> = None;
        loop {
            ticks.tick().await;
            let now = OffsetDateTime::now_utc();
            self.authority.gauges(now);
            if reminded.is_none_or(|at| at.elapsed() >= REMINDER)
                && let Some(end) = self.authority.needs_an_intermediate(now)
            {
                reminded = Some(tokio::time::Instant::now());
                tracing::warn!(
                    "the intermediate ends at {end}, and no certificate is issued then; the root's key is offline: \
                     have another one signed (weft ca request-intermediate)"
                );
            }
            // It stores and signs: a moment's work, but not one for the runtime's threads.
            let keeper = self.clone();
            let step = tokio::task::spawn_blocking(move || {
                keeper.authority.advance(now, keeper.followers(now), keeper.gathering_until)
            });
            match step.await {
                Ok(Ok(Some(Step::Enter(phase)))) => {
                    tracing::info!(step = phase.words(), "replacing the root");
                    self.audit.write("root rotation", serde_json::json!({"phase": phase}));
                }
                Ok(Ok(Some(Step::Finish))) => {
                    tracing::info!("the root is replaced");
                    self.audit.write("root rotation", serde_json::json!({"phase": "done"}));
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "the authority's next step failed; it is tried again")
                }
                Err(error) => tracing::error!(%error, "the authority's next step ended"),
            }
        }
    }

    /// How far the connected proxies are with the present bundle.
    pub fn followers(&self, now: OffsetDateTime) -> Followers {
        let trust = self.trust.borrow().clone();
        // What the authority says a moment ago may not have come through yet: nobody has it then.
        let own = self.authority.trust().borrow().clone();
        let current = (&trust.roots, &trust.revocations) == (&own.roots, &own.revocations);
        let wanted = render::roots(&trust).map(|r| r.version).filter(|_| current);
        let mut followers = Followers::default();
        for proxy in self.proxies.list() {
            if proxy.identity.is_none() {
                continue;
            }
            let secrets = proxy.types.iter().find(|t| t.kind == ResourceType::Secret);
            match secrets.and_then(|t| t.roots.as_ref()) {
                Some(acknowledged) if acknowledged.is_some() && *acknowledged == wanted => {
                    followers.acknowledged += 1;
                }
                Some(_) => followers.behind += 1,
                None if now - proxy.connected < SETTLING => followers.behind += 1,
                None => followers.by_certificate += 1,
            }
        }
        followers
    }

    /// What there is to see.
    pub fn status(&self) -> Status {
        let now = OffsetDateTime::now_utc();
        let followers = self.followers(now);
        Status::running(&self.authority, followers, self.waits(now, followers))
    }

    fn waits(&self, now: OffsetDateTime, followers: Followers) -> Option<Wait> {
        match self.authority.looked_at(now, followers, self.gathering_until) {
            Some(Step::Wait(wait)) => Some(wait),
            _ => None,
        }
    }
}
