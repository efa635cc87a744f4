//! What an operator changes: another intermediate, another root, a serial number that counts no more.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use weft_certs::authority::{Authority, AuthorityError, KeyKind};

use super::authority::{Backend, CertificateAuthority, Inner};
use super::ledger::{Retired, Revocation, RootRotation, StoredAuthority, moment};
use super::rotation::{Facts, Followers, Phase, Step, next};
use super::store::{Shape, State, StoreError};
use crate::model::Trust;

/// A change that was not made; nothing is different, unless [`StoreError::Unfinished`] says so.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// One thing after the other.
    #[error("the root is being replaced; weft ca rotate-root shows how far that is, and goes on with it")]
    UnderWay,
    /// Nothing to give up.
    #[error("the root is not being replaced; there is nothing to give up")]
    NotUnderWay,
    /// Too late to turn back.
    #[error("the new root issues already; the replacement can only go on")]
    TooLate,
    /// Not a serial number.
    #[error(
        "{0:?} is not a serial number; write its hexadecimal digits, as /certs of a proxy and the audit log do"
    )]
    Serial(String),
    /// The root's key is elsewhere.
    #[error(
        "the root's key is offline, so that no intermediate can be made here; have one signed where the key is: weft ca request-intermediate REQUEST, there weft ca sign-intermediate, and then weft ca take-intermediate"
    )]
    RootOffline,
    /// It is so already.
    #[error("the root's key is offline already")]
    AlreadyOffline,
    /// What was written down is not the key.
    #[error("the key that was written down is not the root's; the root was replaced meanwhile, so try again")]
    OtherRoot,
    /// Nobody asked.
    #[error(
        "no intermediate was requested; weft ca request-intermediate does, and its request is what is to be signed"
    )]
    NotRequested,
    /// The certificate does not fit.
    #[error("the intermediate cannot be taken: {0}; nothing is different")]
    NotTaken(String),
    /// The keys are elsewhere.
    #[error(
        "another signer signs (--ca): authorities are rotated and certificates revoked there, and the control plane follows its bundle"
    )]
    Elsewhere,
    /// The authority failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The kind of an authority's key, for its successor.
pub(super) fn kind(authority: &CertificateDer<'_>) -> KeyKind {
    let key = weft_certs::inspect::facts(authority).map(|f| f.key).unwrap_or_default();
    match key.as_str() {
        "RSA 4096" => KeyKind::Rsa4096,
        "P-256" => KeyKind::P256,
        "P-384" => KeyKind::P384,
        _ => KeyKind::Rsa2048,
    }
}

/// The life that one was given, which is its successor's as well.
fn life(authority: &CertificateDer<'_>, usual: time::Duration) -> time::Duration {
    let facts = weft_certs::inspect::facts(authority);
    facts.map_or(usual, |facts| facts.not_after - facts.not_before)
}

impl ChangeError {
    /// Whether it was refused before anything was touched. Of other errors nobody should conclude that all is as it was.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::UnderWay | Self::AlreadyOffline | Self::OtherRoot | Self::Elsewhere)
    }
}

/// Whom the mesh trusts by this state.
fn trust(state: &State) -> Result<Trust, AuthorityError> {
    Ok(Trust { roots: state.roots_pem().into(), revocations: revocations(state)?.into(), ..Trust::default() })
}

impl CertificateAuthority {
    /// Tells the mesh whom it trusts.
    pub(super) fn publish(&self, state: &State) -> Result<(), AuthorityError> {
        self.tell(trust(state)?);
        Ok(())
    }

    fn tell(&self, trust: Trust) {
        self.trust.send_if_modified(|now| {
            let changed = **now != trust;
            *now = Arc::new(trust);
            changed
        });
    }

    /// What a change is made to.
    pub(super) fn own(&self) -> Result<&Mutex<Inner>, ChangeError> {
        match &self.backend {
            Backend::Own(inner) => Ok(inner),
            Backend::Elsewhere(_) => Err(ChangeError::Elsewhere),
        }
    }

