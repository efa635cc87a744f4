//! Where two versions of a resource differ, field by field.

use serde::Serialize;
use serde_json::Value;
use weft_control::render::Resource;
use xds_protos::ResourceType;

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Where: `filter_chains[0].filters[envoy.filters.network.http_connection_manager].typed_config.route_config`. Elements
    /// that have names stand under them.
    pub path: String,
    /// What it was; nothing if it was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// Where two versions of a resource differ.
pub(super) fn differences(kind: ResourceType, was: &Resource, is: &Resource) -> Vec<Difference> {
    let name = xds_protos::type_url::name(kind.type_url());
    let value = |resource: &Resource| xds_protos::json::bytes_to_value(name, &resource.bytes);
    values(Some(&value(was)), Some(&value(is)))
}

/// Where two values differ.
pub fn values(was: Option<&Value>, is: Option<&Value>) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(&mut String::new(), was, is, &mut found);
    found
}

fn compare(path: &mut String, was: Option<&Value>, is: Option<&Value>, found: &mut Vec<Difference>) {
    match (was, is) {
        (Some(was), Some(is)) if was == is => {}
        (Some(Value::Object(was)), Some(Value::Object(is))) => {
            let keys = was.keys().chain(is.keys().filter(|key| !was.contains_key(*key)));
            for key in keys {
                let step = if path.is_empty() { key.clone() } else { format!(".{key}") };
                under(path, &step, |path| compare(path, was.get(key), is.get(key), found));
            }
        }
        (Some(Value::Array(was)), Some(Value::Array(is))) => lists(path, was, is, found),
        _ => {
            let (before, after) = (was.cloned(), is.cloned());
            found.push(Difference { path: path.clone(), before, after });
        }
    }
}

fn under(path: &mut String, step: &str, then: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push_str(step);
    then(path);
    path.truncate(length);
}

/// What tells an element of a list from the others.
fn label(item: &Value) -> Option<String> {
    if let Some(name) = item.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()) {
        return Some(name.to_owned());
    }
    // An endpoint is known by where it is.
    let at = item.pointer("/endpoint/address/socket_address")?;
    Some(format!("{}:{}", at.get("address")?.as_str()?, at.get("port_value").unwrap_or(&Value::Null)))
}

/// The elements' labels, if each has one of its own.
fn labels(items: &[Value]) -> Option<Vec<String>> {
    let all: Vec<_> = items.iter().map(label).collect::<Option<_>>()?;
    let mut unique = all.clone();
    unique.sort();
    unique.dedup();
    (unique.len() == all.len()).then_some(all)
}

fn lists(path: &mut String, was: &[Value], is: &[Value], found: &mut Vec<Difference>) {
    if let (Some(old), Some(new)) = (labels(was), labels(is)) {
        let at = |labels: &[String], items: &'_ [Value], label: &str| {
            labels.iter().position(|l| l == label).and_then(|n| items.get(n).cloned())
        };
        let all = old.iter().chain(new.iter().filter(|label| !old.contains(label)));
        for label in all {
            let (was, is) = (at(&old, was, label), at(&new, is, label));
            under(path, &format!("[{label}]"), |path| compare(path, was.as_ref(), is.as_ref(), found));
        }
        let (kept, order): (Vec<_>, Vec<_>) = (
            old.iter().filter(|l| new.contains(l)).collect(),
            new.iter().filter(|l| old.contains(l)).collect(),
        );
        if kept != order {
            let list = |labels: Vec<&String>| Some(labels.into_iter().cloned().collect::<Value>());
            found.push(Difference {
                path: format!("{path} (order)"),
                before: list(kept),
                after: list(order),
            });
        }
        return;
    }
    // What is the same at both ends did not change; between, element by element.
    let first = was.iter().zip(is).take_while(|(a, b)| a == b).count();
    let (was, is) = (was.get(first..).unwrap_or_default(), is.get(first..).unwrap_or_default());
    let last = was.iter().rev().zip(is.iter().rev()).take_while(|(a, b)| a == b).count();
    let (was, is) =
        (was.get(..was.len() - last).unwrap_or_default(), is.get(..is.len() - last).unwrap_or_default());
    for n in 0..was.len().max(is.len()) {
        under(path, &format!("[{}]", first + n), |path| compare(path, was.get(n), is.get(n), found));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(was: Value, is: Value) -> Vec<String> {
        let found = values(Some(&was), Some(&is));
        let text = |value: Option<Value>| value.map_or("-".to_owned(), |v| v.to_string());
        found.into_iter().map(|d| format!("{} {} {}", d.path, text(d.before), text(d.after))).collect()
    }

    #[test]
    fn a_field_that_differs_is_told_by_its_path() {
        assert_eq!(
            told(json!({"a": {"b": 1, "c": 2}, "d": 3}), json!({"a": {"b": 1, "c": 4}, "e": 5})),
            ["a.c 2 4", "d 3 -", "e - 5"]
        );
        assert!(told(json!({"a": [1, {"b": 2}]}), json!({"a": [1, {"b": 2}]})).is_empty());
    }

    #[test]
    fn elements_with_names_are_compared_with_their_like_wherever_they_stand() {
        let was = json!({"f": [{"name": "x", "v": 1}, {"name": "y", "v": 2}]});
        let is = json!({"f": [{"name": "new"}, {"name": "x", "v": 1}, {"name": "y", "v": 3}]});
        assert_eq!(told(was.clone(), is), ["f[y].v 2 3", r#"f[new] - {"name":"new"}"#]);
        let is = json!({"f": [{"name": "y", "v": 2}, {"name": "x", "v": 1}]});
        assert_eq!(told(was, is), [r#"f (order) ["x","y"] ["y","x"]"#]);
    }

    #[test]
    fn endpoints_are_known_by_their_address() {
        let endpoint = |ip: &str, weight: u32| json!({"endpoint": {"address": {"socket_address": {"address": ip, "port_value": 80}}}, "load_balancing_weight": weight});
        let was = json!({"lb": [endpoint("10.0.0.1", 1), endpoint("10.0.0.2", 1)]});
        let is = json!({"lb": [endpoint("10.0.0.2", 5)]});
        let told = told(was, is);
        assert!(told[0].starts_with("lb[10.0.0.1:80] {"), "{told:?}");
        assert_eq!(told[1..], ["lb[10.0.0.2:80].load_balancing_weight 1 5"]);
    }

    #[test]
    fn an_element_put_between_others_changes_none_of_them() {
        assert_eq!(told(json!([1, 2, 3]), json!([1, 9, 2, 3])), ["[1] - 9"]);
        assert_eq!(told(json!([1, 2, 3]), json!([1, 3])), ["[1] 2 -"]);
        assert_eq!(told(json!([{"a": 1}, {"a": 2}]), json!([{"a": 1}, {"a": 3}])), ["[1].a 2 3"]);
    }
}
