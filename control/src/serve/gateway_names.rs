//! Names of networks' gateways: load balancers that are known by a name alone are looked up here, because proxies take addresses.
//!
//! A state of the mesh goes out when each name has been asked for once. What a name stood for last stays while nobody answers; it is
//! kept in the state directory as well, for a start while nobody does.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::analyze::endpoints_without_a_way;
use crate::model::World;
use crate::serve::reading::Reads;

/// How long after a failure a name is asked for again.
const RETRY: Duration = Duration::from_secs(5);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a name stands for.
#[derive(Debug)]
struct Name {
    good: Option<Vec<IpAddr>>,
    due: Instant,
    error: Option<String>,
    tried: bool,
    asked: bool,
}

/// Looks names up, and keeps what was last answered.
#[derive(Debug, Default)]
pub struct GatewayNames {
    names: HashMap<String, Name>,
    every: Duration,
    /// Where answers are kept, and what is there.
    kept: Option<PathBuf>,
    before: BTreeMap<String, Vec<IpAddr>>,
    under_way: JoinSet<(String, Result<Vec<IpAddr>, String>)>,
}

impl GatewayNames {
    /// What looks names up, and keeps what they stand for below `state`.
    pub fn new(state: Option<&Path>) -> Self {
        let kept = state.map(|directory| directory.join("gateway-names.json"));
        let read = |path: &PathBuf| match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| e.to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.to_string()),
        };
        let before = match kept.as_ref().map(|path| (path, read(path))) {
            Some((_, Ok(names))) => names,
            Some((path, Err(error))) => {
                tracing::warn!(path = %path.display(), error, "kept addresses of networks' gateways are left aside; they are looked up anew");
                BTreeMap::new()
            }
            None => BTreeMap::new(),
        };
        Self { kept, before, ..Self::default() }
    }

    /// What is known.
    fn known(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let known = |(name, found): (&String, &Name)| Some((name.clone(), found.good.clone()?));
        self.names.iter().filter_map(known).collect()
    }

    /// Writes down what is known, if it is something else than before.
    async fn keep(&mut self, known: &BTreeMap<String, Vec<IpAddr>>) {
        let Some(path) = self.kept.clone().filter(|_| self.before != *known) else { return };
        self.before.clone_from(known);
        let Ok(bytes) = serde_json::to_vec(known) else { return };
        let new = path.with_extension("new");
        let write = async {
            tokio::fs::write(&new, bytes).await?;
            tokio::fs::rename(&new, &path).await
        };
        if let Err(error) = write.await {
            tracing::warn!(path = %path.display(), %error, "addresses of networks' gateways cannot be kept; they stay known until the control plane ends");
        }
    }
}

async fn look_up(name: &str) -> Result<Vec<IpAddr>, String> {
    let asked = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((name, 0))).await;
    let answer = asked.map_err(|_| format!("no answer within {PATIENCE:?}"))?.map_err(|e| e.to_string())?;
    let mut found: Vec<IpAddr> = answer.map(|address| address.ip()).collect();
    found.sort();
    found.dedup();
    if found.is_empty() { Err("it has no addresses".to_owned()) } else { Ok(found) }
}

impl Reads for GatewayNames {
    type Answer = (String, Result<Vec<IpAddr>, String>);

    fn ask(&mut self, world: &World) {
        let wanted = world.networks().names();
        self.every = world.mesh().dns_refresh_rate.get().max(Duration::from_secs(1));
        self.names.retain(|name, _| wanted.contains(name));
        let now = Instant::now();
        for wanted in wanted {
            let name = self.names.entry(wanted.clone()).or_insert_with(|| Name {
                good: self.before.get(&wanted).cloned(),
                due: now,
                error: None,
                tried: false,
                asked: false,
            });
            if name.asked || name.due > now {
                continue;
            }
            name.asked = true;
            self.under_way.spawn(async move {
                let answer = look_up(&wanted).await;
                (wanted, answer)
            });
        }
    }

    fn under_way(&mut self) -> &mut JoinSet<Self::Answer> {
        &mut self.under_way
    }

    fn due(&self) -> Option<Instant> {
        self.names.values().filter(|name| !name.asked).map(|name| name.due).min()
    }

    fn is_settled(&self) -> bool {
        self.names.values().all(|name| name.tried)
    }

    fn take(&mut self, (name, answer): Self::Answer) {
        // It may not be wanted any more.
        let Some(known) = self.names.get_mut(&name) else { return };
        (known.asked, known.tried) = (false, true);
        match answer {
            Ok(addresses) => {
                known.due = Instant::now() + self.every;
                known.error = None;
                if known.good.as_ref() != Some(&addresses) {
                    tracing::info!(name, ?addresses, "a network's gateway was looked up");
                    known.good = Some(addresses);
                }
            }
            Err(error) => {
                known.due = Instant::now() + RETRY;
                if known.error.replace(error.clone()).as_ref() != Some(&error) {
                    let before = known.good.is_some();
                    tracing::warn!(
                        name,
                        error,
                        last_addresses_stay = before,
                        "a network's gateway cannot be looked up; see whether the name is right, and whether the control plane's DNS answers"
                    );
                }
            }
        }
    }

