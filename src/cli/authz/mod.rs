//! `weft authz`: who may do what, by a directory of YAML, decided by the code that decides in a running proxy.

mod text;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use weft_control::model::{KeySource, Workload, World};
use weft_control::serve::deny_lists::ListReader;
use weft_control::serve::keys::KeyFetcher;
use weft_control::serve::reading::Reads;

use super::token::Output;
use crate::authz::{Answer, Decision, Judge, Question, Request, identity, workload};
use crate::configuration;

/// Says who may do what: runs the policy that the proxies of a directory's mesh would get
#[derive(Subcommand, Debug)]
pub enum AuthzCommand {
    /// Says whether a caller may come to a workload, and which rule of which policy decides. Exit code 0: allowed; 1: denied;
    /// 3: an external provider is asked; 2: the question cannot be answered
    Check(CheckArgs),
    /// Lists every identity that can come to a workload, and the rules that let it
    WhoCan(WhoCanArgs),
}

/// What both need.
#[derive(Args, Debug)]
pub struct Common {
    /// The directory of YAML that describes the mesh
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The workload's own port (not its service's), where it has several
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A question.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Whom it is about: the caller's identity, as spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT or NAMESPACE/ACCOUNT; without it the caller is outside the mesh and speaks plain text
    #[arg(long, value_name = "SPIFFE_ID")]
    from: Option<String>,
    /// The workload: a WorkloadEntry as NAME or NAMESPACE/NAME, or its address
    #[arg(long, value_name = "WORKLOAD")]
    to: String,
    /// What is asked for, as METHOD /path or /path alone; leave it out for a port that carries bytes
    #[arg(value_name = "METHOD /PATH", num_args = 0..=2)]
    request: Vec<String>,
    /// A header field of the request; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// The host that the request is for; the workload's service by default
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// A file with a token (JWT), sent as `authorization: Bearer`; it is verified, and keys are fetched for it where need be
    #[arg(long, value_name = "FILE")]
    jwt: Option<PathBuf>,
    /// The address that the caller comes from; that of a workload with its identity by default
    #[arg(long, value_name = "IP")]
    from_ip: Option<IpAddr>,
    /// The server name that the caller asks for in TLS
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// Decide for an identity that no workload of the directory has
    #[arg(long)]
    any_identity: bool,
    /// Roots by which the TLS of token issuers is checked; the system's by default
    #[arg(long, value_name = "FILE")]
    jwks_root_cert: Option<PathBuf>,
    /// Where, and how
    #[command(flatten)]
    common: Common,
}

/// Whom is asked for.
#[derive(Args, Debug)]
pub struct WhoCanArgs {
    /// The workload: a WorkloadEntry as NAME or NAMESPACE/NAME, or its address
    #[arg(value_name = "WORKLOAD")]
    workload: String,
    /// Where, and how
    #[command(flatten)]
    common: Common,
}

/// Answers. The exit code tells the verdict, so what cannot be answered has one of its own.
pub(super) fn main(command: AuthzCommand) -> ExitCode {
    let done = match command {
        AuthzCommand::Check(args) => check(&args),
        AuthzCommand::WhoCan(args) => who_can(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
        ExitCode::from(2)
    })
}

/// The world with keys for tokens: fetched if one may be shown.
fn with_keys(world: &World, fetch: bool, roots: Option<PathBuf>) -> anyhow::Result<(World, Vec<String>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if !fetch {
        return Ok((runtime.block_on(KeyFetcher::unasked(world)), Vec::new()));
    }
    let world = runtime.block_on(KeyFetcher::new(roots, Duration::from_secs(60)).settle(world));
    let rules = world.request_authentications().iter().flat_map(|object| &object.spec.jwt_rules);
    let sources: Vec<KeySource> = rules.filter_map(|rule| rule.key_source()).collect();
    let missing = sources.iter().filter(|source| world.keys().is_missing(source));
    let notes = missing.map(|source| {
        format!("the keys of {source} could not be fetched: no token of theirs is taken, as in a mesh whose issuer is down")
    });
    let notes = notes.collect();
    Ok((world, notes))
}

