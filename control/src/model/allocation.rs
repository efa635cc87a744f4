//! Addresses for services that have none: each host of a ServiceEntry without addresses gets one of its own in ranges that nobody
//! routes, so that connections to two of them on one port can be told apart (Istio's ranges and conditions). Proxies that answer
//! DNS give them to their applications.
//!
//! An address follows from the service's namespace and host. Of those that would have the same one, the first by name has it and
//! the others the next free ones: whoever reads the same objects comes to the same addresses.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::service::{Resolution, Service, ServiceOrigin};

/// The usable addresses of 240.240.0.0/16: none that ends in 0 or 255.
const PLACES: u32 = 256 * 254;

/// The addresses of each of the services that is to have some, in their order; none for the others.
pub(super) fn allocate(services: &[&Service]) -> Vec<Vec<String>> {
    let mut allocated = vec![Vec::new(); services.len()];
    let mut wanting: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut taken = HashSet::new();
    if !services.iter().any(|service| needs_one(service)) {
        return allocated;
    }
    for (index, service) in services.iter().enumerate() {
        if needs_one(service) {
            // The same host in two objects of a namespace is one service to its clients.
            let key = format!("{}/{}", service.namespace(), service.hostname.to_ascii_lowercase());
            wanting.entry(key).or_default().push(index);
        }
        taken.extend(service.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()));
    }
    for (key, indexes) in wanting {
        let first = place_of(&key);
        let free = (0..PLACES)
            .map(|step| addresses_at((first + step) % PLACES))
            .find(|(v4, v6)| !taken.contains(&IpAddr::from(*v4)) && !taken.contains(&IpAddr::from(*v6)));
        let Some((v4, v6)) = free else {
            tracing::warn!(
                service = key,
                "there are no more addresses for services without one; it gets none"
            );
            continue;
        };
        taken.extend([IpAddr::from(v4), IpAddr::from(v6)]);
        for index in indexes {
            allocated[index] = vec![v4.to_string(), v6.to_string()];
        }
    }
    allocated
}

/// A name that clients can resolve, whose connections go where the mesh chooses.
fn needs_one(service: &Service) -> bool {
    service.origin == ServiceOrigin::ServiceEntry
        && service.addresses.is_empty()
        && service.resolution != Resolution::None
        && !service.hostname.starts_with('*')
}

/// FNV-1a, folded into the places.
fn place_of(key: &str) -> u32 {
    let hash = key
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    // The upper half is the better mixed one; the remainder is below PLACES.
    u32::try_from((hash >> 32) % u64::from(PLACES)).unwrap_or_default()
}

