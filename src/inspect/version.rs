//! `weft version`: of this program, of a control plane, and of the proxies that are connected to it.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;

use super::{Output, address, ask, ask_json, replicas};

/// Shows the version of this program; with --control also those of a control plane and of its proxies
#[derive(Args, Debug)]
pub struct VersionArgs {
    /// A control plane's debug port, IP:PORT; IP alone is port 8080. Several, with commas between them; `cluster`, or `cluster/NAMESPACE`:
    /// all of the cluster that $KUBECONFIG or ~/.kube/config names, through its API server
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    control: Vec<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Prints it.
///
/// # Errors
/// The control plane does not answer.
pub fn main(args: &VersionArgs) -> anyhow::Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let mut all = json!({"client": own});
    let mut text = format!("client         weft {own}\n");
    // How many control planes are what, and how many proxies say what of themselves.
    let mut controls: BTreeMap<String, usize> = BTreeMap::new();
    let mut proxies: BTreeMap<String, usize> = BTreeMap::new();
    for control in replicas::expanded(&args.control)? {
        let at = address(&control, 8080)?;
        let hint = format!("is a control plane's debug port at {at}?");
        let version = ask(at, "/version", &hint)?;
        *controls.entry(version.trim().trim_start_matches("weft-").to_owned()).or_default() += 1;
        for one in ask_json(at, "/debug/syncz", &hint)?.as_array().into_iter().flatten() {
            *proxies.entry(one["agent"].as_str().unwrap_or("unknown").to_owned()).or_default() += 1;
        }
    }
    if let Some((first, _)) = controls.first_key_value() {
        for (version, count) in &controls {
            let of = if *count > 1 { format!(" ({count})") } else { String::new() };
            text.push_str(&format!("control plane  weft {version}{of}\n"));
        }
        for (agent, count) in &proxies {
            text.push_str(&format!("proxies        {agent} ({count})\n"));
        }
        all["controlPlane"] = first.as_str().into();
        all["controlPlanes"] = json!(controls);
        all["proxies"] = json!(proxies);
    }
    match args.output {
        Output::Json => println!("{all:#}"),
        Output::Text => print!("{text}"),
    }
    Ok(())
}
