//! `weft app`: the example mesh's service. It says who it is, who called it by which verified identity, and what those whom
//! it calls in turn have answered; for tests and demonstrations it can be slow, fail, stream, echo, and tell what it received.
//!
//! A sidecar stands before it: requests come from the sidecar, and calls go through the sidecar's HTTP proxy port by service
//! name. [`serve`] is what it answers; [`calls`] calls others; [`caller`] reads who called; [`behaviour`] and [`record`] are
//! the controls, [`bodies`] the long and the echoed answers.

mod behaviour;
mod bodies;
mod caller;
mod calls;
mod record;
mod serve;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

use crate::cli::parse_duration;
use behaviour::{Behaving, Behaviour};
use calls::{Callee, Calls};
use record::Record;
use serve::Service;

/// A small HTTP service that stands behind a sidecar, calls others through it, and says who called it
///
/// Every path answers with JSON, /whoami without calling anybody, but: /stream?chunks=N&interval=100ms&size=BYTES sends one chunk after the other; /echo sends
/// back what it gets; /ws upgrades to any protocol and echoes bytes. GET /__recorded?last=N tells what was received, DELETE
/// forgets it. PUT /__behaviour {"delayMs": 0, "failStatus": 503, "failEvery": 2} changes how it answers, DELETE undoes that,
/// GET shows it.
#[derive(Args, Debug)]
pub struct AppArgs {
    /// Where it listens
    #[arg(long, value_name = "IP:PORT", env = "WEFT_APP_LISTEN", default_value = "127.0.0.1:18080")]
    listen: SocketAddr,
    /// A service to call for each request, NAME or NAME:PORT (8080 by default); may be given several times
    #[arg(long, value_name = "SERVICE")]
    calls: Vec<Callee>,
    /// The sidecar's HTTP proxy port, through which others are called
    #[arg(long, value_name = "URL", env = "HTTP_PROXY")]
    http_proxy: Option<String>,
    /// How long a called service may take
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    call_timeout: Duration,
    /// The service it says it is
    #[arg(long, env = "WEFT_APP_SERVICE", default_value = "app")]
    service: String,
    /// The workload it says it is
    #[arg(long, env = "POD_NAME", default_value = "app-1")]
    workload: String,
    /// The version it says it is
    #[arg(long, value_name = "VERSION", env = "WEFT_APP_VERSION", default_value = "v1")]
    app_version: String,
    /// Wait this long before each answer
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = parse_duration)]
    delay: Duration,
    /// Answer with this status instead (see --fail-every)
    #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u16).range(200..600))]
    fail_status: Option<u16>,
    /// Let only every N-th request fail
    #[arg(long, value_name = "N", default_value_t = 1, requires = "fail_status",
          value_parser = clap::value_parser!(u32).range(1..))]
    fail_every: u32,
}

/// Runs the service until it is told to end.
pub fn main(args: AppArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: AppArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {} (--listen, WEFT_APP_LISTEN)", args.listen))?;
    // The machine's own proxy settings are none of ours unless somebody is called.
    let proxy = args.http_proxy.as_deref().filter(|p| !p.is_empty() && !args.calls.is_empty());
    let proxy = proxy.map(calls::proxy_address).transpose()?;
    let behaviour = Behaviour {
        delay_ms: u64::try_from(args.delay.as_millis()).unwrap_or(u64::MAX),
        fail_status: args.fail_status,
        fail_every: args.fail_every,
    };
    let service = Arc::new(Service {
        name: args.service,
        workload: args.workload,
        version: args.app_version,
        address: listener.local_addr()?,
        calls: Calls::new(args.calls, proxy, args.call_timeout),
        behaving: Behaving::new(behaviour),
        record: Record::default(),
    });
    println!("{} ({}) listens on {}", service.workload, service.name, service.address);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    // Out of descriptors, say; it passes.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            _ = terminate.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let service = service.clone();
                async move { service.answer(request).await }
            });
            // Who goes away ends only its own connection.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(stream), answer)
                .await;
        });
    }
}
