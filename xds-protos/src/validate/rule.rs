//! One rule, and whether a value keeps it.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, Value};
use regex::Regex;

/// A rule for the value of a field.
#[derive(Debug)]
pub(super) enum Rule {
    Number(Range),
    /// Bounds in seconds.
    Duration(Range),
    Bool(Option<bool>),
    Text {
        /// In characters.
        min_len: Option<usize>,
        max_len: Option<usize>,
        min_bytes: Option<usize>,
        max_bytes: Option<usize>,
        pattern: Option<Regex>,
        prefix: String,
        suffix: String,
        one_of: Vec<String>,
        header: Option<Header>,
        ignore_empty: bool,
    },
    Bytes {
        min: Option<usize>,
        max: Option<usize>,
    },
    Enum {
        kind: Option<EnumDescriptor>,
        defined_only: bool,
        not_in: Vec<i32>,
    },
    List {
        min: Option<usize>,
        max: Option<usize>,
        unique: bool,
        items: Option<Box<Rule>>,
    },
    Map {
        min: Option<usize>,
        max: Option<usize>,
        keys: Option<Box<Rule>>,
    },
}

/// What a header's name or value may be made of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Header {
    /// A token, perhaps with a colon before it.
    Name,
    /// No control character but the tab.
    Value,
    /// Neither NUL nor a line's end: both, when they are not checked strictly.
    Line,
}

/// Bounds, each with whether it belongs to the range. An upper bound below the lower one excludes what is between.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Range {
    pub(super) low: Option<(f64, bool)>,
    pub(super) high: Option<(f64, bool)>,
    pub(super) ignore_empty: bool,
}

impl Rule {
    /// The rule, told which enum it is about: a field's own, or its elements'.
    pub(super) fn of_enum(mut self, field: &FieldDescriptor) -> Self {
        let rule = match &mut self {
            Self::List { items: Some(item), .. } => item,
            other => other,
        };
        if let (Self::Enum { kind, .. }, Kind::Enum(e)) = (rule, field.kind()) {
            *kind = Some(e);
        }
        self
    }

    /// What is wrong with a value; the elements of lists and maps are the caller's.
    pub(super) fn judge(&self, value: &Value) -> Result<(), String> {
        match self {
            Self::Number(range) => number(value).map_or(Ok(()), |n| range.judge(n, "")),
            Self::Duration(range) => number(value).map_or(Ok(()), |n| range.judge(n, "s")),
            Self::Bool(wanted) => match (wanted, unwrapped(value).as_bool()) {
                (Some(wanted), Some(is)) if *wanted != is => Err(format!("must be {wanted}")),
                _ => Ok(()),
            },
            Self::Text { .. } => unwrapped(value).as_str().map_or(Ok(()), |text| self.text(text)),
            Self::Bytes { min, max } => {
                unwrapped(value).as_bytes().map_or(Ok(()), |b| within(b.len(), *min, *max, "bytes"))
            }
            Self::Enum { kind, defined_only, not_in } => {
                let Some(n) = value.as_enum_number() else { return Ok(()) };
                if *defined_only && kind.as_ref().is_some_and(|k| k.get_value(n).is_none()) {
                    return Err(format!("{n} is not one of its values"));
                }
                if not_in.contains(&n) { Err(format!("must not be {n}")) } else { Ok(()) }
            }
            Self::List { min, max, unique, .. } => {
                let items = value.as_list().unwrap_or_default();
                within(items.len(), *min, *max, "elements")?;
                // Each is compared with each: lists that may be long are not of those.
                let again = |(i, item): &(usize, &Value)| *unique && items[..*i].contains(item);
                match items.iter().enumerate().find(again) {
                    Some((i, _)) => Err(format!("element {i} is there twice")),
                    None => Ok(()),
                }
            }
            Self::Map { min, max, .. } => {
                value.as_map().map_or(Ok(()), |m| within(m.len(), *min, *max, "entries"))
            }
        }
    }

