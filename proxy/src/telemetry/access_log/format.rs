//! Envoy's format strings (`%COMMAND(ARGUMENTS):LENGTH%`), compiled once: text, and JSON objects of such strings. Their parts are told
//! apart where the control plane does it, too ([`xds_protos::format`]).

pub use xds_protos::format::FormatError;
use xds_protos::format::{AT_THE_END, Part, parts};

use super::operator::Operator;
use super::{LogContext, Wanted};
use crate::codec::digits;

/// A command, with the most of it that is written, and the text behind it.
#[derive(Debug)]
struct Piece {
    operator: Operator,
    length: Option<usize>,
    behind: Literal,
}

/// Text as it is. What stands between two commands is mostly a space and quotes: its first bytes are written without a call.
#[derive(Debug)]
enum Literal {
    Short([u8; 8], usize),
    Long(Box<[u8]>),
}

impl Default for Literal {
    fn default() -> Self {
        Self::Short([0; 8], 0)
    }
}

impl Literal {
    fn new(text: &[u8]) -> Self {
        let mut short = [0; 8];
        match short.get_mut(..text.len()) {
            Some(room) => {
                room.copy_from_slice(text);
                Self::Short(short, text.len())
            }
            None => Self::Long(text.into()),
        }
    }

    /// With more text behind it.
    fn and(&self, text: &str) -> Self {
        let mut whole = Vec::new();
        self.write(&mut whole);
        whole.extend_from_slice(text.as_bytes());
        Self::new(&whole)
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Short(_, 0))
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Short(text, len) => digits::short(out, text, *len),
            Self::Long(text) => out.extend_from_slice(text),
        }
    }
}

/// One compiled format string: text, and commands with text behind each.
#[derive(Debug, Default)]
struct Template {
    first: Literal,
    pieces: Vec<Piece>,
}

impl Template {
    fn parse(source: &str) -> Result<Self, FormatError> {
        let mut whole = Self::default();
        for part in parts(source)? {
            match part {
                Part::Text(text) => {
                    let before = whole.pieces.last_mut().map_or(&mut whole.first, |piece| &mut piece.behind);
                    *before = before.and(&text);
                }
                Part::Command { name, arguments, length } => {
                    let operator = Operator::parse(name, arguments)?;
                    whole.pieces.push(Piece { operator, length, behind: Literal::default() });
                }
            }
        }
        Ok(whole)
    }

    /// The command that is all of it.
    fn lone(&self) -> Option<&Piece> {
        match &self.pieces[..] {
            [one] if self.first.is_empty() && one.behind.is_empty() => Some(one),
            _ => None,
        }
    }

    fn write(&self, context: &LogContext<'_>, absent: &[u8], out: &mut Vec<u8>) {
        self.first.write(out);
        for Piece { operator, length, behind } in &self.pieces {
            let start = out.len();
            if !operator.write(context, out) {
                match absent {
                    [one] => out.push(*one),
                    other => out.extend_from_slice(other),
                }
            }
            if let Some(length) = length {
                out.truncate(start + (out.len() - start).min(*length));
            }
            behind.write(out);
        }
    }

    fn wants(&self, wanted: &mut Wanted) {
        self.pieces.iter().for_each(|piece| piece.operator.wants(wanted));
    }
}

/// A value of a JSON format.
#[derive(Debug)]
enum JsonNode {
    Template(Template),
    Object(Vec<(String, JsonNode)>),
    List(Vec<JsonNode>),
    Other(serde_json::Value),
}

impl JsonNode {
    fn parse(value: &serde_json::Value) -> Result<Self, FormatError> {
        Ok(match value {
            serde_json::Value::String(s) => Self::Template(Template::parse(s)?),
            serde_json::Value::Object(map) => Self::Object(
                map.iter()
                    .map(|(k, v)| Ok((k.clone(), Self::parse(v)?)))
                    .collect::<Result<_, FormatError>>()?,
            ),
            serde_json::Value::Array(items) => {
                Self::List(items.iter().map(Self::parse).collect::<Result<_, _>>()?)
            }
            other => Self::Other(other.clone()),
        })
    }

    fn wants(&self, wanted: &mut Wanted) {
        match self {
            Self::Template(template) => template.wants(wanted),
            Self::Object(fields) => fields.iter().for_each(|(_, node)| node.wants(wanted)),
            Self::List(items) => items.iter().for_each(|node| node.wants(wanted)),
            Self::Other(_) => {}
        }
    }

