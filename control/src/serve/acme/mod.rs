//! Certificates of gateways from ACME servers (AcmeCertificate, RFC 8555): ordered once for all gateways, and pushed to them as
//! credentials.
//!
//! Servers convince themselves by HTTP: while an order is open, the gateways answer at
//! `/.well-known/acme-challenge/` of the host at port 80, by a route that comes and goes with the question. One order is open
//! at a time. A certificate is renewed at two thirds of its life; whatever fails leaves the last good one, and is tried again
//! with growing pauses.

mod certificate;
mod gateways;
mod order;
mod schedule;
mod store;
mod transport;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Proxies;
use crate::ingest::Snapshot;
use crate::model::acme::{Acme, AcmeCertificate, Challenge};
use crate::model::{Kind, Meta, Object, TlsSecret, World};
use crate::queue::Queue;
use certificate::Certificate;
use gateways::Gateways;
use store::Store;

/// How long an order may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// Sleeps are cut to this length, for a clock that is set, or a machine that was suspended, moves no timer.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// And not to less, for what is due may wait for a gateway.
const SHORTEST_SLEEP: Duration = Duration::from_secs(1);

/// Namespace and name of a credential.
type Key = (String, String);

/// A credential that is wanted.
struct Kept {
    object: Arc<Object<AcmeCertificate>>,
    good: Option<Certificate>,
    due: OffsetDateTime,
    failures: u32,
    /// It is due, and waits for a gateway.
    waits: bool,
}

/// What came of an order, for the specification that it was for.
type Ordered = (Key, AcmeCertificate, anyhow::Result<Certificate>);

/// Orders certificates and keeps the last good ones.
pub struct AcmeKeeper {
    store: Arc<Store>,
    kept: BTreeMap<Key, Kept>,
    published: watch::Sender<Arc<Acme>>,
    open: watch::Sender<Vec<Challenge>>,
    under_way: JoinSet<Ordered>,
}

/// What `snapshots` say, with what has come of their AcmeCertificates; again whenever that changes.
pub fn follow(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut acme: watch::Receiver<Arc<Acme>>,
) -> watch::Receiver<Arc<Snapshot>> {
    let with = |snapshot: &Snapshot, acme: Arc<Acme>| {
        Arc::new(Snapshot { world: snapshot.world.with_acme(acme), ..snapshot.clone() })
    };
    let first = with(&snapshots.borrow_and_update(), acme.borrow_and_update().clone());
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                Ok(()) = acme.changed() => {}
            }
            let next = with(&snapshots.borrow_and_update(), acme.borrow_and_update().clone());
            sender.send_replace(next);
        }
    });
    receiver
}

impl AcmeKeeper {
    /// A keeper of what is stored below `state` for this world.
    ///
    /// # Errors
    /// The state directory cannot be used.
    pub fn open(state: Option<&Path>, world: &World) -> anyhow::Result<Self> {
        let mut keeper = Self {
            store: Arc::new(Store::open(state).context("the state of ACME")?),
            kept: BTreeMap::new(),
            published: watch::Sender::default(),
            open: watch::Sender::default(),
            under_way: JoinSet::new(),
        };
        keeper.want(world);
        keeper.publish();
        Ok(keeper)
    }

    /// What has come of it, to be followed.
    pub fn acme(&self) -> watch::Receiver<Arc<Acme>> {
        self.published.subscribe()
    }

