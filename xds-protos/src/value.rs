//! `google.protobuf.Value` and `Struct` as JSON, and back: node metadata, dynamic metadata, and what a `TypedStruct` holds.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

/// Whole numbers up to here are the same as a double and as an integer.
const WHOLE: f64 = 9e15;

/// A value as JSON. A number without a fraction is written without one, as protobuf's JSON does.
pub fn to_json(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(b)) => (*b).into(),
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < WHOLE => (*n as i64).into(),
        Some(Kind::NumberValue(n)) => (*n).into(),
        Some(Kind::StringValue(s)) => s.as_str().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(to_json).collect(),
        Some(Kind::StructValue(s)) => struct_to_json(s),
    }
}

/// A struct as JSON, its keys sorted.
pub fn struct_to_json(fields: &Struct) -> serde_json::Value {
    fields.fields.iter().map(|(k, v)| (k.clone(), to_json(v))).collect::<serde_json::Map<_, _>>().into()
}

/// JSON as a value. Protobuf's numbers are doubles.
pub fn from_json(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(b) => Kind::BoolValue(b),
        serde_json::Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        serde_json::Value::String(s) => Kind::StringValue(s),
        serde_json::Value::Array(items) => {
            Kind::ListValue(ListValue { values: items.into_iter().map(from_json).collect() })
        }
        serde_json::Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields.into_iter().map(|(key, value)| (key, from_json(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_comes_back_as_it_was_and_whole_numbers_stay_whole() {
        let value =
            json!({"a": [null, true, 3, -2.5, "x"], "b": {"c": 1e300, "d": 9_007_199_254_740_993_i64}});
        let back = to_json(&from_json(value));
        assert_eq!(back["a"].to_string(), "[null,true,3,-2.5,\"x\"]");
        // Beyond what a double tells apart it does not look exact.
        assert_eq!((back["b"]["c"].as_f64(), back["b"]["d"].is_f64()), (Some(1e300), true));
        assert_eq!(to_json(&Value { kind: None }), json!(null));
    }
}
