//! `weft explain`: what became of a request, or what would become of one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use weft_control::serve::keys::KeyFetcher;

use super::token::Output;
use crate::configuration::{self, ClusterArgs};
use crate::explain::{Imagined, explain, seen, text};
use crate::inspect::Proxies;
use crate::test::Case;

/// Explains what became of a request (by its id), or what would become of one, step by step: which proxies it passes, which rules take
/// it there, who lets it in
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The id of a request (x-request-id) or of its trace: what its proxies have kept of it. Or what is sent, as METHOD URL or URL
    /// alone; leave it out for a connection that carries bytes
    #[arg(value_name = "REQUEST_ID | METHOD URL", num_args = 0..=2)]
    request: Vec<String>,
    /// The last request that failed, in place of an id
    #[arg(long, conflicts_with_all = ["request", "from"])]
    last_failed: bool,
    /// Whom to ask for requests of the past
    #[command(flatten)]
    proxies: Proxies,
    /// Who sends it: a workload, as NAME, NAMESPACE/NAME or its address. Of a gateway: to which it comes from outside
    #[arg(long, value_name = "WORKLOAD")]
    from: Option<String>,
    /// A header field of the request, as NAME: VALUE or NAME=VALUE; may be repeated
    #[arg(long, short = 'H', value_name = "FIELD")]
    header: Vec<String>,
    /// What the application dials, if that is not the URL's host and port
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// The server name that is asked for in TLS
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The directory of YAML that describes the mesh, by default this one. Of a request of the past: where to look for the files and
    /// lines of the objects that decided
    #[arg(long, value_name = "DIR", conflicts_with_all = ["cluster", "kubeconfig"])]
    dir: Option<PathBuf>,
    /// Or a cluster
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Prints it. The exit code tells whether it arrives, so what cannot be answered has one of its own.
pub(super) fn main(args: &ExplainArgs) -> ExitCode {
    told(args).unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
        ExitCode::from(2)
    })
}

/// Whether that is an id, and no method or URL.
fn is_id(text: &str) -> bool {
    let method = text.bytes().all(|b| b.is_ascii_uppercase());
    !(text.contains("://") || text.contains(char::is_whitespace) || text.starts_with('/') || method)
}

fn past(args: &ExplainArgs, id: Option<&str>) -> anyhow::Result<ExitCode> {
    let world = match &args.dir {
        _ if args.cluster.is_meant() => Some(args.cluster.snapshot()?.world.clone()),
        Some(dir) => Some(configuration::read(dir)?),
        None => None,
    };
    let told = seen::told(&args.proxies, id, world.as_ref())?;
    match args.output {
        Output::Text => print!("{}", told.text()),
        Output::Json => println!("{:#}", told.json()),
    }
    Ok(if told.arrived() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn told(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    match args.request.as_slice() {
        _ if args.last_failed => return past(args, None),
        [id] if args.from.is_none() && is_id(id) => return past(args, Some(id)),
        _ => {}
    }
    let from = args.from.clone().context(
        "--from is missing: say which workload sends the request. One that was sent is explained by its id: weft explain REQUEST_ID",
    )?;
    let here = PathBuf::from(".");
    let world = match args.cluster.is_meant() {
        true => args.cluster.snapshot()?.world.clone(),
        false => configuration::read(args.dir.as_ref().unwrap_or(&here))?,
    };
    // A request that is imagined shows no token.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let world = runtime.block_on(KeyFetcher::unasked(&world));
    let request = match args.request.as_slice() {
        [] => None,
        [url] if url.contains("://") && !url.contains(' ') => Some(format!("GET {url}")),
        [one] => Some(one.clone()),
        [method, url, ..] => Some(format!("{method} {url}")),
    };
    let case = Case {
        name: String::new(),
        from: None,
        to: None,
        identity: None,
        port: None,
        connect: args.connect.clone(),
        sni: args.sni.clone(),
        alpn: Vec::new(),
        request,
        headers: headers(&args.header)?,
        expect: serde_json::Map::new(),
    };
    let told = explain(&world, &Imagined { from, case })?;
    match args.output {
        Output::Text => print!("{}", text(&told)),
        Output::Json => println!("{:#}", serde_json::to_value(&told)?),
    }
    Ok(if told.arrives() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn headers(given: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut headers = BTreeMap::new();
    for field in given {
        let (name, value) = field
            .split_once([':', '='])
            .with_context(|| format!("--header {field:?}: write NAME: VALUE or NAME=VALUE"))?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        hyper::header::HeaderName::from_bytes(name.as_bytes())
            .with_context(|| format!("--header {field:?}: {name:?} is no name of a field"))?;
        if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            bail!("--header {name}: its value has control characters");
        }
        headers.insert(name, value.to_owned());
    }
    Ok(headers)
}
