//! What is known when DNS begins: where it is answered, whom to ask, whose names are short.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use anyhow::{Context, bail, ensure};
use hickory_proto::rr::Name;
use resolv_conf::ScopedIp;
use serde_json::Value;

use crate::bootstrap::DnsArgs;
use crate::state::NodeInfo;

/// The port of DNS servers.
const PORT: u16 = 53;

/// The settings of the pod's DNS.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// Where it is answered. An address is optional where the machine may lack its family.
    pub(super) listen: Vec<(SocketAddr, Needed)>,
    /// Whom to ask, in order.
    pub(super) servers: Vec<SocketAddr>,
    /// The domain that applications' resolvers append first.
    pub(super) search: Option<Name>,
    /// The proxy's namespace, in which names need no other.
    pub(super) namespace: String,
    /// The domain of the mesh's names, such as `svc.cluster.local`.
    pub(super) domain: String,
}

/// Whether an address must be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needed {
    /// Yes.
    Always,
    /// If there is one of its family.
    IfThere,
}

impl Settings {
    /// Reads resolv.conf.
    pub(super) fn new(args: &DnsArgs, node: &NodeInfo) -> anyhow::Result<Self> {
        let path = args.resolv_conf.display();
        let text = std::fs::read(&args.resolv_conf).with_context(|| {
            format!("{path} cannot be read; DNS needs the servers that it names (--resolv-conf)")
        })?;
        Self::from_text(&args.dns_address, &text, node).with_context(|| format!("DNS, by {path}"))
    }

    fn from_text(address: &str, resolv_conf: &[u8], node: &NodeInfo) -> anyhow::Result<Self> {
        let listen = listen(address)?;
        // As the system's resolver reads it: what is wrong in a line is left out, the rest counts.
        let (config, errors) = resolv_conf::Config::parse_with_errors(resolv_conf);
        for error in errors {
            tracing::warn!(%error, "resolv.conf: a line is not understood, and not used");
        }
        let mut servers = config.nameservers.iter().map(server).collect::<anyhow::Result<Vec<_>>>()?;
        servers.dedup();
        // Nobody asks itself.
        servers.retain(|server| !listen.iter().any(|(own, _)| own == server));
        ensure!(
            !servers.is_empty(),
            "no nameserver is named that names can be asked of, except the address that is answered at"
        );
        let search = config.get_last_search_or_domain().next().map(|domain| name(domain)).transpose()?;
        let namespace = node.meta("NAMESPACE").to_owned();
        let domain = node.id.split('~').nth(3).unwrap_or_default();
        let domain =
            domain.strip_prefix(&namespace).and_then(|rest| rest.strip_prefix('.')).unwrap_or(domain);
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        Ok(Self { listen, servers, search, namespace, domain })
    }
}

/// Whether metadata turns something on; absent is no.
///
/// # Errors
/// It says neither yes nor no.
pub(super) fn is_on(node: &NodeInfo, key: &str) -> anyhow::Result<bool> {
    match node.metadata.get(key) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if text == "false" || text.is_empty() => Ok(false),
        Some(other) => {
            bail!("metadata {key} is {other}: write true or false (ISTIO_META_{key} in the environment)")
        }
    }
}

/// The address of a server. One that is only known on a link says by its scope on which.
fn server(ip: &ScopedIp) -> anyhow::Result<SocketAddr> {
    let (ip, scope) = match ip {
        ScopedIp::V6(ip, Some(scope)) => (ip, scope),
        other => return Ok(SocketAddr::new(other.into(), PORT)),
    };
    let index = match scope.parse() {
        Ok(index) => index,
        Err(_) => nix::net::if_::if_nametoindex(scope.as_str())
            .with_context(|| format!("nameserver {ip}%{scope}: there is no such interface"))?,
    };
    Ok(SocketAddrV6::new(*ip, PORT, 0, index).into())
}

/// A whole name, whether or not it ends in a dot.
pub(super) fn name(text: &str) -> anyhow::Result<Name> {
    let mut name = Name::from_ascii(text).with_context(|| format!("{text:?} is no name of DNS"))?;
    name.set_fqdn(true);
    Ok(name)
}

