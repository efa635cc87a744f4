//! An authority that the replicas of a control plane share: its state is in a Secret of their namespace. Whoever finds none makes
//! it, and of several who do so at once, one is the first.
//!
//! What is in the Secret is what `weft ca backup` writes, or a root with its key that somebody else made and looks after
//! (kubernetes.io/tls, as cert-manager makes them): then each replica makes an intermediate of its own under it. Or it has an
//! intermediate of somebody else's, by the names of Istio's Secret `cacerts`, whose root's key is offline. It is read at the start and not written again: the root stays. An
//! intermediate that grows old is replaced by each replica for itself, which nobody notices, for it comes with every leaf.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use time::OffsetDateTime;

use weft_certs::authority::Authority;
use zeroize::Zeroizing;

use super::backup;
use super::ledger::Ledger;
use super::root::Root;
use super::store::{Shape, State};

/// The key of the Secret's data.
const KEY: &str = "authority.json";
/// A root that somebody else made.
const TLS_CERT: &str = "tls.crt";
/// Its key.
const TLS_KEY: &str = "tls.key";
/// An intermediate of somebody else's with its key, and the root: Istio's Secret `cacerts`.
const PLUGGED: [&str; 3] = ["ca-cert.pem", "ca-key.pem", "root-cert.pem"];
/// Between two tries to reach the API server.
const RETRY: Duration = Duration::from_secs(3);

/// Whether asking again is of no use: who asks may not, or what is asked is wrong. A server that is busy or about to end says so
/// with other codes.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 401 | 403 | 404 | 405 | 422))
}

