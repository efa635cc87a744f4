//! `weft-proxy request`: asks the proxy of this pod for something at its port for orders, for hooks of containers that have no
//! HTTP client (`POST /drain` before a pod ends, `POST /quitquitquit` when a job is done).

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Asks the proxy in this pod, such as POST /drain
#[derive(Args, Debug)]
pub struct RequestArgs {
    /// The method, such as GET or POST
    pub method: Method,
    /// The path, such as /drain, /quitquitquit, /healthz/ready or /stats/prometheus
    pub path: String,
    /// The port: 15020 takes orders, 15000 has the admin pages
    #[arg(long, value_name = "PORT", default_value_t = 15020)]
    pub port: u16,
}

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks, and prints the answer.
///
/// # Errors
/// There is no answer, or its status is not good.
pub fn main(args: &RequestArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let what =
        format!("{} http://127.0.0.1:{}/{}", args.method, args.port, args.path.trim_start_matches('/'));
    let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(args)).await });
    let body = asked.unwrap_or_else(|_| bail!("no answer within {PATIENCE:?}")).context(what)?;
    print!("{body}");
    Ok(())
}

async fn ask(args: &RequestArgs) -> anyhow::Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", args.port))
        .await
        .context("is a proxy running in this pod? (--port says where)")?;
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = format!("/{}", args.path.trim_start_matches('/'));
    let request = Request::builder()
        .method(args.method.clone())
        .uri(path)
        .header("host", format!("127.0.0.1:{}", args.port))
        .body(Empty::<Bytes>::new())?;
    let response = client.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    if !status.is_success() {
        bail!("status {}: {}", status.as_u16(), body.trim());
    }
    Ok(body)
}
