//! The flags of `weft init`: the names and meanings of istio-iptables' own, where it has them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Has the kernel send a pod's connections to its sidecar: installs the redirection in this network namespace
#[derive(Args, Debug)]
pub struct InitArgs {
    /// The proxy's port for outbound connections
    #[arg(short = 'p', long, value_name = "PORT", default_value = "15001")]
    pub envoy_port: String,
    /// The proxy's port for inbound connections
    #[arg(short = 'z', long, value_name = "PORT", default_value = "15006")]
    pub inbound_capture_port: String,
    /// The number of the user that the proxy runs as; what its processes send is not captured
    #[arg(short = 'u', long, value_name = "UID", default_value = "1337")]
    pub proxy_uid: String,
    /// The number of the group that the proxy runs as, in the same way; the user's number by default
    #[arg(short = 'g', long, value_name = "GID")]
    pub proxy_gid: Option<String>,
    /// How inbound connections reach the proxy: REDIRECT, TPROXY (which keeps the client's address; nftables only), or NONE
    /// (not at all)
    #[arg(short = 'm', long, value_name = "MODE", default_value = "REDIRECT")]
    pub istio_inbound_interception_mode: String,
    /// Ports whose inbound connections are captured, separated by commas; * is all, empty is none
    #[arg(short = 'b', long, value_name = "PORTS", default_value = "")]
    pub istio_inbound_ports: String,
    /// Ports whose inbound connections are not captured; it counts with -b '*' alone
    #[arg(short = 'd', long, value_name = "PORTS", default_value = "")]
    pub istio_local_exclude_ports: String,
    /// Networks (CIDR) to which outbound connections are captured, separated by commas; * is all, empty is none
    #[arg(short = 'i', long, value_name = "CIDRS", default_value = "")]
    pub istio_service_cidr: String,
    /// Networks (CIDR) to which outbound connections are not captured
    #[arg(short = 'x', long, value_name = "CIDRS", default_value = "")]
    pub istio_service_exclude_cidr: String,
    /// Ports to which outbound connections are captured, wherever they lead (except to what -x names)
    #[arg(short = 'q', long, value_name = "PORTS", default_value = "")]
    pub istio_outbound_ports: String,
    /// Ports to which outbound connections (and datagrams) are not captured
    #[arg(short = 'o', long, value_name = "PORTS", default_value = "")]
    pub istio_local_outbound_ports_exclude: String,
    /// Interfaces on which nothing is captured, separated by commas
    #[arg(short = 'c', long, value_name = "NAMES", default_value = "")]
    pub istio_exclude_interfaces: String,
    /// Interfaces of virtual machines in the pod, separated by commas: what comes in by them is captured as if it went out
    #[arg(short = 'k', long, value_name = "NAMES", default_value = "")]
    pub kube_virt_interfaces: String,
    /// Capture DNS (port 53, UDP and TCP) for the proxy's port 15053: what goes to the servers of /etc/resolv.conf
    #[arg(long)]
    pub redirect_dns: bool,
    /// With --redirect-dns: to whatever server it goes
    #[arg(long, requires = "redirect_dns")]
    pub capture_all_dns: bool,
    /// Drop packets that belong to no connection, instead of having the kernel reset the connection for them
    #[arg(long)]
    pub drop_invalid: bool,
    /// Which firewall is told: nft (one transaction for everything), iptables in one of its forms, or auto: nft if there is
    /// one, else iptables
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub backend: BackendArg,
    /// Print the rules, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// How --dry-run prints them
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Take away whatever was installed, with any backend and any flags, and what istio-iptables installed
    #[arg(long, conflicts_with = "dry_run")]
    pub clean: bool,
    /// Where the servers stand that --redirect-dns captures
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
}

/// Which firewall is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// nft if there is one, else iptables.
    Auto,
    /// The program nft.
    Nft,
    /// iptables-restore and ip6tables-restore, whichever form the system has chosen.
    Iptables,
    /// iptables over nf_tables.
    IptablesNft,
    /// iptables over the kernel's old tables.
    IptablesLegacy,
}

/// How a dry run prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// As a shell could run it.
    Text,
    /// As an object.
    Json,
}
