//! A request as it must look before it is routed: checks, normalisation, forwarding fields, ids.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::config::{HcmConfig, StripPort, Underscores};
use super::normalize::{self, PathVerdict};
use super::{request_id, xff};
use crate::codec::digits::{self, IpText};
use crate::codec::headers::Of;
use crate::codec::{Headers, Protocol, RequestHead};
use crate::io::ConnectionInfo;
use crate::route::hosts::port_at;
use crate::route::matching::is_grpc;
use crate::router::LocalReply;

/// `x-forwarded-proto`.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const DOWNSTREAM_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Fields by which callers steer the router; only internal requests may.
const STEERING: [HeaderName; 14] = [
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-force-trace"),
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-original-url"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
];

/// Fields that a request from the edge may not bring.
const EDGE: [HeaderName; 3] = [
    HeaderName::from_static("x-envoy-decorator-operation"),
    HeaderName::from_static("x-envoy-downstream-service-node"),
    HeaderName::from_static("x-envoy-original-path"),
];

/// What is known of a request once it is in shape.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The client by address, as far as proxies in between can be trusted.
    pub client: IpAddr,
    /// It comes from an internal address.
    pub internal: bool,
    /// The client came by https.
    pub secure: bool,
}

/// Checks a request and brings it into shape.
///
/// # Errors
/// The request is answered here.
pub fn shape(
    head: &mut RequestHead,
    config: &HcmConfig,
    connection: &ConnectionInfo,
) -> Result<Origin, LocalReply> {
    head.headers.join_singular(Of::Request);
    check(head, config)?;
    normalize_path(head, config)?;
    normalize_authority(head, config, connection);
    remove_hop_by_hop(head);
    let origin = forwarding(head, config, connection);
    identify(head, config, origin);
    Ok(origin)
}

/// The details of a request of HTTP/1 that is refused for an underscore in a field's name.
pub const UNDERSCORE: &str = "http1.unexpected_underscore";

fn check(head: &mut RequestHead, config: &HcmConfig) -> Result<(), LocalReply> {
    // An HTTP/1 client may say that it is empty; then the codec leaves it among the fields.
    let told_empty = head.authority.is_empty() && head.headers.remove(&header::HOST);
    if head.authority.is_empty() && !(told_empty && head.protocol == Protocol::Http11) {
        if head.protocol != Protocol::Http10 || config.http1.default_host_for_http_10.is_empty() {
            return Err(LocalReply::new(StatusCode::BAD_REQUEST, "", "missing_host_header"));
        }
        head.authority = config.http1.default_host_for_http_10.clone();
    }
    match config.underscores {
        Underscores::Allow => {}
        Underscores::Drop => head.headers.retain(|name, _| !name.as_str().contains('_')),
        Underscores::Reject if head.headers.iter().any(|(name, _)| name.as_str().contains('_')) => {
            let details = match head.protocol {
                Protocol::Http2 => "unexpected_underscore",
                Protocol::Http10 | Protocol::Http11 => UNDERSCORE,
            };
            return Err(LocalReply::new(StatusCode::BAD_REQUEST, "Bad Request", details));
        }
        Underscores::Reject => {}
    }
    let connect = head.method == Method::CONNECT && head.upgrade.is_none();
    match head.path.first() {
        None if connect => Ok(()),
        None => Err(LocalReply::new(StatusCode::NOT_FOUND, "", "missing_path_rejected")),
        Some(b'/') => Ok(()),
        Some(_) => {
            config.stats.downstream_rq_non_relative_path.inc();
            Err(LocalReply::new(StatusCode::NOT_FOUND, "", "absolute_path_rejected"))
        }
    }
}

