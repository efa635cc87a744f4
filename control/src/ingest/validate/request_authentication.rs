//! RequestAuthentication.

use http::HeaderName;

use super::super::diagnostic::Findings;
use super::authorization_policy::{selector, targets};
use super::{annotations, period};
use crate::model::keys;
use crate::model::meta::Meta;
use crate::model::request_authentication::{JwtRule, RequestAuthentication};

pub(in super::super) fn request_authentication(
    spec: &RequestAuthentication,
    meta: &Meta,
    findings: &mut Findings,
) {
    annotations(findings, meta, &[]);
    selector(findings, spec.selector.as_ref());
    targets(findings, &meta.namespace, spec.selector.is_some(), spec.target_ref.as_ref(), &spec.target_refs);
    if spec.jwt_rules.is_empty() {
        findings.warn(
            "spec.jwtRules",
            "missing: without rules it does nothing",
            "say whose tokens are known",
        );
    }
    for (index, one) in spec.jwt_rules.iter().enumerate() {
        rule(findings, &format!("spec.jwtRules[{index}]"), one);
    }
}

fn rule(findings: &mut Findings, path: &str, rule: &JwtRule) {
    // Without an issuer, whoever has a token signed by these keys is believed, whatever it says of its issuer.
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        let help = "name the issuer as its tokens do (iss), or say where the keys are as jwksUri";
        findings.error(format!("{path}.issuer"), "missing", help);
    }
    for (name, list) in [
        ("audiences", &rule.audiences),
        ("fromParams", &rule.from_params),
        ("fromCookies", &rule.from_cookies),
        ("spaceDelimitedClaims", &rule.space_delimited_claims),
    ] {
        for (index, _) in list.iter().enumerate().filter(|(_, value)| value.is_empty()) {
            findings.error(format!("{path}.{name}[{index}]"), "empty", "give a value, or take it out");
        }
    }
    keys_of(findings, path, rule);
    for (index, from) in rule.from_headers.iter().enumerate() {
        header(findings, &format!("{path}.fromHeaders[{index}].name"), &from.name);
    }
    if !rule.output_payload_to_header.is_empty() {
        header(findings, &format!("{path}.outputPayloadToHeader"), &rule.output_payload_to_header);
    }
    for (index, output) in rule.output_claim_to_headers.iter().enumerate() {
        let path = format!("{path}.outputClaimToHeaders[{index}]");
        // Istio takes fewer characters than HTTP does.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if output.header.is_empty() || !output.header.chars().all(plain) {
            let reason = format!("{:?} is not the name of a header", output.header);
            findings.error(format!("{path}.header"), reason, "use letters, digits, dashes and underscores");
        }
        if output.claim.is_empty() {
            findings.error(format!("{path}.claim"), "missing", "name the claim; dots lead into objects");
        }
    }
    period(findings, &format!("{path}.timeout"), rule.timeout);
}

fn keys_of(findings: &mut Findings, path: &str, rule: &JwtRule) {
    let is_url = |text: &str| {
        let uri = text.parse::<http::Uri>().ok();
        uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some_and(|host| !host.is_empty())
        })
    };
    match (rule.jwks.is_empty(), rule.jwks_uri.is_empty()) {
        (false, false) => {
            let help = "give the keys themselves as jwks, or where they are as jwksUri";
            findings.error(format!("{path}.jwks"), "stands beside jwksUri", help);
        }
        (false, true) => match keys::inspect(&rule.jwks) {
            Ok(contents) if contents.secret => {
                let help = "give public keys alone: whoever has this key can make tokens";
                findings.warn(format!("{path}.jwks"), "holds a private key or a shared secret", help);
            }
            Ok(_) => {}
            Err(reason) => {
                let help = "give a JSON Web Key Set: {\"keys\": [...]}";
                findings.error(format!("{path}.jwks"), format!("no key set: {reason}"), help);
            }
        },
        (true, false) if !is_url(&rule.jwks_uri) => {
            let reason = format!("{:?} is not a URL of http or https", rule.jwks_uri);
            findings.error(format!("{path}.jwksUri"), reason, "write https://HOST/PATH");
        }
        (true, false) => {}
        (true, true) if !rule.issuer.is_empty() && !is_url(&rule.issuer) => {
            let reason = "missing, and so is jwksUri; the issuer is no URL at which they could be looked for";
            let help = "give jwks or jwksUri; as it is, every token of the issuer is refused";
            findings.warn(format!("{path}.jwks"), reason, help);
        }
        (true, true) => {}
    }
}

fn header(findings: &mut Findings, path: &str, name: &str) {
    if name.is_empty() {
        findings.error(path, "empty", "name the header");
    } else if HeaderName::from_bytes(name.as_bytes()).is_err() {
        findings.error(path, format!("{name:?} is not the name of a header"), "");
    }
}