/// The addresses that `HOST:PORT` stands for; `localhost` is both loopbacks, where there are both.
fn listen(address: &str) -> anyhow::Result<Vec<(SocketAddr, Needed)>> {
    if let Ok(one) = address.parse() {
        return Ok(vec![(one, Needed::Always)]);
    }
    let Some(port) = address.strip_prefix("localhost:").and_then(|port| port.parse().ok()) else {
        bail!("--dns-address {address:?}: write IP:PORT or localhost:PORT");
    };
    let at = |ip: IpAddr| SocketAddr::new(ip, port);
    Ok(vec![
        (at(Ipv4Addr::LOCALHOST.into()), Needed::Always),
        (at(Ipv6Addr::LOCALHOST.into()), Needed::IfThere),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeInfo {
        let metadata = serde_json::json!({"NAMESPACE": "shop"}).as_object().unwrap().clone();
        let id = "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local".to_owned();
        NodeInfo { id, metadata, ..NodeInfo::default() }
    }

    #[test]
    fn servers_search_domain_and_names_come_from_resolv_conf_and_node() {
        let text = "# a pod's\nnameserver 10.96.0.10\nnameserver fd00::10\nsearch shop.svc.cluster.local svc.cluster.local\noptions ndots:5\n";
        let it = Settings::from_text("localhost:15053", text.as_bytes(), &node()).unwrap();
        assert_eq!(it.servers, ["10.96.0.10:53".parse().unwrap(), "[fd00::10]:53".parse().unwrap()]);
        assert_eq!(it.search.unwrap().to_string(), "shop.svc.cluster.local.");
        assert_eq!((it.namespace.as_str(), it.domain.as_str()), ("shop", "svc.cluster.local"));
        let listen: Vec<String> = it.listen.iter().map(|(at, _)| at.to_string()).collect();
        assert_eq!(listen, ["127.0.0.1:15053", "[::1]:15053"]);
        let one = Settings::from_text("10.0.0.1:53", b"nameserver 10.0.0.1\nnameserver 10.0.0.2\n", &node())
            .unwrap();
        assert_eq!(one.listen, [("10.0.0.1:53".parse().unwrap(), Needed::Always)]);
        assert_eq!(one.servers, ["10.0.0.2:53".parse().unwrap()], "nobody asks itself");
    }

    #[test]
    fn what_is_on_is_said_in_one_way() {
        let on = |value: Value| {
            let mut node = node();
            node.metadata.insert("DNS_CAPTURE".to_owned(), value);
            is_on(&node, "DNS_CAPTURE").map_err(|e| e.to_string())
        };
        assert_eq!((on("true".into()), on(true.into())), (Ok(true), Ok(true)));
        assert_eq!((on("false".into()), on("".into()), on(false.into())), (Ok(false), Ok(false), Ok(false)));
        assert!(!is_on(&node(), "DNS_CAPTURE").unwrap());
        for slip in [Value::from("yes"), "True".into(), 1.into()] {
            let error = on(slip.clone()).unwrap_err();
            assert!(error.contains("ISTIO_META_DNS_CAPTURE") && error.contains(&slip.to_string()), "{error}");
        }
    }

    #[test]
    fn a_server_on_a_link_is_asked_there() {
        let it = |text: &str| Settings::from_text("localhost:15053", text.as_bytes(), &node());
        assert_eq!(it("nameserver fe80::1%lo\n").unwrap().servers, ["[fe80::1%1]:53".parse().unwrap()]);
        assert_eq!(it("nameserver fe80::1%7\n").unwrap().servers, ["[fe80::1%7]:53".parse().unwrap()]);
        let error = format!("{:#}", it("nameserver fe80::1%nowhere\n").unwrap_err());
        assert!(error.contains("no such interface"), "{error}");
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let error = |address: &str, text: &str| {
            format!("{:#}", Settings::from_text(address, text.as_bytes(), &node()).unwrap_err())
        };
        assert!(error("localhost:15053", "search a.b\n").contains("no nameserver"));
        assert!(error("127.0.0.1:53", "nameserver 127.0.0.1\n").contains("no nameserver"));
        for bad in ["15053", "localhost", "pod:15053", "127.0.0.1"] {
            assert!(error(bad, "nameserver 10.0.0.1\n").contains("localhost:PORT"), "{bad}");
        }
    }
}
