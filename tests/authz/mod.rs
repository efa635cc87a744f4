//! Truth tables of authorization: policies, requests, and what becomes of each request by which rule.
//!
//! A table (`tables/*.yaml`; `tokens/*.yaml` for those of tokens, `custom/*.yaml` where somebody else is asked) is a list of groups. A group is a workload with policies; our control plane renders its
//! configuration, and one proxy serves all groups, each at a port of its own. The tables say what Istio's documentation and
//! Envoy's say; no answer was copied from a run. The same configuration and requests go through our proxy (tests/e2e), are
//! asked about as `weft authz check` does (tests/e2e), and go through Envoy (tests/peers).

pub mod clients;
mod configuration;
pub mod issuers;
#[allow(dead_code, reason = "the peers are asked in its place")]
mod judged;
mod providers;
#[allow(dead_code, reason = "Envoy keeps no requests")]
pub mod recorded;
mod table;
pub mod tokens;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_control::model::World;

use clients::{Certificates, Outcome};
use issuers::Issuers;
use providers::Providers;
use recorded::Observed;
use table::{Case, Group};

/// Requests under way at once.
const AT_ONCE: usize = 4;

/// A proxy's place: its addresses, ports and files.
pub struct Place {
    /// Where the proxy listens.
    pub ip: Ipv4Addr,
    /// Port of its admin interface; the groups' ports follow.
    pub port: u16,
    directory: tempfile::TempDir,
    groups: Vec<Group>,
    /// What our control plane reads of each group.
    worlds: Vec<World>,
    certificates: Certificates,
}

impl Place {
    /// Everything but the proxy: servers behind it, certificates, and its bootstrap. `tables`: a directory beside this file.
    pub fn new(ip: Ipv4Addr, port: u16, tables: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let issuers = Issuers::start();
        let groups = table::all(tables, |text| text.replace("{issuers}", &issuers.base));
        let cases = || groups.iter().flat_map(|group| &group.cases);
        let certificates =
            Certificates::new(directory.path(), cases().filter_map(|case| case.identity.as_deref()));
        let mut place = Self { ip, port, directory, groups, worlds: Vec::new(), certificates };
        let servers = clients::servers();
        place.worlds = configuration::worlds(&place, &servers, &issuers, &Providers::start());
        let bootstrap = configuration::bootstrap(&place);
        std::fs::write(place.bootstrap(), serde_json::to_vec_pretty(&bootstrap).unwrap()).unwrap();
        place
    }

    /// The bootstrap's file, for `-c`.
    pub fn bootstrap(&self) -> PathBuf {
        self.directory.path().join("bootstrap.json")
    }

    /// Where files may be put.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The admin interface.
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::new(self.ip.into(), self.port)
    }

    fn access_log(&self) -> PathBuf {
        self.directory.path().join("access.log")
    }

    /// The port of a group.
    fn port_of(&self, group: usize) -> u16 {
        self.port + 1 + u16::try_from(group).unwrap()
    }

    /// Sends all requests to the running proxy. What was not as the tables say, and all that was observed.
    pub fn observe(&self) -> (Vec<String>, Observed<'_>) {
        let cases: Vec<(usize, &Group, &Case)> = self
            .groups
            .iter()
            .enumerate()
            .flat_map(|(index, group)| group.cases.iter().map(move |case| (index, group, case)))
            .collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let outcomes: BTreeMap<usize, Outcome> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE)
                .map(|_| {
                    scope.spawn(|| {
                        let mut done = Vec::new();
                        loop {
                            let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            let Some((index, group, case)) = cases.get(number) else { break };
                            let to = SocketAddr::new(self.ip.into(), self.port_of(*index));
                            done.push((number, clients::play(&self.certificates, to, group, case, number)));
                        }
                        done
                    })
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        let lines = self.lines(&outcomes);
        let mut wrong = Vec::new();
        for (number, (_, group, case)) in cases.iter().enumerate() {
            let outcome = &outcomes[&number];
            let line = outcome.key.as_ref().and_then(|key| lines.get(key));
            if let Err(why) = case.check(group, outcome, line) {
                wrong.push(format!("{}: {}: {why}", group.name, case.text));
            }
        }
        (wrong, Observed { cases, outcomes, lines })
    }

    /// The access log, by what tells its lines apart; all that are expected.
    fn lines(&self, outcomes: &BTreeMap<usize, Outcome>) -> BTreeMap<String, Value> {
        let wanted: Vec<&String> = outcomes.values().filter_map(|outcome| outcome.key.as_ref()).collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let text = std::fs::read_to_string(self.access_log()).unwrap_or_default();
            let mut lines = BTreeMap::new();
            for line in text.lines() {
                let Ok(value) = serde_json::from_str::<Value>(line) else { continue };
                let key = ["case", "client"].iter().find_map(|k| value[*k].as_str().filter(|v| *v != "-"));
                if let Some(key) = key.map(str::to_owned) {
                    lines.insert(key, value);
                }
            }
            if wanted.iter().all(|key| lines.contains_key(*key)) || Instant::now() > deadline {
                return lines;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
