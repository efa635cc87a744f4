//! The names of the mesh, compiled for looking up.
//!
//! A name of Kubernetes is known by its short forms, too, as far as the pod's own domain is its: `a.ns.svc`, `a.ns`, and `a`
//! in its own namespace. A resolver with search domains asks for these with a domain appended; with the first one appended
//! each name is an alias (CNAME) of the one meant, so that one question is enough.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::Name;
use xds_protos::istio::networking::nds::v1::NameTable;
use xds_protos::istio::networking::nds::v1::name_table::NameInfo;

use super::settings::{Settings, name};

/// What istiod calls the registry of Kubernetes.
const KUBERNETES: &str = "Kubernetes";

/// The addresses of a name.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Addresses {
    pub(super) v4: Vec<Ipv4Addr>,
    pub(super) v6: Vec<Ipv6Addr>,
}

/// A name that was found.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    /// The name that the one asked for stands for, if it is another.
    pub(super) alias: Option<Name>,
    pub(super) addresses: Arc<Addresses>,
}

/// The compiled table.
#[derive(Debug)]
pub(super) struct Table {
    hosts: HashMap<Name, Arc<Addresses>>,
    wildcards: bool,
    search: Option<Name>,
    /// As it came, for the admin page.
    pub(super) source: NameTable,
}

impl Table {
    /// Compiles what the control plane has sent.
    ///
    /// # Errors
    /// A host is no name, or an address is none; with the host.
    pub(super) fn new(source: NameTable, settings: &Settings) -> Result<Self, String> {
        if source.name_info.is_some() {
            return Err("name_info is not honoured: names come in `table`".to_owned());
        }
        let mut hosts = HashMap::new();
        let mut wildcards = false;
        // In order, so that of two hosts with one short form the same is taken each time.
        let sorted: std::collections::BTreeMap<_, _> = source.table.iter().collect();
        for (host, info) in &sorted {
            let at = |e: String| format!("table[{host:?}]: {e}");
            let addresses = Arc::new(addresses(info).map_err(at)?);
            if addresses.v4.is_empty() && addresses.v6.is_empty() {
                continue;
            }
            let host = name(host).map_err(|e| at(format!("{e:#}")))?;
            wildcards |= host.is_wildcard();
            hosts.insert(host, addresses.clone());
        }
        for (host, info) in &sorted {
            let Some(addresses) = name(host).ok().and_then(|host| hosts.get(&host).cloned()) else {
                continue;
            };
            for short in short_forms(host, info, settings) {
                let short = name(&short).map_err(|e| format!("table[{host:?}]: {e:#}"))?;
                hosts.entry(short).or_insert_with(|| addresses.clone());
            }
        }
        Ok(Self { hosts, wildcards, search: settings.search.clone(), source })
    }

    /// The addresses of a name, if it is one of the mesh's: itself, one that a resolver has appended the first search domain
    /// to, or one below a wildcard.
    pub(super) fn find(&self, asked: &Name) -> Option<Found> {
        let itself = |addresses: &Arc<Addresses>| Found { alias: None, addresses: addresses.clone() };
        if let Some(addresses) = self.hosts.get(asked) {
            return Some(itself(addresses));
        }
        let meant = self.without_search(asked);
        if let Some(meant) = &meant
            && let Some(addresses) = self.hosts.get(meant)
        {
            return Some(Found { alias: Some(meant.clone()), addresses: addresses.clone() });
        }
        if let Some(addresses) = self.wildcard(asked) {
            return Some(itself(addresses));
        }
        let meant = meant?;
        let addresses = self.wildcard(&meant)?.clone();
        Some(Found { alias: Some(meant), addresses })
    }

    /// How many names there are, with short ones.
    pub(super) fn len(&self) -> usize {
        self.hosts.len()
    }

    fn without_search(&self, asked: &Name) -> Option<Name> {
        let search = self.search.as_ref()?;
        let (all, end) = (asked.iter().count(), search.iter().count());
        if all <= end || end == 0 || !search.zone_of(asked) {
            return None;
        }
        let mut meant = Name::from_labels(asked.iter().take(all - end)).ok()?;
        meant.set_fqdn(true);
        Some(meant)
    }

    /// The longest wildcard above a name.
    fn wildcard(&self, asked: &Name) -> Option<&Arc<Addresses>> {
        if !self.wildcards {
            return None;
        }
        let mut below = asked.clone();
        while below.iter().count() > 1 {
            if let Some(addresses) = self.hosts.get(&below.clone().into_wildcard()) {
                return Some(addresses);
            }
            below = below.base_name();
        }
        None
    }
}

fn addresses(info: &NameInfo) -> Result<Addresses, String> {
    let mut addresses = Addresses::default();
    for ip in &info.ips {
        match ip.parse() {
            Ok(IpAddr::V4(ip)) => addresses.v4.push(ip),
            Ok(IpAddr::V6(ip)) => addresses.v6.push(ip),
            Err(_) => return Err(format!("ips: {ip:?} is no IP address")),
        }
    }
    Ok(addresses)
}

