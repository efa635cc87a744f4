//! Redirects: the new location of a request (`envoy.config.route.v3.RedirectAction`).

use bytes::Bytes;
use http::StatusCode;

use super::action::PathRewrite;
use super::hosts::port_at;
use super::matching::PathMatch;
use super::rewrite::rewrite_path;
use crate::codec::RequestHead;

/// A redirect.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// The status: 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// The new scheme.
    pub scheme: Option<Bytes>,
    /// The new host.
    pub host: Option<Bytes>,
    /// The new port.
    pub port: Option<u16>,
    /// The whole new path; its query, if it has one, replaces the request's.
    pub path: Option<Bytes>,
    /// A change of the path, where `path` is not set.
    pub rewrite: PathRewrite,
    /// Drop the request's query.
    pub strip_query: bool,
}

impl Redirect {
    /// To the same place by https, its port included: what `require_tls` asks for.
    pub fn to_https(head: &RequestHead) -> Self {
        Self {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: Some(Bytes::from_static(b"https")),
            host: Some(head.authority.clone()),
            port: None,
            path: None,
            rewrite: PathRewrite::None,
            strip_query: false,
        }
    }

    /// The value of `location`. `forwarded_proto` is the request's `x-forwarded-proto`.
    pub fn location(&self, head: &RequestHead, matched: &PathMatch, forwarded_proto: &[u8]) -> Bytes {
        let scheme: &[u8] = self.scheme.as_deref().unwrap_or(&head.scheme);
        let mut out = Vec::with_capacity(head.authority.len() + head.path.len() + 16);
        out.extend_from_slice(scheme);
        out.extend_from_slice(b"://");
        out.extend_from_slice(match &self.host {
            Some(host) => host,
            None => self.kept_host(&head.authority, scheme, forwarded_proto),
        });
        if let Some(port) = self.port {
            out.extend_from_slice(format!(":{port}").as_bytes());
        }
        let query_at = head.path.iter().position(|b| *b == b'?').unwrap_or(head.path.len());
        match &self.path {
            Some(path) => {
                out.extend_from_slice(path);
                if !path.contains(&b'?') && !self.strip_query {
                    out.extend_from_slice(&head.path[query_at..]);
                }
            }
            None => {
                let path = rewrite_path(&self.rewrite, matched, &head.path);
                let path = path.as_ref().unwrap_or(&head.path);
                let end = if self.strip_query {
                    path.iter().position(|b| *b == b'?').unwrap_or(path.len())
                } else {
                    path.len()
                };
                out.extend_from_slice(&path[..end]);
            }
        }
        out.into()
    }

    /// The request's host, without a port that the new scheme or port makes wrong.
    fn kept_host<'a>(&self, authority: &'a [u8], scheme: &[u8], forwarded_proto: &[u8]) -> &'a [u8] {
        let Some(colon) = port_at(authority) else { return authority };
        let default_port = match forwarded_proto {
            b"https" => &b"443"[..],
            b"http" => b"80",
            _ => b"",
        };
        let drop = self.port.is_some()
            || (scheme != forwarded_proto
                && !default_port.is_empty()
                && &authority[colon + 1..] == default_port);
        if drop { &authority[..colon] } else { authority }
    }
}
