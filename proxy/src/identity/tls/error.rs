//! Handshakes that failed, and their counters.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::Mutex;
use rustls::CertificateError;

use crate::telemetry::registry::{Counter, Group, Labels};

/// Why there is no secured connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A secret has not come yet.
    #[error("TLS is not ready: waiting for secret {0}")]
    SecretMissing(Arc<str>),
    /// A secret came and cannot be used.
    #[error("TLS is not ready: {0}")]
    BadSecret(String),
    /// The peer's certificate was refused by us.
    #[error("TLS: {text}")]
    Refused {
        /// The `reason` label of `certificate_validation_failures`.
        reason: &'static str,
        /// The reason in words.
        text: String,
    },
    /// The handshake failed otherwise: not TLS, no common version, an alert from the peer, a broken transport.
    #[error("TLS handshake failed: {0}")]
    Handshake(std::io::Error),
}

impl TlsError {
    /// Reads what rustls reports at the end of a failed handshake.
    pub(super) fn from_io(error: std::io::Error) -> Self {
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        let reason = match inner {
            Some(rustls::Error::NoCertificatesPresented) => "no_certificate",
            Some(rustls::Error::InvalidCertificate(e)) => match e {
                CertificateError::Expired => "expired",
                CertificateError::NotValidYet => "not_valid_yet",
                CertificateError::UnknownIssuer => "unknown_issuer",
                CertificateError::ApplicationVerificationFailure => "san_mismatch",
                CertificateError::BadEncoding => "unparsable",
                CertificateError::Revoked => "revoked",
                CertificateError::InvalidPurpose => "hash_mismatch",
                _ => "bad_chain",
            },
            _ => {
                crate::io::refused::note(&error);
                return Self::Handshake(error);
            }
        };
        let text = match reason {
            "no_certificate" => "the peer showed no certificate, and one is required".to_owned(),
            "san_mismatch" => "the peer's certificate carries none of the names wanted here".to_owned(),
            _ => format!("the peer's certificate was refused: {error}"),
        };
        Self::Refused { reason, text }
    }

    /// Why, in a word; none where the other side just went away, as whoever probes a port does.
    pub fn reason(&self) -> Option<&'static str> {
        use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match self {
            Self::SecretMissing(_) | Self::BadSecret(_) => Some("not_ready"),
            Self::Refused { reason, .. } => Some(reason),
            Self::Handshake(error) => match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::AlertReceived(_)) => Some("peer_alert"),
                Some(_) => Some("protocol"),
                None => (!matches!(
                    error.kind(),
                    UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe
                ))
                .then_some("transport"),
            },
        }
    }

    /// Envoy's text for `%UPSTREAM_TRANSPORT_FAILURE_REASON%` and connection termination details.
    pub fn transport_failure(&self) -> String {
        format!("TLS_error:|{self}:TLS_error_end")
    }
}

/// The `ssl.` counters of one listener or cluster; make them in its group.
#[derive(Debug)]
pub struct TlsStats {
    /// Handshakes that ended well.
    pub handshake: Counter,
    /// Handshakes that did not, for any reason but the peer's certificate.
    pub connection_error: Counter,
    /// Of the good ones, those that resumed a session.
    pub session_reused: Counter,
    /// Good handshakes in which the peer showed no certificate.
    pub no_certificate: Counter,
    /// No certificate where one is required.
    pub fail_verify_no_cert: Counter,
    /// The chain did not verify.
    pub fail_verify_error: Counter,
    /// The chain verified, the names did not match.
    pub fail_verify_san: Counter,
    /// The certificate is none of those whose hashes are given.
    pub fail_verify_cert_hash: Counter,
    /// What was agreed on, by name: `ssl.ciphers.*`, `ssl.curves.*`, `ssl.versions.*`; made when first counted.
    agreed: Mutex<HashMap<(Agreed, &'static str), Counter>>,
    agreements: OnceLock<Arc<Group>>,
    /// The group's prefix and labels.
    named: (Arc<str>, Labels),
    validation: Failures,
}

/// All reasons of [`TlsError::Refused`].
const REASONS: [&str; 9] = [
    "no_certificate",
    "expired",
    "not_valid_yet",
    "unknown_issuer",
    "bad_chain",
    "san_mismatch",
    "unparsable",
    "revoked",
    "hash_mismatch",
];

/// In the order of [`REASONS`].
type Failures = [Counter; REASONS.len()];

fn failures(group: &Group) -> Failures {
    REASONS.map(|reason| {
        group.counter_with("certificate_validation_failures", vec![("reason", reason.to_owned())])
    })
}

/// The same of the whole proxy, by this name alone: what an alert asks for.
static ALL_FAILURES: LazyLock<(Arc<Group>, Failures)> = LazyLock::new(|| {
    let group = Group::new("", Vec::new());
    let counters = failures(&group);
    (group, counters)
});

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Agreed {
    Cipher,
    Curve,
    Version,
}

impl TlsStats {
    /// Registers the counters in the listener's or cluster's group.
    pub fn new(group: &Group) -> Self {
        Self {
            handshake: group.counter("ssl.handshake"),
            connection_error: group.counter("ssl.connection_error"),
            session_reused: group.counter("ssl.session_reused"),
            no_certificate: group.counter("ssl.no_certificate"),
            fail_verify_no_cert: group.counter("ssl.fail_verify_no_cert"),
            fail_verify_error: group.counter("ssl.fail_verify_error"),
            fail_verify_san: group.counter("ssl.fail_verify_san"),
            fail_verify_cert_hash: group.counter("ssl.fail_verify_cert_hash"),
            agreed: Mutex::default(),
            agreements: OnceLock::new(),
            named: (group.prefix.clone(), group.labels.clone()),
            validation: {
                LazyLock::force(&ALL_FAILURES);
                failures(group)
            },
        }
    }

    /// Counts a failed handshake.
    pub(super) fn failed(&self, error: &TlsError) {
        let TlsError::Refused { reason, .. } = error else {
            self.connection_error.inc();
            return;
        };
        match *reason {
            "no_certificate" => self.fail_verify_no_cert.inc(),
            "san_mismatch" => self.fail_verify_san.inc(),
            "hash_mismatch" => self.fail_verify_cert_hash.inc(),
            _ => self.fail_verify_error.inc(),
        }
        if let Some(place) = REASONS.iter().position(|one| one == reason) {
            self.validation[place].inc();
            ALL_FAILURES.1[place].inc();
        }
    }

    fn agreed_on(&self, what: Agreed, name: &'static str) {
        let kind = match what {
            Agreed::Cipher => "ciphers",
            Agreed::Curve => "curves",
            Agreed::Version => "versions",
        };
        let (prefix, labels) = &self.named;
        let agreements = self.agreements.get_or_init(|| Group::new(prefix.clone(), labels.clone()));
        let make = || agreements.counter(format!("ssl.{kind}.{name}"));
        self.agreed.lock().entry((what, name)).or_insert_with(make).inc();
    }

    /// Counts a good one.
    pub(super) fn succeeded(&self, info: &crate::io::TlsInfo) {
        self.handshake.inc();
        self.agreed_on(Agreed::Version, info.version);
        self.agreed_on(Agreed::Cipher, info.cipher);
        if !info.group.is_empty() {
            self.agreed_on(Agreed::Curve, info.group);
        }
        if info.resumed {
            self.session_reused.inc();
        }
        if info.peer_chain.is_empty() {
            self.no_certificate.inc();
        }
    }
}