fn normalize_path(head: &mut RequestHead, config: &HcmConfig) -> Result<(), LocalReply> {
    let reject = || {
        config.stats.downstream_rq_failed_path_normalization.inc();
        Err(LocalReply::new(StatusCode::BAD_REQUEST, "", "path_normalization_failed"))
    };
    if head.path.is_empty() {
        return Ok(());
    }
    match normalize::path(&head.path, config.path) {
        PathVerdict::Unchanged => Ok(()),
        PathVerdict::Changed(path) => {
            head.path = path;
            Ok(())
        }
        PathVerdict::Reject => reject(),
        // A gRPC client follows no redirect.
        PathVerdict::Redirect(path) if is_grpc(head) => {
            head.path = path;
            reject()
        }
        PathVerdict::Redirect(path) => {
            config.stats.downstream_rq_redirected_with_normalized_path.inc();
            // Logs speak of the path as it should have been; Envoy has one detail for both verdicts.
            head.path = path.clone();
            let location = HeaderValue::from_maybe_shared(path);
            let reply = LocalReply::new(StatusCode::TEMPORARY_REDIRECT, "", "path_normalization_failed");
            Err(match location {
                Ok(location) => reply.header(header::LOCATION, location),
                Err(_) => return reject(),
            })
        }
    }
}

fn normalize_authority(head: &mut RequestHead, config: &HcmConfig, connection: &ConnectionInfo) {
    if config.strip_port != StripPort::Keep
        && let Some(colon) = port_at(&head.authority)
    {
        let matches = std::str::from_utf8(&head.authority[colon + 1..])
            .is_ok_and(|port| port.parse() == Ok(connection.local.port()));
        if config.strip_port == StripPort::Any || matches {
            head.authority.truncate(colon);
        }
    }
    if config.strip_trailing_dot {
        let end = port_at(&head.authority).unwrap_or(head.authority.len());
        if let Some(host) = head.authority[..end].strip_suffix(b".") {
            head.authority = [host, &head.authority[end..]].concat().into();
        }
    }
}

/// Fields that speak of the connection and not of the message (RFC 9110, section 7.6.1).
fn remove_hop_by_hop(head: &mut RequestHead) {
    let headers = &mut head.headers;
    if head.upgrade.is_none()
        && let Some(named) = headers.get(&header::CONNECTION).cloned()
    {
        for name in named.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            let keep = name.eq_ignore_ascii_case(b"te") || name.eq_ignore_ascii_case(b"close");
            if let (false, Ok(name)) = (keep || name.is_empty(), HeaderName::from_bytes(name)) {
                headers.remove(&name);
            }
        }
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING] {
        headers.remove(&name);
    }
    match &head.upgrade {
        None => {
            headers.remove(&header::CONNECTION);
            headers.remove(&header::UPGRADE);
        }
        // Within the proxy an upgrade has HTTP/1's form, whichever version asked for it; the upstream codec writes its own.
        Some(token) => {
            if !headers.contains(&header::UPGRADE)
                && let Ok(token) = HeaderValue::from_maybe_shared(token.clone())
            {
                headers.append(header::UPGRADE, token);
                headers.append(header::CONNECTION, HeaderValue::from_static("upgrade"));
            }
            if head.method == Method::CONNECT {
                head.method = Method::GET;
            }
        }
    }
    if let Some(te) = headers.get(&header::TE) {
        let trailers = te
            .as_bytes()
            .split(|b| *b == b',')
            .any(|t| t.trim_ascii().to_ascii_lowercase().split(|b| *b == b';').next() == Some(b"trailers"));
        if trailers {
            headers.set(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(&header::TE);
        }
    }
}

