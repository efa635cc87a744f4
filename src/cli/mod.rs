//! What can be said on the command line. Each command's own flags live with what it does.

mod analyze;
mod authz;
mod bundle;
mod ca;
mod cert;
mod describe;
mod drift;
mod duration;
mod explain;
mod inject;
mod plan;
mod quarantine;
mod test;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use cert::CertCommand;
pub use duration::short as short_duration;
pub use xds_protos::duration::parse as parse_duration;

/// Weft, a service mesh: proxies beside every workload, and the control plane that directs them
#[derive(Parser, Debug)]
#[command(name = "weft", version, max_term_width = 110)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs the example mesh with traffic, and shows it live
    Demo(crate::demo::DemoArgs),
    /// Runs the mesh that a directory of YAML describes: control plane, a proxy for each workload, applications
    Up(crate::up::UpArgs),
    /// Runs the control plane on a directory of YAML (as the slim binary weft-control does)
    Control(Box<weft_control::app::ControlArgs>),
    /// Runs a proxy: a sidecar or a gateway (as the slim binary weft-proxy does)
    Proxy(Box<weft_proxy::app::ProxyArgs>),
    /// Has the kernel send a pod's connections to its sidecar: installs the redirection in this network namespace
    Init(Box<weft_proxy::capture::InitArgs>),
    /// Waits until the proxy in this pod is ready; as its postStart hook it holds the application back until then
    Wait(weft_proxy::agent::WaitArgs),
    /// Asks the proxy in this pod, such as POST /drain, for hooks that have no HTTP client
    Request(weft_proxy::agent::RequestArgs),
    /// Runs the example mesh's service: it calls others through its sidecar and says who called it
    App(crate::app::AppArgs),
    /// Serves identity and xDS to a foreign proxy such as Envoy, on Istio's UNIX sockets
    Agent(Box<weft_proxy::agent::AgentArgs>),
    /// Makes tokens, by which workloads prove who they are
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Gets certificates of the mesh, as files, for programs that are no part of it
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Looks at and changes the certificate authority of a control plane
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Says who may do what: runs the policy that the proxies of a directory's mesh would get
    #[command(subcommand)]
    Authz(authz::AuthzCommand),
    /// Looks for what is wrong in a directory of YAML or in a cluster, or probably not meant so
    #[command(visible_alias = "lint")]
    Analyze(analyze::AnalyzeArgs),
    /// Puts sidecars into the workloads of a file, as the control plane does in a cluster
    Inject(Box<inject::InjectArgs>),
    /// Signs configuration, and checks signatures
    #[command(subcommand)]
    Bundle(bundle::BundleCommand),
    /// Says what a change of a directory would change in the proxies, before it is made
    Plan(plan::PlanArgs),
    /// Runs the tests that are written beside a configuration
    Test(test::TestArgs),
    /// Prints what is to be installed into a cluster: the chart deploy/helm/weft, without Helm
    Install(crate::install::InstallArgs),
    /// Shows the proxies that are connected to a control plane, and how far they follow it
    ProxyStatus(crate::inspect::StatusArgs),
    /// Shows the objects that a control plane has read: whether each is valid, on how many of the connected proxies it is in effect, what there
    /// is to say of it
    ConfigStatus(crate::inspect::ObjectsArgs),
    /// Shows who calls whom just now: requests a second, success, times, mutual TLS
    Top(crate::inspect::TopArgs),
    /// Lists the requests that proxies keep: the last that failed, were refused or slow, and a sample of the others
    Requests(crate::inspect::RequestsArgs),
    /// Shows the requests of a workload while they are served
    Tap(crate::inspect::TapArgs),
    /// Draws who calls whom: as text, for Graphviz, as a picture (SVG), or as JSON
    Graph(crate::inspect::GraphArgs),
    /// Shows what happened lately, of the control plane and all proxies: denials, failed handshakes, refused configuration,
    /// certificates, administration, ejections, circuit breakers, steps of versions on trial
    Events(crate::inspect::EventsArgs),
    /// Denies all traffic to a workload at once, also on connections that live; --undo lets it through again
    Quarantine(Box<quarantine::QuarantineArgs>),
    /// Shows versions on trial (what share they get, what was counted, what was decided), and circuits (closed, open, half open)
    TrafficStatus(crate::inspect::TrafficArgs),
    /// Says how the mesh stands to what an auditor asks: mutual TLS, policies, certificates, plain text, post-quantum
    #[command(subcommand)]
    Report(crate::inspect::ReportCommand),
    /// Shows what a proxy has: its listeners, routes, clusters, endpoints, secrets, bootstrap, or what it logs
    ProxyConfig(crate::inspect::ConfigArgs),
    /// Says what holds for a workload or a service: where it is, who may come, and by which rules
    #[command(subcommand)]
    Describe(describe::DescribeCommand),
    /// Explains what became of a request (by its id), or what would become of one, step by step: which proxies it passes, which rules
    /// take it there, who lets it in. Exit code 0: it arrives; 1: it does not; 2: the question cannot be answered
    Explain(explain::ExplainArgs),
    /// Says where a cluster has not what a directory says
    Drift(drift::DriftArgs),
    /// Gathers what is needed to see what is wrong with a mesh into one file
    BugReport(crate::inspect::BugReportArgs),
    /// Shows the version of this program; with --control also those of a control plane and of its proxies
    Version(crate::inspect::VersionArgs),
}

