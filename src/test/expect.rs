//! What is expected against what was found.

use serde_json::{Map, Value};
use xds_protos::duration::parse;

/// What is otherwise. Only what is named is compared; an object's fields that are not named may be anything.
pub fn differences(expected: &Map<String, Value>, found: &Value) -> Vec<String> {
    let mut all = Vec::new();
    if expected.is_empty() {
        all.push("expect says nothing: name what shall be so, such as route or decision".to_owned());
    }
    compare("", &Value::Object(expected.clone()), found, &mut all);
    all
}

fn compare(path: &str, expected: &Value, found: &Value, all: &mut Vec<String>) {
    let place = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (key, value) in expected {
                match found.get(key) {
                    // Nothing is expected, and there is nothing.
                    None if value.is_null() => {}
                    Some(found) => compare(&place(key), value, found, all),
                    None => {
                        let known: Vec<_> = found.keys().map(String::as_str).collect();
                        all.push(format!("{}: there is none; there is {}", place(key), known.join(", ")));
                    }
                }
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (n, (expected, found)) in expected.iter().zip(found).enumerate() {
                compare(&format!("{path}[{n}]"), expected, found, all);
            }
        }
        _ if alike(expected, found) => {}
        _ => all.push(format!("{path}: expected {expected}, found {found}")),
    }
}

/// Equal, or the same length of time.
fn alike(expected: &Value, found: &Value) -> bool {
    if expected == found {
        return true;
    }
    match (expected.as_str().map(parse), found.as_str().map(parse)) {
        (Some(Ok(expected)), Some(Ok(found))) => expected == found,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(expected: Value, found: Value) -> Vec<String> {
        differences(expected.as_object().unwrap(), &found)
    }

    #[test]
    fn only_what_is_named_is_compared() {
        let found = json!({"route": "r", "timeout": "90s", "destinations": [{"host": "a", "weight": 90}, {"host": "b", "weight": 10}]});
        assert!(told(json!({"route": "r"}), found.clone()).is_empty());
        assert!(told(json!({"timeout": "90000ms"}), found.clone()).is_empty());
        assert!(told(json!({"destinations": [{"weight": 90}, {"host": "b"}]}), found.clone()).is_empty());
        assert_eq!(told(json!({"route": "x"}), found.clone()), [r#"route: expected "x", found "r""#]);
        assert_eq!(
            told(json!({"destinations": [{"weight": 80}, {}]}), found.clone()),
            ["destinations[0].weight: expected 80, found 90"]
        );
        let fewer = told(json!({"destinations": [{"host": "a"}]}), found.clone());
        assert!(fewer[0].starts_with("destinations: expected ["), "{fewer:?}");
        assert!(told(json!({"mirrors": null}), found.clone()).is_empty());
        assert_eq!(told(json!({"route": null}), found.clone()), [r#"route: expected null, found "r""#]);
        let unknown = told(json!({"subset": "v1"}), found.clone());
        assert!(unknown[0].contains("there is destinations, route, timeout"), "{unknown:?}");
        assert!(told(json!({}), found)[0].contains("says nothing"));
    }
}