/// `x-forwarded-for`, `x-forwarded-proto`, and whom to believe.
fn forwarding(head: &mut RequestHead, config: &HcmConfig, connection: &ConnectionInfo) -> Origin {
    let headers = &mut head.headers;
    headers.remove(&INTERNAL);
    let tls = connection.tls.is_some();
    let proto = || if tls { HeaderValue::from_static("https") } else { HeaderValue::from_static("http") };
    let peer = connection.remote.ip();
    let (client, single) = if config.use_remote_address {
        let single = !headers.contains(&xff::FORWARDED_FOR);
        let behind = match config.trusted_hops {
            0 => None,
            hops => xff::address(headers, hops - 1).map(|(address, _)| address),
        };
        if !config.skip_xff_append {
            xff::append(headers, known_to_others(peer));
        }
        if config.trusted_hops == 0 || !headers.contains(&FORWARDED_PROTO) {
            headers.set(FORWARDED_PROTO, proto());
        }
        (Some(behind.unwrap_or(peer)), single)
    } else {
        if !headers.contains(&FORWARDED_PROTO) {
            headers.set(FORWARDED_PROTO, proto());
        }
        let (mut found, mut append) = ((None, false), false);
        for way in &config.detections {
            append = way.append;
            if let Some((address, single)) = xff::address(headers, way.trusted_hops) {
                found = (Some(address), single);
                break;
            }
        }
        if append {
            xff::append(headers, known_to_others(peer));
        }
        found
    };
    let told_by_trusted = !config.use_remote_address || config.trusted_hops > 0;
    if config.append_forwarded_port && !(told_by_trusted && headers.contains(&FORWARDED_PORT)) {
        headers.set(FORWARDED_PORT, digits::value(connection.local.port().into()));
    }
    if let Some(scheme) = config.scheme {
        headers.set(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    let forwarded = headers.get(&FORWARDED_PROTO).map(|v| v.as_bytes());
    let secure = forwarded == Some(b"https");
    // An HTTP/2 request says its scheme itself.
    if head.protocol != Protocol::Http2 || config.scheme.is_some() || head.scheme.is_empty() {
        match forwarded {
            Some(b"https") => head.scheme = Bytes::from_static(b"https"),
            Some(b"http") => head.scheme = Bytes::from_static(b"http"),
            _ => {}
        }
    }
    let internal = single && client.is_some_and(|c| config.is_internal(c));
    Origin { client: client.unwrap_or(peer), internal, secure }
}

fn identify(head: &mut RequestHead, config: &HcmConfig, origin: Origin) {
    let headers = &mut head.headers;
    let edge = !origin.internal && config.use_remote_address;
    if origin.internal {
        headers.set(INTERNAL, HeaderValue::from_static("true"));
    } else {
        // Such fields are rare: one pass that finds none costs less than fourteen searches.
        headers.retain(|name, _| {
            !name.as_str().starts_with("x-envoy-")
                || !(STEERING.contains(name)
                    || (edge && (EDGE.contains(name) || *name == DOWNSTREAM_CLUSTER)))
        });
    }
    if let Some(agent) = &config.user_agent {
        headers.set(DOWNSTREAM_CLUSTER, agent.clone());
        if !headers.contains(&header::USER_AGENT) {
            headers.set(header::USER_AGENT, agent.clone());
        }
    }
    if let Some(via) = &config.via {
        append_via(headers, via);
    }
    if edge && let Ok(address) = HeaderValue::from_bytes(IpText::new(origin.client).as_bytes()) {
        headers.set(EXTERNAL_ADDRESS, address);
    }
    if config.generate_request_id {
        request_id::ensure(headers, edge && !config.preserve_external_request_id);
    }
}

/// Appends to `via`.
pub fn append_via(headers: &mut Headers, via: &HeaderValue) {
    let value = match headers.get(&header::VIA) {
        None => via.clone(),
        Some(before) => {
            let text = [before.as_bytes(), b", ", via.as_bytes()].concat();
            HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or_else(|_| via.clone())
        }
    };
    headers.set(header::VIA, value);
}

/// A peer at this machine's loopback address is known to others by this machine's address. As in Envoy that is the one address, not
/// its network.
fn known_to_others(peer: IpAddr) -> IpAddr {
    let localhost = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    if localhost.contains(&peer) { crate::io::local::own_address() } else { peer }
}
