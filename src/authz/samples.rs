//! Requests that policies speak of: for each rule some that it is about, and some that it leaves out. Which of them pass is
//! the proxy's to say.

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_control::model::authorization_policy::{Attribute, AuthorizationPolicy, AuthorizationRule};
use xds_protos::value::from_json;

use super::{Request, Supposed};

/// As many values of one field are tried.
const VALUES: usize = 8;
/// As many requests are tried in all.
const REQUESTS: usize = 200;

/// A request that is tried.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) request: Request,
    /// The claims of its token, if it has one.
    pub(super) claims: Option<Value>,
}

/// Requests to `host` that these policies speak of, the plainest first.
pub(super) fn requests<'a>(
    policies: impl Iterator<Item = &'a AuthorizationPolicy>,
    host: &str,
) -> Vec<Sample> {
    let plain = Parts { method: "GET".into(), path: "/".into(), host: host.into(), ..Parts::default() };
    let mut all = vec![plain.clone()];
    for rule in policies.flat_map(|policy| &policy.rules) {
        for parts in of_rule(rule, &plain) {
            if all.len() < REQUESTS && !all.contains(&parts) {
                all.push(parts);
            }
        }
    }
    all.into_iter().map(Parts::sample).collect()
}

/// Addresses that these policies speak of.
pub(super) fn addresses<'a>(policies: impl Iterator<Item = &'a AuthorizationPolicy>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for rule in policies.flat_map(|policy| &policy.rules) {
        let sources = rule.from.iter().filter_map(|from| from.source.as_ref());
        let blocks = sources.flat_map(|source| source.ip_blocks.iter().chain(&source.remote_ip_blocks));
        let conditions = rule
            .when
            .iter()
            .filter(|when| matches!(when.key.as_str(), "source.ip" | "remote.ip"))
            .flat_map(|when| &when.values);
        for block in blocks.chain(conditions) {
            let address = block.split('/').next().and_then(|text| text.parse().ok());
            found.extend(address.filter(|address| !found.contains(address)));
        }
    }
    found.truncate(VALUES);
    found
}

/// What differs between requests.
#[derive(Clone, Debug, Default, PartialEq)]
struct Parts {
    method: String,
    path: String,
    host: String,
    headers: Vec<(String, String)>,
    claims: Option<Value>,
}

impl Parts {
    fn sample(self) -> Sample {
        let Self { method, path, host, headers, claims } = self;
        let token = claims.as_ref().map(|claims| supposed(claims));
        Sample { request: Request { method, path, host, headers, token }, claims }
    }
}

/// What the filter that checks tokens writes of a good one.
fn supposed(claims: &Value) -> Supposed {
    ("envoy.filters.http.jwt_authn", "payload".into(), from_json(claims.clone()))
}

