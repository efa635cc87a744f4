//! Names of networks' gateways: load balancers that are known by a name alone are looked up here, because proxies take addresses.
//!
//! A state of the mesh goes out when each name has been asked for once. What a name stood for last stays while nobody answers.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
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
    under_way: JoinSet<(String, Result<Vec<IpAddr>, String>)>,
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
                good: None,
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
        metrics::gauge!("weft_network_gateway_names_unknown")
            .set(self.names.values().filter(|name| name.error.is_some()).count() as f64);
    }

    async fn world(&mut self, world: &World) -> World {
        let world = match self.names.is_empty() {
            true => world.clone(),
            false => {
                let known = |(name, found): (&String, &Name)| Some((name.clone(), found.good.clone()?));
                let names: BTreeMap<_, _> = self.names.iter().filter_map(known).collect();
                world.with_gateway_names(&names)
            }
        };
        metrics::gauge!("weft_network_endpoints_dropped").set(endpoints_without_a_way(&world) as f64);
        world
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gateway_that_has_a_name_alone_is_looked_up_and_one_that_nobody_knows_is_none() {
        let text = "networks: {two: {gateways: [{address: localhost, port: 15443}]}, three: {gateways: [{address: nowhere.invalid, port: 15443}]}}";
        let world = crate::ingest::load_str("x.yaml", text).into_result().unwrap();
        assert!(world.networks().is_one());
        let mut names = GatewayNames::default();
        let known = names.settle(&world).await;
        let gateways = known.networks().gateways("two");
        assert!(
            !gateways.is_empty() && gateways.iter().all(|g| !g.is_named() && g.port == 15443),
            "{gateways:?}"
        );
        assert!(gateways.iter().all(|g| g.address.parse::<IpAddr>().unwrap().is_loopback()));
        assert!(known.networks().gateways("three").is_empty());
        assert_ne!(known.version(), world.version());
        // What was answered last stays.
        names.take(("localhost".to_owned(), Err("gone".to_owned())));
        assert_eq!(names.world(&world).await.networks(), known.networks());
    }
}
