//! What format strings tell of TLS, on either connection.

use rustls_pki_types::CertificateDer;
use weft_certs::{inspect, pem};

use super::FormatError;
use super::time::TimeFormat;
use crate::io::{Rare, TlsInfo};

/// Which of the two connections is spoken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Downstream,
    Upstream,
}

/// What is told of a connection's TLS.
#[derive(Clone, Debug)]
pub(super) enum TlsPart {
    PeerUriSan,
    PeerDnsSan,
    PeerIpSan,
    PeerSubject,
    PeerIssuer,
    PeerSerial,
    PeerCertificate,
    PeerValidFrom(TimeFormat),
    PeerValidTo(TimeFormat),
    /// By SHA-256, or by SHA-1.
    PeerFingerprint(bool),
    ChainFingerprints(bool),
    ChainSerials,
    PeerEmailSan,
    PeerOtherNameSan,
    LocalUriSan,
    LocalDnsSan,
    LocalIpSan,
    LocalEmailSan,
    LocalOtherNameSan,
    LocalSubject,
    SessionId,
    IssuerSerial,
    IssuerFingerprint,
    Version,
    Cipher,
    Group,
    /// The name that we asked the upstream for.
    ServerName,
}

impl TlsPart {
    /// Appends it; false where there is none.
    pub(super) fn write(&self, tls: &TlsInfo, out: &mut Vec<u8>) -> bool {
        let leaf = tls.peer_chain.first();
        let facts = || leaf.and_then(|leaf| inspect::facts(leaf).ok());
        let own = || tls.local_certificate.as_deref().and_then(|own| inspect::facts(own).ok());
        match self {
            Self::PeerUriSan => list(out, &tls.peer_uri_sans),
            Self::PeerDnsSan => list(out, &tls.peer_dns_sans),
            Self::PeerIpSan => facts().is_some_and(|facts| list(out, &facts.ip_sans)),
            Self::PeerSubject => text(out, &tls.peer_subject),
            Self::PeerIssuer => leaf.and_then(inspect::issuer).is_some_and(|issuer| text(out, &issuer)),
            Self::PeerSerial => leaf.is_some_and(|leaf| text(out, &serial(leaf))),
            Self::PeerCertificate => leaf.is_some_and(|leaf| text(out, &pem::encode_for_urls(leaf))),
            Self::PeerValidFrom(format) => facts().is_some_and(|facts| {
                format.write(facts.not_before.into(), out);
                true
            }),
            Self::PeerValidTo(format) => facts().is_some_and(|facts| {
                format.write(facts.not_after.into(), out);
                true
            }),
            Self::PeerFingerprint(sha256) => leaf.is_some_and(|leaf| text(out, &fingerprint(leaf, *sha256))),
            Self::ChainFingerprints(sha256) => {
                let all: Vec<_> = tls.peer_chain.iter().map(|c| fingerprint(c, *sha256)).collect();
                list(out, &all)
            }
            Self::ChainSerials => list(out, &tls.peer_chain.iter().map(serial).collect::<Vec<_>>()),
            Self::PeerEmailSan => facts().is_some_and(|facts| list(out, &facts.email_sans)),
            Self::PeerOtherNameSan => facts().is_some_and(|facts| list(out, &facts.other_sans)),
            Self::LocalUriSan => match own() {
                Some(facts) => list(out, &facts.uri_sans),
                None => tls.local_id.as_deref().is_some_and(|id| text(out, id)),
            },
            Self::LocalDnsSan => own().is_some_and(|facts| list(out, &facts.dns_sans)),
            Self::LocalIpSan => own().is_some_and(|facts| list(out, &facts.ip_sans)),
            Self::LocalEmailSan => own().is_some_and(|facts| list(out, &facts.email_sans)),
            Self::LocalOtherNameSan => own().is_some_and(|facts| list(out, &facts.other_sans)),
            Self::LocalSubject => {
                let own = tls.local_certificate.as_deref();
                own.and_then(inspect::subject).is_some_and(|subject| text(out, &subject))
            }
            Self::SessionId => text(out, &hex(&tls.session_id)),
            Self::IssuerSerial => tls.peer_issuer.as_ref().is_some_and(|issuer| text(out, &serial(issuer))),
            Self::IssuerFingerprint => {
                tls.peer_issuer.as_ref().is_some_and(|issuer| text(out, &fingerprint(issuer, true)))
            }
            Self::Version => text(out, tls.version),
            Self::Cipher => text(out, tls.cipher),
            Self::Group => text(out, tls.group),
            Self::ServerName => tls.sni.as_deref().is_some_and(|name| text(out, name)),
        }
    }
}

