//! Envoy's `DataSource`: bytes inline, in a file, or in the environment.

use xds_protos::envoy::config::core::v3::{DataSource, data_source::Specifier};

use crate::state::ConfigError;

/// The bytes; a file is read now. The engine looks at watched files again itself.
pub fn read(source: &DataSource) -> Result<Vec<u8>, ConfigError> {
    match &source.specifier {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.to_vec()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::Filename(path)) => std::fs::read(path)
            .map_err(|e| ConfigError::new("filename", format!("{path} cannot be read: {e}"))),
        Some(Specifier::EnvironmentVariable(name)) => {
            std::env::var(name).map(String::into_bytes).map_err(|_| {
                ConfigError::new("environment_variable", format!("{name} is not set in this environment"))
            })
        }
        None => Err(ConfigError::new("", "names no source")),
    }
}
