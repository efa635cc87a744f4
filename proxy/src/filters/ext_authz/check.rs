//! What an authorization service is told of a request or of a connection: `envoy.service.auth.v3.CheckRequest`, with the
//! attributes that Envoy gives.

use std::collections::BTreeMap;

use base64::Engine;
use bytes::Bytes;
use http::HeaderName;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::service::auth::v3 as auth;
use xds_protos::envoy::service::auth::v3::attribute_context as attributes;
use xds_protos::prost_types;

use super::body::Kept;
use crate::codec::RequestHead;
use crate::io::{ConnectionInfo, TlsInfo};
use crate::route::matching::Field;
use crate::route::text::StringMatch;
use crate::router::Exchange;
use crate::telemetry::StreamInfo;

/// Says whether what is told of the body is all of it.
pub const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
const DOWNSTREAM_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");

/// What the service is told.
#[derive(Debug, Default)]
pub struct Told {
    /// The client's certificate.
    pub peer_certificate: bool,
    /// What is known of TLS.
    pub tls_session: bool,
    /// Header fields as they came, one by one.
    pub raw_headers: bool,
    /// Only these fields, where there are any.
    pub allowed: Option<Vec<StringMatch>>,
    /// Not these.
    pub disallowed: Vec<StringMatch>,
    /// What filters said, of these namespaces.
    pub namespaces: Vec<Box<str>>,
    /// What the route's configuration says, of these.
    pub route_namespaces: Vec<Box<str>>,
    /// The body is told as bytes.
    pub body_as_bytes: bool,
}

/// Whether a rule matches.
pub fn any(rules: &[StringMatch], name: &str) -> bool {
    rules.iter().any(|r| r.matches(name.as_bytes()))
}

