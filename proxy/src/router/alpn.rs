//! `istio.alpn`: which application protocols to offer an upstream, by the HTTP version that will be spoken with it, so that
//! Istio's inbound chains recognise mesh traffic.

use std::sync::Arc;

use xds_protos::istio::envoy::config::filter::http::alpn::v2alpha1::FilterConfig;
use xds_protos::istio::envoy::config::filter::http::alpn::v2alpha1::filter_config::Protocol as Proto;

use crate::codec::Protocol;

/// Protocol names by upstream version; empty where the cluster's own stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlpnOverride {
    http10: Arc<Vec<Vec<u8>>>,
    http11: Arc<Vec<Vec<u8>>>,
    http2: Arc<Vec<Vec<u8>>>,
}

impl AlpnOverride {
    /// Compiles the filter's settings.
    pub fn compile(config: &FilterConfig) -> Self {
        let mut compiled = Self::default();
        for entry in &config.alpn_override {
            let names = entry.alpn_override.iter().map(|n| n.clone().into_bytes()).collect::<Vec<_>>().into();
            match entry.upstream_protocol() {
                Proto::Http10 => compiled.http10 = names,
                Proto::Http11 => compiled.http11 = names,
                Proto::Http2 => compiled.http2 = names,
            }
        }
        compiled
    }

    /// The names to offer for a version.
    pub fn names(&self, upstream: Protocol) -> Option<&Arc<Vec<Vec<u8>>>> {
        let names = match upstream {
            Protocol::Http10 => &self.http10,
            Protocol::Http11 => &self.http11,
            Protocol::Http2 => &self.http2,
        };
        (!names.is_empty()).then_some(names)
    }
}
