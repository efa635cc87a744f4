//! Which of several certificates a client is shown.
//!
//! As in Envoy: one that carries the name the client asks for, exactly or by a wildcard for its first label; of those, one
//! with an ECDSA key if the client can verify it. A client that asks for no name gets the best of all. One that asks for a
//! name which none carries gets the first, or with `full_scan_certs_on_sni_mismatch` the best of all.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureAlgorithm;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::peer::Peer;

/// The certificates by their names.
#[derive(Debug)]
pub(super) struct Choice {
    all: Vec<Arc<CertifiedKey>>,
    /// Places in `all`, by names in lower case; wildcards with their star.
    by_name: HashMap<String, Vec<usize>>,
    scan_all: bool,
}

impl Choice {
    /// Certificates in the configuration's order.
    pub(super) fn new(all: Vec<Arc<CertifiedKey>>, scan_all: bool) -> Self {
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        // With one there is nothing to choose.
        if all.len() > 1 {
            for (i, pair) in all.iter().enumerate() {
                for name in pair.cert.first().and_then(Peer::of).map(names).unwrap_or_default() {
                    by_name.entry(name.to_ascii_lowercase()).or_default().push(i);
                }
            }
        }
        Self { all, by_name, scan_all }
    }

    fn choose(&self, name: Option<&str>, fits: impl Fn(&CertifiedKey) -> bool) -> Option<&Arc<CertifiedKey>> {
        let best = |among: &[usize]| {
            let usable = |i: &&usize| self.all.get(**i).is_some_and(|c| fits(c));
            let ecdsa = |i: &&usize| self.all[**i].key.algorithm() == SignatureAlgorithm::ECDSA;
            let fitting: Vec<_> = among.iter().filter(usable).collect();
            fitting.iter().find(|i| ecdsa(i)).or(fitting.first()).map(|i| &self.all[**i])
        };
        let everything = || (0..self.all.len()).collect::<Vec<_>>();
        let Some(name) = name.filter(|_| self.all.len() > 1) else {
            return best(&everything()).or(self.all.first());
        };
        let name = name.to_ascii_lowercase();
        let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        let named = |name: &str| self.by_name.get(name).and_then(|places| best(places));
        named(&name)
            .or_else(|| wildcard.and_then(|w| named(&w)))
            .or_else(|| if self.scan_all { best(&everything()) } else { None })
            .or(self.all.first())
    }
}

/// The names that a certificate is for: its DNS names, or where it has none, the common name.
fn names(peer: Peer) -> Vec<String> {
    if !peer.dns_sans.is_empty() {
        return peer.dns_sans;
    }
    let common = peer.subject.split(',').find_map(|part| part.strip_prefix("CN="));
    common.map(str::to_owned).into_iter().collect()
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        self.choose(hello.server_name(), |c| c.key.choose_scheme(schemes).is_some()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use rustls::sign::CertifiedKey;
    use weft_certs::authority::{Authority, KeyKind};

    use super::*;

    fn pair(names: &[&str]) -> Arc<CertifiedKey> {
        let now = time::OffsetDateTime::now_utc();
        let root = Authority::root(KeyKind::P256, now, time::Duration::hours(1)).unwrap();
        let id = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let (certificate, key) = root.server(&id, names, &[], now, time::Duration::hours(1)).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key.into()).unwrap();
        Arc::new(CertifiedKey::new(vec![certificate], key))
    }

    #[test]
    fn by_the_name_then_by_a_wildcard_then_the_first() {
        let all = [pair(&["a.example"]), pair(&["b.example", "c.example"]), pair(&["*.wild.example"])];
        let choice = Choice::new(all.to_vec(), false);
        let chosen = |name| all.iter().position(|c| Arc::ptr_eq(c, choice.choose(name, |_| true).unwrap()));
        for (name, expected) in [
            ("a.example", 0),
            ("C.Example", 1),
            ("x.wild.example", 2),
            ("x.y.wild.example", 0),
            ("wild.example", 0),
            ("unknown", 0),
        ] {
            assert_eq!(chosen(Some(name)), Some(expected), "{name}");
        }
        assert_eq!(chosen(None), Some(0));
    }

    #[test]
    fn one_that_the_client_cannot_verify_is_passed_over() {
        let all = [pair(&["a.example"]), pair(&["a.example"])];
        let second = |c: &CertifiedKey| !std::ptr::eq(c, &*all[0]);
        let choice = Choice::new(all.to_vec(), true);
        for name in [Some("a.example"), Some("b.example"), None] {
            assert!(Arc::ptr_eq(choice.choose(name, second).unwrap(), &all[1]), "{name:?}");
        }
    }
}
