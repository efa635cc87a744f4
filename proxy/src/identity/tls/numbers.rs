//! What the metrics say of a secret: when each of its certificates began and expires, and how often it was replaced.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::Secret;
use crate::telemetry::registry::{Counter, Group};

/// The numbers of one secret. Those of a certificate go with it.
#[derive(Debug)]
pub struct Shown {
    name: String,
    rotations: (Arc<Group>, Option<Counter>),
    expiry: Option<Arc<Group>>,
    leaf: Option<CertificateDer<'static>>,
}

impl Shown {
    /// Numbers for the secret of this name; nothing is published yet.
    pub fn new(name: &str) -> Self {
        let group = Group::new("", vec![("secret", name.to_owned())]);
        Self { name: name.to_owned(), rotations: (group, None), expiry: None, leaf: None }
    }

    /// Another version is in force.
    pub fn publish(&mut self, secret: &Secret) {
        // One series for each certificate: while a root is replaced there are two.
        let group = Group::new("", vec![("secret", self.name.clone())]);
        let show = |kind: &str, certificate: &CertificateDer<'_>| {
            let Ok(facts) = weft_certs::inspect::facts(certificate) else { return };
            let labels = vec![("certificate", kind.to_owned()), ("serial", facts.serial)];
            let labels = crate::telemetry::registry::Labels::from(labels);
            group.gauge_with("certificate_expiry_time", labels.clone()).set(facts.not_after.unix_timestamp());
            // With it an alert can ask for the share of a life that is left: 24 hours are always less than a week.
            group.gauge_with("certificate_start_time", labels).set(facts.not_before.unix_timestamp());
        };
        match secret {
            Secret::Certificate(pair) => {
                let [leaf, chain @ ..] = pair.cert.as_slice() else { return };
                show(if self.name == "default" { "leaf" } else { "gateway" }, leaf);
                chain.iter().for_each(|c| show("intermediate", c));
                let (count, counter) = &mut self.rotations;
                let counter = counter.get_or_insert_with(|| count.counter("certificate_rotation_count"));
                if self.leaf.as_ref().is_some_and(|before| before != leaf) {
                    counter.inc();
                }
                self.leaf = Some(leaf.clone().into_owned());
            }
            Secret::Validation(rules) => rules.roots.iter().for_each(|c| show("root", c)),
            Secret::Generic(_) => {}
        }
        self.expiry = Some(group);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::workload::testing::{Authority, id, start};
    use crate::telemetry::registry::{Metric, groups};

    fn lines(secret: &str) -> Vec<(String, Vec<String>, i64)> {
        let mut lines = Vec::new();
        for group in groups().iter().filter(|g| g.labels.first() == Some(&("secret", secret.into()))) {
            for entry in group.entries() {
                let value = match entry.metric {
                    Metric::Counter(c) => c.value() as i64,
                    Metric::Gauge(g) => g.value(),
                    Metric::Histogram(_) => continue,
                };
                let labels = entry.labels.iter().map(|(_, v)| v.to_string()).collect();
                lines.push((entry.name.to_string(), labels, value));
            }
        }
        lines
    }

    #[test]
    fn each_certificate_has_its_expiry_and_each_replacement_counts_once() {
        let authority = Authority::new();
        let secret = |life: u64| {
            let made = authority.certificate(&id(), start(), Duration::from_secs(life));
            Secret::certificate_pem(made.chain_pem().as_bytes(), made.key_pem().as_bytes()).unwrap()
        };
        let name = "numbers-test";
        let mut shown = Shown::new(name);
        let first = secret(3600);
        shown.publish(&first);
        shown.publish(&first);
        shown.publish(&secret(7200));
        let lines = lines(name);
        let of = |name: &str, kind: &str| {
            let is = |l: &&(String, Vec<String>, i64)| l.0 == name && l.1.first().is_some_and(|k| k == kind);
            let found: Vec<_> = lines.iter().filter(is).collect();
            assert_eq!(found.len(), 1, "{lines:?}");
            found[0].2
        };
        let expiry = "certificate_expiry_time";
        assert_eq!(of(expiry, "gateway"), start().unix_timestamp() + 7200);
        assert_eq!(of(expiry, "intermediate"), start().unix_timestamp() + 365 * 86_400);
        assert!(of("certificate_start_time", "gateway") <= start().unix_timestamp());
        let rotations: Vec<_> = lines.iter().filter(|l| l.0 == "certificate_rotation_count").collect();
        assert_eq!(rotations.len(), 1);
        assert_eq!(rotations[0].2, 1);
    }
}
