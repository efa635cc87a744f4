//! What a connection manager's filters would say of a request that nobody sent: the filters themselves are run over it, one
//! by one, as far as the last that decides. Nobody is asked outside of this process, and nothing is left to chance.

use std::sync::Arc;

use xds_protos::prost_types::Value;

use super::config::PerFilter;
use super::rbac::Finding;
use super::{Filter, FilterList, Named, Verdict, setting};
use crate::io::metadata::Datum;
use crate::router::{Exchange, LocalReply};

/// What one filter said that decides.
#[derive(Clone, Debug)]
pub struct Step {
    /// The filter's name.
    pub filter: Box<str>,
    /// What its rules found; none where it has no rules that are enforced.
    pub found: Option<Finding>,
    /// What those would have done that are only tried.
    pub tried: Option<Finding>,
    /// What it does.
    pub said: Said,
}

/// What a filter does with what it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It lets it pass.
    Pass,
    /// It does not.
    Deny,
    /// It asks another service.
    Ask,
}

/// What a filter that checks tokens is taken to have found, in place of asking it: `(namespace, key, value)` of dynamic metadata.
pub type Supposed = (&'static str, Arc<str>, Value);

/// What became of a request.
pub struct Decided {
    /// What each filter said, in order.
    pub steps: Vec<Step>,
    /// The request as it was then.
    pub exchange: Box<Exchange>,
    /// The answer, if one of them answered.
    pub answer: Option<LocalReply>,
}

impl Filter {
    /// Whether it may refuse a request by who sent it and what it asks for.
    fn decides(&self) -> bool {
        matches!(self, Self::Rbac(_) | Self::JwtAuthn(_) | Self::ExtAuthz(_))
    }
}

impl FilterList {
    /// Runs the filters over a request. `supposed` stands in the place of those that check tokens.
    pub async fn decide(
        &self,
        mut exchange: Box<Exchange>,
        reroute: impl Fn(&mut Exchange),
        supposed: Option<&Supposed>,
    ) -> Decided {
        let mut steps = Vec::new();
        let end = self.filters.iter().rposition(|named| named.filter.decides()).map_or(0, |last| last + 1);
        for named in &self.filters[..end] {
            let of_route = setting(&exchange, &named.name);
            if matches!(of_route, Some(PerFilter::Disabled)) || (named.disabled && of_route.is_none()) {
                continue;
            }
            let step = |found, tried, said| Step { filter: named.name.clone(), found, tried, said };
            let mut step = match &named.filter {
                // Chance and quantity are no matter of who may, and neither is what we prove to others.
                Filter::Fault(..)
                | Filter::LocalRateLimit(_)
                | Filter::GlobalRateLimit(_)
                | Filter::CredentialInjector(_) => continue,
                Filter::Rbac(rbac) => {
                    let of_route = match of_route {
                        Some(PerFilter::Rbac(rules)) => Some(rules),
                        _ => None,
                    };
                    let (found, tried) = rbac.findings(&exchange, of_route);
                    Some(step(found, tried, Said::Pass))
                }
                Filter::JwtAuthn(_) => {
                    if let Some((namespace, key, value)) = supposed {
                        let value = Datum::Other(Box::new(value.clone()));
                        exchange.flow.info(|info| info.metadata.set(namespace, key, value));
                        continue;
                    }
                    Some(step(None, None, Said::Pass))
                }
                Filter::ExtAuthz(filter) => {
                    let of_route = match of_route {
                        Some(PerFilter::ExtAuthz(of_route)) => Some(&**of_route),
                        _ => None,
                    };
                    match filter.request_head(&exchange, of_route) {
                        None => steps.push(step(None, None, Said::Ask)),
                        Some(Verdict::Reply(reply)) => {
                            steps.push(step(None, None, Said::Deny));
                            return Decided { steps, exchange, answer: Some(reply) };
                        }
                        Some(_) => steps.push(step(None, None, Said::Pass)),
                    }
                    continue;
                }
                _ => None,
            };
            let alone = Self { filters: [Named::clone(named)].into(), router: self.router.clone() };
            let answer = match alone.admit(exchange, &reroute).await {
                Ok(admitted) => {
                    exchange = admitted.into_parts().0;
                    None
                }
                Err((reply, answered)) => {
                    exchange = answered;
                    Some(reply)
                }
            };
            if let (Some(step), true) = (&mut step, answer.is_some()) {
                step.said = Said::Deny;
            }
            steps.extend(step);
            if answer.is_some() {
                return Decided { steps, exchange, answer };
            }
        }
        Decided { steps, exchange, answer: None }
    }
}
