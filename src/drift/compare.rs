//! Where an object of a cluster is not what its file says.

use serde_json::{Map, Value};

use crate::plan::{Difference, values};

/// Annotations that tools write to remember what they applied.
const NOTES: [&str; 2] = ["kubectl.kubernetes.io/", "argocd.argoproj.io/"];

/// The fields that differ, `before` being the file's. With `defaults`, fields that the file does not have do not count.
pub(super) fn differences(wanted: &Value, live: &Value, defaults: bool) -> Vec<Difference> {
    let (was, mut is) = (relevant(wanted), relevant(live));
    // Labels and annotations have many writers; the file's are the ones that count.
    for list in ["labels", "annotations"] {
        keep(&mut is["metadata"][list], &was["metadata"][list]);
    }
    if defaults {
        keep(&mut is["spec"], &was["spec"]);
    }
    values(Some(&was), Some(&is))
}

/// What an object says, without what the API server and controllers note on it.
fn relevant(object: &Value) -> Value {
    let map = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let mut metadata = Map::new();
    metadata.insert("labels".into(), map(&object["metadata"]["labels"]).into());
    let mut annotations = map(&object["metadata"]["annotations"]);
    annotations.retain(|key, _| !NOTES.iter().any(|note| key.starts_with(note)));
    metadata.insert("annotations".into(), annotations.into());
    let mut whole = Map::new();
    whole.insert("metadata".into(), metadata.into());
    let own = object.as_object().into_iter().flatten();
    let own = own.filter(|(key, _)| !["apiVersion", "kind", "metadata", "status"].contains(&key.as_str()));
    whole.extend(own.map(|(key, value)| (key.clone(), plain(value))));
    Value::Object(whole)
}

/// Numbers as one kind of number, so that 1 and 1.0 are the same; and no fields that say nothing.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().map_or_else(|| value.clone(), |number| number.into()),
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            fields.map(|(key, value)| (key.clone(), plain(value))).collect()
        }
        _ => value.clone(),
    }
}

/// Leaves of `live` what `wanted` has, at every depth; elements of lists are those at the same place.
fn keep(live: &mut Value, wanted: &Value) {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            live.retain(|key, _| wanted.contains_key(key));
            live.iter_mut().for_each(|(key, value)| keep(value, &wanted[key]));
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.iter_mut().zip(wanted).for_each(|(live, wanted)| keep(live, wanted));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(wanted: Value, live: Value, defaults: bool) -> Vec<String> {
        differences(&wanted, &live, defaults).into_iter().map(|one| one.path).collect()
    }

    #[test]
    fn what_the_api_server_notes_is_no_difference() {
        let wanted = json!({"apiVersion": "networking.istio.io/v1beta1", "metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {"weight": 1}});
        let live = json!({"apiVersion": "networking.istio.io/v1", "metadata": {"name": "a", "uid": "u", "labels": {"x": "1", "y": "2"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}, "spec": {"weight": 1.0}, "status": {"a": 1}});
        assert_eq!(paths(wanted, live, false), Vec::<String>::new());
    }

    #[test]
    fn fields_changed_added_and_taken_away_are_told() {
        let wanted = json!({"metadata": {"labels": {"x": "1"}}, "spec": {"a": 1, "b": {"c": [1, 2]}}});
        let live = json!({"metadata": {"labels": {"x": "2"}}, "spec": {"b": {"c": [1, 3]}, "d": true}});
        assert_eq!(paths(wanted, live, false), ["metadata.labels.x", "spec.a", "spec.b.c[1]", "spec.d"]);
    }

    #[test]
    fn defaults_of_a_service_do_not_count_and_its_ports_do() {
        let wanted = json!({"spec": {"selector": {"app": "a"}, "ports": [{"port": 80}]}});
        let live = |port: u16| json!({"spec": {"clusterIP": "10.0.0.1", "selector": {"app": "a"}, "ports": [{"port": port, "protocol": "TCP"}]}});
        assert_eq!(paths(wanted.clone(), live(80), true), Vec::<String>::new());
        assert_eq!(paths(wanted, live(81), true), ["spec.ports[0].port"]);
    }
}
