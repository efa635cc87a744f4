//! `weft test`: unit tests of a configuration, written beside it. A case is a request and what is expected of it: which route
//! it takes, to where, with which timeout and retries; or whether a workload lets it in. The control plane's rendering and the
//! proxy's own matcher and policies decide, as in a running mesh.

mod case;
mod decision;
mod expect;
mod routing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;
use weft_control::ingest::list_files;
use weft_control::model::World;
use weft_control::serve::keys::KeyFetcher;

pub use case::Case;

/// What the documents with tests say they are.
const API_VERSION: &str = "test.weft.dev/v1alpha1";
const KIND: &str = "Test";

/// How a case ended.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The file.
    pub file: String,
    /// The document's name.
    pub test: String,
    /// The case's.
    pub case: String,
    /// What was otherwise than expected; nothing if the case passed.
    pub failures: Vec<String>,
    /// What the proxy would do.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub found: Value,
}

/// Runs all tests that lie in these directories, or below them, against a mesh.
///
/// # Errors
/// There is no test, or one cannot be read.
pub fn run(world: &World, directories: &[PathBuf]) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    // No issuer is asked for its keys: a test does not depend on others, and shows no token.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let world = &runtime.block_on(KeyFetcher::unasked(world));
    let mut proxies = Proxies { world, routers: BTreeMap::new(), judges: BTreeMap::new() };
    for directory in directories {
        for file in
            list_files(directory).with_context(|| format!("{} cannot be read", directory.display()))?
        {
            for (test, cases) in read(&file)? {
                for case in cases {
                    let (failures, found) = match proxies.found(&case) {
                        Ok(found) => (expect::differences(&case.expect, &found), found),
                        Err(error) => (vec![format!("{error:#}")], Value::Null),
                    };
                    outcomes.push(Outcome {
                        file: file.display().to_string(),
                        test: test.clone(),
                        case: case.name.clone(),
                        failures,
                        found,
                    });
                }
            }
        }
    }
    if outcomes.is_empty() {
        bail!(
            "there are no tests; write documents of apiVersion: {API_VERSION}, kind: {KIND} beside the configuration \
             (docs/testing.md shows how)"
        );
    }
    Ok(outcomes)
}

/// The proxies that cases are about, each compiled once.
struct Proxies<'a> {
    world: &'a World,
    routers: BTreeMap<String, routing::Router>,
    judges: BTreeMap<String, crate::authz::Judge>,
}

impl Proxies<'_> {
    fn found(&mut self, case: &Case) -> anyhow::Result<Value> {
        match (&case.from, &case.to) {
            (Some(_), Some(_)) => bail!(
                "from and to cannot stand together: from asks which way a workload's request takes, to (with identity) asks \
                 whether a workload lets it in"
            ),
            (None, None) => bail!("from or to is missing: which workload's proxy is asked?"),
            (Some(from), None) => {
                if case.identity.is_some() {
                    bail!("identity goes with to; from names the workload whose request it is");
                }
                if !self.routers.contains_key(from) {
                    let router =
                        routing::Router::new(self.world, &*crate::authz::workload(self.world, from)?)?;
                    self.routers.insert(from.clone(), router);
                }
                self.routers[from].route(case)
            }
            (None, Some(to)) => {
                if !self.judges.contains_key(to) {
                    let workload = crate::authz::workload(self.world, to)?;
                    self.judges.insert(to.clone(), crate::authz::Judge::new(self.world, &workload)?);
                }
                decision::decide(self.world, &self.judges[to], case)
            }
        }
    }
}

/// The tests of a file: names and cases.
fn read(file: &Path) -> anyhow::Result<Vec<(String, Vec<Case>)>> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("{shown} cannot be read"))?;
    // Most files have none, and need not be parsed twice.
    if !text.contains(API_VERSION) {
        return Ok(Vec::new());
    }
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).with_context(|| format!("{shown}"))?;
    let is_test = |document: &Value| document.get("apiVersion").and_then(Value::as_str) == Some(API_VERSION);
    let mut tests = Vec::new();
    for document in documents.into_iter().filter(is_test) {
        let test: case::Test =
            serde_json::from_value(document).with_context(|| format!("{shown}: {API_VERSION}"))?;
        if test.kind != KIND {
            bail!("{shown}: {API_VERSION} has no kind {:?}; write kind: {KIND}", test.kind);
        }
        tests.push((test.metadata.name, test.cases));
    }
    Ok(tests)
}
