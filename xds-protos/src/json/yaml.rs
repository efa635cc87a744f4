//! YAML as JSON values.

use serde_json::Value;

use super::JsonError;

/// One YAML document as a JSON value.
///
/// # Errors
/// When the text is not one YAML document; the message has line and column.
pub fn value_from_yaml_str(text: &str) -> Result<Value, JsonError> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
        .map_err(|e| JsonError { path: String::new(), message: e.to_string() })
}
