//! The matchers of Envoy's that values of an AuthorizationPolicy become, as istiod writes them.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::render::authentication::{FILTER, PAYLOAD};

/// Istio's forms of a value: `*` for anything that is there, `*end`, `beginning*`, or the whole.
pub(super) fn text(value: &str) -> Value {
    text_after("", value)
}

/// The same of what follows `before`; `*` is still anything that is there.
pub(super) fn text_after(before: &str, value: &str) -> Value {
    if value == "*" {
        regex(".+")
    } else if let Some(end) = value.strip_prefix('*') {
        match before {
            "" => json!({"suffix": end}),
            before => regex(&format!("{before}.*{}", escaped(end))),
        }
    } else if let Some(beginning) = value.strip_suffix('*') {
        json!({"prefix": format!("{before}{beginning}")})
    } else {
        json!({"exact": format!("{before}{value}")})
    }
}

pub(super) fn regex(pattern: &str) -> Value {
    json!({"safe_regex": {"regex": pattern}})
}

/// A text as a regular expression that matches it alone.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// A header field.
pub(super) fn header(name: &str, value: &str, ignore_case: bool) -> Value {
    if value == "*" {
        return json!({"name": name, "present_match": true});
    }
    let mut matcher = text(value);
    if ignore_case {
        matcher["ignore_case"] = true.into();
    }
    json!({"name": name, "string_match": matcher})
}

/// A path, or a template of paths.
pub(super) fn path(value: &str) -> Value {
    if !is_template(value) {
        return json!({"url_path": {"path": text(value)}});
    }
    let template = value.replace("{**}", "**").replace("{*}", "*");
    json!({"uri_template": {"name": "uri-template", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        "path_template": template,
    }}})
}

fn is_template(path: &str) -> bool {
    path.contains("{*}") || path.contains("{**}")
}

/// A certificate's name.
pub(super) fn authenticated(name: &Value) -> Value {
    json!({"authenticated": {"principal_name": name}})
}

/// A name in this trust domain, or in one that it stands for: `*`, `*end`, `beginning*`.
pub(super) fn trust_domain(value: &str) -> Value {
    match value.split_once('*') {
        None => json!({"prefix": format!("spiffe://{value}/")}),
        Some(("", "")) => json!({"prefix": "spiffe://"}),
        Some((before, after)) => regex(&format!("spiffe://{}[^/]*{}/.*", escaped(before), escaped(after))),
    }
}

/// An address or a range.
pub(super) fn cidr(value: &str) -> Value {
    let (address, length) = value.split_once('/').unwrap_or((value, ""));
    let whole = || if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) { 128 } else { 32 };
    json!({"address_prefix": address, "prefix_len": length.parse().unwrap_or_else(|_| whole())})
}

/// `ISSUER/SUBJECT` of a verified token; the last slash is the one between them, since an issuer may be a URL.
pub(super) fn request_principal(value: &str) -> Value {
    let anything = || regex(".+");
    let (issuer, subject) = match (value, value.rsplit_once('/')) {
        ("*", _) => (anything(), anything()),
        (_, Some(("*", subject))) => (anything(), json!({"exact": subject})),
        (_, Some((issuer, subject))) if issuer.starts_with('*') => {
            (json!({"suffix": issuer.strip_prefix('*')}), json!({"exact": subject}))
        }
        (_, Some((issuer, "*"))) => (json!({"exact": issuer}), anything()),
        (_, Some((issuer, subject))) => match subject.strip_suffix('*') {
            Some(beginning) => (json!({"exact": issuer}), json!({"prefix": beginning})),
            None => (json!({"exact": issuer}), json!({"exact": subject})),
        },
        (value, None) => match (value.strip_prefix('*'), value.strip_suffix('*')) {
            (Some(end), _) => (anything(), json!({"suffix": end})),
            (_, Some(beginning)) => (json!({"prefix": beginning}), anything()),
            _ => (json!({"exact": value}), json!({"exact": ""})),
        },
    };
    let of =
        |claim: &str, value: Value| json!({"metadata": payload(&[claim], json!({"string_match": value}))});
    json!({"and_ids": {"ids": [of("iss", issuer), of("sub", subject)]}})
}

/// A claim of a verified token, itself or one of its list.
pub(super) fn claim(path: &[&str], values: &[String]) -> Value {
    let one = any(values.iter().map(|v| json!({"string_match": text(v)})).collect());
    let either = json!({"or_match": {"value_matchers": [{"list_match": {"one_of": one}}, one]}});
    json!({"metadata": payload(path, either)})
}

fn any(mut of: Vec<Value>) -> Value {
    if of.len() == 1 { of.remove(0) } else { json!({"or_match": {"value_matchers": of}}) }
}

fn payload(path: &[&str], value: Value) -> Value {
    let path: Vec<Value> = [PAYLOAD].iter().chain(path).map(|key| json!({"key": key})).collect();
    json!({"filter": FILTER, "path": path, "value": value})
}

/// What a filter has said of the request under a key; `[VALUE]` is one of a list.
pub(super) fn filter_metadata(filter: &str, key: &str, values: &[String]) -> Value {
    let one = |value: &String| {
        let inner = value.strip_prefix('[').and_then(|v| v.strip_suffix(']'));
        match inner {
            Some(inner) => json!({"list_match": {"one_of": {"string_match": text(inner)}}}),
            None => json!({"string_match": text(value)}),
        }
    };
    json!({"filter": filter, "path": [{"key": key}], "value": any(values.iter().map(one).collect())})
}

