//! The certificate that the control plane shows to the server. Two thirds into its life it is renewed at the server itself, with the same
//! key, and the successor is kept. The files stay what they are: whoever puts a new certificate there is heeded, if it lives longer
//! or is another's.

use std::path::Path;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_certs::chain::above;
use weft_certs::inspect::{Facts, facts};
use weft_certs::renewal;
use weft_events::{Event, Kind, Outcome, Severity, emit};
use zeroize::Zeroizing;

use super::{Est, EstError, RENEW};
use crate::ca::http::Shown;
use crate::ca::store;

/// The successor, with what leads to its root.
pub(super) const KEPT: &str = "est-client.pem";
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// Longer is not waited after a failure, while there is time.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// Longer is not waited when the server wants time.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// A request that the server has not answered yet. It knows it again by its bytes (RFC 7030, section 4.2.3), and a signature of ECDSA
/// is another each time.
pub(super) struct Pending {
    /// The certificate that is renewed.
    of: CertificateDer<'static>,
    /// The request, DER.
    request: Vec<u8>,
}

impl Est {
    /// Takes up what was kept here, and keeps here what comes.
    pub fn take_up(&self, directory: &Path) {
        let kept = store::read(directory, KEPT).ok();
        let chain = kept.and_then(|text| weft_certs::pem::certificates(text.as_bytes()).ok());
        *self.renewed.lock() = chain;
        self.take_up_roots(directory);
        let _ = self.directory.set(directory.to_owned());
    }

