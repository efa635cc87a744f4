//! ProxyConfig.

use super::super::diagnostic::Findings;
use super::annotations;
use super::authorization_policy::selector;
use crate::model::meta::Meta;
use crate::model::proxy_config::ProxyConfig;

pub(in super::super) fn proxy_config(spec: &ProxyConfig, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    selector(findings, spec.selector.as_ref());
    for name in spec.environment_variables.keys() {
        let good = name.bytes().enumerate().all(|(place, byte)| {
            byte == b'_' || byte.is_ascii_alphabetic() || (place > 0 && byte.is_ascii_digit())
        });
        if name.is_empty() || !good {
            let help = "names are letters, digits and _, and do not begin with a digit";
            let path = format!("spec.environmentVariables.{name}");
            findings.error(path, format!("{name:?} is no environment variable"), help);
        }
    }
    if let Some(image) = &spec.image
        && !["", "default", "distroless"].contains(&image.image_type.as_str())
    {
        let help = "the proxy has one image; name another by the annotation sidecar.istio.io/proxyImage";
        findings.error("spec.image.imageType", format!("there is no image {:?}", image.image_type), help);
    }
}
