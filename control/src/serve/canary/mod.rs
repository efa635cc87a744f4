//! Versions on trial, and circuits (TrafficManagement): what proxies count of their requests is read every second, and decides what share they get.
//!
//! `machine` decides, `breaker` knows what a circuit's state is, `circuits` keeps those that are asked about, `scrape` asks the proxies, `prometheus` who has asked them, `keep` remembers through restarts (a file, or the object's status in a cluster).
//! The share in force becomes part of the World, between reading and queue, and so of the routes. Of several control planes the
//! leader decides; the others follow what it writes into the status.

mod breaker;
mod circuits;
mod keep;
mod machine;
mod prometheus;
mod scrape;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use weft_events::{Event, Kind, Outcome as EventOutcome, Severity, emit};

pub use keep::{Cluster, Keep};
pub use scrape::labelled;

use super::Proxies;
use crate::ingest::Snapshot;
use crate::model::traffic_management::{CanaryDeployment, Share, Shares, VERSION};
use crate::model::{Labels, Service, World};
use circuits::Circuits;
use machine::{Counts, Outcome, Phase, Trial};
use scrape::{Before, Wanted};

/// How often proxies are asked.
const EVERY: Duration = Duration::from_secs(1);
/// When to write again what could not be written.
const AGAIN: Duration = Duration::from_secs(5);
/// As many decisions as are remembered of a trial.
const REMEMBERED: usize = 20;

/// Namespace and name.
type Key = (String, String);

/// A trial under way, and what was decided of it.
struct Run {
    spec: CanaryDeployment,
    trial: Trial,
    told: VecDeque<Value>,
    /// It is written somewhere how it stands.
    kept: bool,
    /// When that was written last.
    wrote: Duration,
    asked: usize,
    answered: usize,
    /// The Prometheus that has told of requests, and is expected to know of all that is scraped since.
    heard: Option<String>,
}

/// Decides, and says what it decided.
pub struct CanaryKeeper {
    keep: Keep,
    proxies: Proxies,
    runs: BTreeMap<Key, Run>,
    circuits: Circuits,
    before: Before,
    asked: prometheus::Asked,
    began: Instant,
    /// It decided when it looked last.
    decided: bool,
    shares: watch::Sender<Arc<Shares>>,
    reports: watch::Sender<Arc<Value>>,
}

/// What `snapshots` say, with the shares in force; again whenever either changes.
pub fn follow(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut shares: watch::Receiver<Arc<Shares>>,
) -> watch::Receiver<Arc<Snapshot>> {
    let with = |snapshot: &Snapshot, shares: Arc<Shares>| {
        Arc::new(Snapshot { world: snapshot.world.with_shares(shares), ..snapshot.clone() })
    };
    let first = with(&snapshots.borrow_and_update(), shares.borrow_and_update().clone());
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                Ok(()) = shares.changed() => {}
            }
            let next = with(&snapshots.borrow_and_update(), shares.borrow_and_update().clone());
            sender.send_replace(next);
        }
    });
    receiver
}

impl CanaryKeeper {
    /// A keeper of the trials of this world, as they stood.
    pub fn new(keep: Keep, proxies: Proxies, world: &World) -> Self {
        let mut keeper = Self {
            keep,
            proxies,
            runs: BTreeMap::new(),
            circuits: Circuits::default(),
            before: Before::default(),
            asked: prometheus::Asked::default(),
            began: Instant::now(),
            decided: false,
            shares: watch::Sender::default(),
            reports: watch::Sender::new(Arc::default()),
        };
        keeper.want(world);
        keeper.publish();
        keeper
    }

    /// The shares in force, to be followed.
    pub fn shares(&self) -> watch::Receiver<Arc<Shares>> {
        self.shares.subscribe()
    }

    /// How every trial stands, for people and programs.
    pub fn reports(&self) -> watch::Receiver<Arc<Value>> {
        self.reports.subscribe()
    }

