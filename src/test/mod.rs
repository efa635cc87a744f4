//! `weft test`: unit tests of a configuration, written beside it. A case is a connection or a request and what is expected of it:
//! which listener, filter chain and route take it, to which endpoints, with which TLS, timeout and retries; or whether a
//! workload lets it in. The control plane's rendering and the proxy's own matcher and policies decide, as in a running mesh.

mod case;
mod cluster;
mod connection;
mod decision;
mod expect;
mod proxy;
mod request;
mod tls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;
use weft_control::ingest::list_files;
use weft_control::model::World;
use weft_control::serve::keys::KeyFetcher;

pub use case::{AskedUrl, Case};
pub use expect::differences;
pub use proxy::{Resources, node};

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
    let world = &runtime.block_on(KeyFetcher::unasked(world)).with_gateways_as_written();
    let mut proxies = Proxies { world, proxies: BTreeMap::new(), judges: BTreeMap::new() };
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

/// What becomes of one case's connection or request, as far as the proxy that it names decides.
///
/// # Errors
/// The case asks for what there is not, or the proxy does not take its configuration.
pub fn found(world: &World, case: &Case) -> anyhow::Result<Value> {
    Proxies { world, proxies: BTreeMap::new(), judges: BTreeMap::new() }.found(case)
}

/// The same by a proxy that was told these resources, whoever rendered them. The world says only what the workload is, and which
/// addresses names have.
///
/// # Errors
/// The case asks for what there is not, or for what policies decide, or the proxy does not take the resources.
pub fn found_by(world: &World, case: &Case, resources: &Resources) -> anyhow::Result<Value> {
    let (Some(name), false) = (case.from.as_ref().or(case.to.as_ref()), decision::is_asked(case)) else {
        bail!("{:?} asks for no way of a connection", case.name);
    };
    let workload = crate::authz::workload(world, name)?;
    let proxy = proxy::Proxy::given(&workload, resources)?;
    match case.from {
        Some(_) => connection::outwards(world, &proxy, case),
        None => connection::inwards(world, &proxy, &workload, case),
    }
}

/// The proxies that cases are about, each compiled once.
struct Proxies<'a> {
    world: &'a World,
    proxies: BTreeMap<String, proxy::Proxy>,
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
                connection::outwards(self.world, self.proxy(from)?, case)
            }
            (None, Some(to)) => {
                if case.connect.is_some() {
                    bail!("connect goes with from; with to it is port, the workload's own");
                }
                let workload = crate::authz::workload(self.world, to)?;
                let decided = self.decided(to, &workload, case);
                // Who may come is asked of ports that are served; where it goes, of all.
                let mut found = match decided {
                    Err(error) if decision::is_asked(case) => return Err(error),
                    decided => decided.unwrap_or_else(|_| Value::Object(Default::default())),
                };
                if let Value::Object(fields) = &mut found
                    && !decision::is_about_all(case)
                {
                    let way = connection::inwards(self.world, self.proxy(to)?, &workload, case)?;
                    for (key, value) in way.as_object().into_iter().flatten() {
                        fields.entry(key.clone()).or_insert_with(|| value.clone());
                    }
                }
                Ok(found)
            }
        }
    }

    /// The proxy of a workload, or the gateway.
    fn proxy(&mut self, name: &str) -> anyhow::Result<&proxy::Proxy> {
        if !self.proxies.contains_key(name) {
            let made = proxy::Proxy::new(self.world, &*crate::authz::workload(self.world, name)?)?;
            self.proxies.insert(name.to_owned(), made);
        }
        Ok(&self.proxies[name])
    }

    /// What the workload's policies say.
    fn decided(
        &mut self,
        name: &str,
        workload: &Arc<weft_control::model::Workload>,
        case: &Case,
    ) -> anyhow::Result<Value> {
        if !self.judges.contains_key(name) {
            self.judges.insert(name.to_owned(), crate::authz::Judge::new(self.world, workload)?);
        }
        decision::decide(self.world, &self.judges[name], case)
    }
}

/// The tests of a file: names and cases.
///
/// # Errors
/// It cannot be read, or a document that says it is a test is none.
pub fn read(file: &Path) -> anyhow::Result<Vec<(String, Vec<Case>)>> {
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
