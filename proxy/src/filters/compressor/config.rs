//! `envoy.extensions.filters.http.compressor.v3` to a [`Compressor`].

use std::sync::Arc;

use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::compression::brotli::compressor::v3::Brotli;
use xds_protos::envoy::extensions::compression::gzip::compressor::v3::Gzip;
use xds_protos::envoy::extensions::filters::http::compressor::v3 as proto;

use super::{Compressor, Library, Numbers, OfRoute};
use crate::route::config::string_match;
use crate::state::ConfigError;
use crate::state::error::{at, collect};

type Errors = Vec<ConfigError>;

/// What is compressed where nothing is said (Envoy's list).
const CONTENT_TYPES: [&str; 8] = [
    "application/javascript",
    "application/json",
    "application/xhtml+xml",
    "image/svg+xml",
    "text/css",
    "text/html",
    "text/plain",
    "text/xml",
];
/// The least length that is compressed, likewise.
const LEAST: u32 = 30;

impl Compressor {
    /// Compiles the filter of a connection manager.
    ///
    /// # Errors
    /// Everything that is wrong in its settings.
    pub fn compile(config: &proto::Compressor, stat_prefix: &str) -> Result<Self, Errors> {
        let mut errors = Vec::new();
        let library = match &config.compressor_library {
            None => Err(ConfigError::missing("compressor_library").into()),
            Some(library) => self::library(library).map_err(at("compressor_library")),
        };
        let library = collect(library, "", &mut errors);
        let of_response = config.response_direction_config.clone().unwrap_or_default();
        let common = of_response.common_config.unwrap_or_default();
        let mut matchers = Vec::new();
        for (index, matcher) in common.content_type_matcher.iter().enumerate() {
            let path = format!("response_direction_config.common_config.content_type_matcher[{index}]");
            matchers.extend(collect(string_match(matcher).map_err(Errors::from), path, &mut errors));
        }
        let (Some(library), true) = (library, errors.is_empty()) else { return Err(errors) };
        let name = config.compressor_library.as_ref().map_or("", |library| library.name.as_str());
        let own = match library {
            Library::Gzip(_) => "gzip",
            Library::Brotli(..) => "brotli",
        };
        let direction = if config.response_direction_config.is_some() { "response." } else { "" };
        let types = match common.content_type.as_slice() {
            [] if matchers.is_empty() => CONTENT_TYPES.map(Box::from).to_vec(),
            given => given.iter().map(|t| t.as_str().into()).collect(),
        };
        Ok(Self {
            library,
            enabled: common.enabled.and_then(|flag| flag.default_value).unwrap_or(true),
            least: u64::from(common.min_content_length.unwrap_or(LEAST)),
            content_types: types,
            content_type_matchers: matchers,
            not_with_etag: of_response.disable_on_etag_header,
            weaken_etag: of_response.weaken_etag_on_compress,
            remove_accept_encoding: of_response.remove_accept_encoding_header,
            uncompressible: of_response
                .uncompressible_response_codes
                .iter()
                .filter_map(|code| u16::try_from(*code).ok())
                .collect(),
            first: config.choose_first,
            numbers: Arc::new(Numbers::new(
                format!("http.{stat_prefix}"),
                &format!("compressor.{name}.{own}."),
                direction,
            )),
        })
    }
}

impl OfRoute {
    /// Compiles `CompressorPerRoute`.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(config: &proto::CompressorPerRoute) -> Result<Self, Errors> {
        use proto::compressor_per_route::Override;
        match &config.r#override {
            Some(Override::Disabled(true)) => Ok(Self::Disabled),
            Some(Override::Disabled(false)) => {
                Err(ConfigError::new("disabled", "must be true, or be left out").into())
            }
            Some(Override::Overrides(overrides)) => Ok(Self::Overrides {
                remove_accept_encoding: overrides
                    .response_direction_config
                    .as_ref()
                    .and_then(|config| config.remove_accept_encoding_header),
                library: overrides
                    .compressor_library
                    .as_ref()
                    .map(library)
                    .transpose()
                    .map_err(at("overrides.compressor_library"))?,
            }),
            None => Err(ConfigError::missing("overrides").into()),
        }
    }
}

fn library(config: &core::TypedExtensionConfig) -> Result<Library, Errors> {
    let any = config.typed_config.as_ref().ok_or_else(|| ConfigError::missing("typed_config"))?;
    let bad = |e: xds_protos::UnpackError| ConfigError::new("typed_config", e.to_string());
    if any.is::<Gzip>() {
        let gzip: Gzip = any.unpack().map_err(bad)?;
        // Zero is the level that the encoder finds right.
        let level = u32::try_from(gzip.compression_level).unwrap_or(0);
        return Ok(Library::Gzip(if level == 0 { 6 } else { level.min(9) }));
    }
    if any.is::<Brotli>() {
        let brotli: Brotli = any.unpack().map_err(bad)?;
        let quality = brotli.quality.unwrap_or(3).min(11);
        return Ok(Library::Brotli(quality, brotli.window_bits.unwrap_or(18).clamp(10, 24)));
    }
    let what = format!("the encoding {}", any.type_name());
    Err(ConfigError::unsupported("typed_config", what).into())
}