    fn text(&self, text: &str) -> Result<(), String> {
        let Self::Text {
            min_len,
            max_len,
            min_bytes,
            max_bytes,
            pattern,
            prefix,
            suffix,
            one_of,
            header,
            ignore_empty,
        } = self
        else {
            return Ok(());
        };
        if *ignore_empty && text.is_empty() {
            return Ok(());
        }
        within(text.chars().count(), *min_len, *max_len, "characters")?;
        within(text.len(), *min_bytes, *max_bytes, "bytes")?;
        if let Some(pattern) = pattern.as_ref().filter(|p| !p.is_match(text)) {
            return Err(format!("{text:?} does not match {}", pattern.as_str()));
        }
        if !text.starts_with(prefix.as_str()) || !text.ends_with(suffix.as_str()) {
            return Err(format!("{text:?} does not begin with {prefix:?} and end with {suffix:?}"));
        }
        if !one_of.is_empty() && !one_of.iter().any(|o| o == text) {
            return Err(format!("{text:?} is not one of {}", one_of.join(", ")));
        }
        let (good, what) = match header {
            None => return Ok(()),
            Some(Header::Name) => (is_name(text), "name"),
            Some(Header::Value) => (!text.chars().any(|c| c != '\t' && c.is_ascii_control()), "value"),
            Some(Header::Line) => (!text.contains(['\0', '\r', '\n']), "name or value"),
        };
        if good { Ok(()) } else { Err(format!("{text:?} is not a header's {what}")) }
    }
}

fn is_name(text: &str) -> bool {
    let token = text.strip_prefix(':').unwrap_or(text);
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_|~`".contains(&b))
}

fn within(n: usize, min: Option<usize>, max: Option<usize>, what: &str) -> Result<(), String> {
    match (min, max) {
        (Some(1), _) if n == 0 => Err("must not be empty".into()),
        (Some(min), _) if n < min => Err(format!("must have {min} {what} at least, and has {n}")),
        (_, Some(max)) if n > max => Err(format!("must have {max} {what} at most, and has {n}")),
        _ => Ok(()),
    }
}

impl Range {
    fn judge(&self, n: f64, unit: &str) -> Result<(), String> {
        if self.ignore_empty && n == 0.0 {
            return Ok(());
        }
        let over = self.low.is_none_or(|(low, is_in)| if is_in { n >= low } else { n > low });
        let under = self.high.is_none_or(|(high, is_in)| if is_in { n <= high } else { n < high });
        let outside = matches!((self.low, self.high), (Some((low, _)), Some((high, _))) if high < low);
        if if outside { over || under } else { over && under } {
            return Ok(());
        }
        let side = |bound: Option<(f64, bool)>, more: &str| {
            bound.map(|(b, is_in)| format!("{more} {b}{unit}{}", if is_in { " or equal" } else { "" }))
        };
        let joined: Vec<_> =
            [side(self.low, "more than"), side(self.high, "less than")].into_iter().flatten().collect();
        let with = if outside { " or " } else { " and " };
        Err(format!("must be {}, and is {n}{unit}", joined.join(with)))
    }
}

/// A number, also in a wrapper; a duration in seconds.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::I32(n) => Some(f64::from(*n)),
        Value::U32(n) => Some(f64::from(*n)),
        // Bounds are far below what a double can hold exactly.
        Value::I64(n) => Some(*n as f64),
        Value::U64(n) => Some(*n as f64),
        Value::F32(n) => Some(f64::from(*n)),
        Value::F64(n) => Some(*n),
        Value::Message(m) => {
            let part = |name| m.get_field_by_name(name).as_deref().and_then(number);
            part("value").or_else(|| Some(part("seconds")? + part("nanos")? / 1e9))
        }
        _ => None,
    }
}

/// What a wrapper wraps; anything else as it is.
fn unwrapped(value: &Value) -> Value {
    match value {
        Value::Message(m) => m.get_field_by_name("value").map_or_else(|| value.clone(), |v| v.into_owned()),
        other => other.clone(),
    }
}
