//! `weft bug-report`: what somebody needs who is to say what is wrong with a mesh, in one file.
//!
//! Pages of control planes and of proxies as they are: they hold no private keys, nor tokens. They do hold names, addresses and
//! the configuration, so whoever sends the file on should know that.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use super::proxies::Target;
use super::through::Through;
use super::{address, ask_target};
use crate::configuration::ClusterArgs;

/// Gathers what is needed to see what is wrong with a mesh into one file: states of control planes and proxies, and findings
#[derive(Args, Debug)]
pub struct BugReportArgs {
    /// A control plane's debug port, IP:PORT; IP alone is port 8080. May be repeated
    #[arg(long, value_name = "ADDRESS")]
    control: Vec<String>,
    /// A proxy's administration, IP:PORT; IP alone is port 15000. May be repeated
    #[arg(long, value_name = "ADDRESS")]
    proxy: Vec<String>,
    /// Ask the proxies that are connected to the control planes, too, through these, with the token in this file (as weft top does)
    #[arg(long, value_name = "FILE", requires = "control")]
    token_file: Option<PathBuf>,
    /// The root by which a control plane's certificate is checked (--control https://HOST:PORT)
    #[arg(long, value_name = "FILE", requires = "token_file")]
    root_cert: Option<PathBuf>,
    /// A directory of YAML that describes the mesh: what `weft analyze` finds in it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["cluster", "kubeconfig"])]
    dir: Option<PathBuf>,
    /// Or a cluster
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Where it is written
    #[arg(long, short = 'o', value_name = "FILE", default_value = "weft-bug-report.tar.gz")]
    file: PathBuf,
}

/// Pages of a control plane, and of a proxy (an Envoy's are the same), with the names that they get.
const CONTROL: [(&str, &str); 6] = [
    ("/version", "version.txt"),
    ("/debug/syncz", "proxies.json"),
    ("/debug/adsz", "streams.json"),
    ("/debug/configz", "configuration.json"),
    ("/debug/endpointz", "endpoints.json"),
    ("/metrics", "metrics.txt"),
];
const PROXY: [(&str, &str); 7] = [
    ("/server_info", "server_info.json"),
    ("/ready", "ready.txt"),
    ("/config_dump", "config_dump.json"),
    ("/clusters", "clusters.txt"),
    ("/listeners", "listeners.txt"),
    ("/certs", "certificates.json"),
    ("/stats/prometheus", "stats.txt"),
];

/// Writes it.
///
/// # Errors
/// There is nobody to ask, nobody answers, or the file cannot be written.
pub fn main(args: &BugReportArgs) -> anyhow::Result<()> {
    if args.control.is_empty() && args.proxy.is_empty() && args.dir.is_none() && !args.cluster.is_meant() {
        bail!("there is nothing to look at: give --control, --proxy, --dir, --cluster or --kubeconfig");
    }
    let mut gathered: BTreeMap<String, String> = BTreeMap::new();
    let mut failed = Vec::new();
    let through = Through {
        control: args.control.clone(),
        token_file: args.token_file.clone(),
        root_cert: args.root_cert.clone(),
    };
    let named = |at: SocketAddr| Target::at(at.to_string(), at);
    let controls = through.debug_ports()?.into_iter().map(named);
    let proxies = args.proxy.iter().map(|name| Ok(named(address(name, 15000)?)));
    let mut proxies = proxies.collect::<anyhow::Result<Vec<_>>>()?;
    if through.is_meant() {
        match through.targets() {
            Ok(all) => proxies.extend(all),
            Err(error) => failed.push(format!("proxies: {error:#}")),
        }
    }
    for target in controls {
        pages_of(&target, "control", &CONTROL, &mut gathered, &mut failed);
    }
    for target in proxies {
        pages_of(&target, "proxy", &PROXY, &mut gathered, &mut failed);
    }
    if let Some(found) = findings(args, &mut failed) {
        gathered.insert("analysis.txt".to_owned(), found);
    }
    if gathered.is_empty() {
        bail!("nobody answers:\n{}", failed.join("\n"));
    }
    let about = json!({"version": env!("CARGO_PKG_VERSION"), "failed": failed});
    gathered.insert("report.json".to_owned(), format!("{about:#}\n"));
    write(args, &gathered).with_context(|| format!("{} cannot be written", args.file.display()))?;
    for why in &failed {
        eprintln!("left out: {why}");
    }
    println!(
        "{}: {} pages; it holds names, addresses and configuration, and no keys",
        args.file.display(),
        gathered.len()
    );
    Ok(())
}

