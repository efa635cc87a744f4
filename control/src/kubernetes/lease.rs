//! Which of several control planes does what only one may do: the holder of a Lease (`coordination.k8s.io/v1`).
//!
//! The rules are those of Kubernetes' own leader election: a holder renews; others wait until a lease has not changed for its
//! whole life, by their own clocks; a holder that cannot renew stops before that time is over, and one that ends gives the lease
//! back.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// How long a lease holds that is not renewed.
const LIFE: Duration = Duration::from_secs(15);
/// When a holder that cannot renew stops.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed, or asked for.
const RETRY: Duration = Duration::from_secs(2);

/// The part that this control plane takes in an election.
#[derive(Debug)]
pub struct Election {
    leads: watch::Receiver<bool>,
    end: oneshot::Sender<oneshot::Sender<()>>,
}

impl Election {
    /// Stands for election as `identity`.
    pub fn stand(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        let (sender, leads) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        let candidate = Candidate {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            seen: None,
            renewed: None,
        };
        tokio::spawn(candidate.run(sender, ended));
        Self { leads, end }
    }

    /// Whether this one leads, now and later.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }

    /// Gives the lease back, so that another one need not wait for its end.
    pub async fn resign(self) {
        let (done, wait) = oneshot::channel();
        if self.end.send(done).is_ok() {
            let _ = tokio::time::timeout(RETRY, wait).await;
        }
    }
}

struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// Another's lease as it was seen first, and when.
    seen: Option<(Option<String>, Instant)>,
    /// When our own was renewed last.
    renewed: Option<Instant>,
}

impl Candidate {
    async fn run(mut self, leads: watch::Sender<bool>, mut ended: oneshot::Receiver<oneshot::Sender<()>>) {
        loop {
            // One that hangs must not keep a holder from noticing that its time is over.
            let asked = tokio::time::timeout(RETRY * 2, self.ask()).await;
            let held = match asked {
                Ok(Ok(held)) => held,
                Ok(Err(error)) => {
                    tracing::debug!(%error, lease = %self.name, "the lease cannot be read or written");
                    self.renewed.is_some_and(|at| at.elapsed() < DEADLINE)
                }
                Err(_) => self.renewed.is_some_and(|at| at.elapsed() < DEADLINE),
            };
            let changed = leads.send_if_modified(|now| std::mem::replace(now, held) != held);
            if changed && held {
                tracing::info!(lease = %self.name, identity = %self.identity, "this control plane leads now");
            } else if changed {
                self.renewed = None;
                tracing::warn!(lease = %self.name, "this control plane does not lead any more");
            }
            metrics::gauge!("weft_leader").set(f64::from(u8::from(held)));
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = leads.closed() => return,
                done = &mut ended => {
                    leads.send_replace(false);
                    if held && let Err(error) = self.resign().await {
                        tracing::debug!(%error, "the lease could not be given back; it ends by itself");
                    }
                    if let Ok(done) = done {
                        let _ = done.send(());
                    }
                    return;
                }
            }
        }
    }

    /// Takes or renews the lease where it may. Whether it is ours now.
    async fn ask(&mut self) -> kube::Result<bool> {
        let began = Instant::now();
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None)) };
            return self.written(self.api.create(&PostParams::default(), &lease).await, began);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() {
            let version = lease.metadata.resource_version.clone();
            let since = match &self.seen {
                Some((known, since)) if *known == version => *since,
                _ => self.seen.insert((version, began)).1,
            };
            let life =
                spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
            if since.elapsed() < life.unwrap_or(LIFE) {
                return Ok(false);
            }
        }
        lease.spec = Some(self.spec(Some(spec)));
        // The resource version goes along: of two that try, one is refused.
        self.written(self.api.replace(&self.name, &PostParams::default(), &lease).await, began)
    }

    fn written(&mut self, answer: kube::Result<Lease>, began: Instant) -> kube::Result<bool> {
        match answer {
            Ok(_) => {
                (self.renewed, self.seen) = (Some(began), None);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn spec(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let before = before.unwrap_or_default();
        let ours = before.holder_identity.as_deref() == Some(self.identity.as_str());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LIFE.as_secs()).ok(),
            acquire_time: if ours { before.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!ours)),
            ..LeaseSpec::default()
        }
    }

    async fn resign(&self) -> kube::Result<()> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let Some(spec) = &mut lease.spec else { return Ok(()) };
        if spec.holder_identity.as_deref() == Some(self.identity.as_str()) {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}
