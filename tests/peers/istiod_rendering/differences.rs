//! What istiod renders otherwise than our control plane on purpose: `differences.yaml` names the cases, by file, with the reason. One that
//! is there no more is named by the test.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value};

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    /// What is otherwise, and why.
    why: String,
    /// It is so or not, as it happens: nobody asks whether it is there.
    #[serde(default)]
    by_chance: bool,
    /// Names of cases by file.
    cases: BTreeMap<String, Vec<String>>,
}

/// Differences that are known, and those of them that were met.
pub struct Differences {
    known: BTreeSet<(String, String)>,
    by_chance: BTreeSet<(String, String)>,
    met: BTreeSet<(String, String)>,
}

impl Differences {
    pub fn read() -> Self {
        let all: Vec<Difference> = serde_saphyr::from_str(include_str!("differences.yaml")).unwrap();
        let (mut known, mut by_chance) = (BTreeSet::new(), BTreeSet::new());
        for difference in all {
            assert!(!difference.why.trim().is_empty(), "a difference has no reason");
            for (file, names) in difference.cases {
                for name in names {
                    let key = (file.clone(), name.clone());
                    if difference.by_chance {
                        by_chance.insert(key.clone());
                    }
                    assert!(known.insert(key), "{file}: {name:?} stands twice");
                }
            }
        }
        Self { known, by_chance, met: BTreeSet::new() }
    }

    /// What of a case's failures nobody knows of.
    pub fn unknown(&mut self, file: &str, case: &str, failures: Vec<String>) -> Option<Vec<String>> {
        let key = (file.to_owned(), case.to_owned());
        if failures.is_empty() {
            return None;
        }
        if self.known.contains(&key) {
            self.met.insert(key);
            return None;
        }
        Some(failures)
    }

    /// As many as were met.
    pub fn met(&self) -> usize {
        self.met.len()
    }

    /// Those that are none, or none any more.
    pub fn unneeded(&self) -> impl Iterator<Item = String> {
        let gone = self.known.difference(&self.met).filter(|key| !self.by_chance.contains(key));
        gone.map(|(file, case)| {
            format!("{file}: {case}\n    it is as with istiod: take it out of differences.yaml")
        })
    }
}

/// What is otherwise than expected, in the words of our control plane: istiod has a proxy's agent read the files of TLS, as secrets with
/// these names; ours has the proxy read them.
pub fn between(expected: &Map<String, Value>, found: &Value) -> Vec<String> {
    let mut found = found.clone();
    for destination in found["destinations"].as_array_mut().into_iter().flatten() {
        for (key, prefix) in [("roots", "file-root:"), ("certificate", "file-cert:")] {
            let name = destination["tls"][key].as_str().and_then(|name| name.strip_prefix(prefix));
            if let Some(files) = name {
                destination["tls"][key] = files.split('~').next().into();
            }
        }
    }
    weft::test::differences(expected, &found)
}
