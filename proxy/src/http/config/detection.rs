//! `original_ip_detection_extensions`: how the client's address is found where the peer is a proxy.

use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use xds_protos::envoy::extensions::http::original_ip_detection::xff::v3::XffConfig;

use crate::state::ConfigError;

/// Finds the client in `x-forwarded-for`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detection {
    /// Trusted proxies before this one.
    pub trusted_hops: u32,
    /// Append the peer's address to the field.
    pub append: bool,
}

/// The ways in their order; the first that finds an address counts. Without any the connection manager's own number of trusted
/// proxies is one.
pub(super) fn detections(
    config: &proto::HttpConnectionManager,
    errors: &mut Vec<ConfigError>,
) -> Vec<Detection> {
    const FIELD: &str = "original_ip_detection_extensions";
    let extensions = &config.original_ip_detection_extensions;
    if extensions.is_empty() {
        return vec![Detection { trusted_hops: config.xff_num_trusted_hops, append: false }];
    }
    if config.use_remote_address.unwrap_or(false) {
        errors.push(ConfigError::new(FIELD, "cannot be used together with use_remote_address"));
    }
    if config.xff_num_trusted_hops > 0 {
        errors.push(ConfigError::new(FIELD, "cannot be used together with xff_num_trusted_hops"));
    }
    let mut found = Vec::with_capacity(extensions.len());
    for (index, extension) in extensions.iter().enumerate() {
        let path = format!("{FIELD}[{index}].typed_config");
        match extension.typed_config.as_ref().map(|any| any.unpack::<XffConfig>()) {
            None => errors.push(ConfigError::missing(path)),
            Some(Err(e)) => errors.push(ConfigError::new(path, e.to_string())),
            Some(Ok(xff)) => found.push(Detection {
                trusted_hops: xff.xff_num_trusted_hops,
                append: !xff.skip_xff_append.unwrap_or(true),
            }),
        }
    }
    found
}
