//! The functions of Go's templates, of Sprig and of Helm that our chart uses.

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

/// What Go prints.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// What Go takes for true: everything but nothing, zero and emptiness.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Lays a map over another, deeply; lists are replaced.
pub fn lay(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match base.get_mut(key) {
                    Some(here) => lay(here, value),
                    None => {
                        base.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (base, over) => base.clone_from(over),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

pub(super) fn call(name: &str, arguments: Vec<Value>) -> anyhow::Result<Value> {
    let indent = |spaces: &Value, value: &Value| {
        let pad = " ".repeat(spaces.as_u64().unwrap_or(0) as usize);
        let lines: Vec<String> = text(value).split('\n').map(|line| format!("{pad}{line}")).collect();
        lines.join("\n")
    };
    let number = |value: &Value| value.as_f64().with_context(|| format!("{value} is no number"));
    Ok(match (name, arguments.as_slice()) {
        ("fail", [why]) => bail!("{}", text(why)),
        ("required", [why, value]) => {
            if !truth(value) {
                bail!("{}", text(why));
            }
            value.clone()
        }
        ("not", [value]) => (!truth(value)).into(),
        ("eq", [first, others @ ..]) => others.iter().any(|other| same(first, other)).into(),
        ("ne", [a, b]) => (!same(a, b)).into(),
        ("lt", [a, b]) => (number(a)? < number(b)?).into(),
        ("gt", [a, b]) => (number(a)? > number(b)?).into(),
        ("default", [otherwise, value]) => if truth(value) { value } else { otherwise }.clone(),
        ("default", [otherwise]) => otherwise.clone(),
        ("ternary", [yes, no, which]) => if truth(which) { yes } else { no }.clone(),
        ("quote", values) => {
            let all: Vec<_> = values.iter().map(|value| json!(text(value)).to_string()).collect();
            all.join(" ").into()
        }
        ("indent", [spaces, value]) => indent(spaces, value).into(),
        ("nindent", [spaces, value]) => format!("\n{}", indent(spaces, value)).into(),
        ("toYaml", [value]) => serde_saphyr::to_string(value)?.trim_end().into(),
        ("fromYaml", [value]) => {
            xds_protos::json::value_from_yaml_str(&text(value)).map_err(|e| anyhow::anyhow!(e.message))?
        }
        ("toJson", [value]) => value.to_string().into(),
        ("toString", [value]) => text(value).into(),
        ("int", [value]) => json!(number(value)? as i64),
        ("list", values) => values.to_vec().into(),
        ("dict", pairs) => {
            let mut map = Map::new();
            for pair in pairs.chunks(2) {
                let [key, value] = pair else { bail!("a key without a value") };
                map.insert(text(key), value.clone());
            }
            map.into()
        }
        ("get", [map, key]) => map.get(text(key)).cloned().unwrap_or_default(),
        ("hasKey", [map, key]) => map.get(text(key)).is_some().into(),
        ("keys", [Value::Object(map)]) => map.keys().cloned().map(Value::from).collect(),
        ("keys", [Value::Null]) => json!([]),
        ("has", [one, Value::Array(list)]) => list.iter().any(|item| same(item, one)).into(),
        ("has", [_, Value::Null]) => false.into(),
        ("sortAlpha", [Value::Array(list)]) => {
            let mut all: Vec<String> = list.iter().map(text).collect();
            all.sort();
            all.into()
        }
        ("join", [between, Value::Array(list)]) => {
            list.iter().map(text).collect::<Vec<_>>().join(&text(between)).into()
        }
        ("omit", [Value::Object(map), names @ ..]) => {
            let kept = map.iter().filter(|(key, _)| names.iter().all(|name| name.as_str() != Some(key)));
            kept.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>().into()
        }
        ("deepCopy", [value]) => value.clone(),
        ("mergeOverwrite", [first, others @ ..]) => {
            let mut all = first.clone();
            others.iter().for_each(|other| lay(&mut all, other));
            all
        }
        ("printf", [Value::String(form), values @ ..]) => printf(form, values)?.into(),
        (_, values) => bail!("no function {name} of {} arguments is known here", values.len()),
    })
}

fn printf(form: &str, values: &[Value]) -> anyhow::Result<String> {
    let mut out = String::new();
    let (mut values, mut rest) = (values.iter(), form.chars());
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let verb = rest.next().context("a lone %")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = values.next().with_context(|| format!("%{verb} has no value"))?;
        match verb {
            's' | 'v' | 'd' => out.push_str(&text(value)),
            'q' => out.push_str(&json!(text(value)).to_string()),
            _ => bail!("%{verb} is not known here"),
        }
    }
    Ok(out)
}
