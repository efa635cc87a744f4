//! What of the pod's traffic is captured: the annotations `traffic.sidecar.istio.io/*`, as flags of `weft-proxy init`.

use ipnet::IpNet;

use super::error::Refusal;
use super::proxy_config::Interception;
use super::settings::ProxySettings;

/// What a pod says. Values are checked here, so that a slip is refused with the pod, not by an init container that fails.
#[derive(Debug, Default)]
pub(super) struct Asked {
    inbound: Option<String>,
    inbound_exclude: Option<String>,
    outbound: Option<String>,
    outbound_exclude: Option<String>,
    networks: Option<String>,
    networks_exclude: Option<String>,
    interfaces_exclude: Option<String>,
    virtual_interfaces: Option<String>,
}

impl Asked {
    /// Reads one annotation; others than its own are none of its business.
    pub(super) fn read(&mut self, name: &str, text: &str) -> Result<(), Refusal> {
        let list = |all: bool, one: fn(&str) -> bool, what: &str| {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect::<Vec<_>>();
            if all && items == ["*"] {
                return Ok(Some("*".to_owned()));
            }
            match items.iter().find(|item| !one(item)) {
                Some(item) => {
                    let help = if all {
                        format!("write {what}, separated by commas, or \"*\" alone for all")
                    } else {
                        format!("write {what}, separated by commas")
                    };
                    Err(Refusal::annotation(name, format!("{item:?} is none of {what}"), help))
                }
                None => Ok(Some(items.join(","))),
            }
        };
        let ports =
            |all| list(all, |item| item.parse::<u16>().is_ok_and(|n| n != 0), "ports from 1 to 65535");
        let network = |item: &str| item.parse::<IpNet>().is_ok_and(|net| net == net.trunc());
        let networks = |all| list(all, network, "networks such as 10.0.0.0/8 or fd00::/8");
        let interfaces = || {
            let good = |item: &str| {
                item.len() <= 15 && item.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:@".contains(c))
            };
            list(false, good, "names of interfaces")
        };
        match name.rsplit('/').next().unwrap_or_default() {
            "includeInboundPorts" => self.inbound = ports(true)?,
            "excludeInboundPorts" => self.inbound_exclude = ports(false)?,
            "includeOutboundPorts" => self.outbound = ports(false)?,
            "excludeOutboundPorts" => self.outbound_exclude = ports(false)?,
            "includeOutboundIPRanges" => self.networks = networks(true)?,
            "excludeOutboundIPRanges" => self.networks_exclude = networks(false)?,
            "excludeInterfaces" => self.interfaces_exclude = interfaces()?,
            "kubevirtInterfaces" | "reroute-virtual-interfaces" => self.virtual_interfaces = interfaces()?,
            _ => {}
        }
        Ok(())
    }

    /// The arguments of the init container.
    pub(super) fn arguments(
        &self,
        mode: Interception,
        status_port: u16,
        dns: bool,
        settings: &ProxySettings,
    ) -> Vec<String> {
        let or =
            |asked: &Option<String>, otherwise: &str| asked.clone().unwrap_or_else(|| otherwise.to_owned());
        let own = ["15090", "15021"].into_iter().map(str::to_owned);
        let own = own.chain((status_port != 0).then(|| status_port.to_string()));
        let excluded = or(&self.inbound_exclude, &settings.exclude_inbound_ports);
        let excluded = own.chain((!excluded.is_empty()).then_some(excluded)).collect::<Vec<_>>().join(",");
        let mut arguments = vec!["init".to_owned()];
        let mut push = |flag: &str, value: String| {
            arguments.extend([flag.to_owned(), value]);
        };
        push("-p", "15001".to_owned());
        push("-z", "15006".to_owned());
        push("-u", "1337".to_owned());
        push("-m", mode.as_str().to_owned());
        push("-i", or(&self.networks, &settings.include_ip_ranges));
        push("-x", or(&self.networks_exclude, &settings.exclude_ip_ranges));
        push("-b", or(&self.inbound, &settings.include_inbound_ports));
        push("-d", excluded);
        for (flag, value) in [
            ("-q", or(&self.outbound, &settings.include_outbound_ports)),
            ("-o", or(&self.outbound_exclude, &settings.exclude_outbound_ports)),
            ("-c", or(&self.interfaces_exclude, "")),
            ("-k", or(&self.virtual_interfaces, "")),
        ] {
            if !value.is_empty() {
                push(flag, value);
            }
        }
        if dns {
            arguments.push("--redirect-dns".to_owned());
        }
        arguments
    }
}
