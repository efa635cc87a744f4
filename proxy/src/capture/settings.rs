//! The flags, understood: every value is checked before anything is changed.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;

use super::args::InitArgs;

/// What `*` and a list mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Which<T> {
    All,
    These(Vec<T>),
}

impl<T> Which<T> {
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::These(list) if list.is_empty())
    }
}

/// How inbound connections reach the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Redirect,
    Tproxy,
    None,
}

/// What the redirection is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) outbound_port: u16,
    pub(super) inbound_port: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: Mode,
    pub(super) inbound: Which<u16>,
    pub(super) inbound_exclude: Vec<u16>,
    pub(super) networks: Which<IpNet>,
    pub(super) networks_exclude: Vec<IpNet>,
    pub(super) outbound_ports: Vec<u16>,
    pub(super) outbound_ports_exclude: Vec<u16>,
    pub(super) interfaces_exclude: Vec<String>,
    pub(super) virtual_interfaces: Vec<String>,
    /// Servers whose DNS is captured; none: DNS is not.
    pub(super) dns: Option<Which<IpAddr>>,
    pub(super) drop_invalid: bool,
}

impl Settings {
    /// Understands the flags.
    ///
    /// # Errors
    ///
    /// A value is not what its flag takes, or two flags contradict each other; the flag is named.
    pub(super) fn new(args: &InitArgs) -> anyhow::Result<Self> {
        let uid = number("-u/--proxy-uid", &args.proxy_uid)?;
        let settings = Self {
            outbound_port: port("-p/--envoy-port", &args.envoy_port)?,
            inbound_port: port("-z/--inbound-capture-port", &args.inbound_capture_port)?,
            uid,
            gid: args.proxy_gid.as_deref().map_or(Ok(uid), |gid| number("-g/--proxy-gid", gid))?,
            mode: mode(&args.istio_inbound_interception_mode)?,
            inbound: all_or("-b/--istio-inbound-ports", &args.istio_inbound_ports, port)?,
            inbound_exclude: list("-d/--istio-local-exclude-ports", &args.istio_local_exclude_ports, port)?,
            networks: all_or("-i/--istio-service-cidr", &args.istio_service_cidr, network)?,
            networks_exclude: list(
                "-x/--istio-service-exclude-cidr",
                &args.istio_service_exclude_cidr,
                network,
            )?,
            outbound_ports: list("-q/--istio-outbound-ports", &args.istio_outbound_ports, port)?,
            outbound_ports_exclude: list(
                "-o/--istio-local-outbound-ports-exclude",
                &args.istio_local_outbound_ports_exclude,
                port,
            )?,
            interfaces_exclude: list(
                "-c/--istio-exclude-interfaces",
                &args.istio_exclude_interfaces,
                interface,
            )?,
            virtual_interfaces: list("-k/--kube-virt-interfaces", &args.kube_virt_interfaces, interface)?,
            dns: dns(args)?,
            drop_invalid: args.drop_invalid,
        };
        settings.agree()?;
        Ok(settings)
    }

    /// Refuses what contradicts itself.
    fn agree(&self) -> anyhow::Result<()> {
        ensure!(
            self.outbound_port != self.inbound_port,
            "-p/--envoy-port and -z/--inbound-capture-port are both {}: the proxy could not tell outbound from inbound \
             connections; give them different ports",
            self.inbound_port
        );
        ensure!(
            self.mode != Mode::None || self.inbound.is_none(),
            "-m NONE captures nothing inbound, and -b/--istio-inbound-ports names ports to capture; leave one of them away"
        );
        let both = self.virtual_interfaces.iter().find(|name| self.interfaces_exclude.contains(name));
        if let Some(name) = both {
            bail!(
                "the interface {name} is both in -k/--kube-virt-interfaces and in -c/--istio-exclude-interfaces"
            );
        }
        Ok(())
    }

    /// Whether nothing at all is captured.
    pub(super) fn captures_nothing(&self) -> bool {
        self.inbound.is_none()
            && self.networks.is_none()
            && self.outbound_ports.is_empty()
            && self.dns.is_none()
    }

    /// Whether a network of -i lies in the loopback: then the application's connections over the loopback are looked at, too.
    pub(super) fn captures_loopback(&self) -> bool {
        matches!(&self.networks, Which::These(list) if list.iter().any(|net| net.addr().is_loopback()))
    }
}

/// A whole number that fits.
fn number(flag: &str, text: &str) -> anyhow::Result<u32> {
    parse(flag, text, "a number from 0 to 4294967294; names are not looked up").and_then(|number: u32| {
        ensure!(number != u32::MAX, "{flag}: {number} is the kernel's word for nobody; take another number");
        Ok(number)
    })
}

