//! A simulated proxy: one delta stream that asks for what a sidecar asks for, and acknowledges all of it.
//!
//! It reads of a response what an acknowledgement needs, its type and its nonce, and in assignments the endpoint that says which
//! change it is; it compiles nothing, and keeps nothing. What a real proxy does with a change is no part of what is measured.

use std::time::Instant;

use anyhow::Context;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
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
        seen: &mut Vec<Seen>,
    ) -> anyhow::Result<()> {
        let (mut type_url, mut nonce, mut mark) = (&message[..0], &message[..0], None);
        each_field(message, |field, bytes| {
            match field {
                RESPONSE_TYPE => type_url = bytes,
                RESPONSE_NONCE => nonce = bytes,
                _ => {}
            }
            Ok(())
        })?;
        let kind = ResourceType::from_type_url(std::str::from_utf8(type_url)?);
        stream.send_fields(&[(REQUEST_TYPE, type_url), (REQUEST_NONCE, nonce)]);
        if kind == Some(ResourceType::Endpoint) {
            each_field(message, |field, bytes| match field {
                RESPONSE_RESOURCES => {
                    mark = mark.max(mark_of_resource(bytes)?);
                    Ok(())
                }
                _ => Ok(()),
            })?;
        }
        let mut tell = |mark| seen.push(Seen { proxy: self.number, mark, at: Instant::now() });
        if mark.is_some() {
            tell(mark);
        }
        let ask = |kind: ResourceType, names: Vec<String>| DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names,
            ..Default::default()
        };
        if kind == Some(ResourceType::Cluster) && !std::mem::replace(&mut self.asked, true) {
            let response = DeltaDiscoveryResponse::decode(message)?;
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

/// Fields of `DeltaDiscoveryResponse`, of `Resource` and `Any` in it, and of `DeltaDiscoveryRequest`.
const RESPONSE_RESOURCES: u32 = 2;
const RESPONSE_TYPE: u32 = 4;
const RESPONSE_NONCE: u32 = 5;
const RESOURCE_ANY: u32 = 2;
const ANY_VALUE: u32 = 2;
const REQUEST_TYPE: u32 = 2;
const REQUEST_NONCE: u32 = 6;

/// Goes through the fields of a message that hold bytes.
fn each_field<'a>(
    mut message: &'a [u8],
    mut each: impl FnMut(u32, &'a [u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    while !message.is_empty() {
        let (field, wire) = decode_key(&mut message)?;
        if wire != WireType::LengthDelimited {
            skip_field(wire, field, &mut message, DecodeContext::default())?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message)?)?;
        let (bytes, rest) = message.split_at_checked(length).context("a field that is cut off")?;
        message = rest;
        each(field, bytes)?;
    }
    Ok(())
}

/// Which change an assignment is of, if it is of one.
fn mark_of_resource(resource: &[u8]) -> anyhow::Result<Option<u16>> {
    let mut mark = None;
    each_field(resource, |field, any| match field {
        RESOURCE_ANY => each_field(any, |field, value| {
            if field == ANY_VALUE {
                mark = mark_of(value);
            }
            Ok(())
        }),
        _ => Ok(()),
    })?;
    Ok(mark)
}