/// Takes the authority of a Secret, or makes it.
///
/// # Errors
/// The Secret holds something else, or may not be read or made. An API server that cannot be reached is waited for.
pub async fn open(client: Client, namespace: &str, name: &str, shape: Shape) -> anyhow::Result<State> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let at = || format!("the certificate authority's Secret {namespace}/{name} (--ca-secret)");
    loop {
        let found = match api.get_opt(name).await {
            Ok(found) => found,
            Err(error) if is_final(&error) => return Err(error).with_context(at),
            Err(error) => {
                tracing::warn!(%error, "waiting for the API server: {} cannot be read yet", at());
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        if let Some(secret) = found {
            let data = secret.data.unwrap_or_default();
            if let (Some(ByteString(root)), Some(ByteString(key))) = (data.get(TLS_CERT), data.get(TLS_KEY)) {
                let (root, key) = (root.clone(), Zeroizing::new(key.clone()));
                return tokio::task::spawn_blocking(move || {
                    under(&root, &key, shape, OffsetDateTime::now_utc())
                })
                .await?
                .with_context(at);
            }
            let plugged = PLUGGED.map(|key| data.get(key).map(|ByteString(bytes)| bytes.as_slice()));
            if let [Some(certificate), Some(key), Some(root)] = plugged {
                return plugged_in(certificate, key, root, OffsetDateTime::now_utc()).with_context(at);
            }
            let Some(ByteString(bytes)) = data.get(KEY) else {
                bail!(
                    "{} has neither {KEY}, nor {TLS_CERT} and {TLS_KEY}, nor {}: choose another name",
                    at(),
                    PLUGGED.join(", ")
                );
            };
            let text = std::str::from_utf8(bytes).context("not text").with_context(at)?;
            return backup::decode(text).with_context(at);
        }
        let made = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let now = OffsetDateTime::now_utc();
            backup::encode(&State::create(shape, now)?, now)
        });
        let text = made.await??;
        let secret = Secret {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            type_: Some("weft.dev/certificate-authority".to_owned()),
            data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(text.as_bytes().to_vec()))])),
            ..Secret::default()
        };
        match api.create(&PostParams::default(), &secret).await {
            Ok(_) => tracing::info!("{} was made", at()),
            // Another replica was faster: its authority is everybody's.
            Err(kube::Error::Api(error)) if error.code == 409 => {}
            Err(error) if is_final(&error) => return Err(error).with_context(at),
            Err(error) => {
                tracing::warn!(%error, "waiting for the API server: {} cannot be made yet", at());
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// An authority under a root that somebody else made.
fn under(root: &[u8], key: &[u8], shape: Shape, now: OffsetDateTime) -> anyhow::Result<State> {
    let text = |bytes| std::str::from_utf8(bytes).context("not text");
    let chain = weft_certs::pem::certificates(root).context(TLS_CERT)?;
    let [certificate] = chain.as_slice() else {
        bail!("{TLS_CERT} has {} certificates, and has to have the root alone", chain.len());
    };
    let facts = weft_certs::inspect::facts(certificate).context(TLS_CERT)?;
    if !facts.is_ca {
        bail!("{TLS_CERT} is no certificate of an authority; set isCA: true in cert-manager's Certificate");
    }
    if facts.issuer != facts.subject {
        bail!(
            "{TLS_CERT} is issued by another authority ({}), and proxies would trust that one's root: name a Secret with a root \
             (cert-manager: an Issuer with selfSigned)",
            facts.issuer
        );
    }
    let root = Authority::load(text(root)?, text(key)?).with_context(|| {
        format!("{TLS_CERT} and {TLS_KEY} (PKCS #8: privateKey.encoding in cert-manager's Certificate)")
    })?;
    if root.not_after() <= now {
        bail!("{TLS_CERT} has expired at {}", root.not_after());
    }
    let intermediate = root.intermediate(shape.intermediate_key, now, shape.intermediate_life)?;
    let token_key = Zeroizing::new(super::token::new_key()?);
    Ok(State { root: root.into(), intermediate, token_key, ledger: Ledger::default() })
}

/// An intermediate under a root whose key is nowhere near. Other roots beside that one are trusted as well: this is how a mesh
/// moves from one root to another.
fn plugged_in(certificate: &[u8], key: &[u8], root: &[u8], now: OffsetDateTime) -> anyhow::Result<State> {
    let text = |bytes| std::str::from_utf8(bytes).context("not text");
    let [at_certificate, at_key, at_root] = PLUGGED;
    let intermediate = Authority::load(text(certificate)?, text(key)?)
        .with_context(|| format!("{at_certificate} and {at_key} (PKCS #8)"))?;
    let mut issuing: Option<Root> = None;
    let (mut others, mut reasons) = (Vec::new(), Vec::new());
    for (i, der) in weft_certs::pem::certificates(root).context(at_root)?.iter().enumerate() {
        let root = Root::offline(&weft_certs::pem::encode(der))
            .with_context(|| format!("{at_root}, certificate {}", i + 1))?;
        let other = match (intermediate.is_under(der, now), issuing.take()) {
            (Err(reason), before) => {
                reasons.push(reason.to_string());
                issuing = before;
                root
            }
            // Of several certificates of the root's key, the one that lasts longest.
            (Ok(()), Some(before)) if before.not_after() >= root.not_after() => {
                issuing = Some(before);
                root
            }
            (Ok(()), before) => {
                issuing = Some(root);
                let Some(before) = before else { continue };
                before
            }
        };
        others.push(other.certificate_pem().to_owned());
    }
    let root = issuing.with_context(|| {
        format!(
            "{at_certificate}: it has to be signed by a root of {at_root} itself, with nothing between the two: {}",
            reasons.join("; ")
        )
    })?;
    let mut trusted = BTreeSet::from([root.certificate_pem().to_owned()]);
    others.retain(|other| trusted.insert(other.clone()));
    let token_key = Zeroizing::new(super::token::new_key()?);
    Ok(State { root, intermediate, token_key, ledger: Ledger { other_roots: others, ..Ledger::default() } })
}

#[cfg(test)]
mod tests {
    use weft_certs::authority::KeyKind;

    use super::*;

    #[test]
    fn a_root_of_somebody_elses_signs_and_other_certificates_are_refused_with_what_to_do() {
        let now = OffsetDateTime::now_utc();
        let days = time::Duration::days;
        let root = Authority::root(KeyKind::P256, now, days(100)).unwrap();
        let shape = || Shape { intermediate_key: KeyKind::P256, ..Shape::default() };
        let with =
            |certificate: &str, key: &str, now| under(certificate.as_bytes(), key.as_bytes(), shape(), now);
        let state = with(root.certificate_pem(), root.key_pem(), now).unwrap();
        assert_eq!(state.roots_pem(), root.certificate_pem());
        // Not longer than the root.
        assert!(state.intermediate.not_after() <= root.not_after());
        let made = weft_certs::csr::make(&"spiffe://cluster.local/ns/a/sa/b".parse().unwrap()).unwrap();
        let request = weft_certs::csr::check(&made.csr).unwrap();
        let id = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let leaf = state.intermediate.sign(&request, &id, now, time::Duration::hours(1)).unwrap();
        let facts = weft_certs::inspect::facts(&leaf).unwrap();
        assert_eq!(facts.uri_sans, ["spiffe://cluster.local/ns/a/sa/b"]);

        let below = root.intermediate(KeyKind::P256, now, days(50)).unwrap();
        let other = Authority::root(KeyKind::P256, now, days(100)).unwrap();
        let chain = below.certificate_pem().to_owned() + root.certificate_pem();
        for (certificate, key, at, words) in [
            (below.certificate_pem(), below.key_pem(), now, "an Issuer with selfSigned"),
            (chain.as_str(), below.key_pem(), now, "2 certificates"),
            (&weft_certs::pem::encode(&leaf), root.key_pem(), now, "isCA: true"),
            (root.certificate_pem(), other.key_pem(), now, "privateKey.encoding"),
            (root.certificate_pem(), root.key_pem(), now + days(101), "has expired"),
        ] {
            let error = format!("{:#}", with(certificate, key, at).map(|_| ()).expect_err(words));
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn an_intermediate_of_somebody_elses_signs_without_the_roots_key() {
        let now = OffsetDateTime::now_utc();
        let days = time::Duration::days;
        let root = Authority::root(KeyKind::P256, now, days(100)).unwrap();
        let below = root.intermediate(KeyKind::P256, now, days(50)).unwrap();
        let other = Authority::root(KeyKind::P256, now, days(100)).unwrap();
        let with = |ca: &Authority, root: &Authority, now| {
            let [ca, key, root] = [ca.certificate_pem(), ca.key_pem(), root.certificate_pem()];
            plugged_in(ca.as_bytes(), key.as_bytes(), root.as_bytes(), now)
        };
        let state = with(&below, &root, now).unwrap();
        assert!(state.root.signer().is_none());
        assert_eq!(state.roots_pem(), root.certificate_pem());
        assert_eq!(state.intermediate.certificate_pem(), below.certificate_pem());
        for (ca, under, at, words) in [
            (&below, &other, now, "not by the mesh's root"),
            (&root, &root, now, "needs one of its own"),
            (&below, &root, now + days(51), "not now"),
        ] {
            let error = format!("{:#}", with(ca, under, at).map(|_| ()).expect_err(words));
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn roots_beside_that_of_somebody_elses_intermediate_are_trusted_wherever_they_stand() {
        let now = OffsetDateTime::now_utc();
        let days = time::Duration::days;
        let [old, new, third] =
            [100, 200, 300].map(|life| Authority::root(KeyKind::P256, now, days(life)).unwrap());
        let below = new.intermediate(KeyKind::P256, now, days(50)).unwrap();
        let with = |roots: &[&str]| {
            let roots = roots.concat();
            plugged_in(below.certificate_pem().as_bytes(), below.key_pem().as_bytes(), roots.as_bytes(), now)
        };
        let [a, b, c] = [&old, &new, &third].map(Authority::certificate_pem);
        for (roots, trusted) in
            [(&[a, b, c][..], [b, a, c]), (&[b, a, b, c, a], [b, a, c]), (&[c, a, b], [b, c, a])]
        {
            let state = with(roots).unwrap();
            assert_eq!(state.root.certificate(), new.certificate());
            assert_eq!(state.roots_pem(), trusted.concat());
        }
        // Each replica tells the mesh so.
        let domain = "cluster.local".parse().unwrap();
        let limits = crate::ca::Limits::default();
        let authority =
            crate::ca::CertificateAuthority::new(with(&[a, b]).unwrap(), limits, domain, None).unwrap();
        assert_eq!(*authority.trust().borrow().roots, *[b, a].concat());

        let made = weft_certs::csr::make(&"spiffe://cluster.local/ns/a/sa/b".parse().unwrap()).unwrap();
        let request = weft_certs::csr::check(&made.csr).unwrap();
        let id = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let leaf = below.sign(&request, &id, now, time::Duration::hours(1)).unwrap();
        let leaf = weft_certs::pem::encode(&leaf);
        for (roots, words) in [
            (&[a, c][..], "not by the mesh's root"),
            (&[b, leaf.as_str()], "root-cert.pem, certificate 2"),
            (&[], "root-cert.pem"),
        ] {
            let error = format!("{:#}", with(roots).map(|_| ()).expect_err(words));
            assert!(error.contains(words), "{error}");
        }
    }
}