    /// What is shown now: what is in the files, or its successor.
    pub(super) fn shown(&self) -> Result<Option<Shown>, EstError> {
        let Some((chain_file, key_file)) = &self.settings.certificate else { return Ok(None) };
        let read = |flag: &'static str, path: &Path| {
            let bad = |why: String| EstError::File { flag, path: path.to_owned(), why };
            std::fs::read(path).map(Zeroizing::new).map_err(|error| bad(error.to_string()))
        };
        let (chain, key) = (read("--ca-est-cert", chain_file)?, read("--ca-est-key", key_file)?);
        let bad = |why: String| EstError::File { flag: "--ca-est-cert", path: chain_file.clone(), why };
        weft_certs::pem::check_pair(&chain, &key).map_err(bad)?;
        let mut chain = weft_certs::pem::certificates(&chain).map_err(|error| bad(error.to_string()))?;
        let key = weft_certs::pem::private_key(&key).map_err(|error| bad(error.to_string()))?;
        if let Some(successor) = self.renewed.lock().as_ref().filter(|successor| outlives(successor, &chain))
        {
            chain.clone_from(successor);
        }
        Ok(Some((chain, key)))
    }

    /// Renews it when it is due, for ever.
    pub async fn keep_certificate(self) {
        if self.settings.certificate.is_none() {
            return;
        }
        let mut failures = 0;
        loop {
            let now = OffsetDateTime::now_utc();
            let pause = match self.renew(now).await {
                Ok(new) => {
                    failures = 0;
                    if let Some(new) = new {
                        tracing::info!(subject = new.subject, until = %new.not_after, "the EST client's certificate was renewed");
                        tell(
                            Outcome::Ok,
                            Severity::Info,
                            "the EST client's certificate was renewed",
                            Some(&new),
                        );
                    }
                    LOOK
                }
                Err(error) => {
                    failures += 1;
                    let shown = self.shown().ok().flatten();
                    let left = shown.and_then(|(chain, _)| Left::of(chain.first()?, now));
                    let pause = pause(&error, failures, left);
                    tracing::warn!(%error, again_in = ?pause, "the EST client's certificate was not renewed");
                    let words = format!("the EST client's certificate was not renewed: {error}");
                    tell(Outcome::Failed, severity(left), &words, None);
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Renews it if it is due; says what came.
    pub(super) async fn renew(&self, now: OffsetDateTime) -> Result<Option<Facts>, EstError> {
        let Some((chain, key)) = self.shown()? else { return Ok(None) };
        let bad = |reason: String| EstError::Answer { url: self.url(RENEW), reason };
        let old = facts(&chain[0]).map_err(|error| bad(error.to_string()))?;
        if now < old.not_after - (old.not_after - old.not_before) / 3 {
            return Ok(None);
        }
        let pending = self.pending.lock().take().filter(|pending| pending.of == chain[0]);
        let request = match pending {
            Some(Pending { request, .. }) => request,
            None => renewal::request(&chain[0], key).map_err(|error| bad(error.to_string()))?,
        };
        let issued = self.enrol(RENEW, &request).await.inspect_err(|error| {
            if error.passes() {
                *self.pending.lock() = Some(Pending { of: chain[0].clone(), request: request.clone() });
            }
        })?;
        let new = issued.iter().find(|certificate| renewal::succeeds(certificate, &chain[0]));
        let new =
            new.ok_or_else(|| bad("it has no certificate of the same key, subject and names".to_owned()))?;
        let successor = above(new, &[issued.as_slice(), self.known.lock().as_slice()].concat());
        if !outlives(&successor, &chain) {
            return Err(bad("the new certificate lives no longer than the old one".to_owned()));
        }
        if let Some(directory) = self.directory.get()
            && let Err(error) = store::write(directory, KEPT, &weft_certs::pem::encode_all(&successor))
        {
            tracing::warn!(%error, "the EST client's new certificate is not kept; after a start it is renewed again");
        }
        let new = facts(new).map_err(|error| bad(error.to_string()))?;
        *self.renewed.lock() = Some(successor);
        Ok(Some(new))
    }
}

/// How much of a certificate's life is left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) left: time::Duration,
    pub(super) life: time::Duration,
}

impl Left {
    fn of(certificate: &CertificateDer<'_>, now: OffsetDateTime) -> Option<Self> {
        let facts = facts(certificate).ok()?;
        Some(Self { left: facts.not_after - now, life: facts.not_after - facts.not_before })
    }
}

/// When to try again: when the server says; otherwise ever later, though sooner where the certificate's end is near.
pub(super) fn pause(error: &EstError, failures: u32, left: Option<Left>) -> Duration {
    if let EstError::Later { after, .. } = error {
        return (*after).min(LONGEST_WAIT);
    }
    let doubled = LOOK.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    // Once it has ended there is no hurry any more: a person has to come.
    let quarter = left.and_then(|left| Duration::try_from(left.left / 4).ok()).filter(|left| !left.is_zero());
    quarter.map_or(doubled, |quarter| doubled.min(quarter.max(LOOK)))
}

/// How bad it is that it was not renewed. A third of its life is left when that begins: it is urgent when a tenth is.
pub(super) fn severity(left: Option<Left>) -> Severity {
    match left {
        Some(Left { left, life }) if left > life / 5 => Severity::Low,
        Some(Left { left, life }) if left > life / 10 => Severity::Medium,
        // It is over soon, or there is none to be shown.
        _ => Severity::High,
    }
}

/// Whether this is a successor of that, and lives longer.
fn outlives(successor: &[CertificateDer<'_>], chain: &[CertificateDer<'_>]) -> bool {
    let (Some(new), Some(old)) = (successor.first(), chain.first()) else { return false };
    let end = |certificate| facts(certificate).ok().map(|facts| facts.not_after);
    renewal::succeeds(new, old) && end(new) > end(old)
}

fn tell(outcome: Outcome, severity: Severity, words: &str, new: Option<&Facts>) {
    emit(Kind::Certificate, || {
        Event::new(Kind::Certificate, outcome, severity, "est", words)
            .with_some("subject", new.map(|facts| facts.subject.clone()))
            .with_some("serial", new.map(|facts| facts.serial.clone()))
            .with_some("expires", new.and_then(|facts| facts.not_after.format(&Rfc3339).ok()))
    });
}