impl Told {
    fn tells(&self, name: &str) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| any(allowed, name)) && !any(&self.disallowed, name)
    }

    /// What is told of a connection.
    pub fn of_connection(&self, connection: &ConnectionInfo) -> auth::AttributeContext {
        let tls = connection.tls.as_deref();
        auth::AttributeContext {
            source: Some(attributes::Peer {
                address: Some(address(connection.remote)),
                principal: tls.map(peer_name).unwrap_or_default(),
                certificate: tls.filter(|_| self.peer_certificate).map(certificate).unwrap_or_default(),
                ..attributes::Peer::default()
            }),
            destination: Some(attributes::Peer {
                address: Some(address(connection.local)),
                principal: tls.and_then(|t| t.local_id.as_deref()).unwrap_or_default().to_owned(),
                ..attributes::Peer::default()
            }),
            tls_session: tls
                .filter(|_| self.tls_session)
                .map(|tls| attributes::TlsSession { sni: tls.sni.as_deref().unwrap_or_default().to_owned() }),
            ..auth::AttributeContext::default()
        }
    }

    /// What is told of a request.
    pub fn of_request(
        &self,
        exchange: &Exchange,
        body: Option<&Kept>,
        extensions: BTreeMap<String, String>,
    ) -> auth::CheckRequest {
        let head = &exchange.head;
        let mut told = self.of_connection(&exchange.connection);
        if let (Some(source), Some(name)) = (&mut told.source, head.headers.get_str(&DOWNSTREAM_CLUSTER)) {
            source.service = name.to_owned();
        }
        let route = exchange.matched.as_ref().and_then(|m| m.route().metadata.as_deref());
        exchange.flow.info(|info| {
            told.request = Some(attributes::Request {
                time: Some(prost_types::Timestamp::from(info.start_time)),
                http: Some(self.http(head, info, body, exchange.random)),
            });
            let said = |name: &str| info.metadata.namespace(name);
            told.metadata_context = metadata(&self.namespaces, said);
        });
        let said = |name: &str| route.and_then(|m| m.namespace(name)).cloned();
        told.route_metadata_context = metadata(&self.route_namespaces, said);
        told.context_extensions = extensions.into_iter().collect();
        auth::CheckRequest { attributes: Some(told) }
    }

    fn http(
        &self,
        head: &RequestHead,
        info: &StreamInfo,
        body: Option<&Kept>,
        id: u64,
    ) -> attributes::HttpRequest {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut http = attributes::HttpRequest {
            id: id.to_string(),
            method: head.method.as_str().to_owned(),
            path: text(&head.path),
            host: text(&head.authority),
            scheme: text(&head.scheme),
            size: info.bytes_received as i64,
            protocol: info.protocol.map(|p| p.as_str().to_owned()).unwrap_or_default(),
            ..attributes::HttpRequest::default()
        };
        let fields = self.fields(head);
        if self.raw_headers {
            let headers = fields.into_iter().map(|(key, value)| core::HeaderValue {
                key,
                raw_value: value,
                ..core::HeaderValue::default()
            });
            http.header_map = Some(core::HeaderMap { headers: headers.collect() });
        } else {
            let mut map = BTreeMap::<String, String>::new();
            for (key, value) in fields {
                let value = text(&value);
                map.entry(key).and_modify(|before| *before = format!("{before},{value}")).or_insert(value);
            }
            http.headers = map;
        }
        if let Some(body) = body {
            if self.body_as_bytes {
                http.raw_body = body.bytes.clone();
            } else {
                http.body = text(&body.bytes);
            }
            let partial = if body.more { "true" } else { "false" };
            match &mut http.header_map {
                Some(map) => map.headers.push(core::HeaderValue {
                    key: PARTIAL.as_str().to_owned(),
                    raw_value: Bytes::from_static(partial.as_bytes()),
                    ..core::HeaderValue::default()
                }),
                None => drop(http.headers.insert(PARTIAL.as_str().to_owned(), partial.to_owned())),
            }
        }
        http
    }

    /// Fields that are told, pseudo-header fields first.
    fn fields(&self, head: &RequestHead) -> Vec<(String, Bytes)> {
        let mut fields = Vec::with_capacity(head.headers.len() + 4);
        for (name, field) in [
            (":authority", Field::Authority),
            (":path", Field::Path),
            (":method", Field::Method),
            (":scheme", Field::Scheme),
        ] {
            if self.tells(name) {
                field.with(head, |value| {
                    let value = value.map(|v| (name.to_owned(), Bytes::copy_from_slice(v)));
                    fields.extend(value);
                });
            }
        }
        let told = head.headers.iter().filter(|(name, _)| **name != PARTIAL && self.tells(name.as_str()));
        fields.extend(
            told.map(|(name, value)| (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes()))),
        );
        fields
    }
}

fn metadata(
    namespaces: &[Box<str>],
    said: impl Fn(&str) -> Option<prost_types::Struct>,
) -> Option<core::Metadata> {
    let filter_metadata = namespaces.iter().filter_map(|n| Some(((**n).to_owned(), said(n)?))).collect();
    Some(core::Metadata { filter_metadata, ..core::Metadata::default() })
}

fn address(of: std::net::SocketAddr) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: of.ip().to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(of.port().into())),
            ..core::SocketAddress::default()
        })),
    }
}

/// The name in the peer's certificate: a URI, else a DNS name, else the subject.
fn peer_name(tls: &TlsInfo) -> String {
    let names = tls.peer_uri_sans.iter().chain(&tls.peer_dns_sans);
    names.chain([&tls.peer_subject]).next().cloned().unwrap_or_default()
}

/// The peer's certificate as PEM, percent-encoded as in a URL.
fn certificate(tls: &TlsInfo) -> String {
    let Some(leaf) = tls.peer_chain.first() else { return String::new() };
    let text = base64::engine::general_purpose::STANDARD.encode(leaf);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let mut encoded = String::with_capacity(pem.len() + 200);
    for c in pem.chars() {
        match c {
            '\n' => encoded.push_str("%0A"),
            ' ' => encoded.push_str("%20"),
            '+' => encoded.push_str("%2B"),
            '/' => encoded.push_str("%2F"),
            '=' => encoded.push_str("%3D"),
            c => encoded.push(c),
        }
    }
    encoded
}
