//! What a state of the mesh says that is probably not meant so: selectors that select nothing, policies that deny more or
//! allow more than they look like, rules that never hold.
//!
//! Reading (`ingest`) refuses what is wrong in itself; this looks at what is right, and at all of it together. It is a pure
//! function of the world, the same for `weft analyze`, for a running control plane, and for whoever asks before something is
//! applied.

mod authorization;
#[cfg(test)]
mod cases;
mod code;
mod destinations;
mod edges;
mod exports;
mod gateways;
mod heard;
mod matching;
mod networks;
mod peers;
mod rate_limits;
mod reach;
mod rules;
mod scene;
mod selectors;
mod services;
mod sidecars;
mod size;
mod tokens;
mod traffic;

use std::fmt;
use std::time::Instant;

use serde::{Serialize, Serializer};

pub use code::Code;

use crate::model::{Meta, Severity, World};
use scene::Scene;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Message {
    /// The file, as it was given to the reader.
    pub file: String,
    /// The line of the resource, from 1; 0 when unknown.
    pub line: u32,
    /// What sort of finding it is.
    #[serde(serialize_with = "number")]
    pub code: Code,
    /// The code's name.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The resource, as `Kind namespace/name`; none for a file as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The field, as `spec.rules[0].to[0].operation.paths`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What is found, and why it matters.
    pub why: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

fn number<S: Serializer>(code: &Code, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(code)
}

impl Message {
    /// A finding about a resource.
    fn of(
        code: Code,
        meta: &Meta,
        path: impl Into<String>,
        why: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let path = path.into();
        Self {
            file: meta.source.file.to_string(),
            line: meta.source.line,
            code,
            name: code.name(),
            severity: code.severity(),
            resource: Some(meta.key().to_string()),
            path: (!path.is_empty()).then_some(path),
            why: why.into(),
            help: Some(help.into()),
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "note",
        };
        write!(f, ": {severity} {} {}: ", self.code, self.name)?;
        for part in [&self.resource, &self.path].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.why)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

type Check = fn(&Scene<'_>, &mut Vec<Message>);

/// All of them.
const CHECKS: [Check; 17] = [
    selectors::find,
    authorization::find,
    edges::find,
    tokens::find,
    peers::find,
    traffic::find,
    rate_limits::find,
    destinations::find,
    reach::find,
    gateways::find,
    rules::find,
    services::find,
    sidecars::find,
    heard::find,
    exports::find,
    networks::find,
    size::find,
];

/// Everything that is found in a state of the mesh, by file and line.
pub fn analyze(world: &World) -> Vec<Message> {
    look(world, || true).0
}

/// How many endpoints clients of other networks do not reach: their networks' gateways pass on mutual TLS alone, or none is known.
pub fn endpoints_without_a_way(world: &World) -> usize {
    networks::without_a_way(world)
}

/// The same for who cannot wait: what is found until then, and whether everything was looked at.
pub fn analyze_until(world: &World, end: Instant) -> (Vec<Message>, bool) {
    look(world, || Instant::now() < end)
}

fn look(world: &World, goes_on: impl Fn() -> bool) -> (Vec<Message>, bool) {
    let scene = Scene::new(world);
    let mut found = Vec::new();
    let looked = CHECKS.iter().take_while(|_| goes_on()).map(|check| check(&scene, &mut found)).count();
    found.sort();
    found.dedup();
    (found, looked == CHECKS.len())
}
