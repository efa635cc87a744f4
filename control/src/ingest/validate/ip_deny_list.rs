//! IPDenyList.

use super::super::diagnostic::Findings;
use super::authorization_policy::selector;
use super::{annotations, period};
use crate::model::ip_deny_list::IpDenyList;
use crate::model::meta::Meta;

pub(in super::super) fn ip_deny_list(spec: &IpDenyList, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    selector(findings, spec.selector.as_ref());
    let source = &spec.source;
    match (source.file.is_empty(), source.url.is_empty()) {
        (true, true) => findings.error("spec.source", "missing", "say where the list is: file or url"),
        (false, false) => findings.error("spec.source.file", "stands beside url", "give one of the two"),
        (false, true) => {}
        (true, false) => {
            let uri = source.url.parse::<http::Uri>().ok();
            if uri.as_ref().and_then(|uri| uri.authority()).is_some_and(|a| a.as_str().contains('@')) {
                let help = "give a URL that needs none, or fetch it by other means into a file";
                findings.error("spec.source.url", "has a user before its host, who would not be sent", help);
            }
            let scheme = uri.as_ref().filter(|uri| uri.host().is_some_and(|h| !h.is_empty()));
            match scheme.and_then(|uri| uri.scheme_str()) {
                Some("https") => {}
                Some("http") => findings.warn(
                    "spec.source.url",
                    "is of http: whoever is on the way can change the list",
                    "write https://HOST/PATH, or fetch it by other means into a file",
                ),
                _ => {
                    let reason = format!("{:?} is not a URL of http or https", source.url);
                    findings.error("spec.source.url", reason, "write https://HOST/PATH");
                }
            }
        }
    }
    period(findings, "spec.refreshInterval", spec.refresh_interval);
}
