//! The tables as they are written, and whether an outcome is what they say.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use weft::authz::Decision;

use super::clients::Outcome;
use super::tokens::{Token, sets};

/// A workload with policies, and requests to it.
pub struct Group {
    pub name: String,
    /// The workload's port carries bytes, not requests.
    pub tcp: bool,
    /// Fields of MeshConfig.
    pub mesh: Value,
    /// Specifications by name (`NAMESPACE/NAME`; `shop` unless given); those whose name begins with `try:` are only tried.
    pub policies: BTreeMap<String, Value>,
    /// Specifications of RequestAuthentications by name.
    pub authentication: BTreeMap<String, Value>,
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
    #[serde(default)]
    policies: BTreeMap<String, Value>,
    #[serde(default)]
    authentication: BTreeMap<String, Value>,
    /// By names that stand in braces in cases.
    #[serde(default)]
    tokens: BTreeMap<String, Token>,
    /// One a line: DECISION RULE [NAME=VALUE]... [METHOD PATH]. Other decisions: `refuse WORDS` (the token is), `no STATUS BODY`
    /// (the provider said), `fail STATUS` (it said nothing), `bad RULE` (nobody can be asked), `answer STATUS`.
    cases: String,
}

/// One request.
#[derive(Default)]
pub struct Case {
    /// As it is written.
    pub text: String,
    allowed: bool,
    /// The policy that decided, and the number of its rule; none when no policy matched.
    pub by: Option<(String, usize)>,
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
    /// Why the token is refused, in Envoy's words with underscores.
    refused: Option<String>,
    /// What the application must have got: fields by name (`-`: none of the name), and the target.
    upstream: Vec<(String, String)>,
    /// Fields that the client must have got.
    downstream: Vec<(String, String)>,
    /// What is said elsewhere than by policies.
    elsewhere: Option<Elsewhere>,
    /// The request's body.
    pub body: String,
}

/// Who else has the say.
enum Elsewhere {
    /// A provider: status and body.
    No(String, String),
    /// A provider that gave no answer: status.
    Fail(String),
    /// A rule whose provider cannot be asked.
    Bad,
    /// Whoever it is: status.
    Answer(String),
}

/// All groups of the tables in a directory; `fill` replaces what only a run knows.
pub fn all(directory: &str, fill: impl Fn(String) -> String) -> Vec<Group> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/authz").join(directory);
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut groups: Vec<Group> = Vec::new();
    for file in files {
        let text = sets(fill(std::fs::read_to_string(&file).unwrap()));
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
        let tokens: Vec<_> = written.tokens.iter().map(|(name, token)| (name, token.text())).collect();
        let with_tokens = |line: &str| {
            let line = line.to_owned();
            tokens.iter().fold(line, |line, (name, token)| line.replace(&format!("{{{name}}}"), token))
        };
        let cases: Vec<Case> = lines.map(|line| Case::parse(line, &with_tokens(line))).collect();
        assert!(!cases.is_empty(), "{} has no cases", written.group);
        for case in &cases {
            let known = |by: &(String, usize)| {
                let rules =
                    written.policies.get(&by.0).map(|spec| spec["rules"].as_array().map_or(0, Vec::len));
                rules.is_some_and(|rules| by.1 < rules.max(1))
            };
            assert!(case.by.as_ref().is_none_or(known), "{}: no such rule: {}", written.group, case.text);
        }
        let Written { group, tcp, mesh, policies, authentication, .. } = written;
        Self { name: group, tcp, mesh, policies, authentication, cases }
    }
}

/// A policy's place from the name under which it is written.
pub fn place_of(name: &str) -> (&str, &str, bool) {
    let (tried, name) = name.strip_prefix("try:").map_or((false, name), |name| (true, name));
    let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
    (namespace, name, tried)
}

