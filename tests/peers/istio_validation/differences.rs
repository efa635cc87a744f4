//! Where we mean to say something else than Istio of an object: data, in `differences.yaml`.

use std::path::Path;

use regex::Regex;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    kind: String,
    /// What is said, by Istio or by us: a regular expression.
    says: String,
    /// The reason; for readers.
    why: String,
}

struct Known {
    difference: Difference,
    says: Regex,
    used: bool,
}

/// The file's shape.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Istio refuses them.
    taken: Vec<Difference>,
    /// Istio takes them.
    refused: Vec<Difference>,
}

pub struct Differences {
    taken: Vec<Known>,
    refused: Vec<Known>,
}

impl Differences {
    pub fn read() -> Self {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/istio_validation/differences.yaml");
        let File { taken, refused } =
            serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let known = |difference: Difference| {
            assert!(difference.why.len() > 10, "{}: without a reason", difference.says);
            Known { says: Regex::new(&difference.says).unwrap(), difference, used: false }
        };
        let list = |all: Vec<Difference>| all.into_iter().map(known).collect();
        Self { taken: list(taken), refused: list(refused) }
    }

    /// Whether we mean to take what Istio refuses so.
    pub fn takes(&mut self, kind: &str, why: &str) -> bool {
        found(&mut self.taken, kind, why)
    }

    /// Whether we mean to refuse for one of these reasons what Istio takes.
    pub fn refuses(&mut self, kind: &str, reasons: &[String]) -> bool {
        reasons.iter().any(|why| found(&mut self.refused, kind, why))
    }

    /// Those that no object needed.
    pub fn unused(&self) -> Vec<String> {
        let all = self.taken.iter().chain(&self.refused).filter(|known| !known.used);
        all.map(|known| format!("{} {}", known.difference.kind, known.difference.says)).collect()
    }
}

fn found(list: &mut [Known], kind: &str, why: &str) -> bool {
    let known = list.iter_mut().find(|known| known.difference.kind == kind && known.says.is_match(why));
    known.map(|known| known.used = true).is_some()
}
