//! Keeps a workload in certificates: asks, publishes, renews, withdraws.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use weft_certs::csr;
use weft_certs::rotation::{Action, Rotation, Standing};
use weft_certs::spiffe::SpiffeId;
use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::store::Store;
use super::{Current, GrpcSigner, IdentityError, Signer, WorkloadCertificate};
use crate::xds::{Credentials, Endpoint};

/// How long a signer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Sleeps are cut to this length, for a clock that is set, or a machine that was suspended, moves no timer.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// How often it is said that nobody renews the certificate.
const REMINDER: Duration = Duration::from_secs(3600);

/// The wall clock, or a test's.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// The machine's clock.
pub fn wall_clock() -> Clock {
    Arc::new(OffsetDateTime::now_utc)
}

/// What does not change about a workload's identity.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// Who the workload is. The signer takes the name from the credentials; an answer for another service account is
    /// refused here.
    pub id: SpiffeId,
    /// The life to ask for; none leaves it to the signer.
    pub lifetime: Option<Duration>,
    /// Where the last good certificate is kept for a restart; none keeps it in memory only.
    pub state_dir: Option<PathBuf>,
    /// Whether a certificate is renewed before its end.
    pub automatic: bool,
}

/// How renewing goes, for the admin interface and metrics.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Nothing is renewed before its end.
    pub by_hand: bool,
    /// Certificates received.
    pub received: u64,
    /// How often one replaced another.
    pub rotations: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Why the last request failed; none after a success.
    pub last_error: Option<String>,
    /// When the next request is due.
    pub renews: Option<OffsetDateTime>,
    /// Refusals by peers upon which a new certificate was asked for.
    pub doubts: u64,
}

/// The identity client: one per workload, on the control thread.
pub struct IdentityClient<S = GrpcSigner> {
    config: IdentityConfig,
    signer: S,
    clock: Clock,
    rotation: Rotation,
    store: Option<Store>,
    published: watch::Sender<Option<Arc<WorkloadCertificate>>>,
    status: watch::Sender<Status>,
    /// A request that was not answered well: it is sent again as it is, for an answer may have been lost on its way.
    unanswered: Option<csr::NewRequest>,
}

impl IdentityClient {
    /// A client of the control plane's certificate service at `endpoint`. It proves who it is by the token of `credentials`
    /// and, once it has a certificate, also by that.
    pub fn new(config: IdentityConfig, endpoint: Endpoint, credentials: Credentials) -> Self {
        Self::with_signer(config, wall_clock(), |current| GrpcSigner::new(endpoint, credentials, current))
    }
}

impl<S: Signer> IdentityClient<S> {
    /// A client of any signer, by any clock. A stored certificate that still counts is in force at once.
    pub fn with_signer(config: IdentityConfig, clock: Clock, signer: impl FnOnce(Current) -> S) -> Self {
        let (published, current) = watch::channel(None);
        let store = config.state_dir.as_deref().map(Store::new);
        let signer = signer(current);
        let status = watch::Sender::default();
        let rotation = if config.automatic { Rotation::new() } else { Rotation::by_hand() };
        let unanswered = None;
        let mut client = Self { config, signer, clock, rotation, store, published, status, unanswered };
        client.restore();
        let (by_hand, renews) = (!client.config.automatic, client.rotation.renews());
        client.status.send_modify(|s| (s.by_hand, s.renews) = (by_hand, renews));
        client
    }

    /// The certificate in force, to be followed.
    pub fn current(&self) -> Current {
        self.published.subscribe()
    }

    /// How it goes, to be followed.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Works for ever; drop the future to stop.
    pub async fn run(mut self) -> Infallible {
        let mut refusals = crate::io::refused::refusals();
        let mut reminded: Option<tokio::time::Instant> = None;
        loop {
            let now = (self.clock)();
            self.withdraw_expired(now);
            if !self.config.automatic && reminded.is_none_or(|at| at.elapsed() >= REMINDER) {
                reminded = Some(tokio::time::Instant::now());
                self.warn();
            }
            match self.rotation.next(now) {
                Action::Request => self.renew().await,
                Action::WaitUntil(then) => {
                    let expiry = self.published_expiry().unwrap_or(then);
                    let wait = Duration::try_from(then.min(expiry) - now).unwrap_or_default();
                    let sleep = tokio::time::sleep(wait.clamp(Duration::from_millis(1), LONGEST_SLEEP));
                    tokio::select! {
                        () = sleep => {}
                        Ok(()) = refusals.changed() => self.doubt(),
                    }
                }
            }
        }
    }

    /// Says that the certificate will expire and nothing is done about it before.
    fn warn(&self) {
        let expires = self.published_expiry().map(in_rfc3339);
        let words = "automatic rotation is switched off: the workload's certificate is not renewed before its end, and at its end \
                     peers refuse the workload until it has another one; switch it on (--automatic-rotation, AUTOMATIC_ROTATION)";
        tracing::warn!(id = %self.config.id, expires = expires.as_deref(), "{words}");
        emit(Kind::Certificate, || {
            Event::new(Kind::Certificate, Outcome::Failed, Severity::High, "identity", words)
                .with("reason", "rotation_off")
                .with("subject", self.config.id.to_string())
                .with_some("expires", expires)
        });
    }