/// The operators of TLS, which are the same for both connections but for what Envoy has for one of them only.
pub(super) fn part(name: &str, arguments: Option<&str>) -> Option<Result<(Side, TlsPart), FormatError>> {
    let (side, rest) = match name.split_once('_')? {
        ("DOWNSTREAM", rest) => (Side::Downstream, rest),
        ("UPSTREAM", rest) => (Side::Upstream, rest),
        _ => return None,
    };
    let part = match (side, rest) {
        (_, "PEER_CERT_V_START") => {
            return Some(TimeFormat::parse(arguments).map(|f| (side, TlsPart::PeerValidFrom(f))));
        }
        (_, "PEER_CERT_V_END") => {
            return Some(TimeFormat::parse(arguments).map(|f| (side, TlsPart::PeerValidTo(f))));
        }
        (_, "PEER_URI_SAN") => TlsPart::PeerUriSan,
        (_, "PEER_DNS_SAN") => TlsPart::PeerDnsSan,
        (_, "PEER_IP_SAN") => TlsPart::PeerIpSan,
        (_, "PEER_SUBJECT") => TlsPart::PeerSubject,
        (_, "PEER_ISSUER") => TlsPart::PeerIssuer,
        (_, "PEER_CERT") => TlsPart::PeerCertificate,
        (_, "LOCAL_URI_SAN") => TlsPart::LocalUriSan,
        (_, "LOCAL_DNS_SAN") => TlsPart::LocalDnsSan,
        (_, "LOCAL_IP_SAN") => TlsPart::LocalIpSan,
        (Side::Downstream, "LOCAL_EMAIL_SAN") => TlsPart::LocalEmailSan,
        (Side::Downstream, "LOCAL_OTHERNAME_SAN") => TlsPart::LocalOtherNameSan,
        (Side::Downstream, "LOCAL_SUBJECT") => TlsPart::LocalSubject,
        (Side::Downstream, "PEER_EMAIL_SAN") => TlsPart::PeerEmailSan,
        (Side::Downstream, "PEER_OTHERNAME_SAN") => TlsPart::PeerOtherNameSan,
        (Side::Downstream, "TLS_SESSION_ID") => {
            Rare::DownstreamSession.want();
            TlsPart::SessionId
        }
        (Side::Upstream, "TLS_SESSION_ID") => {
            Rare::UpstreamSession.want();
            TlsPart::SessionId
        }
        (Side::Downstream, "PEER_ISSUER_SERIAL") => {
            Rare::Issuer.want();
            TlsPart::IssuerSerial
        }
        (Side::Downstream, "PEER_ISSUER_FINGERPRINT_256") => {
            Rare::Issuer.want();
            TlsPart::IssuerFingerprint
        }
        (_, "TLS_VERSION") => TlsPart::Version,
        (_, "TLS_CIPHER") => TlsPart::Cipher,
        (_, "TLS_GROUP") => TlsPart::Group,
        (Side::Downstream, "PEER_SERIAL") => TlsPart::PeerSerial,
        (Side::Downstream, "PEER_FINGERPRINT_256") => TlsPart::PeerFingerprint(true),
        (Side::Downstream, "PEER_FINGERPRINT_1") => TlsPart::PeerFingerprint(false),
        (Side::Downstream, "PEER_CHAIN_FINGERPRINTS_256") => TlsPart::ChainFingerprints(true),
        (Side::Downstream, "PEER_CHAIN_FINGERPRINTS_1") => TlsPart::ChainFingerprints(false),
        (Side::Downstream, "PEER_CHAIN_SERIALS") => TlsPart::ChainSerials,
        (Side::Upstream, "SERVER_NAME") => TlsPart::ServerName,
        _ => return None,
    };
    Some(match arguments {
        None => Ok((side, part)),
        Some(_) => Err(FormatError::Arguments(name.to_owned(), "takes no arguments")),
    })
}

fn text(out: &mut Vec<u8>, text: &str) -> bool {
    out.extend_from_slice(text.as_bytes());
    !text.is_empty()
}

fn list(out: &mut Vec<u8>, values: &[String]) -> bool {
    text(out, &values.join(","))
}

/// In hexadecimal, without the zero that keeps a number from being negative.
fn serial(certificate: &CertificateDer<'_>) -> String {
    let serial = inspect::facts(certificate).map(|facts| facts.serial).unwrap_or_default();
    match serial.strip_prefix("00") {
        Some(rest) if !rest.is_empty() => rest.to_owned(),
        _ => serial,
    }
}

fn fingerprint(certificate: &[u8], sha256: bool) -> String {
    let algorithm = match sha256 {
        true => &aws_lc_rs::digest::SHA256,
        false => &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
    };
    hex(aws_lc_rs::digest::digest(algorithm, certificate).as_ref())
}

/// In hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(64), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