fn pages_of(
    target: &Target,
    kind: &str,
    pages: &[(&str, &str)],
    gathered: &mut BTreeMap<String, String>,
    failed: &mut Vec<String>,
) {
    let name = &target.name;
    eprintln!("asking {name} ({kind})");
    for (path, file) in pages {
        match ask_target(target, path, "it does not answer") {
            Ok(text) => drop(gathered.insert(format!("{kind}-{name}/{file}"), without_secrets(text))),
            Err(error) => failed.push(format!("{}{path}: {error:#}", target.key())),
        }
    }
}

/// Header fields that prove somebody's identity; configuration may set them.
const SECRET: [&str; 5] = ["authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key"];

/// A page without the values of such fields. What is no JSON has none.
fn without_secrets(text: String) -> String {
    let Ok(mut page) = serde_json::from_str::<serde_json::Value>(&text) else { return text };
    hide(&mut page);
    format!("{page:#}")
}

fn hide(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::Object(fields) => {
            let named = |name: &str| SECRET.contains(&name.to_ascii_lowercase().as_str());
            let of_secret = ["key", "name", "header_name"]
                .iter()
                .any(|at| fields.get(*at).and_then(Value::as_str).is_some_and(named));
            for (key, field) in fields.iter_mut() {
                let is_value =
                    of_secret && ["value", "raw_value", "string_match", "exact"].contains(&key.as_str());
                match is_value || (named(key) && field.is_string()) {
                    true => *field = "[hidden]".into(),
                    false => hide(field),
                }
            }
        }
        _ => {}
    }
}

/// What the analysis finds, if a configuration is named.
fn findings(args: &BugReportArgs, failed: &mut Vec<String>) -> Option<String> {
    let outcome = match (&args.dir, args.cluster.is_meant()) {
        (Some(dir), _) => {
            let outcome = weft_control::ingest::load_dir(dir);
            Ok((outcome.world, outcome.diagnostics))
        }
        (None, true) => args.cluster.snapshot().map(|it| (Some(it.world.clone()), it.diagnostics.to_vec())),
        (None, false) => return None,
    };
    match outcome {
        Ok((world, diagnostics)) => {
            let found = world.iter().flat_map(weft_control::analyze::analyze).map(|m| format!("{m}\n"));
            Some(diagnostics.iter().map(|d| format!("{d}\n")).chain(found).collect())
        }
        Err(error) => {
            failed.push(format!("the configuration: {error:#}"));
            None
        }
    }
}

fn write(args: &BugReportArgs, gathered: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&args.file)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    for (name, text) in gathered {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        // Addresses of IPv6 have colons, which some systems do not like in names.
        archive.append_data(
            &mut header,
            format!("weft-bug-report/{}", name.replace(':', "_")),
            text.as_bytes(),
        )?;
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_proves_an_identity_is_hidden() {
        let page = r#"{"a": [{"header": {"key": "Authorization", "value": "Bearer x"}}, {"key": "x-a", "value": "y"}], "set": {"cookie": "z", "b": "c"}}"#;
        let shown: serde_json::Value =
            serde_json::from_str(&super::without_secrets(page.to_owned())).unwrap();
        assert_eq!(shown["a"][0]["header"]["value"], "[hidden]");
        assert_eq!(
            (&shown["a"][1]["value"], &shown["set"]["cookie"], &shown["set"]["b"]),
            (&"y".into(), &"[hidden]".into(), &"c".into())
        );
    }
}