    /// The value; none where it is absent and such are left out.
    fn value(&self, context: &LogContext<'_>, omit_empty: bool) -> Option<serde_json::Value> {
        Some(match self {
            Self::Template(template) => match template.lone() {
                // A lone command keeps its type: numbers stay numbers, what is absent is null.
                Some(Piece { operator, length, .. }) => {
                    let mut value = operator.value(context);
                    if omit_empty && value.is_null() {
                        return None;
                    }
                    if let (serde_json::Value::String(text), Some(length)) = (&mut value, length) {
                        text.truncate(text.floor_char_boundary(*length));
                    }
                    value
                }
                None => {
                    let mut text = Vec::new();
                    template.write(context, if omit_empty { b"" } else { b"-" }, &mut text);
                    String::from_utf8_lossy(&text).into_owned().into()
                }
            },
            Self::Object(fields) => {
                let properties =
                    fields.iter().filter_map(|(k, v)| Some((k.clone(), v.value(context, omit_empty)?)));
                let object: serde_json::Map<_, _> = properties.collect();
                if object.is_empty() && omit_empty {
                    return None;
                }
                object.into()
            }
            Self::List(items) => items.iter().filter_map(|v| v.value(context, omit_empty)).collect(),
            Self::Other(value) => value.clone(),
        })
    }
}

/// What a line says.
#[derive(Debug)]
pub struct Format {
    kind: Kind,
    /// What is absent is left out.
    omit_empty: bool,
}

#[derive(Debug)]
enum Kind {
    Text(Template),
    Json(JsonNode),
}

impl Format {
    /// Envoy's own default, for a file log that names no format.
    pub const ENVOY: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
\"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \
\"%UPSTREAM_HOST%\"\n";

    /// Compiles a text format; the line end is part of it.
    pub fn text(source: &str) -> Result<Self, FormatError> {
        Template::parse(source).map(|t| Self { kind: Kind::Text(t), omit_empty: false })
    }

    /// Compiles an object whose strings are formats; written on one line.
    pub fn json(object: &serde_json::Value) -> Result<Self, FormatError> {
        JsonNode::parse(object).map(|n| Self { kind: Kind::Json(n), omit_empty: false })
    }

    /// The same with what is absent left out (`omit_empty_values`): nothing in a text, no property in an object.
    #[must_use]
    pub fn omit_empty(self, omit_empty: bool) -> Self {
        Self { omit_empty, ..self }
    }

    /// Whether it makes objects.
    pub fn is_json(&self) -> bool {
        matches!(self.kind, Kind::Json(_))
    }

    /// Adds what it speaks of.
    pub fn wants(&self, wanted: &mut Wanted) {
        match &self.kind {
            Kind::Text(template) => template.wants(wanted),
            Kind::Json(node) => node.wants(wanted),
        }
    }

    /// The same where it is written before the stream has ended, as added fields and tags of spans are.
    ///
    /// # Errors
    /// It speaks of what is known only then.
    pub fn known_early(self) -> Result<Self, FormatError> {
        let mut wanted = Wanted::default();
        self.wants(&mut wanted);
        match wanted.wire {
            None => Ok(self),
            Some(name) => Err(FormatError::Arguments(name.to_owned(), AT_THE_END)),
        }
    }

    fn absent(&self) -> &'static [u8] {
        if self.omit_empty { b"" } else { b"-" }
    }

    /// Appends the text with nothing in the place of what is absent: the value of a header field.
    pub fn write_or_empty(&self, context: &LogContext<'_>, out: &mut Vec<u8>) {
        match &self.kind {
            Kind::Text(template) => template.write(context, b"", out),
            Kind::Json(_) => self.write(context, out),
        }
    }

    /// Appends the stream's line.
    pub fn write(&self, context: &LogContext<'_>, out: &mut Vec<u8>) {
        match &self.kind {
            Kind::Text(template) => template.write(context, self.absent(), out),
            Kind::Json(node) => {
                let value = node.value(context, self.omit_empty).unwrap_or_else(|| serde_json::json!({}));
                // Writing a value to memory cannot fail.
                let _ = serde_json::to_writer(&mut *out, &value);
                out.push(b'\n');
            }
        }
    }
}