fn addresses_at(place: u32) -> (Ipv4Addr, Ipv6Addr) {
    let [_, _, third, fourth] = ((place / 254) << 8 | (place % 254 + 1)).to_be_bytes();
    let low = u16::from_be_bytes([third, fourth]);
    (Ipv4Addr::new(240, 240, third, fourth), Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0xf0f0, low))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::service_entry::ServiceEntry;
    use crate::model::{Kind, Labels, Meta, Object, Objects, Source, World};

    fn entry(namespace: &str, host: &str) -> Object<ServiceEntry> {
        let spec = ServiceEntry {
            hosts: vec![host.to_owned()],
            resolution: Resolution::Dns,
            ..ServiceEntry::default()
        };
        let meta = Meta {
            kind: Kind::ServiceEntry,
            api_version: String::new(),
            namespace: namespace.to_owned(),
            name: host.to_owned(),
            labels: Labels::new(),
            annotations: Labels::new(),
            created: None,
            source: Source::default(),
            version: 0,
        };
        Object { meta, spec }
    }

    fn allocated(entries: Vec<Object<ServiceEntry>>) -> BTreeMap<String, Vec<String>> {
        let world = World::new(Objects {
            service_entries: entries.into_iter().map(Arc::new).collect(),
            ..Objects::default()
        });
        let all = world.services().iter();
        all.map(|s| (format!("{}/{}", s.namespace(), s.hostname), s.allocated.clone())).collect()
    }

    #[test]
    fn whoever_reads_the_same_objects_comes_to_the_same_addresses() {
        let entries: Vec<_> = (0..2000).map(|n| entry("a", &format!("{n}.example"))).collect();
        let reversed = entries.iter().rev().cloned().collect();
        let all = allocated(entries.clone());
        assert_eq!(all, allocated(reversed));
        let different: HashSet<_> = all.values().flatten().collect();
        assert_eq!(different.len(), 4000, "an address is one service's");
        for (service, addresses) in &all {
            let [v4, v6] = addresses.as_slice() else { panic!("{service}: {addresses:?}") };
            let v4: Ipv4Addr = v4.parse().unwrap();
            assert_eq!(v4.octets()[..2], [240, 240], "{service}");
            assert!(![0, 255].contains(&v4.octets()[3]), "{service}: {v4}");
            assert!(v6.starts_with("2001:2::f0f0:"), "{service}: {v6}");
        }
        // Known, so that another version of this program comes to it as well.
        assert_eq!(allocated(vec![entry("a", "1.example")])["a/1.example"], all["a/1.example"]);
        assert_eq!(allocated(vec![entry("shop", "payments.example")])["shop/payments.example"], KNOWN);
    }

    const KNOWN: [&str; 2] = ["240.240.104.72", "2001:2::f0f0:6848"];

    #[test]
    fn of_two_with_one_place_the_second_gets_the_next() {
        // Two names with the same place, found by looking.
        let place = place_of("a/0.example");
        let other =
            (1..).map(|n| format!("{n}.example")).find(|h| place_of(&format!("a/{h}")) == place).unwrap();
        let all = allocated(vec![entry("a", "0.example"), entry("a", &other)]);
        let (first, second) = (&all["a/0.example"], &all[&format!("a/{other}")]);
        assert_eq!(*first, [addresses_at(place).0.to_string(), addresses_at(place).1.to_string()]);
        assert_eq!(second[0], addresses_at((place + 1) % PLACES).0.to_string());
        // The address of somebody who names it himself is his.
        let mut named = entry("a", "named.example");
        named.spec.addresses = vec![first[0].clone()];
        let all = allocated(vec![entry("a", "0.example"), named]);
        assert_eq!(all["a/0.example"][0], addresses_at((place + 1) % PLACES).0.to_string());
    }

    #[test]
    fn who_needs_none_gets_none() {
        let given = |change: &dyn Fn(&mut ServiceEntry)| {
            let mut entry = entry("a", "x.example");
            change(&mut entry.spec);
            allocated(vec![entry]).into_values().next().unwrap().len()
        };
        assert_eq!(given(&|_| ()), 2);
        assert_eq!(given(&|s| s.resolution = Resolution::Static), 2);
        assert_eq!(given(&|s| s.resolution = Resolution::None), 0);
        assert_eq!(given(&|s| s.addresses = vec!["10.0.0.1".to_owned()]), 0);
        assert_eq!(given(&|s| s.hosts = vec!["*.x.example".to_owned()]), 0);
    }

    #[test]
    fn one_host_in_two_objects_of_a_namespace_is_one_and_in_two_namespaces_two() {
        let mut second = entry("a", "x.example");
        second.meta.name = "again".to_owned();
        let world = World::new(Objects {
            service_entries: [entry("a", "x.example"), second, entry("b", "x.example")]
                .map(Arc::new)
                .to_vec(),
            ..Objects::default()
        });
        let of = |namespace: &str| -> HashSet<_> {
            world
                .services()
                .iter()
                .filter(|s| s.namespace() == namespace)
                .map(|s| s.allocated.clone())
                .collect()
        };
        assert_eq!((of("a").len(), of("b").len()), (1, 1));
        assert!(of("a").is_disjoint(&of("b")));
    }
}
