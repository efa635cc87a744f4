//! Peers that do not take our certificate say so by a TLS alert (RFC 8446, section 6.2). Whoever renews the certificate follows
//! how often that happened; nothing is decided here, and a connection that goes well costs nothing.

use std::io;
use std::sync::LazyLock;

use rustls::AlertDescription;
use tokio::sync::watch;

static REFUSALS: LazyLock<watch::Sender<u64>> = LazyLock::new(watch::Sender::default);

/// How often peers have refused a certificate of ours, to be followed.
pub fn refusals() -> watch::Receiver<u64> {
    REFUSALS.subscribe()
}

/// Looks whether an error of a TLS stream is such an alert; notes and names it.
pub fn note(error: &io::Error) -> Option<AlertDescription> {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = inner else { return None };
    let ours = matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
    );
    if !ours {
        return None;
    }
    REFUSALS.send_modify(|n| *n += 1);
    tracing::warn!(?alert, "a peer does not take our certificate");
    Some(*alert)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_about_our_certificate_counts_and_no_other() {
        let of = |alert| note(&io::Error::other(rustls::Error::AlertReceived(alert)));
        let before = *refusals().borrow();
        assert_eq!(of(AlertDescription::CertificateExpired), Some(AlertDescription::CertificateExpired));
        assert_eq!(of(AlertDescription::HandshakeFailure), None);
        assert_eq!(note(&io::ErrorKind::ConnectionReset.into()), None);
        assert!(*refusals().borrow() > before);
    }
}
