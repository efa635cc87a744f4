//! Tokens and key sets: only what an issuer's key signed opens a door, wherever it is shown; whatever somebody serves as a key
//! set, reading it is safe.

use std::sync::{Arc, OnceLock};

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use weft_proxy::http::HcmConfig;
use weft_proxy::state::Tables;

use super::proxy::{ask, compile, get};

const KEYS: &str = include_str!("../data/jwks.json");
/// What the keys' owner signed, and never will sign again: for `shop`, until the year 2286.
const TOKENS: &str = include_str!("../data/tokens.txt");

/// The first byte says what the rest is: a token in one of the places for them, or a key set.
pub fn check(data: &[u8]) {
    static FILTER: OnceLock<Arc<HcmConfig>> = OnceLock::new();
    let [mode, rest @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if mode % 4 == 3 {
        let Ok(filter) = filter(text) else { return };
        let token = TOKENS.lines().next().unwrap_or_default();
        let _ = shown(&Arc::new(filter), 0, token);
        return;
    }
    let filter = FILTER.get_or_init(|| Arc::new(filter(KEYS).expect("the keys are good")));
    let status = shown(filter, mode % 4, text);
    if status == Some(StatusCode::OK) {
        let signed = signed(text).expect("a token has a signature");
        assert!(TOKENS.lines().any(|t| self::signed(t) == Some(signed)), "nobody signed {signed}");
    } else if TOKENS.lines().any(|t| t == text) {
        panic!("a good token was answered with {status:?}");
    }
}

/// What a token's signature is over.
fn signed(token: &str) -> Option<&str> {
    token.rsplit_once('.').map(|(signed, _)| signed)
}

fn filter(keys: &str) -> Result<HcmConfig, String> {
    let provider = json!({"issuer": "https://issuer.example", "audiences": ["shop"], "local_jwks": {"inline_string": keys},
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}], "from_params": ["token"],
        "from_cookies": ["token"], "payload_in_metadata": "p", "forward_payload_header": "x-payload",
        "claim_to_headers": [{"header_name": "x-sub", "claim_name": "sub"}, {"header_name": "x-n", "claim_name": "nested.x.y"}]});
    let filter: Value = json!({"name": "envoy.filters.http.jwt_authn", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"p": provider},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}]}});
    let routes = json!([{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]);
    compile(&Tables::default(), &[filter], routes, json!({}))
}

/// How a request that shows this token is answered; none where it cannot be shown there.
fn shown(filter: &Arc<HcmConfig>, place: u8, token: &str) -> Option<StatusCode> {
    let value = |prefix: &str| HeaderValue::from_str(&format!("{prefix}{token}")).ok();
    let mut request = get(b"/a");
    match place {
        0 => request.head.headers.append(http::header::AUTHORIZATION, value("Bearer ")?),
        1 if token.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'&' | b'%' | b'+')) => {
            request.head.path = format!("/a?x=1&token={token}").into();
        }
        2 if !token.contains([';', ' ', '"', ',']) => {
            request.head.headers.append(HeaderName::from_static("cookie"), value("token=")?);
        }
        _ => return None,
    }
    Some(ask(filter, request).head.status)
}
