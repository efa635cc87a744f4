//! What a proxy has kept of the tables' requests, beside what was observed of them: the decision that it explains is the one that
//! client and access log saw.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::clients::Outcome;
use super::table::{Case, Group};

/// The flags of a proxy that keeps all of a table's requests.
pub const KEEP_ALL: [&str; 4] = ["--request-sample", "1", "--request-record-kib", "65536"];

/// What clients and access log saw of all cases, by their numbers.
pub struct Observed<'a> {
    pub(super) cases: Vec<(usize, &'a Group, &'a Case)>,
    pub(super) outcomes: BTreeMap<usize, Outcome>,
    pub(super) lines: BTreeMap<String, Value>,
}

impl Observed<'_> {
    /// How many cases there are.
    pub fn count(&self) -> usize {
        self.cases.len()
    }

    /// What was explained otherwise than it was observed, and how many cases there were. `page` asks the proxy's admin interface.
    pub fn explained(&self, page: impl Fn(&str) -> Option<String>) -> (Vec<String>, usize) {
        let requests = || self.cases.iter().enumerate().filter(|(_, (_, group, _))| !group.tcp);
        // A case whose connection did not come about left nothing to be kept.
        let answered = |number: usize| !self.outcomes[&number].head.is_empty();
        let wanted: Vec<usize> = requests().map(|(number, _)| number).filter(|n| answered(*n)).collect();
        let kept = kept(page, &wanted);
        let mut wrong = Vec::new();
        for number in &wanted {
            let (_, group, case) = &self.cases[*number];
            let line = self.lines.get(&number.to_string());
            let result = match (kept.get(number), line) {
                (Some(kept), Some(line)) => same(kept, &self.outcomes[number], line),
                (None, _) => Err("the proxy has not kept it".to_owned()),
                (_, None) => Err("it is not in the access log".to_owned()),
            };
            if let Err(why) = result {
                wrong.push(format!("{}: {}: {why}", group.name, case.text));
            }
        }
        (wrong, wanted.len())
    }
}

/// What is kept, by the numbers of cases, once it is all of these.
fn kept(page: impl Fn(&str) -> Option<String>, wanted: &[usize]) -> BTreeMap<usize, Value> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let text = page("/weft/requests?limit=100000").unwrap_or_default();
        let page: Value = serde_json::from_str(&text).unwrap_or_default();
        let all = page["requests"].as_array().into_iter().flatten();
        let numbered =
            |one: &Value| Some((one["id"].as_str()?.strip_prefix("case-")?.parse().ok()?, one.clone()));
        let found: BTreeMap<usize, Value> = all.filter_map(numbered).collect();
        if wanted.iter().all(|number| found.contains_key(number)) || Instant::now() > deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether what is explained is what was observed.
fn same(kept: &Value, outcome: &Outcome, line: &Value) -> Result<(), String> {
    let status = outcome.text.split(' ').next().and_then(|status| status.parse::<u64>().ok());
    let details = line["details"].as_str().filter(|details| *details != "-");
    let rbac = kept["decisions"].as_array().into_iter().flatten().filter(|d| d["filter"] == "rbac");
    let enforced = rbac.clone().filter(|d| d["verdict"] == "allowed" || d["verdict"] == "denied");
    let policy = enforced.filter_map(|d| d["name"].as_str()).next_back().unwrap_or("-");
    let arrived =
        kept["attempts"].as_array().is_some_and(|tries| tries.iter().any(|one| one["outcome"] == "answered"));
    for (what, explained, observed) in [
        ("status", &kept["status"], Value::from(status)),
        ("details", &kept["details"], Value::from(details)),
        ("policy", &Value::from(policy), line["policy"].as_str().unwrap_or("-").into()),
        ("arrival", &Value::from(arrived), Value::from(outcome.allowed)),
    ] {
        if *explained != observed {
            return Err(format!("{what}: explained {explained}, observed {observed}\n{kept}"));
        }
    }
    Ok(())
}
