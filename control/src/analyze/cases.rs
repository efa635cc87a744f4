//! Every code by what triggers it and by what comes near and does not (`cases.yaml`).

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Code, Message, analyze};
use crate::ingest::load_str;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    /// What stands before each, and has nothing to be said about.
    base: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    code: String,
    /// The resource that is found.
    on: String,
    /// The field, if one is named.
    #[serde(default)]
    path: Option<String>,
    /// Words of the message.
    says: Vec<String>,
    /// What is added to the base, and found.
    found: String,
    /// What is added to the base in its place, and not found.
    passes: String,
    /// Without the base.
    #[serde(default)]
    alone: bool,
}

fn cases() -> Cases {
    let value = xds_protos::json::value_from_yaml_str(include_str!("cases.yaml")).unwrap();
    serde_json::from_value(value).unwrap()
}

fn messages(text: &str) -> Vec<Message> {
    let world =
        load_str("case.yaml", text).into_result().unwrap_or_else(|wrong| panic!("{wrong:#?}\n{text}"));
    analyze(&world)
}

#[test]
fn every_code_is_triggered_and_has_a_near_miss() {
    let Cases { base, cases } = cases();
    let quiet = messages(&base);
    assert!(quiet.is_empty(), "{quiet:#?}");
    let mut seen = BTreeSet::new();
    for case in &cases {
        let base = if case.alone { "" } else { base.as_str() };
        let of = |found: &[Message]| -> Vec<Message> {
            let is = |message: &&Message| {
                message.name == case.code && message.resource.as_deref() == Some(case.on.as_str())
            };
            found.iter().filter(is).cloned().collect()
        };
        let text = format!("{base}\n---\n{}", case.found);
        let found = messages(&text);
        let its_own = of(&found);
        let [message] = its_own.as_slice() else {
            panic!("{} on {}: {} of {found:#?}", case.code, case.on, its_own.len());
        };
        for words in &case.says {
            let text = message.to_string();
            assert!(text.contains(words), "{}: no {words:?} in {text}", case.code);
        }
        if let Some(path) = &case.path {
            assert_eq!(message.path.as_ref(), Some(path), "{message}");
        }
        // The line is where the resource begins.
        let first = text.lines().nth(message.line as usize - 1).unwrap_or_default();
        assert!(first.starts_with("apiVersion") || first.starts_with("{apiVersion"), "{message}: {first}");
        assert!(!message.why.is_empty() && message.help.as_ref().is_some_and(|help| !help.is_empty()));
        let near = of(&messages(&format!("{base}\n---\n{}", case.passes)));
        assert!(near.is_empty(), "{} on {}: not to be found: {near:#?}", case.code, case.on);
        seen.insert(case.code.clone());
    }
    // The reader's two are tried where it and this come together.
    let all = Code::ALL.iter().filter(|code| !matches!(code, Code::Refused | Code::Doubted));
    let missing: Vec<_> = all.map(|code| code.name()).filter(|name| !seen.contains(*name)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn codes_are_told_apart_by_number() {
    let numbers: BTreeSet<_> = Code::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(numbers.len(), Code::ALL.len());
    assert_eq!(Code::DefaultDeny.to_string(), "WEFT0101");
}

#[test]
fn every_code_is_in_the_documentation() {
    let text = include_str!("../../../docs/analysis.md");
    for code in Code::ALL {
        let severity = match code.severity() {
            crate::model::Severity::Error => "error",
            crate::model::Severity::Warning => "warning",
            crate::model::Severity::Info => "note",
        };
        let row = format!("| {code} | {} | {severity} |", code.name());
        assert!(text.lines().any(|line| line.starts_with(&row)), "docs/analysis.md has no row {row}");
    }
}
