//! What is refused, beside Istio's own checks: its definitions as an API server holds them, and its webhook's validation, out of
//! Istio's module by a program of ours (tests/peers/validation-module). Thousands of objects of Istio's samples and tests and of our
//! own, whole and with one small change each, are shown to both.
//!
//! Whatever Istio refuses we refuse; and what we refuse beyond that is written down in `differences.yaml`, with the reason. The
//! program takes minutes to build: `tests/peers/install --long` brings it, and `.ci/long` runs this.

mod differences;
mod mutate;
mod seeds;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use weft_control::ingest::check_object;

use self::differences::Differences;
use crate::programs::peer;

/// How many objects with the same change at the same place are looked at.
const OF_ONE_SORT: usize = 2;
/// As many objects as there have to be, and as many that both refuse.
const LEAST: usize = 7_000;
const LEAST_REFUSED: usize = 3_000;

struct Asked {
    /// Kind, place and change.
    sort: String,
    object: Value,
}

fn asked() -> Vec<Asked> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut from: Vec<PathBuf> = ["tests/rendering", "deploy/ecotrack"].map(|d| root.join(d)).to_vec();
    from.push(peer("WEFT_ISTIO_SOURCE"));
    let (mut all, mut counted, mut known) = (Vec::new(), BTreeMap::<String, usize>::new(), BTreeSet::new());
    let mut seeds = seeds::seeds(&from);
    seeds.retain(|seed| known.insert((seed["kind"].to_string(), seed["spec"].to_string())));
    for seed in seeds {
        let kind = seed["kind"].as_str().unwrap_or_default().to_owned();
        for mutant in mutate::mutants(&seed) {
            let sort = format!("{kind} {} {}", mutant.path, mutant.what);
            let count = counted.entry(sort.clone()).or_default();
            if *count < OF_ONE_SORT {
                *count += 1;
                all.push(Asked { sort, object: mutant.object });
            }
        }
        all.push(Asked { sort: format!("{kind} whole"), object: seed });
    }
    all
}

/// What Istio says of each.
fn judged(asked: &[Asked]) -> Vec<Value> {
    let mut program = Command::new(peer("WEFT_ISTIO_VALIDATION"))
        .arg(peer("WEFT_ISTIO_SOURCE").join("manifests/charts/base/files/crd-all.gen.yaml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines: String = asked.iter().map(|one| format!("{}\n", one.object)).collect();
    let mut input = program.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()).unwrap());
    let output = program.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // Its packages tell about their own start on the same output.
    let all: Vec<Value> = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(all.len(), asked.len());
    all
}

/// What Istio refuses an object for; nothing if it takes it.
fn refusal(istio: &Value) -> Option<&str> {
    istio["webhook"].as_str().or_else(|| istio["schema"].as_str())
}

#[test]
#[ignore = "Istio's validation takes minutes to build"]
fn what_istio_refuses_is_refused_and_what_it_takes_is_taken_but_for_good_reasons() {
    let (asked, mut differences) = (asked(), Differences::read());
    let (mut both, mut wrong) = ([[0_usize; 2]; 2], BTreeMap::new());
    for (one, istio) in asked.iter().zip(&judged(&asked)) {
        if istio["unknown"] == true {
            continue;
        }
        let theirs = refusal(istio);
        let said = |d: &weft_control::ingest::Diagnostic| {
            format!("{}: {}", d.path.as_deref().unwrap_or("-"), d.reason)
        };
        let ours: Vec<String> = check_object(&one.object).iter().filter(|d| d.is_error()).map(said).collect();
        both[usize::from(theirs.is_some())][usize::from(!ours.is_empty())] += 1;
        let kind = one.object["kind"].as_str().unwrap_or_default();
        let told = match (theirs, ours.first()) {
            (Some(why), None) if !differences.takes(kind, why) => format!("Istio refuses it: {why}"),
            (None, Some(_)) if !differences.refuses(kind, &ours) => {
                format!("only we refuse it: {}", ours.join("; "))
            }
            _ => continue,
        };
        wrong.entry(one.sort.clone()).or_insert(format!("{told}\n    {}", one.object));
    }
    println!(
        "{} objects: both take {}, both refuse {}, only Istio refuses {}, only we refuse {}",
        asked.len(),
        both[0][0],
        both[1][1],
        both[1][0],
        both[0][1]
    );
    let told: Vec<_> = wrong.iter().map(|(sort, told)| format!("{sort}: {told}")).collect();
    assert!(told.is_empty(), "{} sorts of objects:\n{}", told.len(), told.join("\n"));
    assert_eq!(
        differences.unused(),
        Vec::<String>::new(),
        "these differences are none any more: take them out"
    );
    assert!(both[0][0] + both[1][1] >= LEAST && both[1][1] >= LEAST_REFUSED, "{both:?}");
}
