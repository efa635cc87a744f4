//! Lays what a pod says itself over what is put into it, as Kubernetes' strategic merge does for containers and volumes.

use serde_json::Value;

/// By which field the items of a list are the same.
const KEYS: [(&str, &str); 6] = [
    ("env", "name"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("volumes", "name"),
    ("imagePullSecrets", "name"),
    ("ports", "containerPort"),
];

/// `over` counts where both say something.
pub(super) fn lay(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match (base.get_mut(key), by(key)) {
                    (Some(Value::Array(list)), Some(id)) => lay_list(list, value, id),
                    (Some(here), _) => lay(here, value),
                    (None, _) => {
                        base.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (base, over) => base.clone_from(over),
    }
}

fn by(key: &str) -> Option<&'static str> {
    KEYS.iter().find(|(list, _)| *list == key).map(|(_, id)| *id)
}

/// Items of the same key are laid over each other; others come behind.
fn lay_list(list: &mut Vec<Value>, over: &Value, id: &str) {
    for item in over.as_array().map(Vec::as_slice).unwrap_or_default() {
        match list.iter_mut().find(|one| one[id] == item[id] && !item[id].is_null()) {
            // A value and a source of a value exclude each other.
            Some(one) if id == "name" && (item.get("value").is_some() || item.get("valueFrom").is_some()) => {
                one.clone_from(item);
            }
            Some(one) => lay(one, item),
            None => list.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::lay;

    #[test]
    fn lists_go_together_by_their_keys() {
        let mut base = json!({"image": "a", "args": ["x", "y"], "resources": {"limits": {"cpu": "1", "memory": "2"}},
            "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"f": 1}}], "ports": [{"containerPort": 1, "name": "a"}]});
        let over = json!({"args": ["z"], "resources": {"limits": {"cpu": "3"}}, "tty": true,
            "env": [{"name": "B", "value": "2"}, {"name": "C", "value": "3"}], "ports": [{"containerPort": 1, "name": "b"}]});
        lay(&mut base, &over);
        assert_eq!(
            base,
            json!({"image": "a", "args": ["z"], "resources": {"limits": {"cpu": "3", "memory": "2"}}, "tty": true,
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}, {"name": "C", "value": "3"}],
                "ports": [{"containerPort": 1, "name": "b"}]})
        );
    }
}