fn port(flag: &str, text: &str) -> anyhow::Result<u16> {
    let port: u16 = parse(flag, text, "a port from 1 to 65535")?;
    ensure!(port != 0, "{flag}: 0 is not a port from 1 to 65535");
    Ok(port)
}

/// A network; its address may not reach beyond its prefix, which is mostly a slip.
fn network(flag: &str, text: &str) -> anyhow::Result<IpNet> {
    let net: IpNet = parse(flag, text, "a network in CIDR form, such as 10.0.0.0/8 or fd00::/8")?;
    let trunc = net.trunc();
    ensure!(
        net == trunc,
        "{flag}: {text} has bits beyond its prefix; write {trunc}, or {}/{}",
        net.addr(),
        { net.max_prefix_len() }
    );
    Ok(net)
}

/// The name of an interface: what the kernel takes for one, without what the firewalls' languages would read otherwise.
fn interface(flag: &str, text: &str) -> anyhow::Result<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    ensure!(
        text.len() <= 15 && text.chars().all(good) && text != "." && text != "..",
        "{flag}: {text:?} is not the name of an interface (at most 15 letters, digits and -_.:@; wildcards are not taken)"
    );
    Ok(text.to_owned())
}

fn mode(text: &str) -> anyhow::Result<Mode> {
    match text {
        "REDIRECT" => Ok(Mode::Redirect),
        "TPROXY" => Ok(Mode::Tproxy),
        "NONE" => Ok(Mode::None),
        _ => bail!("-m/--istio-inbound-interception-mode: {text:?} is none of REDIRECT, TPROXY, NONE"),
    }
}

fn parse<T: FromStr<Err: Display>>(flag: &str, text: &str, what: &str) -> anyhow::Result<T> {
    text.parse().ok().with_context(|| format!("{flag}: {text:?} is not {what}"))
}

/// A list by commas, with or without spaces.
fn list<T>(flag: &str, text: &str, one: fn(&str, &str) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(|item| {
            let item = item.trim();
            ensure!(!item.is_empty(), "{flag}: {text:?} has an empty item; take one comma away");
            ensure!(item != "*", "{flag}: * cannot stand here: {}", no_wildcard(flag));
            one(flag, item)
        })
        .collect()
}

/// Why `*` is not taken.
fn no_wildcard(flag: &str) -> &'static str {
    match flag.get(..2) {
        Some("-b" | "-i") => "all is * alone, without anything beside it",
        _ => "name them one by one",
    }
}

fn all_or<T>(flag: &str, text: &str, one: fn(&str, &str) -> anyhow::Result<T>) -> anyhow::Result<Which<T>> {
    if text.trim() == "*" { Ok(Which::All) } else { list(flag, text, one).map(Which::These) }
}

fn dns(args: &InitArgs) -> anyhow::Result<Option<Which<IpAddr>>> {
    if !args.redirect_dns {
        return Ok(None);
    }
    if args.capture_all_dns {
        return Ok(Some(Which::All));
    }
    let path = &args.resolv_conf;
    let help = "give --capture-all-dns to capture DNS to whatever server";
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--redirect-dns: {} cannot be read; {help}", path.display()))?;
    let servers = servers(&text);
    ensure!(!servers.is_empty(), "--redirect-dns: {} names no nameserver; {help}", path.display());
    Ok(Some(Which::These(servers)))
}