    /// Changes the state: stored first, then in force, then published. On error nothing is different, but for
    /// [`StoreError::Unfinished`]: what is written down is in force, here as after a restart.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&mut Inner) -> Result<T, ChangeError>,
    ) -> Result<T, ChangeError> {
        let mut inner = self.own()?.lock();
        let before = (inner.state.texts(), inner.leaves_until);
        let done = change(&mut inner).and_then(|done| {
            // All that can fail comes before the store, for what is stored comes back with the next start.
            let trust = trust(&inner.state)?;
            let stored = self.store(&inner.state);
            if matches!(stored, Ok(()) | Err(StoreError::Unfinished { .. })) {
                self.tell(trust);
            }
            stored?;
            Ok(done)
        });
        if done.as_ref().is_err_and(|e| !matches!(e, ChangeError::Store(StoreError::Unfinished { .. }))) {
            // As it was, from the text that it was stored as.
            inner.state = State::from_all(&before.0)?;
            inner.leaves_until = before.1;
        }
        done
    }

    /// Makes another intermediate. It signs at once; with revocation lists about, only when every proxy that takes them has
    /// its list, for a leaf of an authority without one would be doubted.
    pub fn rotate_intermediate(&self, now: OffsetDateTime) -> Result<bool, ChangeError> {
        // Keys take their time; nobody waits for them at the lock.
        let made = {
            let inner = self.own()?.lock();
            let state = &inner.state;
            if state.ledger.rotation.is_some() {
                return Err(ChangeError::UnderWay);
            }
            let present = state.intermediate.certificate();
            let life = life(present, Shape::default().intermediate_life);
            let root = state.root.signer().ok_or(ChangeError::RootOffline)?;
            root.intermediate(kind(present), now, life)?
        };
        self.change(|inner| follow(inner, made))
    }

    /// Begins to replace the root, or goes on; says whether it began.
    pub fn begin_root_rotation(&self, now: OffsetDateTime) -> Result<bool, ChangeError> {
        let (kinds, lives) = {
            let inner = self.own()?.lock();
            let (state, usual) = (&inner.state, Shape::default());
            if state.ledger.rotation.is_some() {
                return Ok(false);
            }
            let (root, intermediate) = (state.root.certificate(), state.intermediate.certificate());
            let lives = (life(root, usual.root_life), life(intermediate, usual.intermediate_life));
            ((kind(root), kind(intermediate)), lives)
        };
        let root = Authority::root(kinds.0, now, lives.0)?;
        let intermediate = root.intermediate(kinds.1, now, lives.1)?;
        self.change(|inner| {
            let ledger = &mut inner.state.ledger;
            if ledger.rotation.is_some() {
                return Ok(false);
            }
            ledger.other_roots = vec![root.certificate_pem().to_owned()];
            ledger.next_intermediate = None;
            // A certificate of the old root would be of no use.
            ledger.requested = None;
            ledger.rotation = Some(RootRotation {
                phase: Phase::Distributing,
                began: now.unix_timestamp(),
                since: now.unix_timestamp(),
                next_root: Some(StoredAuthority::of(&root)),
                next_intermediate: Some(StoredAuthority::of(&intermediate)),
                leaves_until: inner.leaves_until,
            });
            Ok(true)
        })
    }

    /// Gives up replacing the root, while the old one still issues.
    pub fn abort_root_rotation(&self) -> Result<(), ChangeError> {
        self.change(|inner| {
            let ledger = &mut inner.state.ledger;
            match ledger.rotation.as_ref().map(|r| r.phase) {
                None => Err(ChangeError::NotUnderWay),
                Some(Phase::Distributing) => {
                    ledger.rotation = None;
                    ledger.other_roots.clear();
                    Ok(())
                }
                Some(_) => Err(ChangeError::TooLate),
            }
        })
    }

    /// The next step of whatever is under way, not done.
    pub fn looked_at(
        &self,
        now: OffsetDateTime,
        followers: Followers,
        gathering_until: OffsetDateTime,
    ) -> Option<Step> {
        let inner = self.own().ok()?.lock();
        let rotation = inner.state.ledger.rotation.as_ref()?;
        let leaves_until = moment(rotation.leaves_until);
        Some(next(rotation.phase, &Facts { now, followers, gathering_until, leaves_until }))
    }

    /// Does the next step of whatever is under way, if it can be done now; says what it did or waits for.
    pub fn advance(
        &self,
        now: OffsetDateTime,
        followers: Followers,
        gathering_until: OffsetDateTime,
    ) -> Result<Option<Step>, ChangeError> {
        let Backend::Own(inner) = &self.backend else { return Ok(None) };
        let (tidied, waiting, aging) = {
            let mut inner = inner.lock();
            let seconds = now.unix_timestamp();
            // Without the root's key nothing can be done about it here; the keeper says so.
            let can = inner.state.root.signer().is_some() && inner.state.ledger.rotation.is_none();
            let aging = can && aging(&inner.state.intermediate, now);
            let ledger = &mut inner.state.ledger;
            let before = (ledger.retired.len(), ledger.revoked.len());
            // What is over needs no memory.
            ledger.retired.retain(|r| r.until >= seconds);
            ledger.revoked.retain(|r| r.until >= seconds);
            let tidied = before != (ledger.retired.len(), ledger.revoked.len());
            (tidied, ledger.next_intermediate.is_some(), aging)
        };
        if tidied {
            self.change(|_| Ok(()))?;
        }
        if waiting && followers.behind == 0 && now >= gathering_until {
            self.change(|inner| {
                if let Some(next) = inner.state.ledger.next_intermediate.take() {
                    let next = next.load()?;
                    take_intermediate(inner, next);
                }
                Ok(())
            })?;
        } else if aging && !waiting {
            self.rotate_intermediate(now)?;
        }
        let step = self.looked_at(now, followers, gathering_until);
        match step {
            Some(Step::Enter(phase)) => self.change(|inner| enter(inner, phase, now))?,
            Some(Step::Finish) => self.change(|inner| {
                inner.state.ledger.rotation = None;
                inner.state.ledger.root_rotations += 1;
                Ok(())
            })?,
            Some(Step::Wait(_)) | None => {}
        }
        Ok(step)
    }

    /// Revokes a certificate by its serial number; says whether it was not revoked before.
    pub fn revoke(&self, serial: &str, now: OffsetDateTime) -> Result<bool, ChangeError> {
        let serial = serial.trim().to_ascii_lowercase().replace(':', "");
        let even = if serial.len() % 2 == 1 { format!("0{serial}") } else { serial.clone() };
        if bytes(&even).is_none_or(|b| b.is_empty() || b.len() > 20) {
            return Err(ChangeError::Serial(serial));
        }
        let until = (now + self.limits.maximum).unix_timestamp();
        self.change(|inner| {
            let ledger = &mut inner.state.ledger;
            if ledger.revoked.iter().any(|r| r.serial == even) {
                return Ok(false);
            }
            ledger.revoked.push(Revocation { serial: even, at: now.unix_timestamp(), until });
            ledger.crl_number += 1;
            Ok(true)
        })
    }
}

