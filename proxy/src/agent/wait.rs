//! `weft-proxy wait`: comes back when the sidecar is ready. As the postStart hook of a sidecar that is a pod's first container
//! it holds the application back until there is a network (`holdApplicationUntilProxyStarts`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Waits until the proxy is ready
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// What to ask
    #[arg(long, default_value = "http://localhost:15021/healthz/ready")]
    pub url: Uri,
    /// How many seconds to wait until the proxy is ready
    #[arg(long = "timeoutSeconds", alias = "timeout-seconds", value_name = "SECONDS", default_value_t = 60)]
    pub timeout_seconds: u64,
    /// How many milliseconds one answer may take
    #[arg(
        long = "requestTimeoutMillis",
        alias = "request-timeout-millis",
        value_name = "MS",
        default_value_t = 500
    )]
    pub request_timeout_millis: u64,
    /// How many milliseconds to wait between two questions
    #[arg(long = "periodMillis", alias = "period-millis", value_name = "MS", default_value_t = 500)]
    pub period_millis: u64,
}

/// Asks until the answer is good.
///
/// # Errors
/// The proxy is not ready in time: the last reason why.
pub fn main(args: &WaitArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(wait(args))
}

async fn wait(args: &WaitArgs) -> anyhow::Result<()> {
    if args.url.scheme_str() != Some("http") {
        bail!("--url {}: must begin with http://", args.url);
    }
    let (limit, patience) =
        (Duration::from_secs(args.timeout_seconds), Duration::from_millis(args.request_timeout_millis));
    let period = Duration::from_millis(args.period_millis);
    let began = Instant::now();
    loop {
        let asked = tokio::time::timeout(patience, ask(&args.url)).await;
        let error = match asked.unwrap_or_else(|_| bail!("no answer within {patience:?}")) {
            Ok(()) => {
                eprintln!("the proxy is ready after {:.1?}", began.elapsed());
                return Ok(());
            }
            Err(error) => error,
        };
        if began.elapsed() + period >= limit {
            return Err(error.context(format!("the proxy is not ready after {limit:?} ({})", args.url)));
        }
        tokio::time::sleep(period).await;
    }
}

async fn ask(url: &Uri) -> anyhow::Result<()> {
    let host = url.host().context("the URL has no host")?;
    let port = url.port_u16().unwrap_or(80);
    let stream = connect(host.trim_matches(['[', ']']), port).await?;
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |p| p.as_str());
    let request = Request::get(path).header("host", format!("{host}:{port}")).body(Empty::<Bytes>::new())?;
    let response = client.send_request(request).await?;
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(());
    }
    let body = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    bail!("status {}: {}", status.as_u16(), String::from_utf8_lossy(&body).trim())
}

/// Connects to the first address of a host that answers: localhost has two.
async fn connect(host: &str, port: u16) -> anyhow::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    let mut last = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(anyhow::anyhow!("{address}: {error}")),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("{host} has no address")))
}
