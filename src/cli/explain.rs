//! `weft explain`: what would become of a request.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use weft_control::serve::keys::KeyFetcher;

use super::token::Output;
use crate::configuration::{self, ClusterArgs};
use crate::explain::{Imagined, explain, text};
use crate::test::Case;

/// Explains what would become of a request, step by step: which proxies it passes, which rules take it there, who lets it in
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// What is sent, as METHOD URL or URL alone; leave it out for a connection that carries bytes
    #[arg(value_name = "METHOD URL", num_args = 0..=2)]
    request: Vec<String>,
    /// Who sends it: a workload, as NAME, NAMESPACE/NAME or its address. Of a gateway: to which it comes from outside
    #[arg(long, value_name = "WORKLOAD")]
    from: String,
    /// A header field of the request, as NAME: VALUE or NAME=VALUE; may be repeated
    #[arg(long, short = 'H', value_name = "FIELD")]
    header: Vec<String>,
    /// What the application dials, if that is not the URL's host and port
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// The server name that is asked for in TLS
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The directory of YAML that describes the mesh
    #[arg(long, value_name = "DIR", default_value = ".", conflicts_with_all = ["cluster", "kubeconfig"])]
    dir: PathBuf,
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

fn told(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let world = match args.cluster.is_meant() {
        true => args.cluster.snapshot()?.world.clone(),
        false => configuration::read(&args.dir)?,
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
    let told = explain(&world, &Imagined { from: args.from.clone(), case })?;
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
