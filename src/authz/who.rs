//! Who can reach a workload: every identity that the directory knows, and those that it does not know, are shown to its proxy
//! with the requests that its policies speak of.

use std::net::IpAddr;

use serde::Serialize;
use weft_control::model::authorization_policy::AuthorizationAction;
use weft_proxy::listen::decide::End;

use super::answer::{Decision, Rule};
use super::samples::{self, Sample};
use super::{Judge, Question, find};

/// An identity of the mesh that no workload has.
const NOBODY: &str = "/ns/weft-nobody-has-this-namespace/sa/nobody";

/// How somebody comes to a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// The rule that lets it pass; none where no ALLOW policy holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Rule>,
    /// A request that passes; none where the port carries bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<String>,
    /// The claims of the token that it must show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The address that it must come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// The provider that has the last word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

/// Somebody, and how it comes in.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reached {
    /// The identity.
    pub identity: String,
    /// No workload of the directory has it: a policy names it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
    /// Its ways in; none if it has none.
    pub ways: Vec<Way>,
}

/// Those who need no identity of their own.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Anybody {
    /// How anybody comes in that has any identity of the mesh.
    pub in_mesh: Vec<Way>,
    /// How anybody comes in without an identity, in plain text.
    pub unauthenticated: Vec<Way>,
}

/// Who can come to a port.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reach {
    /// The port.
    pub port: u16,
    /// Those who need no identity of their own.
    pub anybody: Anybody,
    /// Every identity, those that cannot come included.
    pub identities: Vec<Reached>,
    /// How many requests were tried for each.
    pub tried: usize,
}

impl Judge {
    /// Who can come to a port of the workload.
    ///
    /// # Errors
    /// There is no such port.
    pub fn reach(&self, port: u16) -> anyhow::Result<Reach> {
        let (meta, labels) = (&self.workload.meta, self.workload.labels());
        let policies: Vec<_> = [
            AuthorizationAction::Allow,
            AuthorizationAction::Deny,
            AuthorizationAction::Custom,
            AuthorizationAction::Audit,
        ]
        .into_iter()
        .flat_map(|action| {
            self.world.authorization_policies(&meta.namespace, labels, Some(&meta.name), action)
        })
        .collect();
        let host = self.host(port);
        let samples = samples::requests(policies.iter().map(|policy| &policy.spec), &host);
        let elsewhere = samples::addresses(policies.iter().map(|policy| &policy.spec));

        let domain = &self.world.mesh().trust_domain;
        let nobody = format!("spiffe://{domain}{NOBODY}");
        let anybody = Anybody {
            in_mesh: self.ways(port, Some(&nobody), &[], &elsewhere, &samples)?,
            unauthenticated: self.ways(port, None, &[], &elsewhere, &samples)?,
        };
        let known = find::identities(&self.world);
        let mut identities = Vec::new();
        for (identity, addresses) in &known {
            let addresses: Vec<IpAddr> = addresses.iter().filter_map(|a| a.parse().ok()).collect();
            let ways = self.ways(port, Some(identity), &addresses, &elsewhere, &samples)?;
            identities.push(Reached { identity: identity.clone(), unknown: false, ways });
        }
        // Whom policies name and no workload is: it may come tomorrow.
        let sources = policies.iter().flat_map(|policy| &policy.spec.rules).flat_map(|rule| &rule.from);
        let named = sources.filter_map(|from| from.source.as_ref()).flat_map(|source| &source.principals);
        let mut named: Vec<String> =
            named.filter(|name| !name.contains('*')).map(|name| format!("spiffe://{name}")).collect();
        named.sort();
        named.dedup();
        for identity in named.into_iter().filter(|name| !known.contains_key(name)) {
            let ways = self.ways(port, Some(&identity), &[], &elsewhere, &samples)?;
            identities.push(Reached { identity, unknown: true, ways });
        }
        Ok(Reach { port, anybody, identities, tried: samples.len() })
    }

    /// How a caller comes in: one way for each rule that lets it. `addresses` are its own, `elsewhere` those that rules name.
    fn ways(
        &self,
        port: u16,
        identity: Option<&str>,
        addresses: &[IpAddr],
        elsewhere: &[IpAddr],
        samples: &[Sample],
    ) -> anyhow::Result<Vec<Way>> {
        let mut found: Vec<Way> = Vec::new();
        let own = addresses.first().copied();
        let places = std::iter::once((own, false)).chain(elsewhere.iter().map(|a| (Some(*a), true)));
        for (from, named) in places {
            // Bytes first: a port of requests has no answer to them.
            let tries = std::iter::once(None).chain(samples.iter().map(Some));
            for sample in tries {
                let request = sample.map(|sample| sample.request.clone());
                let question = Question {
                    identity: identity.map(str::to_owned),
                    from,
                    server_name: None,
                    request: request.clone(),
                };
                let decided = self.decide(port, &question)?;
                if matches!((&decided.end, sample), (End::NoRequest, _) | (End::Bytes, Some(_))) {
                    continue;
                }
                let answer = self.explain(port, &question, &decided);
                // What comes in without showing who it is comes in as anybody does.
                if answer.decision == Decision::Deny {
                    continue;
                }
                let way = Way {
                    by: answer.by,
                    example: request.as_ref().map(|r| describe(r, &self.host(port))),
                    token: sample.and_then(|s| s.claims.as_ref()).map(ToString::to_string),
                    from: from.filter(|_| named),
                    provider: answer.provider,
                };
                // A way without an address or a token is the better one of the same rule.
                if !found.iter().any(|other| other.by == way.by && other.provider == way.provider) {
                    found.push(way);
                }
            }
        }
        Ok(found)
    }
}

/// A request in short.
fn describe(request: &super::Request, usual_host: &str) -> String {
    let mut text = format!("{} {}", request.method, request.path);
    if request.host != usual_host {
        text += &format!(" host={}", request.host);
    }
    for (name, value) in &request.headers {
        text += &format!(" {name}={value}");
    }
    text
}
