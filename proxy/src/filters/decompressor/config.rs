//! `envoy.extensions.filters.http.decompressor.v3` to a [`Decompressor`].

use http::HeaderName;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::compression::brotli::decompressor::v3::Brotli;
use xds_protos::envoy::extensions::compression::gzip::decompressor::v3::Gzip;
use xds_protos::envoy::extensions::filters::http::decompressor::v3 as proto;
use xds_protos::envoy::extensions::filters::http::decompressor::v3::decompressor::CommonDirectionConfig;

use super::{Decompressor, Library, Numbers, Way};
use crate::state::ConfigError;
use crate::state::error::at;

type Errors = Vec<ConfigError>;

/// As many times what went in may come out of gzip, where nothing is said (Envoy's number).
const MOST: u32 = 100;

impl Decompressor {
    /// Compiles the filter of a connection manager.
    ///
    /// # Errors
    /// Everything that is wrong in its settings.
    pub fn compile(config: &proto::Decompressor, stat_prefix: &str) -> Result<Self, Errors> {
        let named = config
            .decompressor_library
            .as_ref()
            .ok_or_else(|| ConfigError::missing("decompressor_library"))?;
        let library = library(named).map_err(at("decompressor_library"))?;
        let own = match library {
            Library::Gzip(_) => "gzip",
            Library::Brotli => "brotli",
        };
        let told = |what: &str| {
            let text = format!("x-envoy-decompressor-{}-{what}-bytes", named.name.to_ascii_lowercase());
            HeaderName::try_from(text).map_err(|_| {
                let why = "names trailers, and has characters that their names have not";
                ConfigError::new("decompressor_library.name", why)
            })
        };
        let way = |common: Option<CommonDirectionConfig>, direction: &str| {
            let common = common.unwrap_or_default();
            Way {
                enabled: common.enabled.and_then(|flag| flag.default_value).unwrap_or(true),
                ignore_no_transform: common.ignore_no_transform_header,
                numbers: Numbers::new(
                    &format!("http.{stat_prefix}"),
                    &format!("decompressor.{}.{own}.{direction}.", named.name),
                ),
            }
        };
        let request = config.request_direction_config.clone().unwrap_or_default();
        let response = config.response_direction_config.clone().unwrap_or_default();
        Ok(Self {
            library,
            request: way(request.common_config, "request"),
            response: way(response.common_config, "response"),
            advertise: request.advertise_accept_encoding.unwrap_or(true),
            told: (told("compressed")?, told("uncompressed")?),
        })
    }
}

fn library(config: &core::TypedExtensionConfig) -> Result<Library, Errors> {
    let any = config.typed_config.as_ref().ok_or_else(|| ConfigError::missing("typed_config"))?;
    let bad = |e: xds_protos::UnpackError| ConfigError::new("typed_config", e.to_string());
    if any.is::<Gzip>() {
        let gzip: Gzip = any.unpack().map_err(bad)?;
        return Ok(Library::Gzip(u64::from(gzip.max_inflate_ratio.unwrap_or(MOST))));
    }
    if any.is::<Brotli>() {
        let _: Brotli = any.unpack().map_err(bad)?;
        return Ok(Library::Brotli);
    }
    let what = format!("the encoding {}", any.type_name());
    Err(ConfigError::unsupported("typed_config", what).into())
}