/// The world with the addresses that its gateways refuse, where a gateway is asked about.
fn with_lists(world: World, target: &Workload) -> anyhow::Result<(World, Vec<String>)> {
    if !target.is_gateway() || world.ip_deny_lists().is_empty() {
        return Ok((world, Vec::new()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let world = runtime.block_on(ListReader::new(None, None).settle(&world));
    let sources = world.ip_deny_lists().iter().map(|object| object.list_source());
    let missing = sources.filter(|source| world.deny_lists().of(source).is_none());
    let notes = missing
        .map(|source| format!("the list {source} cannot be read or is refused: it denies nobody here"));
    let notes = notes.collect();
    Ok((world, notes))
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let world = configuration::read(&args.common.dir)?;
    let target = workload(&world, &args.to)?;
    let from = args.from.as_deref().map(|text| identity(&world, text, args.any_identity)).transpose()?;
    let headers = headers(args)?;
    let (world, mut notes) = with_keys(&world, !headers.is_empty(), args.jwks_root_cert.clone())?;
    let (world, more) = with_lists(world, &target)?;
    notes.extend(more);
    let judge = Judge::new(&world, &target)?;
    let port = judge.port(args.common.port)?;
    let mut request = request(&args.request)?;
    if let Some(request) = &mut request {
        request.host = args.host.clone().unwrap_or_else(|| judge.host(port));
        request.headers = headers;
    } else if !args.header.is_empty() || args.jwt.is_some() || args.host.is_some() {
        bail!("--header, --jwt and --host are parts of a request: say which, such as GET /path");
    }
    let known = crate::authz::identities(&world);
    let own_address = from.as_ref().and_then(|id| known.get(id)?.first()?.parse().ok());
    let question = Question {
        identity: from,
        from: args.from_ip.or(own_address),
        server_name: args.sni.clone(),
        request,
    };
    let mut answer = judge.answer(port, &question)?;
    answer.notes.extend(notes);
    match args.common.output {
        Output::Text => print!("{}", text::answer(&answer, &question)),
        Output::Json => println!("{}", serde_json::to_string(&answer)?),
    }
    Ok(code(&answer))
}

fn code(answer: &Answer) -> ExitCode {
    ExitCode::from(match answer.decision {
        Decision::Allow => 0,
        Decision::Deny => 1,
        Decision::Ask => 3,
    })
}

/// The request line; host and fields are filled in later.
fn request(words: &[String]) -> anyhow::Result<Option<Request>> {
    let (method, path) = match words {
        [] => return Ok(None),
        [path] if path.starts_with('/') => ("GET", path),
        [one] => match one.split_once(' ') {
            Some((method, path)) => return request(&[method.to_owned(), path.trim().to_owned()]),
            None => bail!("{one:?} is no path: write METHOD /path, or /path"),
        },
        [method, path, ..] => (method.as_str(), path),
    };
    if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
        bail!("{method:?} is no method: write it in capitals, such as GET");
    }
    if !path.starts_with('/') || path.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()) {
        bail!("{path:?} is no path: it begins with a slash and has no blanks (%20 is one)");
    }
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.clone(),
        host: String::new(),
        headers: Vec::new(),
        token: None,
    }))
}

fn headers(args: &CheckArgs) -> anyhow::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    for field in &args.header {
        let Some((name, value)) = field.split_once('=') else {
            bail!("--header {field:?}: write NAME=VALUE");
        };
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            bail!("--header {field:?}: {name:?} is no field's name (for the host there is --host)");
        }
        if value.bytes().any(|b| b.is_ascii_control()) {
            bail!("--header {field:?}: a value has no control characters");
        }
        headers.push((name.to_owned(), value.to_owned()));
    }
    if let Some(file) = &args.jwt {
        let token = std::fs::read_to_string(file).with_context(|| format!("--jwt {}", file.display()))?;
        let token = token.trim();
        if token.split('.').count() != 3
            || token.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control())
        {
            bail!(
                "--jwt {}: holds no token (three parts with dots between, and nothing else)",
                file.display()
            );
        }
        headers.push(("authorization".to_owned(), format!("Bearer {token}")));
    }
    Ok(headers)
}

fn who_can(args: &WhoCanArgs) -> anyhow::Result<ExitCode> {
    let world = configuration::read(&args.common.dir)?;
    let target = workload(&world, &args.workload)?;
    let (world, _) = with_keys(&world, false, None)?;
    let judge = Judge::new(&world, &target)?;
    let ports = match args.common.port {
        Some(port) => vec![judge.port(Some(port))?],
        // Refused where there is none.
        None if judge.ports().is_empty() => vec![judge.port(None)?],
        None => judge.ports(),
    };
    let reached = ports.into_iter().map(|port| judge.reach(port)).collect::<anyhow::Result<Vec<_>>>()?;
    match args.common.output {
        Output::Text => {
            let name = format!("{}/{}", target.meta.namespace, target.meta.name);
            print!("{}", text::reach(&name, &reached));
        }
        Output::Json => {
            let name = format!("{}/{}", target.meta.namespace, target.meta.name);
            println!("{}", serde_json::json!({"workload": name, "ports": reached}));
        }
    }
    Ok(ExitCode::SUCCESS)
}