/// An intermediate is replaced when a third of its life is left.
pub(super) fn aging(intermediate: &Authority, now: OffsetDateTime) -> bool {
    let facts = weft_certs::inspect::facts(intermediate.certificate());
    facts.is_ok_and(|f| f.not_after - now < (f.not_after - f.not_before) / 3)
}

/// Lets another intermediate sign; with revocation lists about, when every proxy has its list. Says whether it signs already.
pub(super) fn follow(inner: &mut Inner, made: Authority) -> Result<bool, ChangeError> {
    if inner.state.ledger.rotation.is_some() {
        return Err(ChangeError::UnderWay);
    }
    let waits = !inner.state.ledger.revoked.is_empty();
    match waits {
        true => inner.state.ledger.next_intermediate = Some(StoredAuthority::of(&made)),
        false => take_intermediate(inner, made),
    }
    Ok(!waits)
}

/// Lets another intermediate sign.
fn take_intermediate(inner: &mut Inner, next: Authority) {
    let old = std::mem::replace(&mut inner.state.intermediate, next);
    let ledger = &mut inner.state.ledger;
    ledger.retired.push(Retired { authority: StoredAuthority::of(&old), until: inner.leaves_until });
    ledger.intermediate_rotations += 1;
    ledger.leaves_until = 0;
    ledger.crl_number += 1;
    inner.leaves_until = 0;
}

