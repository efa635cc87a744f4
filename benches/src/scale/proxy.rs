//! A simulated proxy: one delta stream that asks for what a sidecar asks for, and acknowledges all of it.

use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use prost::Message;
use tokio::sync::mpsc;
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use xds_protos::prost_types::value::Kind;
use xds_protos::prost_types::{Struct, Value};

use super::mesh::{PORT, Size, mark_of};
use super::stream::Stream;

/// Who the control plane is.
pub const NAME: &str = "istiod.istio-system.svc";
const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

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

/// One of them.
pub struct Proxy {
    number: usize,
    asked: bool,
    /// Answers that it still waits for at its start.
    missing: usize,
}

impl Proxy {
    /// The one of this number beside its pod, and its stream with the first question.
    pub fn start(size: &Size, number: usize) -> (Self, Stream) {
        let (service, pod) = (number % size.services, number / size.services % size.endpoints);
        // In the shape of a cluster's tokens; the benchmark's API server takes every one.
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let subject = format!("system:serviceaccount:{}:s{service}", size.namespace(service));
        let claims = encode(&format!("{{\"iss\":\"the cluster\",\"sub\":\"{subject}\"}}"));
        let token = format!("Bearer {}.{claims}.{}", encode("{}"), encode("unsigned"));
        let mut stream = Stream::open(NAME, PATH, &[("authorization", &token)]);
        stream.send(&DeltaDiscoveryRequest {
            node: Some(node(size, number, service, pod)),
            type_url: ResourceType::Cluster.type_url().to_owned(),
            ..Default::default()
        });
        (Self { number, asked: false, missing: 3 }, stream)
    }

    /// It has all that it asked for.
    pub fn there(&self) -> bool {
        self.missing == 0
    }

    /// Acknowledges a response and asks for what follows from it.
    ///
    /// # Errors
    /// It is none.
    pub fn answer(
        &mut self,
        stream: &mut Stream,
        message: &[u8],
        seen: &mpsc::UnboundedSender<Seen>,
    ) -> anyhow::Result<()> {
        let response = DeltaDiscoveryResponse::decode(message)?;
        let kind = ResourceType::from_type_url(&response.type_url);
        stream.send(&DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..Default::default()
        });
        let tell = |mark| {
            // Nobody listens at the end of a run.
            let _ = seen.send(Seen { proxy: self.number, mark, at: Instant::now() });
        };
        if kind == Some(ResourceType::Endpoint) {
            let values = response.resources.iter().filter_map(|r| r.resource.as_ref());
            if let Some(mark) = values.filter_map(|any| mark_of(&any.value)).max() {
                tell(Some(mark));
            }
        }
        let ask = |kind: ResourceType, names: Vec<String>| DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names,
            ..Default::default()
        };
        if kind == Some(ResourceType::Cluster) && !std::mem::replace(&mut self.asked, true) {
            let names = response.resources.into_iter().map(|r| r.name);
            let names = names.filter(|name| name.starts_with("outbound|")).collect();
            stream.send(&ask(ResourceType::Endpoint, names));
            stream.send(&ask(ResourceType::Listener, Vec::new()));
            stream.send(&ask(ResourceType::Route, vec![PORT.to_string()]));
        } else if self.missing > 0 {
            self.missing -= 1;
            if self.missing == 0 {
                tell(None);
            }
        }
        Ok(())
    }
}
