//! `/certs`: the workload's own certificate and roots, in Envoy's shape, and beside
//! them how renewing goes.

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::AdminState;

pub(super) fn json(state: &AdminState) -> Value {
    let current = state.identity.as_ref().and_then(|i| i.borrow().clone());
    let Some(own) = current else { return json!({"certificates": []}) };
    let chain: Vec<_> = own.chain().iter().map(|c| entry(c, Some(own.validity().issued))).collect();
    let roots: Vec<_> = own.bundle().iter().map(|c| entry(c, None)).collect();
    let mut page = json!({"certificates": [{"ca_cert": roots, "cert_chain": chain}]});
    if let Some(renewal) = &state.renewal {
        let renewal = renewal.borrow();
        page["renewal"] = json!({
            "automatic": !renewal.by_hand,
            "next": renewal.renews.and_then(|t| t.format(&Rfc3339).ok()),
            "received": renewal.received,
            "rotations": renewal.rotations,
            "failures": renewal.failures,
            "refused_by_peers": renewal.doubts,
            "last_error": renewal.last_error,
        });
    }
    page
}

/// `issued` replaces not-before, which is back-dated for clocks that are behind.
fn entry(certificate: &CertificateDer<'_>, issued: Option<OffsetDateTime>) -> Value {
    let Ok(facts) = weft_certs::inspect::facts(certificate) else { return Value::Null };
    let text = |t: OffsetDateTime| t.format(&Rfc3339).unwrap_or_default();
    let names: Vec<_> = facts
        .uri_sans
        .iter()
        .map(|n| json!({"uri": n}))
        .chain(facts.dns_sans.iter().map(|n| json!({"dns": n})))
        .collect();
    let days = (facts.not_after - OffsetDateTime::now_utc()).whole_days().max(0);
    json!({
        "path": "<inline>",
        "serial_number": facts.serial,
        "subject_alt_names": names,
        "key": facts.key,
        "valid_from": text(issued.filter(|_| !facts.is_ca).unwrap_or(facts.not_before)),
        "expiration_time": text(facts.not_after),
        "days_until_expiration": days.to_string(),
    })
}
