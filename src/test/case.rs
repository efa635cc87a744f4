//! A test as it is written.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A document with cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Test {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    pub(super) kind: String,
    pub(super) metadata: Name,
    pub(super) cases: Vec<Case>,
}

/// A document's name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Name {
    pub(super) name: String,
}

/// A request, and what is expected of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// The workload whose request it is; or the gateway that it comes to.
    #[serde(default)]
    pub from: Option<String>,
    /// The workload that may let it in.
    #[serde(default)]
    pub to: Option<String>,
    /// With `to`: who asks. Without, somebody outside of the mesh, in plain text.
    #[serde(default)]
    pub identity: Option<String>,
    /// With `to`: the workload's own port, where it has several.
    #[serde(default)]
    pub port: Option<u16>,
    /// `METHOD URL`, or with `to`: `METHOD /path`.
    #[serde(default)]
    pub request: Option<String>,
    /// Header fields of the request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// What is expected: names of what was found, and values.
    pub expect: Map<String, Value>,
}

impl Case {
    /// Method and target of the request.
    pub(super) fn request(&self) -> anyhow::Result<Option<(&str, &str)>> {
        let Some(request) = &self.request else { return Ok(None) };
        let (method, target) = request.trim().split_once(' ').with_context(|| {
            format!("request {request:?}: write METHOD and what is asked for, such as GET /path")
        })?;
        let target = target.trim();
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            bail!("request {request:?}: {method:?} is no method; write it in capitals, such as GET");
        }
        if target.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()) {
            bail!("request {request:?}: {target:?} has blanks (%20 is one)");
        }
        Ok(Some((method, target)))
    }
}
