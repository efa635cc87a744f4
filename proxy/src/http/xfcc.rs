//! `x-forwarded-client-cert`: what the caller's certificate said, for the application, exactly as Envoy writes it.

use std::fmt::Write;

use http::{HeaderName, HeaderValue};
use weft_certs::pem;

use super::config::{ClientCert, ClientCertFields};
use crate::codec::Headers;
use crate::io::connection::TlsInfo;

/// The field.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Applies the configured treatment. `element` makes (or remembers) the text for this connection's certificate.
pub fn apply(
    headers: &mut Headers,
    mode: ClientCert,
    peer_has_cert: bool,
    element: impl FnOnce() -> Option<HeaderValue>,
) {
    match mode {
        ClientCert::AlwaysForwardOnly => {}
        _ if mode == ClientCert::Sanitize || !peer_has_cert => {
            headers.remove(&CLIENT_CERT);
        }
        ClientCert::ForwardOnly => {}
        ClientCert::AppendForward => {
            let Some(element) = element() else { return };
            let value = match headers.get(&CLIENT_CERT) {
                Some(before) => {
                    let text = [before.as_bytes(), b",", element.as_bytes()].concat();
                    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).unwrap_or(element)
                }
                None => element,
            };
            headers.set(CLIENT_CERT, value);
        }
        ClientCert::SanitizeSet | ClientCert::Sanitize => match element() {
            Some(element) => headers.set(CLIENT_CERT, element),
            None => {
                headers.remove(&CLIENT_CERT);
            }
        },
    }
}

/// The text for a certificate: `By`, `Hash` and the configured fields.
pub fn element(tls: &TlsInfo, fields: ClientCertFields) -> Option<HeaderValue> {
    let leaf = tls.peer_chain.first()?;
    let mut text = String::new();
    // Writing to a string cannot fail.
    if let Some(by) = &tls.local_id {
        let _ = write!(text, "By={by};");
    }
    text.push_str("Hash=");
    for byte in aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf).as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    if fields.cert {
        let _ = write!(text, ";Cert=\"{}\"", pem::encode_for_urls(leaf));
    }
    if fields.chain {
        let chain: String = tls.peer_chain.iter().map(pem::encode_for_urls).collect();
        let _ = write!(text, ";Chain=\"{chain}\"");
    }
    if fields.subject {
        let _ = write!(text, ";Subject=\"{}\"", tls.peer_subject.replace('\\', "\\\\").replace('"', "\\\""));
    }
    if fields.uri {
        if tls.peer_uri_sans.is_empty() {
            text.push_str(";URI=");
        }
        for uri in &tls.peer_uri_sans {
            let _ = write!(text, ";URI={uri}");
        }
    }
    if fields.dns {
        for name in &tls.peer_dns_sans {
            let _ = write!(text, ";DNS={name}");
        }
    }
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls() -> TlsInfo {
        TlsInfo {
            local_id: Some("spiffe://cluster.local/ns/a/sa/b".into()),
            peer_chain: vec![vec![1, 2, 3].into()],
            peer_uri_sans: vec!["spiffe://cluster.local/ns/c/sa/d".to_owned()],
            peer_dns_sans: vec!["x.y".to_owned()],
            ..TlsInfo::default()
        }
    }

    #[test]
    fn the_element_is_written_as_envoy_writes_it() {
        let fields = ClientCertFields { subject: true, uri: true, dns: true, ..Default::default() };
        assert_eq!(
            element(&tls(), fields).unwrap(),
            "By=spiffe://cluster.local/ns/a/sa/b;\
             Hash=039058c6f2c0cb492c533b0a4d14ef77cc0f78abccced5287d84a1a2011cfb81;\
             Subject=\"\";URI=spiffe://cluster.local/ns/c/sa/d;DNS=x.y"
        );
    }

    #[test]
    fn each_mode_does_what_it_says() {
        let run = |mode, has_cert| {
            let mut headers = Headers::new();
            headers.set(CLIENT_CERT, HeaderValue::from_static("old"));
            apply(&mut headers, mode, has_cert, || Some(HeaderValue::from_static("new")));
            headers.get_str(&CLIENT_CERT).map(str::to_owned)
        };
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(run(ClientCert::Sanitize, true), None);
        assert_eq!(run(ClientCert::ForwardOnly, true), some("old"));
        assert_eq!(run(ClientCert::ForwardOnly, false), None);
        assert_eq!(run(ClientCert::AppendForward, true), some("old,new"));
        assert_eq!(run(ClientCert::AppendForward, false), None);
        assert_eq!(run(ClientCert::SanitizeSet, true), some("new"));
        assert_eq!(run(ClientCert::AlwaysForwardOnly, false), some("old"));
    }
}
