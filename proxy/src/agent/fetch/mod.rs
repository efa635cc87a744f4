//! `weft cert fetch`: an identity of the mesh as files, for programs that know nothing of SDS, such as nginx, HAProxy or an
//! ingress controller in front of the mesh.

mod files;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use self::files::Files;
use crate::admin::logging::{self, LogFormat};
use crate::bootstrap::Identity;
use crate::identity::workload::WorkloadCertificate;

/// Gets a certificate of the mesh and writes it, its key and the roots to files; with --watch it keeps them fresh
///
/// The files are cert-chain.pem (leaf and intermediates), key.pem (PKCS#8) and root-cert.pem: links that go by the link ..data to
/// one version of all three. That link is replaced in one step, so whoever reads the files when --run says so, or follows ..data
/// once for all of them, finds a key and a certificate that belong together.
#[derive(Args, Debug)]
pub struct FetchArgs {
    /// The certificate service: the control plane's host and secure port
    #[arg(long, value_name = "HOST:PORT")]
    pub ca_address: String,
    /// The control plane's root certificates
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/istio/root-cert.pem")]
    pub root_cert: PathBuf,
    /// The token that proves who the workload is; read anew for each use (weft token create makes one)
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/tokens/istio-token")]
    pub token_file: PathBuf,
    /// The workload's namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Its service account
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,
    /// The trust domain
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// The lifetime to ask for, such as 24h or 90s; the certificate service decides without it
    #[arg(long, value_name = "DURATION", env = "SECRET_TTL", value_parser = xds_protos::duration::parse)]
    pub cert_ttl: Option<Duration>,
    /// Where the files go; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Stay, and write them anew before they expire
    #[arg(long)]
    pub watch: bool,
    /// What to run after each change, by a shell, such as "nginx -s reload"; a failure is told, and ends nothing
    #[arg(long, value_name = "COMMAND")]
    pub run: Option<String>,
    /// How long to wait for the first certificate before giving up, without --watch
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = xds_protos::duration::parse)]
    pub timeout: Duration,
    /// How each change is told
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// What is logged: error, warn, info, debug, trace
    #[arg(long, env = "WEFT_LOG", default_value = "warn")]
    pub log_level: String,
}

/// How a change is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A line.
    Text,
    /// An object on a line.
    Json,
}

/// Gets the files, and keeps them fresh if that is asked for.
///
/// # Errors
/// There is no certificate in time, or the files cannot be written.
pub fn main(args: &FetchArgs) -> anyhow::Result<()> {
    weft_certs::memory::leave_no_core_dumps();
    let _level = logging::start(&args.log_level, LogFormat::Text)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(args))
}

async fn run(args: &FetchArgs) -> anyhow::Result<()> {
    let files = Files::new(&args.out)?;
    let identity = Identity {
        address: args.ca_address.clone(),
        roots: Some(args.root_cert.clone()),
        token: Some(args.token_file.clone()),
        trust_domain: args.trust_domain.clone(),
        namespace: args.namespace.clone(),
        service_account: args.service_account.clone(),
        lifetime: args.cert_ttl,
        state_dir: None,
        automatic: true,
    };
    let client = identity.client(Vec::new())?;
    let (mut current, status) = (client.current(), client.status());
    let keep = async {
        loop {
            let certificate = current.borrow_and_update().clone();
            if let Some(certificate) = certificate {
                files.write(&certificate)?;
                tell(args, &certificate);
                follow(args).await;
                if !args.watch {
                    return anyhow::Ok(());
                }
            }
            current.changed().await.context("the certificate is no longer looked after")?;
        }
    };
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = keep => ended,
        never = client.run() => match never {},
        () = tokio::time::sleep(args.timeout), if !args.watch => {
            let why = status.borrow().last_error.clone();
            bail!(
                "no certificate from {} within {:?}: {}",
                args.ca_address,
                args.timeout,
                why.as_deref().unwrap_or("it does not answer; check --ca-address, and that the control plane runs")
            )
        }
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn tell(args: &FetchArgs, certificate: &WorkloadCertificate) {
    let expires = certificate.validity().expires.format(&Rfc3339).unwrap_or_default();
    let (id, out) = (certificate.id().to_string(), args.out.display());
    match args.output {
        Output::Text => println!("{out}: {id}, until {expires}"),
        Output::Json => println!(
            "{}",
            serde_json::json!({
                "directory": out.to_string(),
                "id": id,
                "expires": expires,
                "written": OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            })
        ),
    }
}

/// Runs what is to follow a change.
async fn follow(args: &FetchArgs) {
    let Some(command) = &args.run else { return };
    let outcome = Command::new("sh").arg("-c").arg(command).stdin(Stdio::null()).status().await;
    match outcome {
        Ok(status) if status.success() => {}
        Ok(status) => {
            tracing::warn!(command, %status, "what --run names has failed; the files are new all the same")
        }
        Err(error) => tracing::warn!(command, %error, "what --run names cannot be run; is there a shell?"),
    }
}