impl Case {
    /// A case from its line; `text` is the line as it is written.
    fn parse(text: &str, line: &str) -> Self {
        let mut case =
            Self { text: text.to_owned(), path: "/".into(), host: "s.shop".into(), ..Self::default() };
        case.method = "GET".into();
        let mut words = line.split_whitespace();
        case.allowed = match words.next() {
            Some("allow") => true,
            Some("deny") => false,
            Some("refuse") => {
                case.refused = Some(words.next().unwrap_or_else(|| panic!("{line}: no reason")).to_owned());
                false
            }
            Some(kind @ ("no" | "fail" | "bad" | "answer")) => {
                let mut word = || words.next().unwrap_or_else(|| panic!("{line}: too short")).to_owned();
                case.elsewhere = Some(match kind {
                    "no" => Elsewhere::No(word(), word()),
                    "fail" => Elsewhere::Fail(word()),
                    "bad" => Elsewhere::Bad,
                    _ => Elsewhere::Answer(word()),
                });
                false
            }
            _ => panic!("{line}: no decision"),
        };
        let ruleless = case.refused.is_some() || !matches!(case.elsewhere, None | Some(Elsewhere::Bad));
        let rule = if ruleless { Some("-") } else { words.next() };
        case.by = match rule {
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
                Some(("token", value)) => {
                    case.headers.push(("authorization".to_owned(), format!("Bearer {value}")));
                }
                Some((name, value)) if name.starts_with("up:") => {
                    case.upstream.push((name[3..].to_owned(), value.replace('~', " ")));
                }
                Some((name, value)) if name.starts_with("down:") => {
                    case.downstream.push((name[5..].to_owned(), value.replace('~', " ")));
                }
                Some(("data", value)) => case.body = value.to_owned(),
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

    /// Whether this is what can be said of it without asking anybody: those who are asked may say yes or no.
    #[allow(dead_code, reason = "peers ask")]
    pub fn foreseen(&self, decision: Decision) -> bool {
        match &self.elsewhere {
            None if self.allowed => decision != Decision::Deny,
            None | Some(Elsewhere::Bad) => decision == Decision::Deny,
            // Another policy may deny it whatever they say.
            Some(Elsewhere::No(..) | Elsewhere::Fail(_) | Elsewhere::Answer(_)) => {
                decision != Decision::Allow
            }
        }
    }

    /// Whether this came of it; `line` is the access log's.
    pub fn check(&self, group: &Group, outcome: &Outcome, line: Option<&Value>) -> Result<(), String> {
        if outcome.allowed != self.allowed {
            return Err(format!("{} ({})", if outcome.allowed { "allowed" } else { "denied" }, outcome.text));
        }
        if let Some(reason) = &self.refused {
            return self.check_refusal(reason, outcome, line);
        }
        self.check_fields(outcome)?;
        if let Some(elsewhere) = &self.elsewhere {
            return self.check_elsewhere(elsewhere, group, outcome, line);
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

    /// A token's refusal: status, words, challenge and details.
    fn check_refusal(&self, reason: &str, outcome: &Outcome, line: Option<&Value>) -> Result<(), String> {
        let body = if self.method == "HEAD" { String::new() } else { reason.replace('_', " ") };
        // A good token for somebody else is forbidden, rather than bad.
        let status = if reason == "Audiences_in_Jwt_are_not_allowed" { 403 } else { 401 };
        if outcome.text != format!("{status} {body}") {
            return Err(format!("answered with {:?}", outcome.text));
        }
        let error = if reason == "Jwt_is_missing" { "" } else { ", error=\"invalid_token\"" };
        // Envoy shows no more of a long path.
        let path = &self.path[..self.path.len().min(256)];
        let challenge = format!("www-authenticate: Bearer realm=\"http://{}{path}\"{error}", self.host);
        if !outcome.head.lines().any(|line| line == challenge) {
            return Err(format!("no {challenge:?} in {:?}", outcome.head));
        }
        let details = line.and_then(|line| line["details"].as_str()).unwrap_or("no line in the access log");
        let wanted = format!("jwt_authn_access_denied{{{reason}}}");
        if details == wanted { Ok(()) } else { Err(format!("the reason was {details}")) }
    }

    /// What was decided elsewhere.
    fn check_elsewhere(
        &self,
        elsewhere: &Elsewhere,
        group: &Group,
        outcome: &Outcome,
        line: Option<&Value>,
    ) -> Result<(), String> {
        let field = |name: &str| line.and_then(|line| line[name].as_str()).unwrap_or("-");
        let (text, details) = match elsewhere {
            Elsewhere::Answer(status) => (format!("{status} "), String::new()),
            Elsewhere::No(status, body) => (format!("{status} {body}"), "ext_authz_denied".to_owned()),
            Elsewhere::Fail(status) => (format!("{status} "), "ext_authz_error".to_owned()),
            Elsewhere::Bad => {
                let Some((policy, rule)) = &self.by else { return Err("of no rule".into()) };
                let provider = group.policies[policy]["provider"]["name"].as_str().unwrap_or_default();
                let (namespace, name, _) = place_of(policy);
                let name = format!("ns[{namespace}]-policy[{name}]-rule[{rule}]");
                let name = format!("istio-ext-authz-{provider}-{name}-deny-due-to-bad-CUSTOM-action");
                let details = format!("rbac_access_denied_matched_policy[{name}]");
                ("403 RBAC: access denied".to_owned(), details)
            }
        };
        let fits = match elsewhere {
            _ if group.tcp => outcome.text == "\"\"",
            Elsewhere::Answer(_) => outcome.text.starts_with(&text),
            _ => outcome.text == text,
        };
        if !fits {
            return Err(format!("answered with {:?}", outcome.text));
        }
        let found = if group.tcp && matches!(elsewhere, Elsewhere::Bad) { "termination" } else { "details" };
        if details.is_empty() || field(found) == details {
            return Ok(());
        }
        Err(format!("the reason was {}", field(found)))
    }

    /// What came to the application, and to the client.
    fn check_fields(&self, outcome: &Outcome) -> Result<(), String> {
        let upstream = self.upstream.iter().map(|(name, wanted)| {
            let mut lines = outcome.text.lines().skip(1);
            let target = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default();
            let found = if name == "path" { vec![target.to_owned()] } else { of_name(lines, name) };
            (name, wanted, found)
        });
        let head = || outcome.head.lines().skip(1);
        let downstream = self.downstream.iter().map(|(name, wanted)| (name, wanted, of_name(head(), name)));
        for (name, wanted, found) in upstream.chain(downstream) {
            let fits = if wanted == "-" { found.is_empty() } else { found == [wanted.as_str()] };
            if !fits {
                return Err(format!("{name} came as {found:?}"));
            }
        }
        Ok(())
    }
}

/// The values of a field, in lines of a head.
fn of_name<'a>(lines: impl Iterator<Item = &'a str>, name: &str) -> Vec<String> {
    let value = |line: &str| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then(|| value.to_owned())
    };
    lines.filter_map(value).collect()
}
