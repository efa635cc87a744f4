//! `%COALESCE({"operators": [...]})%`: the first of several operators that has something to say.

use super::super::{FormatError, LogContext};
use super::Operator;

/// One of them, and the most bytes that are taken of it.
#[derive(Clone, Debug)]
pub(in super::super) struct Choice {
    pub(super) operator: Operator,
    length: Option<usize>,
}

/// Reads them.
pub(super) fn parse(arguments: Option<&str>) -> Result<Vec<Choice>, FormatError> {
    let choices = xds_protos::format::choices(arguments)?;
    choices
        .into_iter()
        .map(|choice| {
            let operator = Operator::parse(&choice.command, choice.param.as_deref())?;
            Ok(Choice { operator, length: choice.max_length })
        })
        .collect()
}

/// Appends what the first says that says something.
pub(super) fn write(choices: &[Choice], context: &LogContext<'_>, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    for Choice { operator, length } in choices {
        if operator.write(context, out) && out.len() > start {
            if let Some(length) = length {
                out.truncate(start + (out.len() - start).min(*length));
            }
            return true;
        }
        out.truncate(start);
    }
    false
}

/// The same as a value of JSON.
pub(super) fn json(choices: &[Choice], context: &LogContext<'_>) -> Option<serde_json::Value> {
    choices.iter().find_map(|Choice { operator, length }| match (operator.value(context), length) {
        (serde_json::Value::Null, _) => None,
        (serde_json::Value::String(text), _) if text.is_empty() => None,
        (serde_json::Value::String(mut text), Some(length)) => {
            text.truncate(text.floor_char_boundary(*length));
            Some(text.into())
        }
        (value, _) => Some(value),
    })
}
