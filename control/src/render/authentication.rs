//! RequestAuthentications as the filter that checks tokens, as istiod writes it: one provider for each rule, and a
//! requirement that lets requests without a token pass, but none with a bad one.

use serde_json::{Map, Value, json};

use super::ProxyNode;
use super::filters::Way;
use crate::model::World;
use crate::model::request_authentication::JwtRule;

/// The key under which a token's payload stands in the filter's metadata; AuthorizationPolicies look there.
pub(super) const PAYLOAD: &str = "payload";
/// The filter, and its metadata's namespace.
pub(super) const FILTER: &str = "envoy.filters.http.jwt_authn";
/// Claims that are lists wherever they are texts with spaces.
const SPACE_DELIMITED: [&str; 2] = ["permission", "scope"];

/// The filter of a connection manager, if its workload knows any tokens.
pub(super) fn http_filter(world: &World, node: &ProxyNode, way: Way) -> Option<Value> {
    let rules = world.jwt_rules(&node.namespace, node.selected_by(world));
    let names: Vec<String> = (0..rules.len()).map(|index| format!("origins-{index}")).collect();
    let named = |name: &String| json!({"provider_name": name});
    let optional = |name: &String| any(vec![named(name), json!({"allow_missing": {}})]);
    let requires = match names.as_slice() {
        [] => return None,
        [only] => optional(only),
        all => {
            // Good by one of them; or each place is empty, or holds what its own rule takes.
            let mut alternatives: Vec<Value> = all.iter().map(named).collect();
            let each: Vec<Value> = all.iter().map(optional).collect();
            alternatives.push(json!({"requires_all": {"requirements": each}}));
            any(alternatives)
        }
    };
    let provider = |rule: &&JwtRule| provider(world, rule, way);
    let providers: Map<String, Value> = names.into_iter().zip(rules.iter().map(provider)).collect();
    Some(json!({"name": FILTER, "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": providers,
        "rules": [{"match": {"prefix": "/"}, "requires": requires}],
        "bypass_cors_preflight": true,
    }}))
}

fn any(requirements: Vec<Value>) -> Value {
    json!({"requires_any": {"requirements": requirements}})
}

