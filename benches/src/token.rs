//! The token of the rows with authorization, and the keys to verify it: an issuer made anew for each run (RS256, as most are).

use std::sync::LazyLock;

use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// Who issues it.
pub const ISSUER: &str = "https://login.ecotrack.example";

/// A token and the key set that verifies it.
#[derive(Debug)]
pub struct Issued {
    /// The token.
    pub token: String,
    /// The key set (RFC 7517).
    pub jwks: String,
}

/// This run's.
pub static ISSUED: LazyLock<Result<Issued, String>> =
    LazyLock::new(|| issue().map_err(|e| format!("the benchmark's token: {e}")));

fn issue() -> Result<Issued, aws_lc_rs::error::Unspecified> {
    let key = KeyPair::generate(KeySize::Rsa2048)?;
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let public = key.public_key();
    let modulus = encode(public.modulus().big_endian_without_leading_zero());
    let exponent = encode(public.exponent().big_endian_without_leading_zero());
    let jwks = format!(
        r#"{{"keys":[{{"kty":"RSA","kid":"bench","alg":"RS256","use":"sig","n":"{modulus}","e":"{exponent}"}}]}}"#
    );
    let header = encode(br#"{"alg":"RS256","kid":"bench","typ":"JWT"}"#);
    let claims = format!(
        r#"{{"iss":"{ISSUER}","sub":"user-4711","aud":"ecotrack","iat":1700000000,"exp":4102444800,"scope":"read write","groups":["customers","beta"]}}"#
    );
    let signed = format!("{header}.{}", encode(claims.as_bytes()));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &aws_lc_rs::rand::SystemRandom::new(), signed.as_bytes(), &mut signature)?;
    Ok(Issued { token: format!("{signed}.{}", encode(&signature)), jwks })
}

/// A hundred policies in the form in which a control plane sends them, of which the last lets the benchmark's request pass.
pub fn policies() -> String {
    let mut all = String::from("{");
    for number in 0..100 {
        let path = if number == 99 { "/api/products".to_owned() } else { format!("/api/other-{number}/") };
        all.push_str(&format!(
            r#""ns[ecotrack]-policy[allow-{number}]-rule[0]": {{"permissions": [{{"and_rules": {{"rules": [{{"or_rules": {{"rules": [{{"url_path": {{"path": {{"prefix": "{path}"}}}}}}]}}}}, {{"or_rules": {{"rules": [{{"header": {{"name": ":method", "string_match": {{"exact": "GET"}}}}}}]}}}}]}}}}], "principals": [{{"and_ids": {{"ids": [{{"or_ids": {{"ids": [{{"authenticated": {{"principal_name": {{"exact": "spiffe://cluster.local/ns/ecotrack/sa/client-{number}"}}}}}}, {{"authenticated": {{"principal_name": {{"exact": "{}"}}}}}}]}}}}, {{"or_ids": {{"ids": [{{"metadata": {{"filter": "envoy.filters.http.jwt_authn", "path": [{{"key": "payload"}}, {{"key": "iss"}}], "value": {{"string_match": {{"exact": "{ISSUER}"}}}}}}}}]}}}}]}}}}]}}"#,
            crate::tls::ID,
        ));
        all.push_str(if number == 99 { "}" } else { ", " });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policies_are_a_hundred_and_one_is_for_the_request() {
        let all: serde_json::Value = serde_json::from_str(&policies()).unwrap();
        assert_eq!(all.as_object().unwrap().len(), 100);
        let request = String::from_utf8_lossy(crate::exchange::REQUEST).into_owned();
        let path = request.split(' ').nth(1).unwrap();
        let prefixes = policies().matches("\"prefix\": \"").count();
        assert!(path.starts_with("/api/products") && prefixes == 100);
    }

    #[test]
    fn the_token_has_three_parts_and_the_key_set_one_key() {
        let issued = ISSUED.as_ref().unwrap();
        assert_eq!(issued.token.split('.').count(), 3);
        let keys: serde_json::Value = serde_json::from_str(&issued.jwks).unwrap();
        assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    }
}