/// Trust domains, with the mesh's aliases where one of them is named.
pub(super) fn expanded(values: &[String], known: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for value in values {
        let more: Vec<&str> = if known.contains(&value.as_str()) { known.to_vec() } else { vec![value] };
        for domain in more {
            if !all.iter().any(|held| held == domain) {
                all.push(domain.to_owned());
            }
        }
    }
    all
}

/// Identities, each in all of the mesh's trust domains where it names one of them, or `cluster.local`, which stands for the
/// mesh's own whatever it is called.
pub(super) fn with_aliases(principals: &[String], known: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for principal in principals {
        let parts: Vec<&str> = principal.split('/').collect();
        let [domain, rest @ ..] = parts.as_slice() else { continue };
        let covers =
            |known: &&str| domain.strip_prefix('*').map_or(known == domain, |end| known.ends_with(end));
        let ours = known.iter().any(covers) || *domain == "cluster.local";
        if rest.len() != 4 || *domain == "*" || !ours {
            all.push(principal.clone());
            continue;
        }
        for other in known {
            let named = if covers(other) { principal.clone() } else { format!("{other}/{}", rest.join("/")) };
            if !all.contains(&named) {
                all.push(named);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_whole_or_open_at_one_end() {
        assert_eq!(text("a"), json!({"exact": "a"}));
        assert_eq!(text("a*"), json!({"prefix": "a"}));
        assert_eq!(text("*a"), json!({"suffix": "a"}));
        assert_eq!(text("*"), regex(".+"));
        assert_eq!(text_after("spiffe://", "*/sa/a.b"), regex(r"spiffe://.*/sa/a\.b"));
        assert_eq!(text_after("spiffe://", "td/*"), json!({"prefix": "spiffe://td/"}));
        assert_eq!(header("x", "*", false), json!({"name": "x", "present_match": true}));
    }

    #[test]
    fn templates_are_told_from_paths() {
        let template = |path: &str| path_of(path)["uri_template"]["typed_config"]["path_template"].clone();
        fn path_of(path: &str) -> Value {
            super::path(path)
        }
        assert_eq!(template("/a/{*}/b/{**}"), "/a/*/b/**");
        assert_eq!(path_of("/a/*"), json!({"url_path": {"path": {"prefix": "/a/"}}}));
    }

    #[test]
    fn an_issuer_may_be_a_url() {
        let parts = |value: &str| {
            let ids = request_principal(value)["and_ids"]["ids"].clone();
            let of = |index: usize| ids[index]["metadata"]["value"]["string_match"].clone();
            (of(0), of(1))
        };
        let anything = || regex(".+");
        assert_eq!(parts("*"), (anything(), anything()));
        assert_eq!(parts("https://a.com/*"), (json!({"exact": "https://a.com"}), anything()));
        assert_eq!(parts("https://a.com/u1"), (json!({"exact": "https://a.com"}), json!({"exact": "u1"})));
        assert_eq!(parts("https://a.com/u*"), (json!({"exact": "https://a.com"}), json!({"prefix": "u"})));
        assert_eq!(parts("*/u1"), (anything(), json!({"exact": "u1"})));
        assert_eq!(parts("*.com/u1"), (json!({"suffix": ".com"}), json!({"exact": "u1"})));
        assert_eq!(parts("*u1"), (anything(), json!({"suffix": "u1"})));
        assert_eq!(parts("iss*"), (json!({"prefix": "iss"}), anything()));
        assert_eq!(parts("iss"), (json!({"exact": "iss"}), json!({"exact": ""})));
    }

    #[test]
    fn an_identity_of_the_mesh_is_meant_in_all_its_trust_domains() {
        let of = |principal: &str| with_aliases(&[principal.to_owned()], &["new", "old"]);
        assert_eq!(of("new/ns/a/sa/b"), ["new/ns/a/sa/b", "old/ns/a/sa/b"]);
        assert_eq!(of("old/ns/a/sa/b"), ["new/ns/a/sa/b", "old/ns/a/sa/b"]);
        assert_eq!(of("cluster.local/ns/a/sa/b"), ["new/ns/a/sa/b", "old/ns/a/sa/b"]);
        assert_eq!(of("foreign/ns/a/sa/b"), ["foreign/ns/a/sa/b"]);
        assert_eq!(of("*/ns/a/sa/b"), ["*/ns/a/sa/b"]);
        assert_eq!(of("*ew/ns/a/sa/b"), ["*ew/ns/a/sa/b", "old/ns/a/sa/b"]);
        assert_eq!(of("*"), ["*"]);
        assert_eq!(of("new/ns/a/*"), ["new/ns/a/*"]);
        assert_eq!(expanded(&["old".into(), "x".into()], &["new", "old"]), ["new", "old", "x"]);
    }

    #[test]
    fn a_trust_domain_may_be_open_at_one_end() {
        assert_eq!(trust_domain("a.b"), json!({"prefix": "spiffe://a.b/"}));
        assert_eq!(trust_domain("*"), json!({"prefix": "spiffe://"}));
        assert_eq!(trust_domain("a.b*"), regex(r"spiffe://a\.b[^/]*/.*"));
        assert_eq!(trust_domain("*.b"), regex(r"spiffe://[^/]*\.b/.*"));
    }

    #[test]
    fn addresses_are_ranges_of_one() {
        assert_eq!(cidr("10.0.0.1"), json!({"address_prefix": "10.0.0.1", "prefix_len": 32}));
        assert_eq!(cidr("10.0.0.0/8"), json!({"address_prefix": "10.0.0.0", "prefix_len": 8}));
        assert_eq!(cidr("::1"), json!({"address_prefix": "::1", "prefix_len": 128}));
    }
}