fn provider(world: &World, rule: &JwtRule, way: Way) -> Value {
    let keys = match rule.key_source() {
        None => rule.jwks.as_str(),
        Some(source) => world.keys().of(&source),
    };
    let mut lists: Vec<&str> =
        rule.space_delimited_claims.iter().map(String::as_str).chain(SPACE_DELIMITED).collect();
    lists.sort_unstable();
    lists.dedup();
    let mut provider = json!({
        "issuer": rule.issuer,
        "audiences": rule.audiences,
        "local_jwks": {"inline_string": keys},
        "forward": rule.forward_original_token,
        "payload_in_metadata": PAYLOAD,
        "normalize_payload_in_metadata": {"space_delimited_claims": lists},
    });
    if !rule.output_payload_to_header.is_empty() {
        provider["forward_payload_header"] = rule.output_payload_to_header.as_str().into();
    }
    let headers = rule.from_headers.iter();
    let headers: Vec<Value> =
        headers.map(|from| json!({"name": from.name, "value_prefix": from.prefix})).collect();
    let claims = rule.output_claim_to_headers.iter();
    let claims: Vec<Value> =
        claims.map(|output| json!({"header_name": output.header, "claim_name": output.claim})).collect();
    for (name, list) in [
        ("from_headers", headers.into()),
        ("from_params", json!(rule.from_params)),
        ("from_cookies", json!(rule.from_cookies)),
        ("claim_to_headers", claims.into()),
    ] {
        if list != json!([]) {
            provider[name] = list;
        }
    }
    if way == Way::Gateway {
        // What a token says may choose the route.
        provider["clear_route_cache"] = true.into();
    }
    provider
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::load_str;
    use crate::model::{KeySets, KeySource};
    use crate::render::tests::node;

    fn of(place: &str, labels: &str, rules: &str) -> String {
        let (namespace, name) = place.split_once('/').unwrap();
        format!(
            "apiVersion: security.istio.io/v1beta1\nkind: RequestAuthentication\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{{labels} jwtRules: [{rules}]}}\n---\n"
        )
    }

    fn rendered(text: &str, namespace: &str, way: Way) -> Option<Value> {
        let world = load_str("t.yaml", text).into_result().unwrap();
        let keys = [(KeySource::Url("https://k/b".to_owned()), "KEYS OF B".into())].into();
        let world = world.with_keys(KeySets::new(keys, "NOBODY".into()).into());
        let mut node = node("sidecar", "127.0.9.9", namespace);
        node.labels = [("app".to_owned(), "s".to_owned())].into();
        Some(http_filter(&world, &node, way)?["typed_config"].clone())
    }

    const RULE_A: &str =
        "{issuer: a, jwks: '{\"keys\": [{\"kty\": \"RSA\", \"n\": \"sXchYw\", \"e\": \"AQAB\"}]}'}";

    #[test]
    fn one_rule_lets_requests_without_a_token_pass() {
        let filter = rendered(&of("n/t", "", RULE_A), "n", Way::Inbound).unwrap();
        assert_eq!(
            filter["rules"],
            json!([{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [
            {"provider_name": "origins-0"}, {"allow_missing": {}}]}}}])
        );
        assert_eq!(filter["bypass_cors_preflight"], true);
        let provider = &filter["providers"]["origins-0"];
        assert_eq!(provider["payload_in_metadata"], "payload");
        assert_eq!(
            provider["normalize_payload_in_metadata"],
            json!({"space_delimited_claims": ["permission", "scope"]})
        );
        assert_eq!((&provider["forward"], &provider["clear_route_cache"]), (&json!(false), &Value::Null));
        let gateway = rendered(&of("n/t", "", RULE_A), "n", Way::Gateway).unwrap();
        assert_eq!(gateway["providers"]["origins-0"]["clear_route_cache"], true);
    }

    #[test]
    fn all_rules_that_hold_are_taken_together_in_the_order_of_their_issuers() {
        let text = of(
            "n/t",
            "selector: {matchLabels: {app: s}},",
            "{issuer: c, jwksUri: 'https://k/c'}, {issuer: b, jwksUri: 'https://k/b'}",
        ) + &of("istio-system/t", "", RULE_A)
            + &of("n/other", "selector: {matchLabels: {app: other}},", "{issuer: d, jwksUri: 'https://k/d'}")
            + &of("elsewhere/t", "", "{issuer: e, jwksUri: 'https://k/e'}");
        let filter = rendered(&text, "n", Way::Inbound).unwrap();
        let issuer = |name: &str| filter["providers"][name]["issuer"].as_str().map(str::to_owned);
        let issuers: Vec<_> = (0..4).map(|i| issuer(&format!("origins-{i}"))).collect();
        assert_eq!(issuers, [Some("a".to_owned()), Some("b".to_owned()), Some("c".to_owned()), None]);
        let keys = |name: &str| filter["providers"][name]["local_jwks"]["inline_string"].clone();
        assert_eq!((keys("origins-1"), keys("origins-2")), (json!("KEYS OF B"), json!("NOBODY")));
        let named = |i: u8| json!({"provider_name": format!("origins-{i}")});
        let optional = |i: u8| json!({"requires_any": {"requirements": [named(i), {"allow_missing": {}}]}});
        assert_eq!(
            filter["rules"][0]["requires"],
            json!({"requires_any": {"requirements": [named(0), named(1), named(2),
            {"requires_all": {"requirements": [optional(0), optional(1), optional(2)]}}]}})
        );
        assert_eq!(rendered(&of("n/t", "", RULE_A), "m", Way::Inbound), None);
    }

    #[test]
    fn places_and_outputs_are_the_rules() {
        let more = "audiences: [x], fromHeaders: [{name: x-jwt, prefix: 'JWT '}], fromParams: [p], fromCookies: [c], \
            outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-r, claim: realm.role}], \
            forwardOriginalToken: true, spaceDelimitedClaims: [groups, scope]";
        let rule = format!("{}, {more}}}", RULE_A.strip_suffix('}').unwrap());
        let filter = rendered(&of("n/t", "", &rule), "n", Way::Inbound).unwrap();
        let mut provider = filter["providers"]["origins-0"].clone();
        provider.as_object_mut().unwrap().remove("local_jwks");
        assert_eq!(
            provider,
            json!({
                "issuer": "a", "audiences": ["x"], "forward": true, "payload_in_metadata": "payload",
                "normalize_payload_in_metadata": {"space_delimited_claims": ["groups", "permission", "scope"]},
                "from_headers": [{"name": "x-jwt", "value_prefix": "JWT "}], "from_params": ["p"], "from_cookies": ["c"],
                "forward_payload_header": "x-payload",
                "claim_to_headers": [{"header_name": "x-r", "claim_name": "realm.role"}],
            })
        );
    }
}