/// Reads the command line and does what it says; an error is one line on standard error.
pub fn main() -> ExitCode {
    run(Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(args) => crate::demo::main(args)?,
        Command::Up(args) => crate::up::main(args)?,
        Command::Control(args) => weft_control::app::main(*args)?,
        Command::Proxy(args) => weft_proxy::app::main(*args)?,
        Command::Init(args) => weft_proxy::capture::main(&args)?,
        Command::Wait(args) => weft_proxy::agent::wait(&args)?,
        Command::Request(args) => weft_proxy::agent::request(&args)?,
        Command::App(args) => crate::app::main(args)?,
        Command::Agent(args) => weft_proxy::agent::main(*args)?,
        Command::Token(command) => token::main(command)?,
        Command::Cert(command) => cert::main(command)?,
        Command::Ca(command) => ca::main(command)?,
        // Its exit code is its answer.
        Command::Authz(command) => return Ok(authz::main(command)),
        Command::Analyze(args) => return analyze::main(&args),
        Command::Inject(args) => return inject::main(&args),
        Command::Bundle(command) => bundle::main(&command)?,
        Command::Plan(args) => return plan::main(&args),
        Command::Test(args) => return test::main(&args),
        Command::Install(args) => crate::install::main(&args)?,
        Command::ProxyStatus(args) => crate::inspect::status(&args)?,
        Command::ConfigStatus(args) => crate::inspect::objects(&args)?,
        Command::Top(args) => crate::inspect::top(&args)?,
        Command::Requests(args) => crate::inspect::requests(&args)?,
        Command::Tap(args) => crate::inspect::tap(&args)?,
        Command::Graph(args) => crate::inspect::graph(&args)?,
        Command::Events(args) => crate::inspect::events(&args)?,
        Command::Quarantine(args) => quarantine::main(&args)?,
        Command::TrafficStatus(args) => crate::inspect::traffic(&args)?,
        Command::Report(command) => crate::inspect::report(&command)?,
        Command::ProxyConfig(args) => crate::inspect::config(&args)?,
        Command::Describe(command) => describe::main(&command)?,
        // Its exit code is its answer.
        Command::Explain(args) => return Ok(explain::main(&args)),
        Command::Drift(args) => return drift::main(&args),
        Command::BugReport(args) => crate::inspect::bug_report(&args)?,
        Command::Version(args) => crate::inspect::version(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