/// The requests that a rule speaks of.
fn of_rule(rule: &AuthorizationRule, plain: &Parts) -> Vec<Parts> {
    let mut base = plain.clone();
    let mut claims = json!({});
    for condition in &rule.when {
        let Ok(attribute) = Attribute::parse(&condition.key) else { continue };
        let Some(first) = condition.values.first() else { continue };
        let sample = text(first);
        match attribute {
            Attribute::Header(name) => base.headers.push((name.to_owned(), sample)),
            Attribute::Audiences => claims["aud"] = sample.into(),
            Attribute::Presenter => claims["azp"] = sample.into(),
            Attribute::RequestPrincipal => principal(first, &mut claims),
            Attribute::Claims(names) => {
                let mut at = &mut claims;
                for name in names.split("][") {
                    at = &mut at[name];
                }
                *at = sample.into();
            }
            _ => {}
        }
    }
    let sources: Vec<_> = rule.from.iter().filter_map(|from| from.source.as_ref()).collect();
    let principals: Vec<&String> = sources.iter().flat_map(|source| &source.request_principals).collect();
    let denies_tokens = sources.iter().any(|source| !source.not_request_principals.is_empty());
    let mut tokens: Vec<Option<Value>> = principals
        .iter()
        .take(VALUES)
        .map(|name| {
            let mut claims = claims.clone();
            principal(name, &mut claims);
            Some(claims)
        })
        .collect();
    if principals.is_empty() {
        tokens.push((claims != json!({})).then_some(claims));
    }
    for source in sources.iter().filter(|_| denies_tokens) {
        for name in source.not_request_principals.iter().take(VALUES) {
            let mut claims = json!({});
            principal(name, &mut claims);
            tokens.push(Some(claims));
        }
    }
    let operations: Vec<_> = rule.to.iter().filter_map(|to| to.operation.as_ref()).collect();
    let mut found = Vec::new();
    for token in tokens {
        let base = Parts { claims: token, ..base.clone() };
        if operations.is_empty() {
            found.push(base.clone());
        }
        for operation in &operations {
            let methods = methods(&operation.methods, &operation.not_methods);
            let paths = values(&operation.paths, &operation.not_paths, &base.path, path);
            let hosts = values(&operation.hosts, &operation.not_hosts, &base.host, text);
            for path in &paths {
                for method in &methods {
                    for host in &hosts {
                        let (method, path, host) = (method.clone(), path.clone(), host.clone());
                        found.push(Parts { method, path, host, ..base.clone() });
                    }
                }
            }
        }
    }
    found
}

/// Samples of a field's values, and of those that it leaves out beside the usual one.
fn values(wanted: &[String], unwanted: &[String], usual: &str, sample: fn(&str) -> String) -> Vec<String> {
    let mut found: Vec<String> = wanted.iter().take(VALUES).map(|value| sample(value)).collect();
    if found.is_empty() {
        found.push(usual.to_owned());
    }
    found.extend(unwanted.iter().take(VALUES).map(|value| sample(value)));
    found
}

fn methods(wanted: &[String], unwanted: &[String]) -> Vec<String> {
    let mut found = values(wanted, unwanted, "GET", |method| match method {
        "*" => "GET".to_owned(),
        method => method.replace('*', ""),
    });
    // One that is not left out, if all that are named are.
    if wanted.is_empty() {
        let others = ["GET", "POST", "PUT", "PATCH", "DELETE"];
        found.extend(others.iter().find(|m| !unwanted.iter().any(|u| u == *m)).map(|m| (*m).to_owned()));
    }
    found.dedup();
    found
}

/// A text that a pattern matches.
fn text(pattern: &str) -> String {
    match pattern {
        "*" => "x".to_owned(),
        pattern => pattern.replace('*', "x"),
    }
}

/// A path that a pattern matches.
fn path(pattern: &str) -> String {
    let text = match pattern {
        "*" => "/".to_owned(),
        pattern => pattern.replace("{**}", "x/y").replace("{*}", "x").replace('*', "x"),
    };
    if text.starts_with('/') { text } else { format!("/{text}") }
}

/// The claims that make a token's holder the one of this name.
fn principal(name: &str, claims: &mut Value) {
    let (issuer, subject) = match name {
        "*" => ("x", "x"),
        name => name.rsplit_once('/').unwrap_or((name, "")),
    };
    claims["iss"] = text(issuer).into();
    claims["sub"] = text(subject).into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_samples_that_they_match() {
        for (pattern, wanted) in [
            ("/a", "/a"),
            ("/a/*", "/a/x"),
            ("*/b", "/x/b"),
            ("*", "/"),
            ("/a/{*}/c", "/a/x/c"),
            ("/a/{**}", "/a/x/y"),
        ] {
            // A suffix may be preceded by anything, a slash included.
            let found = path(pattern);
            assert!(found == wanted, "{pattern}: {found}");
        }
        assert_eq!(methods(&[], &["GET".into(), "POST".into()]), ["GET", "POST", "PUT"]);
        let mut claims = json!({});
        principal("https://sso.example/*", &mut claims);
        assert_eq!(claims, json!({"iss": "https://sso.example", "sub": "x"}));
    }
}