    /// Works until the configuration ends.
    pub async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        let mut clock = tokio::time::interval(EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let tick = tokio::select! {
                changed = snapshots.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
                () = self.keep.changed() => false,
                _ = clock.tick() => true,
            };
            let world = snapshots.borrow_and_update().world.clone();
            self.want(&world);
            if tick && self.keep.decides() {
                self.count(&world).await;
            }
            self.publish();
        }
    }

    /// Begins what is new, forgets what is gone, and follows what somebody else has decided.
    fn want(&mut self, world: &World) {
        let now = self.began.elapsed();
        let decides = self.keep.decides();
        let begins = !std::mem::replace(&mut self.decided, decides) && decides && self.keep.is_shared();
        let mut wanted = BTreeMap::new();
        for object in world.traffic_managements() {
            if let Some(spec) = &object.spec.canary_deployment {
                wanted.insert((object.meta.namespace.clone(), object.meta.name.clone()), spec);
            }
        }
        self.circuits.want(world);
        self.runs.retain(|key, _| wanted.contains_key(key));
        self.keep.only(|name| {
            name.split_once('/')
                .is_some_and(|(space, name)| wanted.contains_key(&(space.to_owned(), name.to_owned())))
        });
        for (key, spec) in wanted {
            let kept = self.keep.standing(&key).filter(|standing| standing.identity == spec.identity());
            let run = match self.runs.remove(&key) {
                Some(run) if run.trial.standing.identity == spec.identity() => run,
                _ => {
                    let (told, trial) = (VecDeque::new(), Trial::new(spec, kept.clone(), now));
                    Run {
                        spec: spec.clone(),
                        trial,
                        told,
                        kept: false,
                        wrote: now,
                        asked: 0,
                        answered: 0,
                        heard: None,
                    }
                }
            };
            let run = self.runs.entry(key.clone()).or_insert(run);
            run.spec = spec.clone();
            let behind = kept.as_ref() != Some(&run.trial.standing);
            match kept {
                // Who leads, or led before us, has decided.
                // What is decided for good stays so, whoever leads now.
                Some(kept) if !decides || begins || kept.phase != Phase::Progressing => {
                    if behind {
                        run.trial = Trial::new(spec, Some(kept), now);
                    }
                    run.kept = true;
                }
                None if !run.kept && decides => {
                    (run.kept, run.wrote) = (true, now);
                    tell(&key, run, "Started");
                    self.keep.keep(&key, &run.trial.standing, Some("Started"));
                }
                // What was decided did not get there.
                _ if behind && decides && now.saturating_sub(run.wrote) >= AGAIN => {
                    run.wrote = now;
                    self.keep.keep(&key, &run.trial.standing, None);
                }
                _ => {}
            }
        }
    }

    /// Asks the proxies, and decides.
    async fn count(&mut self, world: &World) {
        let active = |run: &Run| run.trial.standing.phase == Phase::Progressing;
        let wanted: BTreeMap<Key, Wanted> = self
            .runs
            .iter()
            .filter(|(_, run)| active(run))
            .filter_map(|(key, run)| Some((key.clone(), wanted(world, &run.spec)?)))
            .collect();
        let all: Vec<Wanted> = wanted.values().cloned().collect();
        self.before.keep(&all);
        self.asked.keep(|key| wanted.contains_key(key));
        let elsewhere = |key: &Key| self.runs.get(key).is_some_and(|run| run.spec.prometheus.is_some());
        let pages = if self.circuits.is_empty() && wanted.keys().all(elsewhere) {
            None
        } else {
            let addresses = self.addresses(world);
            let pages = scrape::pages(addresses.clone()).await;
            self.circuits.take(OffsetDateTime::now_utc(), &addresses, &pages);
            for (key, report) in self.circuits.report() {
                self.keep.circuit(&key, &report);
            }
            Some((addresses.len(), pages))
        };
        let now = self.began.elapsed();
        for (key, wanted) in wanted {
            let Some(run) = self.runs.get_mut(&key) else { continue };
            let counts = match (&run.spec.prometheus, &pages) {
                (Some(_), _) => {
                    heard(&mut self.asked, &mut self.before, world, (&key, run), &wanted, now).await
                }
                (None, Some((asked, pages))) => {
                    counted(&mut self.before, &key, run, *asked, pages, &wanted, now)
                }
                (None, None) => continue,
            };
            let Some(outcome) = run.trial.tick(&run.spec, now, &counts) else { continue };
            let what = match outcome {
                Outcome::Advanced => "Advanced",
                Outcome::Promoted => "Promoted",
                Outcome::Held => "Held",
                Outcome::RolledBack => "RolledBack",
            };
            if run.trial.standing.phase != Phase::Progressing {
                run.trial.standing.problem = None;
            }
            tell(&key, run, what);
            run.wrote = now;
            let standing = run.trial.standing.clone();
            // Proxies are told first: what is bad must not wait for a disk or an API server.
            self.publish();
            self.keep.keep(&key, &standing, Some(what));
        }
    }

    /// Proxies that are connected, here or at another control plane.
    fn addresses(&self, world: &World) -> Vec<IpAddr> {
        let connected = self.proxies.list().into_iter().map(|proxy| proxy.node.address().to_owned());
        let pods = world.workloads().iter().filter(|w| self.keep.is_shared() && w.shows_identity());
        let all = connected.chain(pods.map(|workload| workload.address().to_owned()));
        let mut all: Vec<IpAddr> = all.filter_map(|address| address.parse().ok()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn publish(&self) {
        let share = |run: &Run| Share {
            identity: run.trial.standing.identity.clone(),
            canary: run.trial.standing.canary_percent,
        };
        let shares = Shares(self.runs.iter().map(|(key, run)| (key.clone(), share(run))).collect());
        self.shares.send_if_modified(|now| {
            let new = **now != shares;
            if new {
                *now = Arc::new(shares);
            }
            new
        });
        let trials: Value = self.runs.iter().map(|(key, run)| report(key, run)).collect();
        let circuits = self.circuits.report().into_iter().map(|((namespace, name), mut report)| {
            (report["namespace"], report["name"]) = (namespace.into(), name.into());
            report
        });
        let circuits: Value = circuits.collect();
        let report = json!({"leads": self.keep.decides(), "trials": trials, "circuitBreakers": circuits});
        self.reports.send_replace(Arc::new(report));
    }
}

/// What the proxies themselves have counted since they were asked last.
fn counted(
    before: &mut Before,
    key: &Key,
    run: &mut Run,
    asked: usize,
    pages: &[(IpAddr, String)],
    wanted: &Wanted,
    now: Duration,
) -> Counts {
    let mut counts = Counts::default();
    for (proxy, page) in pages {
        counts.add(&before.since(&proxy.to_string(), wanted, scrape::totals(page, wanted)));
    }
    let answered = pages.len();
    if answered < asked && run.answered == run.asked {
        tracing::warn!(
            trial = %format!("{}/{}", key.0, key.1), asked, answered,
            "not all proxies say what they have counted (port 15090): a version is taken back by what those say that do, and gets more only while nine of ten answer"
        );
    }
    (run.asked, run.answered) = (asked, answered);
    let too_few = answered * 10 < asked * 9;
    run.trial.standing.problem = too_few.then(|| {
        "it gets no more while fewer than nine of ten proxies say what they have counted: can the control plane reach their port 15090?".to_owned()
    });
    if too_few {
        run.trial.unseen(now);
    }
    counts
}

/// What a Prometheus has heard of since it was asked last. While it gives no answer the trial is held.
async fn heard(
    asked: &mut prometheus::Asked,
    before: &mut Before,
    world: &World,
    (key, run): (&Key, &mut Run),
    wanted: &Wanted,
    now: Duration,
) -> Counts {
    let Some(source) = run.spec.prometheus.clone() else { return Counts::default() };
    let authorization = match source.credential_name.as_str() {
        "" => Ok(None),
        name => match world.credentials().of(&key.0, name) {
            Some(known) => prometheus::authorization(known).map(Some),
            None => Err("is not known yet: see docs/credentials.md for where it is looked for".to_owned()),
        }
        .map_err(|why| format!("the credential {name} {why}")),
    };
    let answer = match authorization {
        Err(why) => Some(Err(why)),
        Ok(authorization) => {
            let (address, host) = (source.address.clone(), wanted.host.clone());
            let version = run.spec.canary_version.clone();
            asked.next(key, &prometheus::Question { address, authorization, host, version }).await
        }
    };
    let mut counts = Counts::default();
    let address = &source.address;
    let told = answer.map(|answer| match answer {
        Ok(answer) => prometheus::since(&mut run.heard, before, address, wanted, answer).ok_or_else(|| {
            format!(
                "nothing is decided while {address} knows of no request to the version: does it scrape the proxies that call it?"
            )
        }),
        Err(why) => Err(format!("nothing is decided while {address} does not say what was counted: {why}")),
    });
    let problem = &mut run.trial.standing.problem;
    match told {
        Some(Ok(more)) => {
            if problem.take().is_some() {
                tracing::info!(trial = %format!("{}/{}", key.0, key.1), "the Prometheus of a trial says what was counted");
            }
            counts = more;
        }
        Some(Err(why)) if problem.as_ref() != Some(&why) => {
            tracing::warn!(trial = %format!("{}/{}", key.0, key.1), "{why}");
            *problem = Some(why);
        }
        Some(Err(_)) | None => {}
    }
    if run.trial.standing.problem.is_some() || run.heard.is_none() {
        run.trial.unseen(now);
    }
    counts
}

/// The cluster that is looked at: the subset that stands for the version on trial.
fn wanted(world: &World, spec: &CanaryDeployment) -> Option<Wanted> {
    let service: &Arc<Service> = world.services_with_host(&spec.service).next()?;
    let rule = world.destination_rule(service.namespace(), &Labels::new(), service)?;
    let mut subsets = rule.spec.subsets.iter();
    let subset = subsets.find(|s| s.labels.get(VERSION) == Some(&spec.canary_version))?;
    Some(Wanted { host: service.hostname.to_string(), subset: subset.name.clone() })
}

fn tell(key: &Key, run: &mut Run, what: &'static str) {
    let (trial, message) = (format!("{}/{}", key.0, key.1), run.trial.standing.message.clone());
    if what == "RolledBack" {
        tracing::warn!(%trial, outcome = what, message, "a version on trial");
    } else {
        tracing::info!(%trial, outcome = what, message, "a version on trial");
    }
    emit(Kind::Canary, || {
        let (outcome, severity) = match what {
            "RolledBack" => (EventOutcome::Failed, Severity::Medium),
            _ => (EventOutcome::Ok, Severity::Info),
        };
        Event::new(Kind::Canary, outcome, severity, "trial", format!("{trial} {what}: {message}"))
            .with("trial", trial.as_str())
            .with("step", what)
            .with("percent", run.trial.standing.canary_percent)
    });
    metrics::counter!("weft_canary_decisions", "trial" => trial, "outcome" => what).increment(1);
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    run.told.push_back(json!({"time": now, "outcome": what, "message": message}));
    if run.told.len() > REMEMBERED {
        run.told.pop_front();
    }
}

fn report(key: &Key, run: &Run) -> Value {
    let (standing, period) = (&run.trial.standing, &run.trial.period);
    json!({
        "namespace": key.0, "name": key.1, "service": run.spec.service,
        "stableVersion": run.spec.stable_version, "canaryVersion": run.spec.canary_version,
        "phase": standing.phase, "canaryPercent": standing.canary_percent, "message": standing.message,
        "problem": standing.problem, "countsFrom": run.spec.prometheus.as_ref().map_or("proxies", |p| &p.address),
        "period": {"requests": period.requests, "errors": period.errors, "errorRate": period.error_rate(), "p95": period.p95()},
        "proxies": {"asked": run.asked, "answered": run.answered},
        "decisions": run.told,
    })
}
