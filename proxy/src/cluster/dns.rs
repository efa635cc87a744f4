//! Hosts from DNS, asked for on the control thread. A failure keeps the last answers: a resolver that is away breaks no
//! traffic that flows.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::time::Instant;
use xds_protos::envoy::config::cluster::v3::cluster::DnsLookupFamily;

use super::Cluster;
use super::config::{Discovery, DnsName, DnsTimes};
use super::endpoint::{Endpoint, HostAddress, LoadAssignment};

/// Assigns a DNS cluster its hosts at once if all of its names are addresses, about which there is nobody to ask. Says whether
/// it did.
pub fn assign_addresses(cluster: &Cluster) -> bool {
    let Discovery::Dns { names, logical, .. } = &cluster.config().discovery else { return false };
    let addresses: Option<Vec<Vec<IpAddr>>> =
        names.iter().map(|name| Some(vec![name.host.parse().ok()?])).collect();
    let Some(addresses) = addresses else { return false };
    cluster.assign(&assignment(names, &addresses, *logical));
    true
}

/// What the answers about each name come to.
fn assignment(names: &[DnsName], known: &[Vec<IpAddr>], logical: bool) -> LoadAssignment {
    let mut endpoints: Vec<Endpoint> = names
        .iter()
        .zip(known)
        .flat_map(|(name, addresses)| {
            addresses.iter().map(|ip| Endpoint {
                address: HostAddress::Ip(SocketAddr::new(*ip, name.port)),
                hostname: match &*name.endpoint.hostname {
                    "" => name.host.as_str().into(),
                    _ => name.endpoint.hostname.clone(),
                },
                ..name.endpoint.clone()
            })
        })
        .collect();
    if logical {
        endpoints.truncate(1);
    }
    LoadAssignment::flat(endpoints)
}

/// Resolves a DNS cluster's names for as long as the cluster lives; does nothing for other clusters.
pub async fn run(cluster: Arc<Cluster>) {
    let Discovery::Dns { names, logical, times, family } = cluster.config().discovery.clone() else {
        return;
    };
    let resolver = match TokioResolver::builder_tokio().and_then(|b| b.build()) {
        Ok(resolver) => Some(resolver),
        Err(error) => {
            tracing::error!(%error, "the system's resolver configuration cannot be used; look at /etc/resolv.conf");
            None
        }
    };
    let weak = Arc::downgrade(&cluster);
    let name = cluster.config().name.clone();
    drop(cluster);
    let mut known: Vec<Vec<IpAddr>> = vec![Vec::new(); names.len()];
    let mut failures = 0;
    loop {
        let mut next = Duration::MAX;
        let mut failed = false;
        for (name, known) in names.iter().zip(&mut known) {
            match resolve(resolver.as_ref(), name, family).await {
                Ok((addresses, ttl)) => {
                    *known = addresses;
                    next = next.min(times.after(ttl));
                }
                Err(error) => {
                    failed = true;
                    let kept = known.len();
                    tracing::warn!(cluster = %name.host, %error, kept, "name not resolved; the last answers are kept");
                }
            }
        }
        failures = if failed { failures + 1 } else { 0 };
        if failed {
            next = next.min(times.after_failures(failures));
        }
        next = next.saturating_add(random(times.jitter));
        let Some(cluster) = weak.upgrade() else { return };
        cluster.assign(&assignment(&names, &known, logical));
        drop(cluster);
        tracing::debug!(cluster = %name, next = ?next, "names resolved");
        tokio::time::sleep(next).await;
    }
}

impl DnsTimes {
    /// The time to the next look-up after an answer that holds so long.
    fn after(&self, ttl: Duration) -> Duration {
        // An address that stands for itself never changes, but its neighbours may.
        let tells = self.respect_ttl && !ttl.is_zero() && ttl != Duration::MAX;
        if tells { ttl.max(self.least).max(SHORTEST) } else { self.refresh }
    }

    /// The time to the next look-up after so many failures in a row.
    fn after_failures(&self, failures: u32) -> Duration {
        match self.failure {
            None => self.refresh,
            Some((base, most)) => {
                let bound = base.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(most);
                // Between the base and the bound, so that a fleet does not ask in step.
                base + random(bound.saturating_sub(base) + Duration::from_millis(1))
            }
        }
    }
}

/// Asking more often than this helps nobody.
const SHORTEST: Duration = Duration::from_secs(1);

/// A random time below this, in milliseconds.
fn random(below: Duration) -> Duration {
    match below.as_millis() as u64 {
        0 => Duration::ZERO,
        millis => Duration::from_millis(fastrand::u64(..millis)),
    }
}

async fn resolve(
    resolver: Option<&TokioResolver>,
    name: &DnsName,
    family: DnsLookupFamily,
) -> Result<(Vec<IpAddr>, Duration), String> {
    if let Ok(ip) = name.host.parse() {
        return Ok((vec![ip], Duration::MAX));
    }
    let resolver = resolver.ok_or("there is no usable resolver configuration")?;
    let lookup = resolver.lookup_ip(name.host.as_str()).await.map_err(|e| e.to_string())?;
    let ttl = lookup.valid_until().saturating_duration_since(Instant::now().into_std());
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = lookup.iter().partition(IpAddr::is_ipv4);
    let addresses = match family {
        DnsLookupFamily::V4Only => v4,
        DnsLookupFamily::V6Only => v6,
        DnsLookupFamily::V4Preferred if !v4.is_empty() => v4,
        DnsLookupFamily::V4Preferred => v6,
        DnsLookupFamily::All => v4.into_iter().chain(v6).collect(),
        DnsLookupFamily::Auto if !v6.is_empty() => v6,
        DnsLookupFamily::Auto => v4,
    };
    if addresses.is_empty() {
        Err("it has no address of the wanted family".to_owned())
    } else {
        Ok((addresses, ttl))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_up_follows_the_answers_time_or_the_rate_or_grows_with_failures() {
        let seconds = Duration::from_secs;
        let times = DnsTimes {
            refresh: seconds(5),
            respect_ttl: true,
            least: seconds(3),
            jitter: Duration::ZERO,
            failure: Some((seconds(2), seconds(10))),
        };
        let after = |times: DnsTimes| [0, 2, 60].map(|ttl| times.after(seconds(ttl)).as_secs());
        assert_eq!(after(times), [5, 3, 60]);
        assert_eq!(after(DnsTimes { respect_ttl: false, ..times }), [5, 5, 5]);
        for failures in 1..100 {
            let most = [2, 4, 8, 10][(failures as usize - 1).min(3)];
            let next = times.after_failures(failures);
            assert!(
                next >= seconds(2) && next <= seconds(most) + Duration::from_millis(1),
                "{failures} {next:?}"
            );
        }
        assert_eq!(DnsTimes { failure: None, ..times }.after_failures(9), seconds(5));
    }
}