    /// A peer refused the certificate.
    fn doubt(&mut self) {
        if self.rotation.doubted((self.clock)()) {
            tracing::warn!(id = %self.config.id, "a peer refused our certificate; asking for a new one");
            self.status.send_modify(|s| s.doubts += 1);
        }
    }

    /// Takes up the certificate of an earlier life, if it still counts.
    fn restore(&mut self) {
        let Some(store) = &self.store else { return };
        match store.load((self.clock)()) {
            Ok(Some(certificate)) if certificate.id() == &self.config.id => {
                tracing::info!(id = %certificate.id(), expires = %certificate.validity().expires,
                    "starting with the stored certificate");
                self.rotation.restored(certificate.validity());
                self.published.send_replace(Some(Arc::new(certificate)));
            }
            Ok(Some(certificate)) => tracing::warn!(stored = %certificate.id(), ours = %self.config.id,
                "the stored certificate is of another workload and is not used"),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the stored certificate is not used"),
        }
    }

    fn published_expiry(&self) -> Option<OffsetDateTime> {
        self.published.borrow().as_ref().map(|c| c.validity().expires)
    }

    /// An expired certificate serves nobody: peers would refuse it, and new connections should say why.
    fn withdraw_expired(&self, now: OffsetDateTime) {
        if self.rotation.standing(now) == Standing::Expired && self.published.borrow().is_some() {
            tracing::error!(id = %self.config.id, last_error = self.status.borrow().last_error,
                "the workload's certificate has expired and was not renewed");
            self.published.send_replace(None);
        }
    }

    async fn renew(&mut self) {
        // A short-lived certificate must not expire while one request is waited for.
        let left =
            self.published_expiry().map(|e| Duration::try_from(e - (self.clock)()).unwrap_or_default());
        let patience = left.map_or(PATIENCE, |l| (l / 2).clamp(Duration::from_millis(500), PATIENCE));
        let made = match self.unanswered.take().map_or_else(|| csr::make(&self.config.id), Ok) {
            Ok(made) => made,
            Err(error) => return self.not_renewed(error.into()),
        };
        let asked = request(&self.config, &self.signer, &self.clock, &made);
        let answer = tokio::time::timeout(patience, asked).await;
        match answer.unwrap_or(Err(IdentityError::TimedOut(patience))) {
            Ok(certificate) => self.install(certificate),
            Err(error) => {
                self.unanswered = Some(made);
                self.not_renewed(error);
            }
        }
    }

    fn not_renewed(&mut self, error: IdentityError) {
        let error = error.to_string();
        let now = (self.clock)();
        self.rotation.failed(now, fastrand::f64());
        let expires = self.published_expiry().map(in_rfc3339);
        tracing::warn!(id = %self.config.id, %error, next = ?self.rotation.next(now), expires = expires.as_deref(),
            "no new certificate; the one in force stays until it expires");
        emit(Kind::Certificate, || {
            let words = format!("the workload's certificate was not renewed: {error}");
            Event::new(Kind::Certificate, Outcome::Failed, Severity::High, "identity", words)
                .with("subject", self.config.id.to_string())
                .with_some("expires", expires)
        });
        let renews = self.rotation.renews();
        self.status.send_modify(|s| {
            s.renews = renews;
            s.failures += 1;
            s.last_error = Some(error);
        });
    }

    fn install(&mut self, certificate: WorkloadCertificate) {
        if let Some(Err(error)) = self.store.as_ref().map(|s| s.save(&certificate)) {
            tracing::warn!(%error, "the certificate is not stored; a restart without control plane will have none");
        }
        // Jitter in -1..=1.
        self.rotation.installed(certificate.validity(), fastrand::f64() * 2.0 - 1.0);
        tracing::info!(id = %certificate.id(), expires = %certificate.validity().expires, "certificate received");
        emit(Kind::Certificate, || {
            let leaf = certificate.chain().first();
            let serial =
                leaf.and_then(|leaf| weft_certs::inspect::facts(leaf).ok()).map(|facts| facts.serial);
            let words = "the workload has a new certificate";
            Event::new(Kind::Certificate, Outcome::Ok, Severity::Info, "identity", words)
                .with("subject", certificate.id().to_string())
                .with_some("serial", serial)
                .with("expires", in_rfc3339(certificate.validity().expires))
        });
        self.published.send_replace(Some(Arc::new(certificate)));
        let (rotations, renews) = (self.rotation.rotations(), self.rotation.renews());
        self.status.send_modify(|s| {
            s.renews = renews;
            s.received += 1;
            s.rotations = rotations;
            s.last_error = None;
        });
    }
}

/// One request: the signing request of a fresh key, and the checked answer.
async fn request<S: Signer>(
    config: &IdentityConfig,
    signer: &S,
    clock: &Clock,
    made: &csr::NewRequest,
) -> Result<WorkloadCertificate, IdentityError> {
    let answer = signer.sign(made.csr.clone(), config.lifetime).await?;
    let certificate = WorkloadCertificate::assemble(made.key.clone_key(), &answer, clock())?;
    let (got, wanted) = (certificate.id(), &config.id);
    if got.workload() != wanted.workload() {
        return Err(IdentityError::Answer(format!(
            "it is for {got}, and we are {wanted}; is the token that of another service account?"
        )));
    }
    if got != wanted {
        tracing::warn!(%got, %wanted, "the control plane's trust domain is not the configured one; its own counts");
    }
    Ok(certificate)
}

/// As all times in events are.
fn in_rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests;
