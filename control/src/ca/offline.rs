//! A root whose key is kept where no control plane is. What has to be signed by it goes there as a request and comes back as a
//! certificate; the key of an intermediate stays where it was made.

use time::{Duration, OffsetDateTime};
use weft_certs::authority::Authority;
use weft_certs::{csr, digest};

use super::authority::{Backend, CertificateAuthority};
use super::changes::{ChangeError, aging, follow, kind};
use super::root::Root;

impl CertificateAuthority {
    /// Forgets the root's key, in memory and in the store. `sha256` is that of the key's text where it was written down before:
    /// nobody loses it by a mistake.
    pub fn take_root_offline(&self, sha256: &str) -> Result<(), ChangeError> {
        self.change(|inner| {
            if inner.state.ledger.rotation.is_some() {
                return Err(ChangeError::UnderWay);
            }
            let Some(root) = inner.state.root.signer() else { return Err(ChangeError::AlreadyOffline) };
            if digest::sha256_hex(root.key_pem().as_bytes()) != sha256 {
                return Err(ChangeError::OtherRoot);
            }
            inner.state.root = Root::offline(root.certificate_pem())?;
            Ok(())
        })
    }

    /// Makes the key of another intermediate and keeps it; gives the request for its certificate (PEM). An earlier request is
    /// of no use from then on.
    pub fn request_intermediate(&self) -> Result<String, ChangeError> {
        let kind = kind(self.own()?.lock().state.intermediate.certificate());
        // Keys take their time; nobody waits for them at the lock.
        let key = kind.make()?;
        let request = csr::for_key(&key).map_err(|e| ChangeError::NotTaken(e.to_string()))?;
        self.change(|inner| {
            if inner.state.ledger.rotation.is_some() {
                return Err(ChangeError::UnderWay);
            }
            inner.state.ledger.requested = Some(key);
            Ok(request)
        })
    }

    /// Takes up the certificate (PEM) for which a request was made. Says whether it signs already: with revocation lists about,
    /// it does when every proxy has its list.
    pub fn take_requested(&self, certificate: &str, now: OffsetDateTime) -> Result<bool, ChangeError> {
        let not = |e: &dyn std::fmt::Display| ChangeError::NotTaken(e.to_string());
        match weft_certs::pem::certificates(certificate.as_bytes()).map_err(|e| not(&e))?.as_slice() {
            [_] => {}
            several => {
                let what = "and there has to be the intermediate's alone, signed by the root itself";
                return Err(not(&format!("there are {} certificates, {what}", several.len())));
            }
        }
        self.change(|inner| {
            let state = &mut inner.state;
            let Some(key) = &state.ledger.requested else { return Err(ChangeError::NotRequested) };
            let made = Authority::load(certificate, key).map_err(|e| not(&e))?;
            made.is_under(state.root.certificate(), now).map_err(|e| not(&e))?;
            // Revocation lists are found by their issuer's name.
            let subject = |a: &Authority| weft_certs::inspect::facts(a.certificate()).map(|f| f.subject);
            let name = subject(&made).map_err(|e| not(&e))?;
            let retired = state.ledger.retired.iter().filter_map(|r| r.authority.load().ok());
            let mut taken = retired.filter_map(|a| subject(&a).ok()).chain(subject(&state.intermediate).ok());
            if taken.any(|other| other == name) {
                return Err(not(&format!("an intermediate before it has the same name {name:?}")));
            }
            state.ledger.requested = None;
            follow(inner, made)
        })
    }

    /// When the present intermediate ends, if it grows old and nobody here can make another one.
    pub fn needs_an_intermediate(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let Backend::Own(inner) = &self.backend else { return None };
        let inner = inner.lock();
        let state = &inner.state;
        let ledger = &state.ledger;
        let helped = ledger.rotation.is_some() || ledger.next_intermediate.is_some();
        let needs = state.root.signer().is_none() && !helped && aging(&state.intermediate, now);
        needs.then(|| state.intermediate.not_after())
    }
}