    async fn world(&mut self, world: &World) -> World {
        let known = self.known();
        self.keep(&known).await;
        let world = if self.names.is_empty() { world.clone() } else { world.with_gateway_names(&known) };
        // Here, and not where answers come: a name that nobody wants any more has none.
        metrics::gauge!("weft_network_gateway_names_unknown")
            .set(self.names.values().filter(|name| name.error.is_some()).count() as f64);
        metrics::gauge!("weft_network_endpoints_dropped").set(endpoints_without_a_way(&world) as f64);
        world
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: &str = "
networks:
  two: {gateways: [{address: localhost, port: 15443}]}
  three: {gateways: [{address: nowhere.invalid, port: 15443}]}
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: n}
spec: {selector: {app: s}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a, namespace: n}
spec: {address: 10.0.0.1, network: two, labels: {app: s}, serviceAccount: s}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: b, namespace: n}
spec: {address: 10.0.0.2, network: three, labels: {app: s}, serviceAccount: s}
";

    fn world(text: &str) -> World {
        crate::ingest::load_str("x.yaml", text).into_result().unwrap_or_else(|e| panic!("{e:#?}"))
    }

    #[tokio::test]
    async fn a_gateway_that_has_a_name_alone_is_looked_up_and_one_that_nobody_knows_is_waited_for() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let numbers = recorder.handle();
        // All tasks are on this thread.
        let _counted = metrics::set_default_local_recorder(&recorder);
        let says = |line: &str| {
            let page = numbers.render();
            assert!(page.lines().any(|is| is == line), "{line}: {page}");
        };
        let world = world(MESH);
        let mut names = GatewayNames::default();
        let known = names.settle(&world).await;
        let gateways = known.networks().gateways("two");
        assert!(
            !gateways.is_empty() && gateways.iter().all(|g| !g.is_named() && g.port == 15443),
            "{gateways:?}"
        );
        assert!(gateways.iter().all(|g| g.address.parse::<IpAddr>().unwrap().is_loopback()));
        assert!(known.networks().gateways("three").is_empty() && known.networks().ways("three").is_some());
        assert_ne!(known.version(), world.version());
        says("weft_network_gateway_names_unknown 1");
        says("weft_network_endpoints_dropped 1");
        // What was answered last stays.
        names.take(("localhost".to_owned(), Err("gone".to_owned())));
        assert_eq!(names.world(&world).await.networks(), known.networks());
        says("weft_network_gateway_names_unknown 2");
        // Who is not wanted is not missed.
        names.settle(&self::world(&MESH.replace("nowhere.invalid", "192.0.2.3"))).await;
        says("weft_network_gateway_names_unknown 1");
        says("weft_network_endpoints_dropped 0");
        names.settle(&World::default()).await;
        says("weft_network_gateway_names_unknown 0");
    }

    #[tokio::test]
    async fn what_a_name_stood_for_is_known_after_a_restart_while_nobody_answers() {
        let state = tempfile::tempdir().unwrap();
        let world = world(MESH);
        let waiting = MESH.replace("localhost", "was.invalid");
        let addresses = vec!["192.0.2.9".parse::<IpAddr>().unwrap()];
        let mut names = GatewayNames::new(Some(state.path()));
        let known = names.settle(&world).await;
        let mut again = GatewayNames::new(Some(state.path()));
        assert_eq!(again.known(), BTreeMap::new(), "nobody has asked");
        again.ask(&world);
        assert_eq!(world.with_gateway_names(&again.known()).networks(), known.networks());
        // One that has an answer once, and then none.
        let mut names = GatewayNames::new(Some(state.path()));
        let other = self::world(&waiting);
        names.ask(&other);
        names.take(("was.invalid".to_owned(), Ok(addresses.clone())));
        names.world(&other).await;
        let after = GatewayNames::new(Some(state.path())).settle(&other).await;
        assert_eq!(after.networks().gateways("two")[0].address, "192.0.2.9");
        let nowhere = GatewayNames::new(None).settle(&other).await;
        assert!(nowhere.networks().gateways("two").is_empty());
        // What cannot be read is left aside.
        std::fs::write(state.path().join("gateway-names.json"), "nonsense").unwrap();
        let anew = GatewayNames::new(Some(state.path())).settle(&world).await;
        assert_eq!(anew.networks(), known.networks());
    }
}
