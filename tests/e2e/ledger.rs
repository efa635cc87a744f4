//! tests/ledger.yaml: every row of the ledger is there, and every test that it names exists.

pub mod find;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// How many rows each section has. A row that goes must be missed here.
const SECTIONS: [(&str, usize); 12] = [
    ("0", 20),
    ("1a", 16),
    ("1b", 14),
    ("1c", 34),
    ("1d", 10),
    ("1e", 28),
    ("1f", 9),
    ("1g", 10),
    ("1h", 8),
    ("1i", 32),
    ("1j", 10),
    ("1k", 12),
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    asks: String,
    #[serde(default)]
    check: Option<String>,
    proof: Proof,
    #[serde(default)]
    so_far: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Proof {
    Tests(Vec<String>),
    Word(String),
}

impl Row {
    fn tests(&self) -> &[String] {
        match &self.proof {
            Proof::Tests(tests) => tests,
            Proof::Word(_) => &self.so_far,
        }
    }

    /// What is wrong with it.
    fn fault(&self, house: &Path) -> Option<String> {
        let wrong = |why: String| Some(format!("{}: {why}", self.id));
        match &self.proof {
            Proof::Word(word) if word != "not yet" => {
                return wrong(format!("proof is {word:?}; write tests, or `not yet`"));
            }
            Proof::Tests(tests) if tests.is_empty() => {
                return wrong("proof has no test; write `not yet`".to_owned());
            }
            Proof::Tests(_) if !self.so_far.is_empty() => {
                return wrong("what is proven has no so_far".to_owned());
            }
            _ => {}
        }
        if !self.id.starts_with("0.") && self.check.is_none() {
            return wrong("no check says what to look for".to_owned());
        }
        self.tests()
            .iter()
            .find_map(|test| find::test(house, test).err().and_then(|why| wrong(format!("{test}: {why}"))))
    }
}

fn house() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string(house().join("tests/ledger.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

#[test]
fn every_named_test_exists() {
    let faults: Vec<String> = rows().iter().filter_map(|row| row.fault(&house())).collect();
    assert!(faults.is_empty(), "tests/ledger.yaml:\n{}", faults.join("\n"));
}

#[test]
fn every_row_is_there_once() {
    let rows = rows();
    let ids: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let wanted: BTreeSet<String> =
        SECTIONS.iter().flat_map(|(section, n)| (1..=*n).map(move |i| format!("{section}.{i}"))).collect();
    let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
    assert_eq!(wanted.difference(&ids).collect::<Vec<_>>(), [] as [&&str; 0], "rows are missing");
    assert_eq!(
        ids.difference(&wanted).collect::<Vec<_>>(),
        [] as [&&str; 0],
        "rows that SECTIONS does not count"
    );
    assert_eq!(rows.len(), ids.len(), "a row is there twice");
}

/// Where the text that the ledger was taken from lies beside the checkout, both must say the same.
#[test]
fn the_ledger_is_that_of_its_source() {
    let source = house().join("../shared/reference/ledger.md");
    let Ok(text) = std::fs::read_to_string(&source) else { return };
    let mine: BTreeMap<String, String> = rows().into_iter().map(|row| (row.id, row.asks)).collect();
    assert_eq!(titles(&text), mine, "{} and tests/ledger.yaml differ", source.display());
}

/// The rows of the source: numbered items before the table, then the table's rows, by section.
fn titles(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let (mut section, mut number) = (None::<&str>, 0);
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("| **") {
            (section, number) = (head.split(' ').next(), 0);
        } else if let (Some(row), Some(section)) = (line.strip_prefix("| "), section) {
            number += 1;
            // A bar inside a cell is written `\|`.
            let cell = row.replace("\\|", "\0");
            let title = cell.split(" | ").next().unwrap_or_default().replace('\0', "|");
            found.insert(format!("{section}.{number}"), title.trim().to_owned());
        } else if let Some((item, title)) = line.split_once(". ")
            && let Ok(item) = item.parse::<usize>()
        {
            found.insert(format!("0.{item}"), title.to_owned());
        }
    }
    found
}

#[test]
fn a_test_is_found_by_its_path_and_nothing_else_is() {
    let found = |path: &str| find::test(&house(), path);
    assert_eq!(found("e2e::ledger::a_test_is_found_by_its_path_and_nothing_else_is"), Ok(()));
    assert_eq!(
        found("weft_certs::rotation::tests::a_life_of_seconds_leaves_time_for_several_attempts"),
        Ok(())
    );
    assert_eq!(
        found("e2e::journey::certificates_rotate_unnoticed"),
        Ok(()),
        "an entry of a macro that makes tests"
    );
    assert_eq!(found("e2e::ledger::titles").unwrap_err(), "there is no test titles");
    assert_eq!(found("e2e::journal::x").unwrap_err(), "there is no module journal");
    assert_eq!(found("nobody::x").unwrap_err(), "there is no crate nobody");
    assert!(found("e2e::journey::no_such_part").is_err());
}

#[test]
fn a_row_that_names_nothing_is_found_out() {
    let fault = |text: &str| serde_saphyr::from_str::<Row>(text).unwrap().fault(&house());
    let row = |rest: &str| fault(&format!("id: '1a.1'\nasks: a\ncheck: c\n{rest}"));
    assert_eq!(row("proof: not yet"), None);
    assert!(row("proof: [e2e::ledger::gone]").unwrap().contains("there is no test gone"));
    assert!(row("proof: soon").unwrap().contains("`not yet`"));
    assert!(row("proof: []").unwrap().contains("`not yet`"));
    assert!(row("proof: not yet\nso_far: [e2e::ledger::gone]").unwrap().contains("gone"));
}
