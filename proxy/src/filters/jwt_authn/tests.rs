use serde_json::{Value, json};

use super::*;
use crate::state::CompileContext;

const KEY: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

fn compile(config: Value) -> Result<JwtAuthn, String> {
    let config = xds_protos::json::from_value(config).unwrap();
    JwtAuthn::compile(&config, "t", &CompileContext::for_tests())
        .map_err(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

fn provider(fields: Value) -> Value {
    let mut provider = json!({"issuer": "me", "local_jwks": {"inline_string": KEY}});
    for (name, value) in fields.as_object().unwrap() {
        provider[name] = value.clone();
    }
    json!({"p": provider})
}

#[test]
fn what_cannot_be_honoured_is_refused_with_its_path() {
    let ok = provider(json!({}));
    let rule = |requires: Value| {
        compile(json!({"providers": ok, "rules": [{"match": {"prefix": "/"}, "requires": requires}]}))
    };
    assert!(rule(json!({"provider_name": "p"})).is_ok());
    for (requires, error) in [
        (json!({"provider_name": "x"}), "rules[0].requires.provider_name: \"x\" is none of the providers"),
        (
            json!({"requires_any": {"requirements": [{"provider_name": "p"}, {"requires_all": {"requirements":
                [{"provider_name": "p"}, {"provider_and_audiences": {"provider_name": "y"}}]}}]}}),
            "rules[0].requires.requires_any.requirements[1].requires_all.requirements[1].provider_and_audiences.provider_name: ",
        ),
        (
            json!({"extract_only_without_validation": {}}),
            "rules[0].requires.extract_only_without_validation: ",
        ),
    ] {
        let found = rule(requires).err().unwrap();
        assert!(found.starts_with(error), "{found}");
    }
    for (fields, error) in [
        (json!({"local_jwks": {"inline_string": "{"}}), "providers[\"p\"].local_jwks: is no JSON"),
        (
            json!({"local_jwks": {"inline_string": "{\"keys\": [{\"kty\": \"RSA\", \"n\": \"AQ\"}]}"}}),
            "providers[\"p\"].local_jwks: has no key that can be used: keys[0] has no [e]",
        ),
        (json!({"from_headers": [{"name": "a b"}]}), "providers[\"p\"].from_headers[0].name: "),
        (
            json!({"claim_to_headers": [{"header_name": "x", "claim_path": [{"key": "a"}]}]}),
            "providers[\"p\"].claim_to_headers[0].claim_path: ",
        ),
    ] {
        let found = compile(json!({"providers": provider(fields)})).err().unwrap();
        assert!(found.starts_with(error), "{found}");
    }
    let named = json!({"providers": ok, "rules": [{"match": {"prefix": "/"}, "requirement_name": "r"}]});
    assert!(compile(named).err().unwrap().starts_with("rules[0].requirement_name: "));
    let remote = |uri: &str| {
        let jwks = json!({"http_uri": {"uri": uri, "cluster": "c", "timeout": "1s"}});
        compile(json!({"providers": {"p": {"issuer": "me", "remote_jwks": jwks}}}))
    };
    assert!(remote("https://a.example/x").is_ok());
    assert!(remote("/x").err().unwrap().starts_with("providers[\"p\"].remote_jwks.http_uri.uri: "));
}

#[test]
fn one_source_of_keys_is_shared_by_all_who_name_it() {
    let context = CompileContext::for_tests();
    let jwks = |path: &str| json!({"http_uri": {"uri": format!("https://a.example/{path}"), "cluster": "c", "timeout": "1s"}});
    let config = |path: &str| {
        let config = json!({"providers": {"p": {"remote_jwks": jwks(path)}}, "requirement_map": {"r": {"provider_name": "p"}}});
        xds_protos::json::from_value(config).unwrap()
    };
    let of = |filter: &JwtAuthn| {
        let Some(Requirement::Provider { provider, .. }) = filter.named["r"].as_deref() else { panic!("p") };
        let provider::Keys::Remote(remote) = &provider.keys else { panic!("remote") };
        remote.clone()
    };
    let compile = |path: &str| JwtAuthn::compile(&config(path), "t", &context).ok().unwrap();
    let (a, b, c) = (compile("x"), compile("x"), compile("y"));
    assert!(Arc::ptr_eq(&of(&a), &of(&b)));
    assert!(!Arc::ptr_eq(&of(&a), &of(&c)));
}
