//! ExternalCredential.

use http::{HeaderName, HeaderValue};

use super::super::diagnostic::Findings;
use super::annotations;
use super::authorization_policy::selector;
use crate::model::external_credential::ExternalCredential;
use crate::model::meta::Meta;

pub(in super::super) fn external_credential(spec: &ExternalCredential, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    selector(findings, spec.selector.as_ref());
    if spec.hosts.is_empty() {
        findings.error("spec.hosts", "missing", "name the services outside the mesh that are to get it");
    }
    for (index, host) in spec.hosts.iter().enumerate() {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(plain) {
            let help =
                "write a full name, as the ServiceEntry has it; a secret is for nobody who is not named";
            findings.error(format!("spec.hosts[{index}]"), format!("{host:?} is no host name"), help);
        }
    }
    match HeaderName::from_bytes(spec.header.as_bytes()) {
        Ok(name) if name != http::header::HOST => {}
        _ if spec.header.is_empty() => {}
        _ => {
            let reason = format!("{:?} is not the name of a header that can have a secret", spec.header);
            findings.error("spec.header", reason, "take it out for authorization");
        }
    }
    if HeaderValue::from_str(&spec.header_value_prefix).is_err() {
        let reason = "has a character that headers cannot carry";
        findings.error("spec.headerValuePrefix", reason, "write it in ASCII, such as \"Bearer \"");
    }
    for (field, text) in [("credentialName", &spec.credential_name), ("key", &spec.key)] {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if text.is_empty() {
            findings.error(
                format!("spec.{field}"),
                "missing",
                "say where the secret is: credentialName and key",
            );
        } else if text.starts_with('.') || !text.chars().all(fits) {
            let reason = format!("{text:?} has characters that such names have not");
            findings.error(format!("spec.{field}"), reason, "use letters, digits, - _ and .");
        }
    }
}
