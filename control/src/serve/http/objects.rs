//! Every object that was read, and how it stands: whether it is valid, on how many of the connected proxies it is in effect, and what there
//! is to say of it. In a cluster the objects themselves are told the same; a directory has but this page.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Pages;
use crate::ingest::{Diagnostic, Snapshot};
use crate::serve::status::message_of;

/// How many proxies have taken the state that is in force, of all that are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Followers {
    taken: usize,
    connected: usize,
}

impl Pages {
    pub(super) fn objects(&self) -> Value {
        let snapshot = self.snapshots.borrow().clone();
        let latest = self.queue.clone().latest();
        let (taken, connected) = self.proxies.following(latest.number);
        // What has been read and is not on its way yet, nobody has.
        let taken = if latest.generation >= snapshot.generation { taken } else { 0 };
        json!({
            "generation": snapshot.generation, "refused": snapshot.refused,
            "diagnostics": &*snapshot.diagnostics, "objects": listed(&snapshot, Followers { taken, connected }),
        })
    }
}

fn listed(snapshot: &Snapshot, followers: Followers) -> Vec<Value> {
    let mut findings: BTreeMap<&str, Vec<&Diagnostic>> = BTreeMap::new();
    for finding in snapshot.diagnostics.iter() {
        if let Some(object) = &finding.object {
            findings.entry(object).or_default().push(finding);
        }
    }
    let mut all = BTreeMap::new();
    for meta in snapshot.world.written() {
        let key = meta.key();
        if all.contains_key(&key) {
            continue;
        }
        let of = findings.remove(key.to_string().as_str()).unwrap_or_default();
        let object = json!({
            "kind": key.kind.as_str(), "namespace": key.namespace, "name": key.name, "apiVersion": meta.api_version,
            "source": meta.source.to_string(), "status": status(&of, true, snapshot.refused, followers),
        });
        all.insert(key, object);
    }
    let mut all: Vec<Value> = all.into_values().collect();
    // Of those that are left no version is in force.
    for (label, of) in findings {
        let Some(wrong) = of.iter().find(|finding| finding.is_error()) else { continue };
        let Some((kind, name)) = label.split_once(' ') else { continue };
        let Some((namespace, name)) = name.split_once('/') else { continue };
        all.push(json!({
            "kind": kind, "namespace": namespace, "name": name, "source": format!("{}:{}", wrong.file, wrong.line),
            "status": status(&of, false, snapshot.refused, followers),
        }));
    }
    all
}

/// How one stands, in the words of a cluster's conditions. Where the last reading was `refused`, nothing that was read then is in
/// force: what the proxies have may be another text than that of the file.
fn status(findings: &[&Diagnostic], in_force: bool, refused: bool, followers: Followers) -> Value {
    let valid = !findings.iter().any(|finding| finding.is_error());
    let Followers { taken, connected } = followers;
    let (effective, reason) = match (valid, in_force) {
        (true, _) if refused => (false, "OthersRefused"),
        (true, _) if taken < connected => (false, "Pending"),
        (true, _) => (true, "Delivered"),
        (false, true) => (false, "EarlierVersion"),
        (false, false) => (false, "Refused"),
    };
    // An earlier version is where this one is not.
    let taken = if valid && !refused { taken } else { 0 };
    json!({
        "valid": valid, "effective": effective, "reason": reason, "proxies": {"taken": taken, "connected": connected},
        "validationMessages": findings.iter().map(|finding| message_of(finding)).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::load_str;

    /// An object of each kind that Istio and Weft have for a mesh.
    const ALL: &str = include_str!("kinds.yaml");

    fn snapshot(good: &str, now: &str) -> Snapshot {
        let world = load_str("a.yaml", good).world.expect(now);
        let outcome = load_str("a.yaml", now);
        Snapshot {
            refused: outcome.world.is_none(),
            world: outcome.world.unwrap_or(world),
            generation: 1,
            attempts: 1,
            diagnostics: outcome.diagnostics.into(),
            skipped: outcome.skipped.into(),
        }
    }

    fn of<'v>(all: &'v [Value], kind: &str) -> &'v Value {
        all.iter().find(|one| one["kind"] == kind).unwrap_or_else(|| panic!("{kind} is not in {all:#?}"))
    }

    #[test]
    fn every_kind_is_told_how_it_stands() {
        let followers = Followers { taken: 2, connected: 2 };
        let all = listed(&snapshot(ALL, ALL), followers);
        let kinds: std::collections::BTreeSet<_> = ALL
            .lines()
            .filter_map(|line| line.strip_prefix("kind: "))
            .map(|kind| if kind == "ConfigMap" { "MeshConfig" } else { kind })
            .collect();
        for kind in kinds {
            let status = &of(&all, kind)["status"];
            assert_eq!(
                (&status["valid"], &status["effective"]),
                (&json!(true), &json!(true)),
                "{kind}: {status}"
            );
            assert_eq!(status["proxies"], json!({"taken": 2, "connected": 2}), "{kind}");
        }
        // What a ServiceMeshConfig stands for was written by nobody.
        assert!(!all.iter().any(|one| one["name"] == "mesh-cart"), "{all:#?}");
        let slow = listed(&snapshot(ALL, ALL), Followers { taken: 1, connected: 2 });
        assert_eq!(of(&slow, "Sidecar")["status"]["reason"], "Pending");
    }

    #[test]
    fn what_is_wrong_is_told_beside_what_is_in_force() {
        let followers = Followers { taken: 1, connected: 1 };
        let rule = |more: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a, namespace: shop}}\nspec: {{host: a.com{more}}}\n"
            )
        };
        let sound = |mode: &str| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: shop}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
            )
        };
        let new = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: new, namespace: shop}\nspec: {egres: []}\n";
        let all = listed(
            &snapshot(&(rule("") + &sound("STRICT")), &(rule(", hots: b") + &sound("PERMISSIVE") + new)),
            followers,
        );
        let status = &of(&all, "DestinationRule")["status"];
        assert_eq!(
            (&status["valid"], &status["reason"]),
            (&json!(false), &json!("EarlierVersion")),
            "{status}"
        );
        assert_eq!(status["proxies"], json!({"taken": 0, "connected": 1}));
        let said = status["validationMessages"][0]["message"].as_str().unwrap();
        assert!(said.contains("hots"), "{said}");
        // What is right by itself was refused with it: its new text is in force nowhere.
        let sound = &of(&all, "PeerAuthentication")["status"];
        assert_eq!((&sound["valid"], &sound["effective"]), (&json!(true), &json!(false)), "{sound}");
        assert_eq!(
            (&sound["reason"], &sound["proxies"]["taken"]),
            (&json!("OthersRefused"), &json!(0)),
            "{sound}"
        );
        let sidecar = of(&all, "Sidecar");
        assert_eq!(sidecar["status"]["reason"], "Refused", "{sidecar}");
        assert!(sidecar["source"].as_str().unwrap().starts_with("a.yaml:"), "{sidecar}");
    }
}
