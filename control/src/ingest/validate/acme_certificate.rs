//! AcmeCertificate: what an ACME server can be asked for, and can find out by HTTP (RFC 8555, section 8.3).

use std::collections::HashSet;
use std::path::Path;

use super::super::diagnostic::Findings;
use crate::model::acme::AcmeCertificate;

/// As many names as public authorities put into one certificate.
const MOST_HOSTS: usize = 100;

pub(in super::super) fn acme_certificate(spec: &AcmeCertificate, findings: &mut Findings) {
    credential_name(&spec.credential_name, findings);
    if spec.hosts.is_empty() {
        findings.error("spec.hosts", "missing", "give the DNS names that the certificate is for");
    }
    if spec.hosts.len() > MOST_HOSTS {
        let reason = format!("{} hosts are more than {MOST_HOSTS}", spec.hosts.len());
        findings.error("spec.hosts", reason, "give each group of hosts a certificate of its own");
    }
    let mut seen = HashSet::new();
    for (index, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        if let Err((reason, help)) = host_form(host) {
            findings.error(path, format!("{host:?} {reason}"), help);
        } else if !seen.insert(host.to_ascii_lowercase()) {
            findings.error(path, format!("{host:?} is given twice"), "remove one");
        }
    }
    directory(&spec.directory_url, findings);
    let contact = |text: &str| {
        text.split_once('@').is_some_and(|(name, host)| {
            !name.is_empty()
                && super::host_form(host, false).is_ok()
                && !text.contains(|c: char| c.is_whitespace() || matches!(c, ',' | '?' | ':' | '<'))
        })
    };
    if !spec.email.is_empty() && !contact(&spec.email) {
        let reason = format!("{:?} is not one address of mail", spec.email);
        findings.error("spec.email", reason, "write it as ops@example.com, or leave it out");
    }
    if !spec.ca_file.is_empty() && !Path::new(&spec.ca_file).is_absolute() {
        let reason = format!("{:?} is not an absolute path", spec.ca_file);
        findings.error("spec.caFile", reason, "write the path on the control plane's machine from / on");
    }
}

/// The name of a Secret, for it takes the place of one.
fn credential_name(name: &str, findings: &mut Findings) {
    let path = "spec.credentialName";
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if name.is_empty() {
        findings.error(path, "missing", "give the name that Gateways have under tls.credentialName");
    } else if name.len() > 200 || !name.chars().all(plain) || super::host_form(name, false).is_err() {
        let help = "use small letters, digits, hyphens and dots, as in shop-tls";
        findings.error(path, format!("{name:?} cannot be the name of a Secret"), help);
    } else if name.ends_with("-cacert") {
        let reason = format!("{name:?} ends in -cacert, which is for the roots of clients");
        findings.error(path, reason, "choose another name");
    }
}

fn host_form(host: &str) -> Result<(), (String, &'static str)> {
    let plain = |reason: &str, help| Err((reason.to_owned(), help));
    if host.contains('*') {
        return plain(
            "is a wildcard, of which an ACME server cannot convince itself by HTTP",
            "name each host; for a wildcard use a Secret",
        );
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        return plain("is an address", "give a DNS name; for an address use a Secret");
    }
    if host.contains('_') || host.ends_with('.') {
        return plain(
            "is not a name for a certificate",
            "write letters, digits and hyphens, without a dot at the end",
        );
    }
    super::host_form(host, false)
        .map_err(|reason| (format!("is not a host: {reason}"), "write a DNS name such as shop.example.com"))
}

/// ACME is spoken over HTTPS only (RFC 8555, section 6.1).
fn directory(url: &str, findings: &mut Findings) {
    let path = "spec.directoryUrl";
    if url.is_empty() {
        let help = "give the ACME server's directory, such as https://acme-v02.api.letsencrypt.org/directory";
        findings.error(path, "missing", help);
        return;
    }
    let secure = url.parse::<http::Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty())
    });
    if !secure {
        findings.error(path, format!("{url:?} is not a URL of https"), "ACME is spoken over HTTPS only");
    }
}
