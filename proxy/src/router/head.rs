//! The request's head as it goes upstream: the route's header changes, the new path and authority.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::flow::Flow;
use crate::codec::RequestHead;
use crate::codec::headers::Of;
use crate::io::ConnectionInfo;
use crate::route::action::HostRewrite;
use crate::route::matching::split_query;
use crate::route::rewrite::rewrite_path;
use crate::route::{Forward, HeaderOps, Matched};
use crate::telemetry::access_log::LogContext;

const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Applies what the route asks for, in Envoy's order: header changes, then authority, then path.
pub fn prepare(
    head: &mut RequestHead,
    matched: &Matched,
    forward: &Forward,
    flow: &Flow,
    connection: &ConnectionInfo,
    envoy_headers: bool,
) {
    let change = |head: &mut RequestHead, ops: &HeaderOps| {
        ops.remove_from(&mut head.headers);
        let additions = flow.info(|info| {
            let context = LogContext {
                request: Some(head),
                configured: Some(flow),
                ..LogContext::new(info, connection)
            };
            ops.additions(&head.headers, &context)
        });
        additions.make(&mut head.headers, Of::Request);
    };
    if let Some(weighted) = matched.weighted() {
        if !weighted.request_headers.is_empty() {
            change(head, &weighted.request_headers);
        }
        // The levels above see it. Envoy does not tell the upstream of this one, whatever the route says.
        if let Some(authority) = weighted.host_rewrite.clone() {
            set_authority(head, authority, false, false);
        }
    }
    for ops in matched.level_ops(true) {
        change(head, ops);
    }
    let authority = match &forward.host_rewrite {
        HostRewrite::None | HostRewrite::Auto => None,
        HostRewrite::Literal(text) => Some(text.clone()),
        HostRewrite::Header(name) => {
            head.headers.get(name).filter(|v| !v.is_empty()).map(|v| Bytes::copy_from_slice(v.as_bytes()))
        }
        HostRewrite::Path(substitution) => Some(substitution.apply(split_query(&head.path).0)),
    };
    if let Some(authority) = authority {
        set_authority(head, authority, forward.append_x_forwarded_host, envoy_headers);
    }
    if let Some(path) = rewrite_path(&forward.path_rewrite, &matched.route().matching.path, &head.path) {
        let original = std::mem::replace(&mut head.path, path);
        if envoy_headers && let Ok(value) = HeaderValue::from_maybe_shared(original.clone()) {
            head.headers.set(ORIGINAL_PATH, value);
        }
        flow.info(|i| {
            i.original_path = Some(original);
            i.path = head.path.clone();
        });
    }
}

/// Sets the authority; the old one goes to `x-forwarded-host` where that is asked for.
pub fn set_authority(
    head: &mut RequestHead,
    authority: Bytes,
    append_forwarded_host: bool,
    envoy_headers: bool,
) {
    let old = std::mem::replace(&mut head.authority, authority);
    if envoy_headers && let Ok(value) = HeaderValue::from_maybe_shared(old.clone()) {
        head.headers.set(ORIGINAL_HOST, value);
    }
    if append_forwarded_host && !old.is_empty() {
        let text = match head.headers.get(&FORWARDED_HOST) {
            Some(before) => [before.as_bytes(), b",", &old].concat().into(),
            None => old,
        };
        if let Ok(value) = HeaderValue::from_maybe_shared(text) {
            head.headers.set(FORWARDED_HOST, value);
        }
    }
}