fn short_forms(host: &str, info: &NameInfo, settings: &Settings) -> Vec<String> {
    let Settings { namespace: own, domain, .. } = settings;
    let ours = host.to_ascii_lowercase().strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    if info.registry != KUBERNETES || info.shortname.is_empty() || info.namespace.is_empty() || !ours {
        return Vec::new();
    }
    let qualified = format!("{}.{}", info.shortname, info.namespace);
    let mut forms = Vec::new();
    if info.namespace == *own {
        forms.push(info.shortname.clone());
    }
    if let Some(first) = domain.split('.').next() {
        forms.push(format!("{qualified}.{first}"));
    }
    forms.push(qualified);
    forms.extend(info.alt_hosts.iter().cloned());
    forms
}

#[cfg(test)]
mod tests {
    use super::super::testing::{info, settings, table};
    use super::*;

    fn found(table: &Table, asked: &str) -> Option<(Option<String>, Vec<String>)> {
        let found = table.find(&name(asked).unwrap())?;
        let v4 = found.addresses.v4.iter().map(ToString::to_string);
        let all = v4.chain(found.addresses.v6.iter().map(ToString::to_string)).collect();
        Some((found.alias.map(|n| n.to_string()), all))
    }

    #[test]
    fn kubernetes_names_have_short_forms_and_the_own_namespaces_the_shortest() {
        let table = table();
        let users = Some((None, vec!["10.96.0.10".to_owned(), "fd96::10".to_owned()]));
        for asked in
            ["users", "users.shop", "users.shop.svc", "users.shop.svc.cluster.local", "USERS.Shop.SVC"]
        {
            assert_eq!(found(&table, asked), users, "{asked}");
        }
        let stock = Some((None, vec!["10.96.0.20".to_owned()]));
        for asked in ["stock.store", "stock.store.svc", "stock.store.svc.cluster.local"] {
            assert_eq!(found(&table, asked), stock, "{asked}");
        }
        // Another namespace's; part of the domain; more than the name; another cluster's.
        for asked in [
            "stock",
            "users.shop.svc.cluster",
            "a.users.shop.svc.cluster.local",
            "far.shop",
            "svc.cluster.local",
        ] {
            assert_eq!(found(&table, asked), None, "{asked}");
        }
        assert!(found(&table, "far.shop.svc.other.cluster").is_some());
        // A member of a headless service.
        let member = Some((None, vec!["10.0.0.7".to_owned()]));
        for asked in ["db-0.db", "db-0.db.shop", "db-0.db.shop.svc", "db-0.db.shop.svc.cluster.local"] {
            assert_eq!(found(&table, asked), member, "{asked}");
        }
    }

    #[test]
    fn the_first_search_domain_makes_aliases() {
        let table = table();
        let alias = |asked: &str| found(&table, asked).and_then(|f| f.0);
        for (asked, meant) in [
            ("users.shop.shop.svc.cluster.local", "users.shop."),
            ("stock.store.shop.svc.cluster.local", "stock.store."),
            ("stock.store.svc.cluster.local.shop.svc.cluster.local", "stock.store.svc.cluster.local."),
            ("api.example.com.shop.svc.cluster.local", "api.example.com."),
            ("a.b.wild.example.shop.svc.cluster.local", "a.b.wild.example."),
        ] {
            assert_eq!(alias(asked).as_deref(), Some(meant), "{asked}");
        }
        // The name itself goes before what it could stand for; the second search domain is not looked at.
        assert_eq!(found(&table, "users.shop.svc.cluster.local").unwrap().0, None);
        assert_eq!(found(&table, "api.example.com.svc.cluster.local"), None);
        assert_eq!(found(&table, "shop.svc.cluster.local"), None);
    }

    #[test]
    fn wildcards_cover_what_is_below_and_the_longest_one_wins() {
        let table = table();
        let ips = |asked: &str| found(&table, asked).map(|f| f.1.join(","));
        assert_eq!(ips("x.wild.example").as_deref(), Some("240.240.0.2"));
        assert_eq!(ips("x.y.wild.example").as_deref(), Some("240.240.0.2"));
        assert_eq!(ips("x.deep.wild.example").as_deref(), Some("240.240.0.3"));
        assert_eq!(ips("exact.wild.example").as_deref(), Some("240.240.0.4"));
        assert_eq!(ips("wild.example"), None);
    }

    #[test]
    fn a_table_with_something_wrong_is_refused_by_the_host() {
        let refused = |host: &str, info: NameInfo| {
            let source = NameTable { table: [(host.to_owned(), info)].into(), name_info: None };
            Table::new(source, &settings()).unwrap_err()
        };
        assert_eq!(
            refused("a.b", info(&["10.0.0"], "", "", "")),
            r#"table["a.b"]: ips: "10.0.0" is no IP address"#
        );
        let long = format!("{}.b", "a".repeat(64));
        assert!(refused(&long, info(&["10.0.0.1"], "", "", "")).contains("is no name of DNS"));
        let one = NameTable { table: [].into(), name_info: Some(info(&[], "", "", "")) };
        assert!(Table::new(one, &settings()).unwrap_err().contains("name_info"));
        // Without addresses it is nobody's name here: others may know it.
        let none = NameTable { table: [("a.b".to_owned(), info(&[], "", "", ""))].into(), name_info: None };
        assert_eq!(Table::new(none, &settings()).unwrap().len(), 0);
    }
}
