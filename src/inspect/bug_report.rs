//! `weft bug-report`: what somebody needs who is to say what is wrong with a mesh, in one file.
//!
//! Pages of control planes and of proxies as they are: they hold no private keys, nor tokens. They do hold names, addresses and
//! the configuration, so whoever sends the file on should know that.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use super::proxies::Target;
use super::through::{Through, not_told};
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
    failed.extend(not_told("pages", &through.without_debug_ports()));
    if through.is_meant() {
        match through.targets() {
            Ok(all) => proxies.extend(all),
            Err(error) => failed.push(format!("proxies: {error:#}")),
        }
    }
    let mut directories = Directories::default();
    for target in controls {
        let directory = directories.of("control", &target.name);
        pages_of(&target, &directory, &CONTROL, &mut gathered, &mut failed);
    }
    for target in proxies {
        let directory = directories.of("proxy", &target.name);
        pages_of(&target, &directory, &PROXY, &mut gathered, &mut failed);
    }
    if let Some(found) = findings(args, &mut failed) {
        gathered.insert("analysis.txt".to_owned(), found);
    }
    if gathered.is_empty() {
        bail!("nobody answers:\n{}", failed.join("\n"));
    }
    let about =
        json!({"version": env!("CARGO_PKG_VERSION"), "directories": directories.names, "failed": failed});
    gathered.insert("report.json".to_owned(), format!("{about:#}\n"));
    write(&args.file, &gathered).with_context(|| format!("{} cannot be written", args.file.display()))?;
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

/// The directories of those that are asked.
#[derive(Default)]
struct Directories {
    /// Who each is of.
    names: BTreeMap<String, String>,
    /// As a system knows them that takes large letters for small ones.
    taken: BTreeSet<String>,
}

impl Directories {
    /// A directory for one who is called this, which nobody else has. Proxies give themselves their names: what leads elsewhere, or some
    /// systems do not like in names (the colons of IPv6), is replaced.
    fn of(&mut self, kind: &str, name: &str) -> String {
        const LONGEST: usize = 200;
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' };
        let all: String = name.chars().map(plain).take(LONGEST).collect();
        let rest = all.trim_start_matches('.');
        let name_of = format!("{}{rest}", "_".repeat(all.len() - rest.len())).replace("..", "__");
        let mut directory = format!("{kind}-{name_of}");
        let mut number = 1;
        while !self.taken.insert(directory.to_ascii_lowercase()) {
            number += 1;
            directory = format!("{kind}-{name_of}-{number}");
        }
        self.names.insert(directory.clone(), name.to_owned());
        directory
    }
}

fn pages_of(
    target: &Target,
    directory: &str,
    pages: &[(&str, &str)],
    gathered: &mut BTreeMap<String, String>,
    failed: &mut Vec<String>,
) {
    let name = &target.name;
    eprintln!("asking {name} ({directory})");
    for (path, file) in pages {
        match ask_target(target, path, "it does not answer") {
            Ok(text) => drop(gathered.insert(format!("{directory}/{file}"), without_secrets(text))),
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

fn write(to: &Path, gathered: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(to)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    for (name, text) in gathered {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("weft-bug-report/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    #[test]
    fn whatever_proxies_call_themselves_each_has_a_directory_of_its_own() {
        let mut directories = super::Directories::default();
        let mut gathered = BTreeMap::new();
        let (long, cut) = ("ä/".repeat(1000), format!("proxy-{}", "_".repeat(200)));
        for (name, wanted) in [
            ("../x.shop", "proxy-___x.shop"),
            ("../x.shop", "proxy-___x.shop-2"),
            ("___X.shop", "proxy-___X.shop-3"),
            ("web-1.shop", "proxy-web-1.shop"),
            ("[::1]:15000", "proxy-___1__15000"),
            ("a...b", "proxy-a__.b"),
            (".", "proxy-_"),
            ("", "proxy-"),
            ("a\0b\n", "proxy-a_b_"),
            (long.as_str(), cut.as_str()),
        ] {
            let directory = directories.of("proxy", name);
            assert_eq!(directory, wanted, "{name}");
            gathered.insert(format!("{directory}/ready.txt"), name.to_owned());
        }
        assert_eq!(directories.of("control", "web-1.shop"), "control-web-1.shop");
        assert_eq!(directories.names["proxy-___x.shop-2"], "../x.shop");
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("report.tar.gz");
        super::write(&file, &gathered).unwrap();
        let mut archive =
            tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&file).unwrap()));
        let mut found = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().strip_prefix("weft-bug-report").unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.insert(name, text);
        }
        assert_eq!(found, gathered);
    }

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
