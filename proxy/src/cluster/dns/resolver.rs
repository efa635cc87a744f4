//! The system's resolver, as /etc/resolv.conf and /etc/hosts describe it.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverOpts};
use parking_lot::Mutex;
use xds_protos::envoy::config::cluster::v3::cluster::DnsLookupFamily;

/// An answer: addresses, and how long they hold; or why there is none.
pub(super) type Answer = Result<(Vec<IpAddr>, Duration), String>;

/// A name that is not there may be there soon, whatever its zone says.
const NOT_THERE: Duration = Duration::from_secs(30);
const CONFIGURATION: &str = "/etc/resolv.conf";

/// Resolvers by the families that they ask for, each made when it is first needed: a name whose IPv6 addresses nobody wants is
/// half the questions.
#[derive(Debug, Default)]
pub(super) struct Resolvers(Mutex<Made>);

#[derive(Debug, Default)]
struct Made {
    /// When the file was last changed that they come from.
    of: Option<SystemTime>,
    resolvers: Vec<(LookupIpStrategy, TokioResolver)>,
}

fn strategy(family: DnsLookupFamily) -> LookupIpStrategy {
    match family {
        DnsLookupFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsLookupFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsLookupFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsLookupFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsLookupFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    }
}

/// Sets what is not the system's to say.
pub(super) fn ours(options: &mut ResolverOpts, family: DnsLookupFamily, at_once: usize) {
    options.ip_strategy = strategy(family);
    options.negative_max_ttl = Some(NOT_THERE);
    options.max_active_requests = options.max_active_requests.max(at_once);
}

impl Resolvers {
    fn get(&self, family: DnsLookupFamily, at_once: usize) -> Result<TokioResolver, String> {
        let mut made = self.0.lock();
        // Networks change, and a machine's servers with them.
        let now = std::fs::metadata(Path::new(CONFIGURATION)).and_then(|file| file.modified()).ok();
        if made.of != now {
            *made = Made { of: now, resolvers: Vec::new() };
        }
        let wanted = strategy(family);
        if let Some((_, resolver)) = made.resolvers.iter().find(|(strategy, _)| *strategy == wanted) {
            return Ok(resolver.clone());
        }
        let unusable = |error: hickory_resolver::net::NetError| {
            format!("the system's resolver configuration cannot be used; look at {CONFIGURATION}: {error}")
        };
        let mut builder = TokioResolver::builder_tokio().map_err(unusable)?;
        ours(builder.options_mut(), family, at_once);
        let resolver = builder.build().map_err(unusable)?;
        made.resolvers.push((wanted, resolver.clone()));
        Ok(resolver)
    }

    /// Asks for a name.
    pub(super) async fn ask(&self, host: Arc<str>, family: DnsLookupFamily, at_once: usize) -> Answer {
        ask(&self.get(family, at_once)?, &host, family).await
    }
}

/// Asks a resolver for a name.
pub(super) async fn ask(resolver: &TokioResolver, host: &str, family: DnsLookupFamily) -> Answer {
    let lookup = resolver.lookup_ip(host).await.map_err(|e| e.to_string())?;
    let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
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
