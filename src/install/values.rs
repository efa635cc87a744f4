//! What a user sets, and whether that may be set: by the chart's schema, as far as it is written (JSON Schema's `type`, `enum`,
//! `properties`, `additionalProperties`, `items`, `minimum`, `maximum` and `$ref`).

use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value, json};

use super::{chart, template};

/// The chart's own values.
pub(super) fn defaults() -> anyhow::Result<Value> {
    parse(chart::VALUES)
}

fn parse(text: &str) -> anyhow::Result<Value> {
    xds_protos::json::value_from_yaml_str(text).map_err(|error| anyhow!(error.message))
}

/// Lays a file of values over what is there.
pub(super) fn read(text: &str, values: &mut Value) -> anyhow::Result<()> {
    match parse(text)? {
        Value::Null => {}
        own @ Value::Object(_) => template::lay(values, &own),
        other => bail!("{other} is no map of values"),
    }
    Ok(())
}

/// Sets one value by `a.b.c=value`.
pub(super) fn set(text: &str, values: &mut Value) -> anyhow::Result<()> {
    let (path, value) = text.split_once('=').context("write KEY=VALUE")?;
    let value = parse(value).unwrap_or_else(|_| value.into());
    let own =
        path.rsplit('.').fold(value, |value, key| Value::Object(Map::from_iter([(key.to_owned(), value)])));
    template::lay(values, &own);
    Ok(())
}

/// Checks values by the chart's schema.
pub(super) fn check(values: &Value) -> anyhow::Result<()> {
    let schema: Value = serde_json::from_str(chart::SCHEMA)?;
    let mut wrong = Vec::new();
    look(values, &schema, &schema, "", &mut wrong);
    if wrong.is_empty() { Ok(()) } else { Err(anyhow!("{}", wrong.join("\n"))) }
}

fn look(value: &Value, schema: &Value, root: &Value, path: &str, wrong: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix('#')) {
        return look(value, root.pointer(name).unwrap_or(&Value::Null), root, path, wrong);
    }
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        _ => false,
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !kinds.is_empty() && !kinds.iter().any(|kind| is(kind)) {
        wrong.push(format!("{path}: {value} is no {}", kinds.join(" or ")));
        return;
    }
    let known = |list: &Value| -> String {
        let names = list.as_array().into_iter().flatten().map(|one| one.as_str().unwrap_or_default());
        names.collect::<Vec<_>>().join(", ")
    };
    if schema["enum"].as_array().is_some_and(|known| !known.contains(value)) {
        wrong.push(format!("{path}: {value} is not known; there are {}", known(&schema["enum"])));
    }
    let bound = |name: &str| schema[name].as_f64().zip(value.as_f64());
    if let Some((least, _)) = bound("minimum").filter(|(least, number)| number < least) {
        wrong.push(format!("{path}: {value} is less than {least}"));
    }
    if let Some((most, _)) = bound("maximum").filter(|(most, number)| number > most) {
        wrong.push(format!("{path}: {value} is more than {most}"));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        look(item, &schema["items"], root, &format!("{path}[{index}]"), wrong);
    }
    for (key, inner) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (schema["properties"].get(key), &schema["additionalProperties"]) {
            (Some(schema), _) => look(inner, schema, root, &path, wrong),
            (None, Value::Bool(false)) => {
                let names: Vec<_> =
                    schema["properties"].as_object().into_iter().flatten().map(|(k, _)| json!(k)).collect();
                wrong.push(format!("{path}: no such value; there are {}", known(&names.into())));
            }
            (None, schema @ Value::Object(_)) => look(inner, schema, root, &path, wrong),
            _ => {}
        }
    }
}
