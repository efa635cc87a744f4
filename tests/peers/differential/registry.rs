//! The differences that we want, by name (`differences.yaml`): each with what Envoy does, what Weft does, and the harm that
//! Envoy's behaviour does to a user. `docs/differences.md` is generated from it, with the cases that show each:
//! `WEFT_UPDATE_DOCS=1 cargo test --features peers --test peers differences`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

use super::{cases, configured};

/// A difference that we want.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// What it is about.
    pub title: String,
    /// What Envoy does.
    pub envoy: String,
    /// What Weft does.
    pub weft: String,
    /// What Envoy's behaviour does to a user.
    pub harm: String,
}

/// All of them, by name.
pub fn differences() -> BTreeMap<String, Difference> {
    serde_saphyr::from_str(include_str!("differences.yaml")).expect("differences.yaml is read")
}

/// The differences that cases name, each with these cases.
fn shown() -> BTreeMap<String, BTreeSet<String>> {
    let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for case in cases::all() {
        if let Some((difference, _)) = case.deliberate {
            shown.entry(difference.to_owned()).or_default().insert(case.name.to_owned());
        }
        if let Some((difference, _)) = case.logged {
            shown.entry(difference.to_owned()).or_default().insert(case.name.to_owned());
        }
    }
    for case in configured::all() {
        if let Some(deliberate) = case.deliberate {
            shown.entry(deliberate.difference).or_default().insert(case.name);
        }
    }
    shown
}

const HEAD: &str = "# Where Weft differs from Envoy on purpose

Weft takes Envoy's place: the same configuration and the same bytes give the same answers, and the differential suite
(`tests/peers/differential`) compares the two. These differences are wanted; the suite demands that they are there. Any other is
a fault.

This file is generated from `tests/peers/differential/differences.yaml`:
`WEFT_UPDATE_DOCS=1 cargo test --features peers --test peers differences`.
";

fn render() -> String {
    let shown = shown();
    let mut out = HEAD.to_owned();
    for (name, difference) in differences() {
        let Difference { title, envoy, weft, harm } = difference;
        let cases: Vec<_> = shown.get(&name).into_iter().flatten().map(|c| format!("`{c}`")).collect();
        let _ = write!(
            out,
            "\n## {title}\n\n- **Envoy**: {envoy}\n- **Weft**: {weft}\n- **What Envoy's way does to a user**: {harm}\n- Shown by: {}\n",
            cases.join(", ")
        );
    }
    out
}

#[test]
fn each_difference_is_named_once_and_shown_by_a_case() {
    let (known, shown) = (differences(), shown());
    let known: BTreeSet<_> = known.keys().collect();
    let shown: BTreeSet<_> = shown.keys().collect();
    assert_eq!(known, shown, "differences.yaml, and what cases name as deliberate");
}

#[test]
fn differences_are_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/differences.md");
    let wanted = render();
    if std::env::var_os("WEFT_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).is_ok_and(|text| text == wanted),
        "docs/differences.md is stale: run `WEFT_UPDATE_DOCS=1 cargo test --features peers --test peers differences` and commit it"
    );
}