    /// Works for ever.
    pub async fn run(
        mut self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        queue: Queue,
        proxies: Proxies,
    ) {
        let gateways = Gateways { queue, proxies };
        let mut open = self.open.subscribe();
        loop {
            let world = snapshots.borrow_and_update().world.clone();
            self.want(&world);
            self.order(&gateways);
            self.publish();
            let now = OffsetDateTime::now_utc();
            let due = self.kept.values().map(|kept| kept.due).min().filter(|_| self.under_way.is_empty());
            let idle = due.map_or(LONGEST_SLEEP, |due| Duration::try_from(due - now).unwrap_or_default());
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                Some(ordered) = self.under_way.join_next() => match ordered {
                    Ok(ordered) => self.take(ordered),
                    Err(error) => tracing::error!(%error, "an order ended in an unexpected way"),
                },
                Ok(()) = open.changed() => drop(open.borrow_and_update()),
                () = tokio::time::sleep(idle.clamp(SHORTEST_SLEEP, LONGEST_SLEEP)) => {}
            }
        }
    }

    /// Takes up what this world wants, and forgets all else. What was stored comes back.
    fn want(&mut self, world: &World) {
        let wanted = world.acme_certificates();
        let key = |object: &Object<AcmeCertificate>| {
            (object.meta.namespace.clone(), object.spec.credential_name.clone())
        };
        self.kept.retain(|held, _| wanted.iter().any(|object| key(object) == *held));
        let now = OffsetDateTime::now_utc();
        for object in wanted {
            match self.kept.entry(key(object)) {
                std::collections::btree_map::Entry::Occupied(mut held) => {
                    let held = held.get_mut();
                    if held.object.spec != object.spec {
                        (held.failures, held.due) = (0, due(&object.spec, held.good.as_ref(), now));
                    }
                    held.object = object.clone();
                }
                std::collections::btree_map::Entry::Vacant(place) => {
                    let (namespace, name) = place.key();
                    let good = self.store.certificate(namespace, name).unwrap_or_else(|error| {
                        tracing::warn!(namespace, credential = name, "{error:#}");
                        None
                    });
                    if !self.store.lasts() {
                        tracing::warn!(
                            namespace,
                            credential = name,
                            "certificates of ACME servers end with this process (--state-dir), and servers give few of them"
                        );
                    }
                    let due = due(&object.spec, good.as_ref(), now);
                    place.insert(Kept { object: object.clone(), good, due, failures: 0, waits: false });
                }
            }
        }
    }

    /// Begins the order that is due, if none is under way. Servers give few tries: none is asked while nobody could answer.
    fn order(&mut self, gateways: &Gateways) {
        if !self.under_way.is_empty() {
            return;
        }
        let now = OffsetDateTime::now_utc();
        for ((namespace, credential), kept) in self.kept.iter_mut().filter(|(_, kept)| kept.due <= now) {
            let waits = !gateways.there(namespace);
            if waits && !kept.waits {
                tracing::warn!(
                    namespace,
                    credential,
                    "no gateway of this namespace is connected that could answer for the hosts; the order waits for one"
                );
            }
            kept.waits = waits;
        }
        let due = self.kept.iter().filter(|(_, kept)| kept.due <= now && !kept.waits);
        let Some((key, kept)) = due.min_by_key(|(_, kept)| kept.due) else { return };
        let (key, spec) = (key.clone(), kept.object.spec.clone());
        let (store, open, mut gateways) = (self.store.clone(), self.open.clone(), gateways.clone());
        tracing::info!(
            namespace = key.0,
            credential = key.1,
            server = spec.directory_url,
            "ordering a certificate"
        );
        self.under_way.spawn(async move {
            let ordered = order::order(&key.0, &spec, &store, &open, &mut gateways);
            let ordered = tokio::time::timeout(PATIENCE, ordered).await;
            let ordered = ordered.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {PATIENCE:?}")));
            (key, spec, ordered)
        });
    }

    /// Takes what came of an order.
    fn take(&mut self, (key, spec, ordered): Ordered) {
        let result = if ordered.is_ok() { "success" } else { "failure" };
        metrics::counter!("weft_acme_orders", "result" => result).increment(1);
        let (namespace, credential, server) = (&key.0, &key.1, &spec.directory_url);
        // It may not be wanted any more, or not in this way.
        let Some(kept) = self.kept.get_mut(&key).filter(|kept| kept.object.spec == spec) else { return };
        let now = OffsetDateTime::now_utc();
        match ordered {
            Ok(certificate) => {
                if let Err(error) = self.store.keep_certificate(namespace, credential, &certificate) {
                    tracing::error!(namespace, credential, "the certificate is not stored: {error:#}");
                }
                (kept.due, kept.failures) = (renewal(&certificate), 0);
                tracing::info!(namespace, credential, server, hosts = certificate.names.join(","),
                    expires = %certificate.until, renews = %kept.due, "certificate issued");
                kept.good = Some(certificate);
            }
            Err(error) => {
                if order::says(&error, "accountDoesNotExist") {
                    self.store.forget_account(server, &spec.email);
                }
                kept.failures = kept.failures.saturating_add(1);
                let left =
                    kept.good.as_ref().map(|good| Duration::try_from(good.until - now).unwrap_or_default());
                let pause = match order::says(&error, "rateLimited") {
                    true => schedule::LONGEST_PAUSE,
                    false => schedule::pause(kept.failures, left, fastrand::f64()),
                };
                kept.due = now + pause;
                let expires = kept.good.as_ref().map(|good| good.until.to_string());
                let error = format!("{error:#}");
                tracing::warn!(namespace, credential, server, error, failures = kept.failures, next = %kept.due,
                    expires, "no certificate was issued; the last good one stays");
            }
        }
    }

    /// Says what there is, if it is something else than before.
    fn publish(&self) {
        let mut credentials = Vec::new();
        for (key, kept) in &self.kept {
            let Some(good) = &kept.good else { continue };
            let labels = [("namespace", key.0.clone()), ("credential", key.1.clone())];
            metrics::gauge!("weft_acme_certificate_expiry", &labels).set(good.until.unix_timestamp() as f64);
            credentials.push(Arc::new(credential(&kept.object, good)));
        }
        let acme = Acme::new(credentials, self.open.borrow().clone());
        self.published.send_if_modified(|now| {
            let changed = now.version() != acme.version();
            *now = Arc::new(acme);
            changed
        });
    }
}

/// When an order is due: at once unless there is a certificate of this server for these names.
fn due(spec: &AcmeCertificate, good: Option<&Certificate>, now: OffsetDateTime) -> OffsetDateTime {
    match good {
        Some(good) if good.names == spec.names() && good.directory == spec.directory_url => renewal(good),
        _ => now,
    }
}

fn renewal(certificate: &Certificate) -> OffsetDateTime {
    schedule::renewal(certificate.from, certificate.until, fastrand::f64() * 2.0 - 1.0)
}

/// A certificate as the Secret whose place it takes.
fn credential(object: &Object<AcmeCertificate>, certificate: &Certificate) -> Object<TlsSecret> {
    let mut hasher = DefaultHasher::new();
    certificate.chain.hash(&mut hasher);
    let meta = Meta {
        kind: Kind::Secret,
        api_version: "v1".to_owned(),
        name: object.spec.credential_name.clone(),
        version: hasher.finish(),
        ..object.meta.clone()
    };
    let spec = TlsSecret {
        certificate_chain: certificate.chain.as_bytes().to_vec(),
        private_key: certificate.key.as_bytes().to_vec(),
        ca_certificates: Vec::new(),
    };
    Object { meta, spec }
}
