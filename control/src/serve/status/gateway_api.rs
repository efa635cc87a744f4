//! The status of objects of the Gateway API, as its specification has it.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::ingest::cluster::Verdict;
use crate::ingest::gateway_api::{Address, Condition, FEATURES, ListenerStanding, ParentStanding, Standing};
use crate::model::gateway_api::{CONTROLLER, GROUP, ParentRef};

/// What is to be written. What other controllers have written of a route stays.
pub(super) fn status(verdict: &Verdict, standing: &Standing) -> Value {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or_else(|_| OffsetDateTime::now_utc());
    let now = now.format(&Rfc3339).unwrap_or_default();
    let old = &verdict.status;
    let all = |conditions: &[Condition], before: &Value| written(verdict, conditions, before, &now);
    match standing {
        Standing::Class(conditions) => json!({
            "conditions": all(conditions, &old["conditions"]),
            "supportedFeatures": FEATURES.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
        }),
        Standing::Gateway { conditions, listeners, addresses } => {
            let listeners: Vec<_> = listeners
                .iter()
                .map(|one| {
                    listener(one, all(&one.conditions, &named(&old["listeners"], &one.name)["conditions"]))
                })
                .collect();
            let addresses: Vec<_> = addresses
                .iter()
                .map(|address| match address {
                    Address::Ip(ip) => json!({"type": "IPAddress", "value": ip}),
                    Address::Host(host) => json!({"type": "Hostname", "value": host}),
                })
                .collect();
            json!({
                "conditions": all(conditions, &old["conditions"]),
                "listeners": listeners,
                "addresses": addresses,
            })
        }
        Standing::Route(parents) => {
            let entries = old["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
            let others = entries.iter().filter(|entry| entry["controllerName"] != CONTROLLER).cloned();
            let ours = parents.iter().map(|ParentStanding { parent, conditions }| {
                let parent = reference(parent);
                let before = entries
                    .iter()
                    .find(|entry| entry["controllerName"] == CONTROLLER && entry["parentRef"] == parent);
                let before = before.map_or(&Value::Null, |entry| &entry["conditions"]);
                json!({"parentRef": parent, "controllerName": CONTROLLER, "conditions": all(conditions, before)})
            });
            let all: Vec<_> = others.chain(ours).collect();
            json!({"parents": all})
        }
    }
}

/// Whether the object says already what would be written.
pub(super) fn says_the_same(verdict: &Verdict, standing: &Standing) -> bool {
    let wanted = status(verdict, standing);
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    wanted.as_object().is_some_and(|wanted| {
        wanted.iter().all(|(key, value)| {
            verdict.status[key] == *value || (empty(value) && empty(&verdict.status[key]))
        })
    })
}

/// Conditions, each with the time at which it became so; those of other types stay.
fn written(verdict: &Verdict, conditions: &[Condition], before: &Value, now: &str) -> Vec<Value> {
    let before = before.as_array().map(Vec::as_slice).unwrap_or_default();
    let others = before.iter().filter(|old| conditions.iter().all(|one| old["type"] != one.kind)).cloned();
    let ours = conditions.iter().map(|one| {
        let status = if one.holds { "True" } else { "False" };
        let same = before.iter().find(|old| old["type"] == one.kind && old["status"] == status);
        let since = same.and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(now);
        let mut condition = json!({
            "type": one.kind, "status": status, "reason": one.reason, "message": one.message,
            "lastTransitionTime": since,
        });
        if let Some(generation) = verdict.generation {
            condition["observedGeneration"] = generation.into();
        }
        condition
    });
    ours.chain(others).collect()
}

fn named<'v>(list: &'v Value, name: &str) -> &'v Value {
    let found = list.as_array().and_then(|all| all.iter().find(|one| one["name"] == name));
    found.unwrap_or(&Value::Null)
}

fn listener(one: &ListenerStanding, conditions: Vec<Value>) -> Value {
    let kinds: Vec<_> = one.kinds.iter().map(|kind| json!({"group": GROUP, "kind": kind})).collect();
    json!({
        "name": one.name, "supportedKinds": kinds, "attachedRoutes": one.attached, "conditions": conditions,
    })
}

/// As the route has it.
fn reference(parent: &ParentRef) -> Value {
    let mut json = json!({"name": parent.name});
    for (key, value) in [
        ("group", &parent.group),
        ("kind", &parent.kind),
        ("namespace", &parent.namespace),
        ("sectionName", &parent.section_name),
    ] {
        if let Some(value) = value {
            json[key] = value.as_str().into();
        }
    }
    if let Some(port) = parent.port {
        json["port"] = port.into();
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: Value) -> Verdict {
        Verdict {
            generation: Some(4),
            api_version: "gateway.networking.k8s.io/v1".to_owned(),
            findings: Vec::new(),
            earlier: false,
            status,
            resource_version: "9".to_owned(),
            standing: None,
        }
    }

    fn condition(holds: bool) -> Condition {
        Condition { kind: "Accepted", holds, reason: "Accepted", message: String::new() }
    }

    fn route(holds: bool) -> Standing {
        let parent = ParentRef {
            name: "edge".to_owned(),
            section_name: Some("http".to_owned()),
            ..ParentRef::default()
        };
        Standing::Route(vec![ParentStanding { parent, conditions: vec![condition(holds)] }])
    }

    #[test]
    fn what_other_controllers_say_of_a_route_stays() {
        let other =
            json!({"controllerName": "other.example/c", "parentRef": {"name": "theirs"}, "conditions": []});
        let old = json!({"controllerName": CONTROLLER, "parentRef": {"name": "gone"}, "conditions": []});
        let status = status(&verdict(json!({"parents": [other, old]})), &route(true));
        let parents = status["parents"].as_array().unwrap();
        assert_eq!(parents.len(), 2, "{status}");
        assert_eq!(parents[0], other);
        assert_eq!(parents[1]["parentRef"], json!({"name": "edge", "sectionName": "http"}));
        assert_eq!(parents[1]["conditions"][0]["status"], "True");
        assert_eq!(parents[1]["conditions"][0]["observedGeneration"], 4);
    }

    #[test]
    fn what_is_there_already_is_not_written_again() {
        let mut there = status(&verdict(Value::Null), &route(true));
        assert!(says_the_same(&verdict(there.clone()), &route(true)));
        assert!(!says_the_same(&verdict(there.clone()), &route(false)));
        assert!(!says_the_same(&verdict(Value::Null), &route(true)));
        // A condition keeps its time while it stays as it is.
        there["parents"][0]["conditions"][0]["lastTransitionTime"] = "2026-01-01T00:00:00Z".into();
        assert!(says_the_same(&verdict(there.clone()), &route(true)));
        let turned = status(&verdict(there), &route(false));
        assert_ne!(turned["parents"][0]["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:00Z");
    }

    #[test]
    fn a_class_keeps_conditions_of_other_types() {
        let old = json!({"conditions": [{"type": "Accepted", "status": "Unknown"}, {"type": "Other", "status": "True"}]});
        let status = status(&verdict(old), &Standing::Class(vec![condition(true)]));
        assert_eq!(status["conditions"][0]["status"], "True");
        assert_eq!(status["conditions"][1]["type"], "Other");
    }
}
