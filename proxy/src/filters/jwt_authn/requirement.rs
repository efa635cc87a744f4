//! What a request must show: the tree of requirements and its evaluation.
//!
//! A good token has its effects on the head at once, as in Envoy: a token that is not forwarded is gone for the requirements
//! after it.

use std::sync::Arc;

use xds_protos::prost_types::Struct;

use super::Stats;
use super::extract::{Extractor, Found};
use super::provider::{Audiences, Keys, Provider};
use super::refusal::Refusal;
use super::remote::Remote;
use super::token::Token;
use crate::codec::RequestHead;

/// A requirement.
#[derive(Debug)]
pub enum Requirement {
    /// A good token of this provider.
    Provider {
        /// The provider.
        provider: Arc<Provider>,
        /// For these audiences, in place of the provider's.
        audiences: Option<Audiences>,
        /// Finds its tokens.
        extractor: Extractor,
    },
    /// No bad token; none is fine. With `failed`, a bad one is fine as well.
    Optional {
        /// A bad token is fine.
        failed: bool,
        /// It stands beside requirements for these providers, which have said no to the tokens that there are.
        beside: bool,
        /// Of whom tokens may be.
        providers: Arc<[Arc<Provider>]>,
        /// Finds their tokens.
        extractor: Extractor,
    },
    /// One of these.
    Any(Vec<Requirement>),
    /// All of these.
    All(Vec<Requirement>),
}

/// Why an evaluation stops.
pub enum Stop {
    /// The requirement is not met.
    Refused(Refusal),
    /// Keys must be fetched first; then it is to be done again.
    Ask(Arc<Remote>),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// One evaluation.
pub struct Run<'a> {
    /// The request's head.
    pub head: &'a mut RequestHead,
    /// Seconds since the epoch.
    pub now: u64,
    /// Whose keys have been asked for already.
    pub asked: &'a [Arc<Remote>],
    /// What counts.
    pub stats: &'a Stats,
    /// For dynamic metadata.
    pub extracted: Vec<(Arc<str>, Struct)>,
    /// What routes match on has changed.
    pub reroute: bool,
}

impl Requirement {
    /// Whether keys of servers take part.
    pub fn has_remote(&self) -> bool {
        let remote = |p: &Arc<Provider>| matches!(p.keys, Keys::Remote(_));
        match self {
            Self::Provider { provider, .. } => remote(provider),
            Self::Optional { providers, .. } => providers.iter().any(remote),
            Self::Any(all) | Self::All(all) => all.iter().any(Self::has_remote),
        }
    }

    /// Whether the request meets the requirement.
    ///
    /// # Errors
    /// It does not, or keys are missing.
    pub fn evaluate(&self, run: &mut Run<'_>) -> Result<(), Stop> {
        match self {
            Self::Provider { provider, audiences, extractor } => {
                extractor.sanitize(&mut run.head.headers);
                let tokens = extractor.find(run.head);
                run.tokens(tokens, |_| Some(provider), audiences.as_ref())
            }
            Self::Optional { failed, beside, providers, extractor } => {
                extractor.sanitize(&mut run.head.headers);
                let tokens = extractor.find(run.head);
                if *beside {
                    return if *failed || tokens.is_empty() { Ok(()) } else { Err(Refusal::Missing.into()) };
                }
                // Envoy looks at all of them here, from the last to the first, and the first decides.
                let mut result = Ok(());
                for found in tokens.iter().rev() {
                    result = run.token(found, &|iss: &str| of_issuer(providers, iss), None);
                    if matches!(result, Err(Stop::Ask(_))) {
                        return result;
                    }
                }
                if *failed { Ok(()) } else { result }
            }
            Self::All(all) => all.iter().try_for_each(|one| one.evaluate(run)),
            Self::Any(all) => {
                let mut worst = Refusal::Missing;
                for one in all {
                    match one.evaluate(run) {
                        Err(Stop::Refused(refusal)) if refusal.weight() >= worst.weight() => worst = refusal,
                        Err(Stop::Refused(_)) => {}
                        other => return other,
                    }
                }
                Err(worst.into())
            }
        }
    }
}

/// The provider of an issuer's tokens; the one of anybody's, where nobody is named so.
fn of_issuer<'a>(providers: &'a [Arc<Provider>], issuer: &str) -> Option<&'a Arc<Provider>> {
    let named = |name: &str| providers.iter().find(|p| *p.issuer == *name);
    named(issuer).or_else(|| named(""))
}

impl Run<'_> {
    /// All tokens must be good: one that is not might be the one that the upstream looks at.
    fn tokens<'p>(
        &mut self,
        tokens: Vec<Found<'_>>,
        provider: impl Fn(&str) -> Option<&'p Arc<Provider>>,
        audiences: Option<&Audiences>,
    ) -> Result<(), Stop> {
        if tokens.is_empty() {
            return Err(Refusal::Missing.into());
        }
        // Envoy begins with the last.
        tokens.into_iter().rev().try_for_each(|found| self.token(&found, &provider, audiences))
    }

    fn token<'p>(
        &mut self,
        found: &Found<'_>,
        provider: &impl Fn(&str) -> Option<&'p Arc<Provider>>,
        audiences: Option<&Audiences>,
    ) -> Result<(), Stop> {
        let token = Token::read(&found.text)?;
        let provider = provider(&token.iss).ok_or(Refusal::UnknownIssuer)?;
        if !found.may_be_of(&token.iss) {
            return Err(Refusal::UnknownIssuer.into());
        }
        provider.check(&token, audiences, self.now)?;
        let token = self.verified(&found.text, token, provider)?;
        let written = provider.tell(&token, &mut self.head.headers);
        self.reroute |= provider.clear_route_cache && (written || provider.payload_key.is_some());
        if !provider.forward {
            found.remove_from(self.head);
        }
        provider.metadata(&token, &mut self.extracted);
        Ok(())
    }

    /// The token, its signature verified now or before.
    fn verified(&self, text: &str, token: Token, provider: &Provider) -> Result<Arc<Token>, Stop> {
        let keys = match &provider.keys {
            Keys::Local(keys) => keys.clone(),
            Keys::Remote(remote) if remote.is_due() && !self.has_asked(remote) => {
                return Err(Stop::Ask(remote.clone()));
            }
            Keys::Remote(remote) => remote.keys().ok_or(Refusal::Fetch)?,
        };
        if let Some(cache) = &provider.cache {
            if let Some(known) = cache.get(text, &keys) {
                self.stats.cache_hit.inc();
                return Ok(known);
            }
            self.stats.cache_miss.inc();
        }
        match (keys.verify(&token), &provider.keys) {
            (Ok(()), _) => {}
            (Err(Refusal::NoKey), Keys::Remote(remote))
                if remote.may_be_newer() && !self.has_asked(remote) =>
            {
                return Err(Stop::Ask(remote.clone()));
            }
            (Err(refusal), _) => return Err(refusal.into()),
        }
        let token = Arc::new(token);
        if let Some(cache) = &provider.cache {
            cache.put(text, &token, &keys);
        }
        Ok(token)
    }

    fn has_asked(&self, remote: &Arc<Remote>) -> bool {
        self.asked.iter().any(|a| Arc::ptr_eq(a, remote))
    }
}
