//! VirtualServices that leave some of their rules to another one, which has no hosts: the rules of both become one.
//!
//! A delegate's rules stand where the root's rule stood. Each must match what both ask for; what the delegate leaves unset it
//! inherits. A delegate cannot delegate further.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::meta::Object;
use crate::model::service::ExportTo;
use crate::model::values::StringMatch;
use crate::model::virtual_service::{HttpMatch, HttpRoute, VirtualService};

/// The VirtualServices with their delegates' rules in place; `all` and the answer are in the same order.
pub(in crate::model) fn resolve(
    all: &[Arc<Object<VirtualService>>],
    default_export: &[String],
) -> Vec<Arc<Object<VirtualService>>> {
    let delegating =
        |object: &Object<VirtualService>| object.spec.http.iter().any(|rule| rule.delegate.is_some());
    all.iter()
        .map(
            |root| {
                if delegating(root) { Arc::new(resolved(root, all, default_export)) } else { root.clone() }
            },
        )
        .collect()
}

fn resolved(
    root: &Object<VirtualService>,
    all: &[Arc<Object<VirtualService>>],
    default_export: &[String],
) -> Object<VirtualService> {
    let mut whole = root.clone();
    whole.spec.http = Vec::with_capacity(root.spec.http.len());
    for rule in &root.spec.http {
        let Some(named) = &rule.delegate else {
            whole.spec.http.push(rule.clone());
            continue;
        };
        // One that is not there, has hosts, or is not exported to the root's namespace leaves the rule out.
        let found = all.iter().find(|other| {
            let (meta, spec) = (&other.meta, &other.spec);
            meta.name == named.name
                && meta.namespace == named.namespace
                && spec.hosts.is_empty()
                && ExportTo::parse(&spec.export_to, default_export, &meta.namespace)
                    .reaches(&meta.namespace, &root.meta.namespace)
        });
        whole.spec.http.extend(
            found.iter().flat_map(|delegate| &delegate.spec.http).filter_map(|inner| merged(rule, inner)),
        );
    }
    whole
}

/// A delegate's rule under the root's; `None` if no request can match both.
fn merged(root: &HttpRoute, inner: &HttpRoute) -> Option<HttpRoute> {
    fn inherit<T: Clone>(own: &mut Option<T>, from: &Option<T>) {
        if own.is_none() {
            own.clone_from(from);
        }
    }
    let mut rule = inner.clone();
    rule.matches = match (root.matches.as_slice(), inner.matches.as_slice()) {
        ([], own) => own.to_vec(),
        (outer, []) => outer.to_vec(),
        (outer, own) => {
            let both: Vec<HttpMatch> =
                outer.iter().flat_map(|a| own.iter().filter_map(move |b| both(a, b))).collect();
            if both.is_empty() {
                return None;
            }
            both
        }
    };
    rule.name = joined(&root.name, &inner.name);
    inherit(&mut rule.rewrite, &root.rewrite);
    inherit(&mut rule.timeout, &root.timeout);
    inherit(&mut rule.retries, &root.retries);
    inherit(&mut rule.fault, &root.fault);
    inherit(&mut rule.cors_policy, &root.cors_policy);
    inherit(&mut rule.headers, &root.headers);
    if rule.mirrors.is_empty() {
        rule.mirrors.clone_from(&root.mirrors);
    }
    Some(rule)
}

fn joined(outer: &str, inner: &str) -> String {
    match (outer, inner) {
        ("", name) | (name, "") => name.to_owned(),
        (outer, inner) => format!("{outer}-{inner}"),
    }
}

/// What matches both; `None` if they contradict each other. The inner match must be the narrower one.
fn both(outer: &HttpMatch, inner: &HttpMatch) -> Option<HttpMatch> {
    let parts = [
        (&outer.uri, &inner.uri),
        (&outer.scheme, &inner.scheme),
        (&outer.method, &inner.method),
        (&outer.authority, &inner.authority),
    ];
    let same_text = |a: &str, b: &str| a.is_empty() || b.is_empty() || a == b;
    let fits = parts.iter().all(|(a, b)| narrower(a.as_ref(), b.as_ref()))
        && all_narrower(&outer.headers, &inner.headers)
        && all_narrower(&outer.without_headers, &inner.without_headers)
        && all_narrower(&outer.query_params, &inner.query_params)
        && outer.ignore_uri_case == inner.ignore_uri_case
        && (outer.port.is_none() || inner.port.is_none() || outer.port == inner.port)
        && same_text(&outer.source_namespace, &inner.source_namespace)
        && inner.source_labels.iter().all(|(k, v)| outer.source_labels.get(k).is_none_or(|o| o == v))
        && (outer.gateways.is_empty()
            || inner.gateways.iter().all(|gateway| outer.gateways.contains(gateway)));
    if !fits {
        return None;
    }
    let or = |a: &Option<StringMatch>, b: &Option<StringMatch>| b.clone().or_else(|| a.clone());
    let union = |a: &BTreeMap<String, StringMatch>, b: &BTreeMap<String, StringMatch>| {
        a.iter().chain(b).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let text = |a: &str, b: &str| if b.is_empty() { a.to_owned() } else { b.to_owned() };
    Some(HttpMatch {
        name: joined(&outer.name, &inner.name),
        uri: or(&outer.uri, &inner.uri),
        ignore_uri_case: inner.ignore_uri_case,
        whole_segments: inner.whole_segments,
        scheme: or(&outer.scheme, &inner.scheme),
        method: or(&outer.method, &inner.method),
        authority: or(&outer.authority, &inner.authority),
        headers: union(&outer.headers, &inner.headers),
        without_headers: union(&outer.without_headers, &inner.without_headers),
        query_params: union(&outer.query_params, &inner.query_params),
        port: inner.port.or(outer.port),
        source_labels: outer
            .source_labels
            .iter()
            .chain(&inner.source_labels)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        source_namespace: text(&outer.source_namespace, &inner.source_namespace),
        gateways: if inner.gateways.is_empty() { outer.gateways.clone() } else { inner.gateways.clone() },
        stat_prefix: text(&outer.stat_prefix, &inner.stat_prefix),
    })
}

fn all_narrower(outer: &BTreeMap<String, StringMatch>, inner: &BTreeMap<String, StringMatch>) -> bool {
    outer.iter().all(|(name, a)| narrower(Some(a), inner.get(name)))
}

/// Whether what `inner` takes `outer` takes as well, as far as Istio looks into it: two of which one is a regular expression
/// count as a contradiction.
fn narrower(outer: Option<&StringMatch>, inner: Option<&StringMatch>) -> bool {
    use StringMatch::{Exact, Prefix, Present, Regex};
    match (outer, inner) {
        (None | Some(Present), _) | (_, None | Some(Present)) => true,
        (Some(Regex(_)), _) | (_, Some(Regex(_))) => false,
        (Some(Exact(a)), Some(Exact(b))) => a == b,
        (Some(Exact(_)), Some(Prefix(_))) => false,
        (Some(Prefix(a)), Some(Exact(b) | Prefix(b))) => b.starts_with(a),
    }
}
