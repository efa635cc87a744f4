//! The authority as `weft ca status` shows it. Nothing in here is secret.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::authority::{Backend, CertificateAuthority};
use super::ledger::{Revocation, moment};
use super::rotation::{Followers, Phase, Wait};
use super::store::State;

/// What there is to see.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Who signs: `own`, `openbao`, `kubernetes-csr` or `est`.
    pub signer: String,
    /// The trust domain, where a control plane runs.
    pub trust_domain: Option<String>,
    /// The roots that are trusted, the issuing one first.
    pub roots: Vec<Shown>,
    /// What signs workloads; none where somebody else does.
    pub intermediate: Option<Shown>,
    /// The root's key is not with the control plane.
    #[serde(default)]
    pub root_key_offline: bool,
    /// A certificate was asked for, for another intermediate, and has not come yet.
    #[serde(default)]
    pub intermediate_requested: bool,
    /// Intermediates that sign no more, and whose leaves may be alive.
    pub retired_intermediates: usize,
    /// The last leaf of the present intermediate expires by then.
    pub leaves_until: Option<String>,
    /// A replacement of the root that is under way.
    pub rotation: Option<Rotation>,
    /// Another intermediate waits until every proxy has its revocation list.
    pub intermediate_waits: bool,
    /// How often the root was replaced.
    pub root_rotations: u64,
    /// How often the intermediate was.
    pub intermediate_rotations: u64,
    /// What is revoked.
    pub revoked: Vec<Revocation>,
    /// The connected proxies, where a control plane runs.
    pub proxies: Option<Followers>,
}

/// A certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Its subject.
    pub subject: String,
    /// Its serial number.
    pub serial: String,
    /// Its key.
    pub key: String,
    /// Since when it is valid.
    pub not_before: String,
    /// Until when.
    pub not_after: String,
    /// SHA-256 of its DER.
    pub sha256: String,
}

/// A replacement of the root.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// Where it stands.
    pub phase: Phase,
    /// When it began.
    pub began: String,
    /// When this phase did.
    pub since: String,
    /// What is waited for, in words; none if nothing.
    pub waiting: Option<String>,
}

impl Status {
    /// What a stored state says by itself.
    pub fn of(state: &State) -> Self {
        let ledger = &state.ledger;
        let others = ledger.other_roots.iter().filter_map(|pem| shown(pem));
        Self {
            signer: "own".to_owned(),
            trust_domain: None,
            roots: shown(state.root.certificate_pem()).into_iter().chain(others).collect(),
            intermediate: shown(state.intermediate.certificate_pem()),
            root_key_offline: state.root.signer().is_none(),
            intermediate_requested: ledger.requested.is_some(),
            retired_intermediates: ledger.retired.len(),
            leaves_until: moment(ledger.leaves_until).map(text),
            rotation: ledger.rotation.as_ref().map(|r| Rotation {
                phase: r.phase,
                began: moment(r.began).map(text).unwrap_or_default(),
                since: moment(r.since).map(text).unwrap_or_default(),
                waiting: None,
            }),
            intermediate_waits: ledger.next_intermediate.is_some(),
            root_rotations: ledger.root_rotations,
            intermediate_rotations: ledger.intermediate_rotations,
            revoked: ledger.revoked.clone(),
            proxies: None,
        }
    }

    /// What a running authority says, with what its proxies are like and what is waited for.
    pub fn running(authority: &CertificateAuthority, followers: Followers, wait: Option<Wait>) -> Self {
        let mut status = match &authority.backend {
            Backend::Own(inner) => {
                let inner = inner.lock();
                Self { leaves_until: moment(inner.leaves_until).map(text), ..Self::of(&inner.state) }
            }
            Backend::Elsewhere(signer) => Self {
                signer: signer.name().to_owned(),
                trust_domain: None,
                roots: all(&authority.trust().borrow().roots),
                intermediate: None,
                root_key_offline: false,
                intermediate_requested: false,
                retired_intermediates: 0,
                leaves_until: None,
                rotation: None,
                intermediate_waits: false,
                root_rotations: 0,
                intermediate_rotations: 0,
                revoked: Vec::new(),
                proxies: None,
            },
        };
        status.trust_domain = Some(authority.domain().to_string());
        status.proxies = Some(followers);
        if let Some(rotation) = &mut status.rotation {
            rotation.waiting = wait.map(words);
        }
        status
    }
}

/// What is waited for.
pub fn words(wait: Wait) -> String {
    match wait {
        Wait::Gathering(until) => {
            format!("the control plane has just started; its proxies have until {} to come back", text(until))
        }
        Wait::Proxies(1) => "1 connected proxy has not acknowledged the bundle".to_owned(),
        Wait::Proxies(n) => format!("{n} connected proxies have not acknowledged the bundle"),
        Wait::Certificates(n, until) => format!(
            "{n} connected proxies learn of roots with their certificates only; all have new ones by {}",
            text(until)
        ),
        Wait::Leaves(until) => format!("certificates of the old root are alive until {}", text(until)),
    }
}

fn all(pem: &str) -> Vec<Shown> {
    let certificates = weft_certs::pem::certificates(pem.as_bytes()).unwrap_or_default();
    certificates.iter().filter_map(|c| shown(&weft_certs::pem::encode(c))).collect()
}

fn shown(pem: &str) -> Option<Shown> {
    let certificate = weft_certs::pem::certificates(pem.as_bytes()).ok()?.into_iter().next()?;
    let facts = weft_certs::inspect::facts(&certificate).ok()?;
    Some(Shown {
        subject: facts.subject,
        serial: facts.serial,
        key: facts.key,
        not_before: text(facts.not_before),
        not_after: text(facts.not_after),
        sha256: weft_certs::digest::sha256_hex(&certificate),
    })
}

fn text(moment: OffsetDateTime) -> String {
    moment.format(&Rfc3339).unwrap_or_default()
}
