//! What proxies are told, by what they then do: each file of tests/rendering is a small mesh with the connections and requests of
//! its workloads, and with what Istio's documentation says becomes of them. Our control plane renders, and the proxy's own
//! matchers decide, as `weft test` does. A part of the cases also goes through a real Envoy (tests/peers/rendering).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// As many cases as there have to be.
const LEAST: usize = 480;

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rendering");
    weft_control::ingest::list_files(&directory).unwrap()
}

#[test]
fn every_case_of_rendering_is_as_it_says() {
    let (mut cases, mut wrong, mut names) = (0, Vec::new(), BTreeSet::new());
    for file in files() {
        let shown = file.file_stem().unwrap().to_string_lossy().into_owned();
        let world = match weft::configuration::read(&file) {
            Ok(world) => world,
            Err(error) => {
                wrong.push(format!("{error:#}"));
                continue;
            }
        };
        for outcome in weft::test::run(&world, &[file]).unwrap() {
            cases += 1;
            assert!(
                names.insert((shown.clone(), outcome.case.clone())),
                "{shown}: {:?} stands twice",
                outcome.case
            );
            if !outcome.failures.is_empty() {
                let why = outcome.failures.join("\n    ");
                wrong.push(format!("{shown}: {}\n    {why}\n    found {}", outcome.case, outcome.found));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cases} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases >= LEAST, "only {cases} cases");
}
