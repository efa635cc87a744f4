//! A simulated proxy: one delta stream over TLS that asks for what a sidecar asks for, and acknowledges all of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use anyhow::Context as _;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use xds_protos::prost_types::value::Kind;
use xds_protos::prost_types::{Struct, Value};

use super::mesh::{PORT, Size, mark_of};

/// What all proxies share.
pub struct Shared {
    /// The control plane's secure port.
    pub port: u16,
    /// The roots that its certificate is checked by.
    pub roots: String,
    /// Bytes that came, TLS and HTTP/2 included.
    pub received: Arc<AtomicU64>,
    /// Bytes that went.
    pub sent: Arc<AtomicU64>,
    /// Where changes are told that were acknowledged.
    pub seen: mpsc::UnboundedSender<Seen>,
    /// Where it is told that a stream broke.
    pub broken: mpsc::UnboundedSender<String>,
}

/// A proxy has acknowledged a change, or (none) has everything that it asked for.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Which proxy.
    pub proxy: usize,
    /// Which change.
    pub mark: Option<u16>,
    /// When.
    pub at: Instant,
}

fn node(size: &Size, proxy: usize, service: usize, pod: usize) -> Node {
    let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
    let namespace = size.namespace(service);
    let app = format!("s{service}");
    let labels = [("app", app.as_str()), ("version", "v1")].map(|(k, v)| (k.to_owned(), text(v)));
    let labels = Value { kind: Some(Kind::StructValue(Struct { fields: labels.into() })) };
    let fields = [
        ("NAMESPACE", text(&namespace)),
        ("SERVICE_ACCOUNT", text(&app)),
        ("LABELS", labels),
        ("WEFT_EXTENSIONS", text("true")),
    ];
    let address = size.address(service, pod);
    Node {
        id: format!("sidecar~{address}~s{service}-{pod}-{proxy}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(Struct { fields: fields.map(|(k, v)| (k.to_owned(), v)).into() }),
        ..Node::default()
    }
}

/// Runs one beside a pod until its stream ends. The permit is given back when it has all that it asked for.
pub async fn run(
    shared: Arc<Shared>,
    size: Size,
    proxy: usize,
    permit: OwnedSemaphorePermit,
) -> anyhow::Result<()> {
    let mut permit = Some(permit);
    let (service, pod) = (proxy % size.services, proxy / size.services % size.endpoints);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&shared.roots))
        .domain_name("istiod.istio-system.svc");
    let counters = shared.clone();
    let connector = tower::service_fn(move |uri: http::Uri| {
        let (received, sent) = (counters.received.clone(), counters.sent.clone());
        async move {
            let stream = TcpStream::connect(("127.0.0.1", uri.port_u16().unwrap_or_default())).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(Counted { stream, received, sent }))
        }
    });
    let channel = Endpoint::from_shared(format!("https://127.0.0.1:{}", shared.port))?
        .tls_config(tls)?
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(2 * 1024 * 1024)
        .connect_with_connector(connector)
        .await?;
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 * 1024 * 1024);
    let (requests, queue) = mpsc::channel(16);
    let url = |kind: ResourceType| kind.type_url().to_owned();
    let first = DeltaDiscoveryRequest {
        node: Some(node(&size, proxy, service, pod)),
        type_url: url(ResourceType::Cluster),
        ..Default::default()
    };
    requests.send(first).await?;
    let mut request = Request::new(ReceiverStream::new(queue));
    // In the shape of a cluster's tokens; the benchmark's API server takes every one.
    let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let subject = format!("system:serviceaccount:{}:s{service}", size.namespace(service));
    let claims = encode(&format!("{{\"iss\":\"the cluster\",\"sub\":\"{subject}\"}}"));
    let token = format!("Bearer {}.{claims}.{}", encode("{}"), encode("unsigned"));
    request.metadata_mut().insert("authorization", token.parse()?);
    let mut responses = client.delta_aggregated_resources(request).await?.into_inner();
    let mut asked = false;
    let mut missing = 3;
    while let Some(response) = responses.message().await.context("the stream broke")? {
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..Default::default()
        };
        requests.send(ack).await?;
        let kind = ResourceType::from_type_url(&response.type_url);
        let mark = match kind {
            Some(ResourceType::Endpoint) => {
                let values = response.resources.iter().filter_map(|r| r.resource.as_ref());
                values.filter_map(|any| mark_of(&any.value)).max()
            }
            _ => None,
        };
        if mark.is_some() {
            let _ = shared.seen.send(Seen { proxy, mark, at: Instant::now() });
        }
        let ask = |kind: ResourceType, names: Vec<String>| DeltaDiscoveryRequest {
            type_url: url(kind),
            resource_names_subscribe: names,
            ..Default::default()
        };
        if kind == Some(ResourceType::Cluster) && !std::mem::replace(&mut asked, true) {
            let names = response.resources.into_iter().map(|r| r.name);
            let names = names.filter(|name| name.starts_with("outbound|")).collect();
            requests.send(ask(ResourceType::Endpoint, names)).await?;
            requests.send(ask(ResourceType::Listener, Vec::new())).await?;
            requests.send(ask(ResourceType::Route, vec![PORT.to_string()])).await?;
        } else if missing > 0 {
            missing -= 1;
            if missing == 0 {
                permit.take();
                let _ = shared.seen.send(Seen { proxy, mark: None, at: Instant::now() });
            }
        }
    }
    Ok(())
}

/// A connection whose bytes are counted.
struct Counted {
    stream: TcpStream,
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.received.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        done
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = &done {
            self.sent.fetch_add(*written as u64, Ordering::Relaxed);
        }
        done
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
