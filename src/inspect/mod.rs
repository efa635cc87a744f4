//! What a running mesh is asked: `weft proxy-status`, `weft config-status` and `weft version` ask a control plane, `weft proxy-config` a proxy (Weft's,
//! or an Envoy: the pages are the same), `weft top`, `weft graph` and `weft report` all proxies for what they have counted, and
//! `weft events` and `weft bug-report` everybody. Proxies are asked themselves, or [`through`] their control planes.

mod bug_report;
mod compliance;
mod config;
mod edges;
mod events;
mod graph;
mod objects;
mod proxies;
mod record;
mod replicas;
mod rows;
mod status;
mod tap;
mod through;
mod top;
mod traffic;
mod version;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde_json::Value;

pub use bug_report::{BugReportArgs, main as bug_report};
pub use compliance::{ReportCommand, main as report};
pub use config::{ConfigArgs, main as config};
pub use events::{EventsArgs, main as events};
pub use graph::{GraphArgs, main as graph};
pub use objects::{ObjectsArgs, main as objects};
pub use proxies::Proxies;
pub use record::{Record, RequestsArgs, Seen, main as requests, what};
pub use rows::plain;
pub use status::{StatusArgs, main as status};
pub use tap::{TapArgs, main as tap};
pub use top::{TopArgs, main as top};
pub use traffic::{TrafficArgs, main as traffic};
pub use version::{VersionArgs, main as version};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    Text,
    /// As it came.
    Json,
}

/// An address with this port where it names none.
fn address(text: &str, port: u16) -> anyhow::Result<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    text.parse()
        .map(|ip| SocketAddr::new(ip, port))
        .with_context(|| format!("{text:?} is no address: write IP:PORT, or IP for port {port}"))
}

/// The debug ports that `--control` names.
///
/// # Errors
/// It is no address, or the cluster's control planes cannot be found or reached.
pub(crate) fn debug_ports(control: &str) -> anyhow::Result<Vec<SocketAddr>> {
    replicas::expanded(&[control.to_owned()])?.iter().map(|one| address(one, 8080)).collect()
}

/// A page's text.
fn ask(address: SocketAddr, path: &str, hint: &str) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer =
        runtime.block_on(crate::client::get(address, path, PATIENCE)).with_context(|| hint.to_owned())?;
    if !answer.status.is_success() {
        bail!("http://{address}{path}: {}: {}", answer.status, answer.text().trim());
    }
    Ok(answer.text().into_owned())
}

/// A proxy's page, from itself or through its control plane.
fn ask_target(target: &proxies::Target, path: &str, hint: &str) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(target.get(path, PATIENCE)).with_context(|| hint.to_owned())?;
    Ok(answer.text().into_owned())
}

/// The same as JSON.
fn ask_json(address: SocketAddr, path: &str, hint: &str) -> anyhow::Result<Value> {
    let text = ask(address, path, hint)?;
    serde_json::from_str(&text)
        .with_context(|| format!("http://{address}{path} gives no JSON; is it what was meant?"))
}
