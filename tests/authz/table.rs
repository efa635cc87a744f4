//! The tables as they are written, and whether an outcome is what they say.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::clients::Outcome;

/// A workload with policies, and requests to it.
pub struct Group {
    pub name: String,
    /// The workload's port carries bytes, not requests.
    pub tcp: bool,
    /// Fields of MeshConfig.
    pub mesh: Value,
    /// Specifications by name (`NAMESPACE/NAME`; `shop` unless given); those whose name begins with `try:` are only tried.
    pub policies: BTreeMap<String, Value>,
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    group: String,
    #[serde(default)]
    tcp: bool,
    #[serde(default)]
    mesh: Value,
    policies: BTreeMap<String, Value>,
    /// One a line: DECISION RULE [NAME=VALUE]... [METHOD PATH].
    cases: String,
}

/// One request.
#[derive(Default)]
pub struct Case {
    /// As it is written.
    pub text: String,
    allowed: bool,
    /// The policy that decided, and the number of its rule; none when no policy matched.
    by: Option<(String, usize)>,
    /// Namespace and service account of the client's certificate (`NS/SA`, or a whole SPIFFE ID); none: plain text.
    pub identity: Option<String>,
    /// The client's address.
    pub from: Option<String>,
    pub method: String,
    pub path: String,
    pub host: String,
    pub headers: Vec<(String, String)>,
    /// The server name of the handshake.
    pub sni: Option<String>,
    /// What tried policies would have done, by action.
    tried: BTreeMap<String, String>,
    audited: Option<bool>,
}

/// All groups of all tables.
pub fn all() -> Vec<Group> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/authz/tables");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut groups: Vec<Group> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let value = xds_protos::json::value_from_yaml_str(&text)
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let written: Vec<Written> =
            serde_json::from_value(value).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        groups.extend(written.into_iter().map(Group::new));
    }
    let mut names = std::collections::HashSet::new();
    assert!(groups.iter().all(|group| names.insert(group.name.clone())), "a group's name stands twice");
    groups
}

impl Group {
    fn new(written: Written) -> Self {
        let lines =
            written.cases.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let cases: Vec<Case> = lines.map(Case::parse).collect();
        assert!(!cases.is_empty(), "{} has no cases", written.group);
        for case in &cases {
            let known = |by: &(String, usize)| {
                let rules =
                    written.policies.get(&by.0).map(|spec| spec["rules"].as_array().map_or(0, Vec::len));
                rules.is_some_and(|rules| by.1 < rules.max(1))
            };
            assert!(case.by.as_ref().is_none_or(known), "{}: no such rule: {}", written.group, case.text);
        }
        let Written { group, tcp, mesh, policies, .. } = written;
        Self { name: group, tcp, mesh, policies, cases }
    }
}

/// A policy's place from the name under which it is written.
pub fn place_of(name: &str) -> (&str, &str, bool) {
    let (tried, name) = name.strip_prefix("try:").map_or((false, name), |name| (true, name));
    let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
    (namespace, name, tried)
}

impl Case {
    fn parse(line: &str) -> Self {
        let mut case =
            Self { text: line.to_owned(), path: "/".into(), host: "s.shop".into(), ..Self::default() };
        case.method = "GET".into();
        let mut words = line.split_whitespace();
        case.allowed = match words.next() {
            Some("allow") => true,
            Some("deny") => false,
            _ => panic!("{line}: neither allow nor deny"),
        };
        case.by = match words.next() {
            Some("-") => None,
            Some(rule) => {
                let (name, number) = rule.split_once('#').unwrap_or((rule, "0"));
                Some((name.to_owned(), number.parse().unwrap()))
            }
            None => panic!("{line}: no rule"),
        };
        let mut rest: Vec<&str> = Vec::new();
        for word in words {
            match word.split_once('=') {
                Some(("as", value)) => case.identity = Some(value.to_owned()),
                Some(("from", value)) => case.from = Some(value.to_owned()),
                Some(("host", value)) => case.host = value.to_owned(),
                Some(("sni", value)) => case.sni = Some(value.to_owned()),
                Some(("audit", value)) => case.audited = Some(value == "yes"),
                Some((name, value)) if name.starts_with("try-") => {
                    case.tried.insert(name[4..].to_owned(), value.to_owned());
                }
                Some((name, value)) if name.starts_with("h:") => {
                    case.headers.push((name[2..].to_owned(), value.replace('~', " ")));
                }
                _ => rest.push(word),
            }
        }
        match rest.as_slice() {
            [] => {}
            [path] => case.path = (*path).to_owned(),
            [method, path] => (case.method, case.path) = ((*method).to_owned(), (*path).to_owned()),
            _ => panic!("{line}: too many words"),
        }
        case
    }

    /// Whether this came of it; `line` is the access log's.
    pub fn check(&self, group: &Group, outcome: &Outcome, line: Option<&Value>) -> Result<(), String> {
        if outcome.allowed != self.allowed {
            return Err(format!("{} ({})", if outcome.allowed { "allowed" } else { "denied" }, outcome.text));
        }
        // The answer to HEAD has no body.
        let refusal = if self.method == "HEAD" { "403 " } else { "403 RBAC: access denied" };
        if !self.allowed && !group.tcp && outcome.text != refusal {
            return Err(format!("refused with {:?}", outcome.text));
        }
        let Some(line) = line else { return Err("no line in the access log".into()) };
        let field = |name: &str| match &line[name] {
            Value::String(text) if text != "-" => Some(text.clone()),
            Value::Bool(yes) => Some(yes.to_string()),
            _ => None,
        };
        let name = self.by.as_ref().map(|(policy, rule)| {
            let (namespace, name, _) = place_of(policy);
            format!("ns[{namespace}]-policy[{name}]-rule[{rule}]")
        });
        let found = if !self.allowed {
            let details = if group.tcp { field("termination") } else { field("details") };
            let inner = details.as_deref().and_then(|text| {
                let inner = text.strip_prefix("rbac_access_denied_matched_policy[")?.strip_suffix(']')?;
                Some(inner.to_owned())
            });
            let Some(inner) = inner else { return Err(format!("the reason was {details:?}")) };
            Some(inner).filter(|name| name != "none")
        } else if group.tcp {
            return Ok(());
        } else {
            field("policy")
        };
        if found != name {
            return Err(format!("decided by {found:?}"));
        }
        for (action, wanted) in &self.tried {
            let found = field(&format!("try-{action}"));
            if found.as_ref() != Some(wanted) {
                return Err(format!("tried {action} policies: {found:?}"));
            }
        }
        if let Some(audited) = self.audited {
            let found = field("audit");
            if found.as_deref() != Some(if audited { "true" } else { "false" }) {
                return Err(format!("audited: {found:?}"));
            }
        }
        Ok(())
    }
}