/// Signs a request for an intermediate by a root that stands with its key in one text (PEM), where no control plane is.
///
/// # Errors
/// The root cannot be used, or the request is bad.
pub fn sign(root: &str, request: &str, now: OffsetDateTime, life: Duration) -> anyhow::Result<String> {
    let root = Authority::load(root, root).map_err(|e| {
        anyhow::anyhow!("--root: {e}; it has to hold the root's certificate and its key, PEM")
    })?;
    anyhow::ensure!(root.not_after() > now, "--root: the root has expired at {}", root.not_after());
    Ok(root.certify(&csr::check(request)?, now, life)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::State;
    use crate::ca::changes::tests::{now, open};
    use crate::ca::store::tests::SMALL;

    /// Takes the key out; certificate and key in one text.
    fn take_out(authority: &CertificateAuthority) -> String {
        let (certificate, key) = {
            let inner = authority.own().unwrap().lock();
            let root = inner.state.root.signer().unwrap();
            (root.certificate_pem().to_owned(), root.key_pem().to_owned())
        };
        authority.take_root_offline(&digest::sha256_hex(key.as_bytes())).unwrap();
        certificate + &key
    }

    #[tokio::test]
    async fn without_the_roots_key_leaves_are_signed_and_revoked_and_an_intermediate_comes_from_where_it_is()
    {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("ca");
        let authority = open(&directory);
        assert!(matches!(authority.take_root_offline("00"), Err(ChangeError::OtherRoot)));
        let root = take_out(&authority);
        assert!(!directory.join(crate::ca::store::ROOT_KEY).exists());
        assert!(matches!(authority.rotate_intermediate(now()), Err(ChangeError::RootOffline)));
        drop(authority);

        let authority = open(&directory);
        let id = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let made = csr::make(&id).unwrap();
        let before = authority.sign(&made.csr, &id, 60, now()).await.unwrap();
        let request = authority.request_intermediate().unwrap();
        // Over a restart as well.
        drop(authority);
        let authority = open(&directory);
        let certificate = sign(&root, &request, now(), Duration::days(30)).unwrap();
        assert!(authority.take_requested(&certificate, now()).unwrap());
        let after = authority.sign(&made.csr, &id, 60, now()).await.unwrap();
        assert!(before[1] != after[1] && before[2] == after[2]);
        assert_eq!(after[1], certificate);
        assert!(matches!(authority.take_requested(&certificate, now()), Err(ChangeError::NotRequested)));
        // Where lists are about, the next one waits for its own to be everywhere.
        authority.revoke("0a", now()).unwrap();
        let next =
            sign(&root, &authority.request_intermediate().unwrap(), now(), Duration::days(30)).unwrap();
        assert!(!authority.take_requested(&next, now()).unwrap());
        assert_eq!(authority.trust().borrow().revocations.matches("BEGIN X509 CRL").count(), 3);
    }

    #[test]
    fn an_intermediate_that_does_not_fit_is_refused_for_its_reason_and_the_request_stays() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("ca");
        let authority = open(&directory);
        let root = take_out(&authority);
        let request = authority.request_intermediate().unwrap();
        let good = sign(&root, &request, now(), Duration::days(30)).unwrap();
        let other = State::create(SMALL, now()).unwrap();
        let other = other.root.certificate_pem().to_owned() + other.root.signer().unwrap().key_pem();
        let foreign = csr::make(&"spiffe://cluster.local/ns/a/sa/b".parse().unwrap()).unwrap().csr;
        for (certificate, words) in [
            (sign(&other, &request, now(), Duration::days(30)).unwrap(), "not by the mesh's root"),
            (sign(&root, &foreign, now(), Duration::days(30)).unwrap(), "does not belong"),
            (sign(&root, &request, now() - Duration::days(9), Duration::days(8)).unwrap(), "not now"),
            (sign(&root, &request, now() + Duration::days(1), Duration::days(8)).unwrap(), "not now"),
            (good.clone() + &good, "2 certificates"),
            (String::new(), "no CERTIFICATE block"),
        ] {
            let error = authority.take_requested(&certificate, now()).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(sign("", &request, now(), Duration::days(1)).unwrap_err().to_string().contains("--root"));
        assert!(authority.take_requested(&good, now()).unwrap());
    }

    #[test]
    fn an_old_intermediate_is_told_of_where_nobody_here_can_replace_it() {
        let parent = tempfile::tempdir().unwrap();
        let authority = open(&parent.path().join("ca"));
        let late = now() + Duration::days(300);
        assert!(authority.needs_an_intermediate(late).is_none(), "it is replaced by itself");
        take_out(&authority);
        assert!(authority.needs_an_intermediate(now()).is_none());
        assert!(authority.needs_an_intermediate(late).is_some());
        // The next step neither fails nor makes one.
        let followers = crate::ca::rotation::Followers::default();
        assert!(authority.advance(late, followers, now()).unwrap().is_none());
    }
}
