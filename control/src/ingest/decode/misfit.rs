//! The error of decoding: serde's findings put into words, with the place where they occurred.

use std::fmt;

use serde::de;

use super::Path;
use crate::ingest::{suggest, support};

/// Why a value does not fit, and where.
#[derive(Debug, Default)]
pub(super) struct Misfit {
    pub(super) path: Option<String>,
    pub(super) line: Option<u32>,
    pub(super) reason: String,
    pub(super) help: Option<String>,
}

impl Misfit {
    /// Notes the place, unless a closer one is known already.
    pub(super) fn at(mut self, path: &Path<'_>, line: u32) -> Self {
        self.path.get_or_insert_with(|| path.to_string());
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { reason: message.to_string(), ..Self::default() }
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = expected.to_string();
        let help = match (&unexpected, expected.as_str()) {
            (
                de::Unexpected::Unsigned(_) | de::Unexpected::Signed(_) | de::Unexpected::Float(_),
                "a string",
            ) => Some("put it in quotes".to_owned()),
            (de::Unexpected::Bool(_), "a string") => Some("put it in quotes".to_owned()),
            _ => None,
        };
        let reason = format!("expected {}, found {}", friendly(&expected), found(unexpected));
        Self { reason, help, ..Self::default() }
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let reason = format!("expected {}, found {}", friendly(&expected.to_string()), found(unexpected));
        Self { reason, ..Self::default() }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        if support::VALUES_NOT_YET.contains(&variant) {
            return Self {
                reason: format!("{variant} is not supported by Weft yet"),
                help: Some(format!("it is one of {}", expected.join(", "))),
                ..Self::default()
            };
        }
        let help = match suggest::closest(variant, expected.iter().copied()) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("it is one of {}", expected.join(", ")),
        };
        Self { reason: format!("unknown value {variant:?}"), help: Some(help), ..Self::default() }
    }
}

fn found(unexpected: de::Unexpected<'_>) -> String {
    match unexpected {
        de::Unexpected::Unsigned(number) => format!("the number {number}"),
        de::Unexpected::Signed(number) => format!("the number {number}"),
        de::Unexpected::Float(number) => format!("the number {number}"),
        de::Unexpected::Str(text) => format!("the text {text:?}"),
        de::Unexpected::Bool(value) => format!("the boolean {value}"),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "an object".to_owned(),
        de::Unexpected::Unit => "nothing".to_owned(),
        other => other.to_string(),
    }
}

/// What serde calls by Rust's names, in words.
fn friendly(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" => "a whole number from 0",
        "i32" => "a whole number from -2147483648 to 2147483647",
        "i64" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        other => other,
    }
}