/// The servers of a resolv.conf (resolv.conf(5)), each once.
fn servers(text: &str) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // An address of one link has its interface behind it.
        let address = words.next().and_then(|word| word.split('%').next()?.parse().ok());
        servers.extend(address.filter(|a| !servers.contains(a)));
    }
    servers
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        init: InitArgs,
    }

    fn settings(flags: &str) -> Result<Settings, String> {
        let words = std::iter::once("init").chain(flags.split(' ').filter(|w| !w.is_empty()));
        let cli = Cli::try_parse_from(words.map(|w| if w == "''" { "" } else { w }));
        Settings::new(&cli.map_err(|e| e.to_string())?.init).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn without_flags_nothing_is_captured_and_the_rest_is_as_documented() {
        let it = settings("").unwrap();
        assert!(it.captures_nothing());
        assert_eq!((it.outbound_port, it.inbound_port, it.uid, it.gid), (15001, 15006, 1337, 1337));
        assert_eq!((it.mode, it.dns), (Mode::Redirect, None));
        assert_eq!(settings("-u 1").unwrap().gid, 1, "the group's number is the user's");
    }

    #[test]
    fn short_and_long_names_mean_the_same() {
        let short = settings(
            "-p 1 -z 2 -u 3 -g 4 -m TPROXY -b 5,6 -d 7 -i 10.0.0.0/8 -x fd00::/8 -q 8 -o 9 -c a -k b",
        );
        let long = settings(
            "--envoy-port 1 --inbound-capture-port 2 --proxy-uid 3 --proxy-gid 4 --istio-inbound-interception-mode TPROXY \
             --istio-inbound-ports 5,6 --istio-local-exclude-ports 7 --istio-service-cidr 10.0.0.0/8 \
             --istio-service-exclude-cidr fd00::/8 --istio-outbound-ports 8 --istio-local-outbound-ports-exclude 9 \
             --istio-exclude-interfaces a --kube-virt-interfaces b",
        );
        assert_eq!(short, long);
        let it = short.unwrap();
        assert_eq!(it.inbound, Which::These(vec![5, 6]));
        assert_eq!(it.networks, Which::These(vec!["10.0.0.0/8".parse().unwrap()]));
        assert_eq!((it.outbound_ports, it.outbound_ports_exclude), (vec![8], vec![9]));
        assert_eq!(
            (it.interfaces_exclude, it.virtual_interfaces),
            (vec!["a".to_owned()], vec!["b".to_owned()])
        );
    }

    #[test]
    fn a_star_is_all_and_empty_is_none() {
        let it = settings("-b * -i *").unwrap();
        assert_eq!((it.inbound, it.networks), (Which::All, Which::All));
        assert!(settings("-b '' -i '' -d '' -x ''").unwrap().captures_nothing());
    }

    #[test]
    fn what_is_wrong_is_refused_by_its_flag_and_its_value() {
        for (flags, words) in [
            ("-p 0", "-p/--envoy-port: 0 is not a port"),
            ("-p 65536", "-p/--envoy-port: \"65536\" is not a port from 1 to 65535"),
            ("-z abc", "-z/--inbound-capture-port: \"abc\""),
            ("-z 15001", "both 15001"),
            ("-u root", "-u/--proxy-uid: \"root\" is not a number"),
            ("-u -1", "-1"),
            ("-u 4294967295", "nobody"),
            ("-g 4294967296", "-g/--proxy-gid"),
            ("-m redirect", "\"redirect\" is none of REDIRECT, TPROXY, NONE"),
            ("-m NONE -b *", "-m NONE"),
            ("-b 80,", "-b/--istio-inbound-ports: \"80,\" has an empty item"),
            ("-b 80,*", "all is * alone"),
            ("-b 80-90", "\"80-90\" is not a port"),
            ("-d *", "-d/--istio-local-exclude-ports: * cannot stand here"),
            ("-i 10.0.0.0", "-i/--istio-service-cidr: \"10.0.0.0\" is not a network in CIDR form"),
            ("-i 10.0.0.0/33", "\"10.0.0.0/33\" is not a network"),
            ("-i 10.0.0.1/8", "write 10.0.0.0/8, or 10.0.0.1/32"),
            ("-i *,10.0.0.0/8", "all is * alone"),
            ("-x *", "-x/--istio-service-exclude-cidr: * cannot stand here"),
            ("-x fd00::/129", "-x/--istio-service-exclude-cidr: \"fd00::/129\""),
            ("-q http", "-q/--istio-outbound-ports: \"http\""),
            ("-o 1,2,99999", "-o/--istio-local-outbound-ports-exclude: \"99999\""),
            ("-c eth+", "-c/--istio-exclude-interfaces: \"eth+\" is not the name of an interface"),
            ("-c eth0\"}", "is not the name of an interface"),
            ("-k an-interface-too-long", "-k/--kube-virt-interfaces"),
            ("-c a -k a", "the interface a is both"),
            ("--capture-all-dns", "--redirect-dns"),
            ("--redirect-dns --resolv-conf /nowhere/resolv.conf", "/nowhere/resolv.conf cannot be read"),
            ("--clean --dry-run", "--clean"),
            ("--dry-run --output yaml", "yaml"),
        ] {
            let error = settings(flags).expect_err(flags);
            assert!(error.contains(words), "{flags}: {error}");
        }
    }

    #[test]
    fn the_servers_of_a_resolv_conf_are_its_nameserver_lines() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.10\n nameserver\tfe80::1%eth0 \nnameserver\n\
                    nameserver 10.0.0.10\nnameserver nowhere\nnameservers 1.2.3.4";
        assert_eq!(servers(text), ["10.0.0.10".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "search here\n").unwrap();
        let flags = format!("--redirect-dns --resolv-conf {}", file.path().display());
        assert!(settings(&flags).unwrap_err().contains("names no nameserver"));
        std::fs::write(file.path(), "nameserver ::1\n").unwrap();
        assert_eq!(settings(&flags).unwrap().dns, Some(Which::These(vec!["::1".parse().unwrap()])));
    }

    #[test]
    fn a_network_of_the_loopback_is_seen() {
        assert!(settings("-i 10.0.0.0/8,127.1.0.0/16").unwrap().captures_loopback());
        assert!(!settings("-i 10.0.0.0/8").unwrap().captures_loopback());
        assert!(!settings("-i *").unwrap().captures_loopback());
    }
}
