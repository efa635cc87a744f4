//! The circuits that TrafficManagements ask about: one for each proxy that calls the service, and all of them together.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Key;
use super::breaker::{Breaker, DEFAULT_TIMES, Times};
use super::scrape;
use crate::model::{Labels, World, effective_policy};

/// Circuits, by TrafficManagement.
#[derive(Debug, Default)]
pub struct Circuits(BTreeMap<Key, Watched>);

#[derive(Debug)]
struct Watched {
    host: String,
    times: Times,
    proxies: BTreeMap<IpAddr, Breaker>,
}

impl Circuits {
    /// Begins with what is new, and forgets what is gone.
    pub fn want(&mut self, world: &World) {
        let mut wanted = BTreeMap::new();
        for object in world.traffic_managements() {
            if let Some(given) = &object.spec.circuit_breaker_status {
                let key = (object.meta.namespace.clone(), object.meta.name.clone());
                wanted.insert(key, given.service.clone());
            }
        }
        self.0.retain(|key, watched| wanted.get(key) == Some(&watched.host));
        for (key, host) in wanted {
            let times = times(world, &host);
            let begins = || Watched { host, times, proxies: BTreeMap::new() };
            self.0.entry(key).or_insert_with(begins).times = times;
        }
    }

    /// Whether nobody asks.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes what proxies say; of those that do not answer the last word stays, and those that are not connected any more go.
    pub fn take(&mut self, now: OffsetDateTime, asked: &[IpAddr], pages: &[(IpAddr, String)]) {
        for watched in self.0.values_mut() {
            watched.proxies.retain(|proxy, _| asked.contains(proxy));
            for (proxy, page) in pages {
                if let Some(seen) = scrape::seen(page, &watched.host) {
                    watched.proxies.entry(*proxy).or_default().tick(now, seen, watched.times);
                }
            }
        }
    }

    /// How they are: the aggregate of each, and its proxies.
    pub fn report(&self) -> Vec<(Key, Value)> {
        let one = |(key, watched): (&Key, &Watched)| {
            let mut report = told(&Breaker::together(watched.proxies.values()));
            report["service"] = watched.host.as_str().into();
            let proxies = watched.proxies.iter().map(|(address, breaker)| {
                let mut one = told(breaker);
                one["address"] = address.to_string().into();
                one
            });
            report["proxies"] = proxies.collect();
            (key.clone(), report)
        };
        self.0.iter().map(one).collect()
    }
}

fn told(breaker: &Breaker) -> Value {
    let time =
        |at: Option<OffsetDateTime>| at.and_then(|at| at.replace_nanosecond(0).ok()?.format(&Rfc3339).ok());
    json!({
        "state": breaker.state, "failureCount": breaker.failures, "successCount": breaker.successes,
        "lastFailureTime": time(breaker.last_failure), "nextRetryTime": time(breaker.next_retry),
    })
}

/// What the service's DestinationRule says of ejection.
fn times(world: &World, host: &str) -> Times {
    let found = world.services_with_host(host).next().and_then(|service| {
        let rule = world.destination_rule(service.namespace(), &Labels::new(), service)?;
        effective_policy(&rule.spec, None, service.ports.first()?.number).outlier_detection
    });
    let Some(outlier) = found else { return DEFAULT_TIMES };
    Times {
        base: outlier.base_ejection_time.map_or(DEFAULT_TIMES.base, |t| t.get()),
        interval: outlier.interval.map_or(DEFAULT_TIMES.interval, |t| t.get()),
    }
}
