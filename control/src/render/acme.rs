//! What gateways answer to an ACME server that looks at a host (RFC 8555, section 8.3): routes that are there only while an order
//! is open.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ProxyNode;
use crate::model::World;
use crate::model::host::most_specific;

/// Puts the answers into the virtual hosts of a plain port of the gateway, for the hosts that it `serves` there.
pub(super) fn answer(
    world: &World,
    node: &ProxyNode,
    port: u16,
    serves: impl Fn(&str) -> bool,
    virtual_hosts: &mut Vec<Value>,
) {
    let mut answers: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    let asked = world.acme().challenges().iter();
    for challenge in asked.filter(|c| c.namespace == node.namespace && serves(&c.host)) {
        answers.entry(&challenge.host).or_default().push(json!({
            "name": "acme-challenge",
            "match": {"path": format!("/.well-known/acme-challenge/{}", challenge.token)},
            "direct_response": {"status": 200, "body": {"inline_string": challenge.answer}},
        }));
    }
    for (host, mut routes) in answers {
        let index = of_its_own(host, port, virtual_hosts);
        let entry = &mut virtual_hosts[index];
        // Redirected, the server would come to where there is no certificate yet.
        if entry.as_object_mut().and_then(|fields| fields.remove("require_tls")).is_some() {
            routes.push(json!({"match": {"prefix": "/"}, "redirect": {"https_redirect": true}}));
        }
        if let Some(Value::Array(usual)) = entry.get_mut("routes") {
            routes.append(usual);
        }
        entry["routes"] = routes.into();
    }
}

/// The virtual host for exactly this host. Where a more general one speaks for it, it gets one for the time, with all that the
/// general one has.
fn of_its_own(host: &str, port: u16, virtual_hosts: &mut Vec<Value>) -> usize {
    let named = |entry: &Value| entry["domains"][0].as_str().unwrap_or_default().to_owned();
    let names: Vec<String> = virtual_hosts.iter().map(named).collect();
    if let Some(index) = names.iter().position(|name| name.eq_ignore_ascii_case(host)) {
        return index;
    }
    let general = most_specific(host, names.iter().enumerate().map(|(index, name)| (name.as_str(), index)));
    let mut own = match general {
        Some((_, index)) => virtual_hosts[index].clone(),
        None => json!({"routes": [], "include_request_attempt_count": true}),
    };
    own["name"] = format!("{host}:{port}").into();
    own["domains"] = json!([host]);
    virtual_hosts.push(own);
    virtual_hosts.len() - 1
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};
    use xds_protos::ResourceType;

    use super::super::tests::{mesh, node, value};
    use super::super::{Memo, render};
    use crate::model::World;
    use crate::model::acme::{Acme, Challenge};

    /// Servers at ports 80 (for a.example, redirected; and for everything below b.example) and 8080.
    fn world() -> World {
        mesh(
            "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: edge}
spec:
  servers:
    - {port: {number: 80, protocol: HTTP, name: redirected}, hosts: ['edge/a.example'], tls: {httpsRedirect: true}}
    - {port: {number: 80, protocol: HTTP, name: plain}, hosts: ['*.b.example']}
    - {port: {number: 8080, protocol: HTTP, name: other}, hosts: ['*']}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b, namespace: edge}
spec: {hosts: ['*.b.example'], gateways: [g], http: [{directResponse: {status: 201}}]}
",
        )
    }

    fn asked(world: &World, namespace: &str, hosts: &[&str]) -> World {
        let challenge = |host: &&str| Challenge {
            namespace: namespace.to_owned(),
            host: (*host).to_owned(),
            token: format!("t-{}", host.len()),
            answer: format!("{host} is ours"),
        };
        world.with_acme(Arc::new(Acme::new(Vec::new(), hosts.iter().map(challenge).collect())))
    }

    /// Of each virtual host its domain, whether it redirects by itself, and what its routes are.
    fn hosts(world: &World, routes: &str) -> Vec<(String, bool, Vec<Value>)> {
        let resources = render(world, &node("router", "127.0.9.2", "edge"), true, &Memo::default());
        let routes = value(&resources, ResourceType::Route, routes);
        let short = |route: &Value| match &route["match"]["path"] {
            Value::String(path) => json!([path, route["direct_response"]["body"]["inline_string"]]),
            _ => match &route["redirect"]["https_redirect"] {
                Value::Bool(true) => "to https".into(),
                _ => route["direct_response"]["status"].clone(),
            },
        };
        let hosts = routes["virtual_hosts"].as_array().unwrap().iter();
        hosts
            .map(|host| {
                let routes = host["routes"].as_array().into_iter().flatten().map(short).collect();
                let domain = host["domains"][0].as_str().unwrap().to_owned();
                (domain, host["require_tls"] == "ALL", routes)
            })
            .collect()
    }

    #[test]
    fn an_open_question_is_answered_first_and_everything_else_as_before() {
        let world = world();
        let b = ("*.b.example".to_owned(), false, vec![json!(201)]);
        let before = vec![b.clone(), ("a.example".to_owned(), true, vec![])];
        assert_eq!(hosts(&world, "http.80"), before);

        let path = |token: &str| format!("/.well-known/acme-challenge/{token}");
        let open = asked(&world, "edge", &["a.example", "x.b.example", "elsewhere.example"]);
        let answered = vec![json!([path("t-9"), "a.example is ours"]), json!("to https")];
        let own = vec![json!([path("t-11"), "x.b.example is ours"]), json!(201)];
        assert_eq!(
            hosts(&open, "http.80"),
            [b, ("a.example".to_owned(), false, answered), ("x.b.example".to_owned(), false, own)]
        );
        assert_ne!(open.shape_version(), world.shape_version(), "routes are made anew");
        // Other ports and other namespaces' gateways are not asked.
        assert_eq!(hosts(&open, "http.8080"), hosts(&world, "http.8080"));
        assert_eq!(hosts(&asked(&world, "other", &["a.example"]), "http.80"), before);
    }
}