fn enter(inner: &mut Inner, phase: Phase, now: OffsetDateTime) -> Result<(), ChangeError> {
    let Some(rotation) = &mut inner.state.ledger.rotation else { return Ok(()) };
    rotation.since = now.unix_timestamp();
    rotation.phase = phase;
    let next = (rotation.next_root.take(), rotation.next_intermediate.take());
    if let (Phase::Draining, (Some(root), Some(intermediate))) = (phase, &next) {
        let (root, intermediate) = (root.load()?, intermediate.load()?);
        rotation.leaves_until = inner.leaves_until;
        let old = std::mem::replace(&mut inner.state.root, root.into());
        inner.state.ledger.other_roots = vec![old.certificate_pem().to_owned()];
        take_intermediate(inner, intermediate);
    }
    if phase == Phase::Removing {
        inner.state.ledger.other_roots.clear();
    }
    Ok(())
}

/// The lists of all whose leaves may be alive or soon are; none while nothing is revoked.
fn revocations(state: &State) -> Result<String, AuthorityError> {
    let ledger = &state.ledger;
    if ledger.revoked.is_empty() {
        return Ok(String::new());
    }
    let revoked: Vec<_> = ledger
        .revoked
        .iter()
        .filter_map(|r| Some((bytes(&r.serial)?, moment(r.at).unwrap_or(OffsetDateTime::UNIX_EPOCH))))
        .collect();
    let now = OffsetDateTime::now_utc();
    let list = |authority: &Authority| authority.revocation_list(&revoked, ledger.crl_number, now);
    let coming = ledger.rotation.as_ref().and_then(|r| r.next_intermediate.as_ref());
    let others = ledger.retired.iter().map(|r| &r.authority).chain(coming).chain(&ledger.next_intermediate);
    let mut all = list(&state.intermediate)?;
    for other in others {
        all += &list(&other.load()?)?;
    }
    Ok(all)
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateRevocationListDer, UnixTime};
    use time::Duration;
    use weft_certs::verify::{Bundle, Expected, Usage, ValidationContext, verify_peer};

    use super::*;
    use crate::ca::Limits;
    use crate::ca::rotation::Wait;
    use crate::ca::store::tests::SMALL;

    pub(in crate::ca) fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    pub(in crate::ca) fn open(directory: &std::path::Path) -> Arc<CertificateAuthority> {
        let state = State::open(directory, SMALL, now()).unwrap();
        let domain = "cluster.local".parse().unwrap();
        CertificateAuthority::new(state, Limits::default(), domain, Some(directory.to_owned())).unwrap()
    }

    /// A leaf with its chain, for `seconds` from now.
    async fn leaf(authority: &CertificateAuthority, seconds: i64) -> Vec<String> {
        let id = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let made = weft_certs::csr::make(&id).unwrap();
        authority.sign(&made.csr, &id, seconds, now()).await.unwrap()
    }

    /// Whether who trusts `roots` takes a leaf.
    fn takes(roots: &str, leaf: &[String]) -> bool {
        let [chain @ .., _] = leaf else { panic!("{leaf:?}") };
        let context = ValidationContext {
            bundle: Bundle::new(weft_certs::pem::certificates(roots.as_bytes()).unwrap()).unwrap(),
            expected: Expected::Domains(vec!["cluster.local".parse().unwrap()]),
        };
        let chain = weft_certs::pem::certificates(chain.concat().as_bytes()).unwrap();
        verify_peer(&chain, &context, UnixTime::now(), Usage::Server).is_ok()
    }

    fn behind(behind: usize) -> Followers {
        Followers { acknowledged: 2, behind, by_certificate: 0 }
    }

    #[tokio::test]
    async fn at_every_step_of_a_root_rotation_everybody_takes_everybody_and_a_restart_changes_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("ca");
        let trusted = |a: &CertificateAuthority| a.trust().borrow().roots.to_string();
        let authority = open(&directory);
        let before = trusted(&authority);
        let old = leaf(&authority, 60).await;
        assert!(authority.begin_root_rotation(now()).unwrap());
        assert!(!authority.begin_root_rotation(now()).unwrap(), "it goes on with the one under way");
        assert!(matches!(authority.rotate_intermediate(now()), Err(ChangeError::UnderWay)));

        // Distributing: both are trusted, and the old one issues, for somebody may know nothing of the new one yet.
        let authority = open(&directory);
        let both = trusted(&authority);
        assert_eq!(both.matches("BEGIN").count(), 2);
        let during = leaf(&authority, 60).await;
        assert!(takes(&before, &during) && takes(&both, &during));
        assert_eq!(during[2], both, "whoever gets a certificate gets the bundle with it");
        assert_eq!(
            authority.advance(now(), behind(1), OffsetDateTime::UNIX_EPOCH).unwrap(),
            Some(Step::Wait(Wait::Proxies(1)))
        );
        assert_eq!(
            authority.advance(now(), behind(0), OffsetDateTime::UNIX_EPOCH).unwrap(),
            Some(Step::Enter(Phase::Draining))
        );

        // Draining: the new one issues, and leaves of both are taken by all who have both.
        let authority = open(&directory);
        let new = leaf(&authority, 60).await;
        assert!(!takes(&before, &new));
        assert!([&old, &during, &new].iter().all(|l| takes(&both, l) && takes(&trusted(&authority), l)));
        assert!(matches!(authority.abort_root_rotation(), Err(ChangeError::TooLate)));
        // The store is ahead of the last leaf by half a life at the most; a restart does not forget it.
        let soon = now() + Duration::seconds(50);
        assert!(matches!(
            authority.advance(soon, behind(0), OffsetDateTime::UNIX_EPOCH).unwrap(),
            Some(Step::Wait(Wait::Leaves(_)))
        ));
        let over = now() + Duration::seconds(95);
        let step = authority.advance(over, behind(0), OffsetDateTime::UNIX_EPOCH).unwrap();
        assert_eq!(step, Some(Step::Enter(Phase::Removing)));

        let authority = open(&directory);
        let last = trusted(&authority);
        assert!(takes(&last, &new) && !takes(&last, &old));
        assert_eq!(last.matches("BEGIN").count(), 1);
        assert_eq!(
            authority.advance(over, behind(0), OffsetDateTime::UNIX_EPOCH).unwrap(),
            Some(Step::Finish)
        );
        assert_eq!(authority.advance(over, behind(0), OffsetDateTime::UNIX_EPOCH).unwrap(), None);
        assert_eq!(trusted(&open(&directory)), last);
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_written_refuses_changes_and_goes_on_issuing() {
        let directory = tempfile::tempdir().unwrap();
        let (place, away) = (directory.path().join("state"), directory.path().join("away"));
        let authority = open(&place);
        std::fs::rename(&place, &away).unwrap();
        let lists = authority.trust().borrow().roots.clone();
        assert!(matches!(authority.rotate_intermediate(now()), Err(ChangeError::Store(_))));
        let first = leaf(&authority, 3600).await;
        assert!(takes(&lists, &first));
        assert_eq!(State::peek(&away).unwrap().ledger.leaves_until, 0);
        // What could not be remembered is, as soon as there is room.
        std::fs::rename(&away, &place).unwrap();
        leaf(&authority, 60).await;
        let until =
            weft_certs::inspect::facts(&weft_certs::pem::certificates(first[0].as_bytes()).unwrap()[0]);
        assert!(
            State::peek(&place).unwrap().ledger.leaves_until >= until.unwrap().not_after.unix_timestamp()
        );
    }

    #[test]
    fn a_change_that_cannot_be_published_is_not_stored() {
        let directory = tempfile::tempdir().unwrap();
        let authority = open(directory.path());
        let broken = serde_json::json!({"certificate": "", "key": ""});
        let broken = Retired { authority: serde_json::from_value(broken).unwrap(), until: i64::MAX };
        authority.own().unwrap().lock().state.ledger.retired.push(broken);
        assert!(matches!(authority.revoke("0a", now()), Err(ChangeError::Authority(_))));
        assert!(!authority.is_revoked("0a"));
        assert!(State::load(directory.path()).unwrap().ledger.revoked.is_empty());
    }

    #[test]
    fn a_change_that_is_written_down_is_in_force_though_its_files_are_not_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let authority = open(directory.path());
        let before = authority.trust().borrow().roots.to_string();
        // Nothing can be written where a directory stands.
        let obstacle = directory.path().join(".checksums.json.partial");
        std::fs::create_dir(&obstacle).unwrap();
        let error = authority.begin_root_rotation(now()).unwrap_err();
        assert!(matches!(error, ChangeError::Store(StoreError::Unfinished { .. })), "{error}");
        assert!(!error.is_refusal() && error.to_string().contains("is made"), "{error}");
        let after = authority.trust().borrow().roots.to_string();
        assert_ne!(after, before);
        assert!(!authority.begin_root_rotation(now()).unwrap(), "it is under way");
        std::fs::remove_dir(&obstacle).unwrap();
        assert_eq!(open(directory.path()).trust().borrow().roots.to_string(), after);
    }

    #[tokio::test]
    async fn a_root_rotation_is_given_up_only_while_the_old_root_issues() {
        let directory = tempfile::tempdir().unwrap();
        let authority = open(directory.path());
        let before = authority.trust().borrow().clone();
        assert!(matches!(authority.abort_root_rotation(), Err(ChangeError::NotUnderWay)));
        authority.begin_root_rotation(now()).unwrap();
        assert_ne!(*authority.trust().borrow(), before);
        authority.abort_root_rotation().unwrap();
        assert_eq!(*authority.trust().borrow(), before);
        assert_eq!(authority.advance(now(), behind(0), OffsetDateTime::UNIX_EPOCH).unwrap(), None);
    }

    fn lists(authority: &CertificateAuthority) -> usize {
        let text = authority.trust().borrow().revocations.clone();
        CertificateRevocationListDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .unwrap()
            .len()
    }

    #[tokio::test]
    async fn what_is_revoked_is_on_a_list_of_every_authority_whose_leaves_live() {
        let directory = tempfile::tempdir().unwrap();
        let authority = open(directory.path());
        assert_eq!(lists(&authority), 0);
        leaf(&authority, 60).await;
        // Without lists another intermediate signs at once.
        assert!(authority.rotate_intermediate(now()).unwrap());
        let revoked = leaf(&authority, 60).await;
        let certificate = weft_certs::pem::certificates(revoked[0].as_bytes()).unwrap();
        let serial = weft_certs::inspect::facts(&certificate[0]).unwrap().serial;
        assert!(authority.revoke(&serial.to_uppercase(), now()).unwrap());
        assert!(!authority.revoke(&serial, now()).unwrap(), "it was revoked already");
        assert!(authority.is_revoked(&serial));
        for bad in ["", "xyz", &"ab".repeat(21)] {
            assert!(matches!(authority.revoke(bad, now()), Err(ChangeError::Serial(_))), "{bad}");
        }
        assert_eq!(lists(&authority), 2, "the retired one's leaves live, too");

        // With lists it signs when everybody has its own.
        assert!(!authority.rotate_intermediate(now()).unwrap());
        assert_eq!(lists(&authority), 3);
        let signs = |l: &[String]| l[1].clone();
        let present = signs(&leaf(&authority, 60).await);
        authority.advance(now(), behind(1), OffsetDateTime::UNIX_EPOCH).unwrap();
        assert_eq!(signs(&leaf(&authority, 60).await), present);
        authority.advance(now(), behind(0), OffsetDateTime::UNIX_EPOCH).unwrap();
        assert_ne!(signs(&leaf(&authority, 60).await), present);
        // It survives a restart, and what is over is forgotten.
        let authority = open(directory.path());
        assert!(authority.is_revoked(&serial) && lists(&authority) == 3);
        authority.advance(now() + Duration::days(91), behind(0), OffsetDateTime::UNIX_EPOCH).unwrap();
        assert_eq!(lists(&authority), 0);
    }
}
