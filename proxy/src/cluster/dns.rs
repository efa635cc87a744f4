//! Hosts from DNS, asked for on the control thread. A failure keeps the last answers: a resolver that is away breaks no
//! traffic that flows.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::time::Instant;
use xds_protos::envoy::config::cluster::v3::cluster::DnsLookupFamily;

use super::Cluster;
use super::config::{Discovery, DnsName};
use super::endpoint::{Endpoint, HostAddress, LoadAssignment};

/// Resolves a DNS cluster's names for as long as the cluster lives; does nothing for other clusters.
pub async fn run(cluster: Arc<Cluster>) {
    let Discovery::Dns { names, logical, refresh, respect_ttl, family } = cluster.config().discovery.clone()
    else {
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
    loop {
        let mut next = refresh;
        for (name, known) in names.iter().zip(&mut known) {
            match resolve(resolver.as_ref(), name, family).await {
                Ok((addresses, ttl)) => {
                    *known = addresses;
                    if respect_ttl {
                        next = next.min(ttl.max(Duration::from_secs(1)));
                    }
                }
                Err(error) => {
                    let kept = known.len();
                    tracing::warn!(cluster = %name.host, %error, kept, "name not resolved; the last answers are kept");
                }
            }
        }
        let Some(cluster) = weak.upgrade() else { return };
        let mut endpoints: Vec<Endpoint> = names
            .iter()
            .zip(&known)
            .flat_map(|(name, addresses)| {
                addresses.iter().map(|ip| Endpoint {
                    address: HostAddress::Ip(SocketAddr::new(*ip, name.port)),
                    hostname: name.host.as_str().into(),
                    ..name.endpoint.clone()
                })
            })
            .collect();
        if logical {
            endpoints.truncate(1);
        }
        cluster.assign(&LoadAssignment::flat(endpoints));
        drop(cluster);
        tracing::debug!(cluster = %name, next = ?next, "names resolved");
        tokio::time::sleep(next).await;
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
