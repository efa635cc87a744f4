//! Whom the mesh trusts while a signer elsewhere changes its roots. A root that is new is told at once, and what leads to it is handed
//! out when the mesh has had time to hear of it. One that the signer names no more goes at once, or stays until the last certificate
//! under it has ended, as its signer is.

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

/// How long the mesh has to hear of a new root. Each control plane asks the signer every minute.
pub(super) const HEARS: Duration = Duration::minutes(3);
/// A server's clock may be ahead of ours.
const MARGIN: Duration = Duration::hours(1);

/// All that are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Roots(pub(super) Vec<Root>);

/// One of them. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Root {
    /// The certificate.
    pub(super) pem: String,
    /// Since when the mesh is told of it.
    pub(super) told: i64,
    /// The server hands it out no more, and it is trusted until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) leaves: Option<i64>,
}

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// These are new, and told from now on.
    pub(super) new: Vec<String>,
    /// These the server hands out no more, and they stay for a while.
    pub(super) gone: Vec<String>,
    /// These are trusted no more.
    pub(super) ended: Vec<String>,
}

impl Roots {
    /// Those that the mesh has trusted before (PEM).
    pub(super) fn known(pem: &str) -> Self {
        Self(each(pem).into_iter().map(|pem| Root { pem, told: 0, leaves: None }).collect())
    }

    /// Takes up what the server hands out now (PEM). What it hands out no more stays for `longest`, a certificate's longest life, or
    /// goes at once without one.
    pub(super) fn hear(&mut self, pem: &str, now: OffsetDateTime, longest: Option<Duration>) -> Change {
        let (now, heard, mut change) = (now.unix_timestamp(), each(pem), Change::default());
        // Nobody trusts others yet.
        let told = if self.0.is_empty() { 0 } else { now };
        for root in &mut self.0 {
            if heard.contains(&root.pem) {
                root.leaves = None;
            } else if root.leaves.is_none() {
                let stays = longest.map_or(0, |longest| (longest + MARGIN).whole_seconds());
                root.leaves = Some(now + stays);
                if stays > 0 {
                    change.gone.push(name(&root.pem));
                }
            }
        }
        self.0.retain(|root| {
            let stays = root.leaves.is_none_or(|end| end > now);
            if !stays {
                change.ended.push(name(&root.pem));
            }
            stays
        });
        for pem in heard {
            if !self.0.iter().any(|root| root.pem == pem) {
                change.new.push(name(&pem));
                self.0.push(Root { pem, told, leaves: None });
            }
        }
        change
    }

    /// All, PEM.
    pub(super) fn trusted(&self) -> String {
        self.0.iter().map(|root| root.pem.as_str()).collect()
    }

    /// Those of which the mesh has heard by now, PEM.
    pub(super) fn heard_of(&self, now: OffsetDateTime) -> String {
        let by = (now - HEARS).unix_timestamp();
        self.0.iter().filter(|root| root.told <= by).map(|root| root.pem.as_str()).collect()
    }

    /// Those that the server hands out, too.
    pub(super) fn handed_out(&self, now: OffsetDateTime) -> String {
        Self(self.0.iter().filter(|root| root.leaves.is_none()).cloned().collect()).heard_of(now)
    }

    /// A certificate was issued under one that the server hands out no more: such stay for its life, too. (Which one it was does not
    /// matter: to trust one longer that was trusted anyway parts nobody.)
    pub(super) fn used(&mut self, now: OffsetDateTime, longest: Duration) {
        for end in self.0.iter_mut().filter_map(|root| root.leaves.as_mut()) {
            *end = (*end).max((now + longest + MARGIN).unix_timestamp());
        }
    }
}

fn each(pem: &str) -> Vec<String> {
    let all = weft_certs::pem::certificates(pem.as_bytes()).unwrap_or_default();
    let mut each: Vec<String> = Vec::new();
    for text in all.iter().map(weft_certs::pem::encode) {
        if !each.contains(&text) {
            each.push(text);
        }
    }
    each
}

/// What people call it.
fn name(pem: &str) -> String {
    let all = weft_certs::pem::certificates(pem.as_bytes()).unwrap_or_default();
    let facts = all.first().and_then(|c: &CertificateDer<'_>| weft_certs::inspect::facts(c).ok());
    facts.map_or_else(|| "unreadable".to_owned(), |facts| format!("{} ({})", facts.subject, facts.serial))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> String {
        let now = OffsetDateTime::now_utc();
        let kind = weft_certs::authority::KeyKind::P256;
        let root = weft_certs::authority::Authority::root(kind, now, Duration::days(2)).unwrap();
        root.certificate_pem().to_owned()
    }

    #[test]
    fn a_root_that_is_gone_stays_until_the_last_certificate_under_it_has_ended() {
        let (old, new, life) = (root(), root(), Duration::days(90));
        let start = time::macros::datetime!(2026-11-27 08:00:00 UTC);
        let mut roots = Roots::default();
        assert_eq!(roots.hear(&old, start, Some(life)).new.len(), 1);
        assert_eq!(roots.handed_out(start), old, "the first is told with the first certificates");
        let change = roots.hear(&new, start, Some(life));
        assert_eq!((change.new.len(), change.gone.len(), change.ended.len()), (1, 1, 0));
        assert_eq!(roots.trusted(), old.clone() + &new);
        assert_eq!(
            roots.hear(&new, start + Duration::minutes(1), Some(life)),
            Change::default(),
            "said once"
        );
        // It is kept as text, and what was kept counts.
        let text = serde_json::to_string(&roots).unwrap();
        let mut roots: Roots = serde_json::from_str(&text).unwrap();
        let before = start + life;
        assert_eq!(roots.hear(&new, before, Some(life)), Change::default());
        assert!(roots.trusted().contains(&old));
        // Somebody got one under it, after all.
        roots.used(before, life);
        assert_eq!(roots.hear(&new, start + life + Duration::hours(2), Some(life)), Change::default());
        let change = roots.hear(&new, before + life + Duration::hours(2), Some(life));
        assert_eq!((change.ended.len(), roots.trusted()), (1, new.clone()));

        // It was gone for a moment.
        let mut roots = Roots::known(&(old.clone() + &new));
        roots.hear(&new, start, Some(life));
        assert!(!roots.handed_out(start).contains(&old) && roots.heard_of(start).contains(&old));
        roots.hear(&(old.clone() + &new), start, Some(life));
        assert!(roots.handed_out(start).contains(&old));
        assert_eq!(roots.hear(&(new.clone() + &old), start + life * 3, Some(life)), Change::default());
        assert_eq!(roots.trusted(), old.clone() + &new);
        // Whoever writes a file takes one out.
        roots.hear(&new, start, None);
        assert_eq!(roots.trusted(), new);
    }

    #[test]
    fn what_leads_to_a_new_root_waits_until_the_mesh_has_heard_of_it() {
        let (old, new) = (root(), root());
        let start = time::macros::datetime!(2026-11-27 08:00:00 UTC);
        let mut roots = Roots::known(&old);
        roots.hear(&(old.clone() + &new), start, Some(Duration::days(1)));
        assert_eq!(roots.trusted(), old.clone() + &new, "it is told at once");
        assert_eq!(roots.handed_out(start + HEARS - Duration::seconds(1)), old);
        assert_eq!(roots.handed_out(start + HEARS), old + &new);
    }
}
