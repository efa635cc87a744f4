//! `envoy.filters.http.header_mutation`: changes of header fields, in the filter's place in the chain.

use std::sync::Arc;

use xds_protos::envoy::config::common::mutation_rules::v3 as rules;
use xds_protos::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use xds_protos::envoy::extensions::filters::http::header_mutation::v3 as proto;

use super::config::{PerFilter, PerRoute};
use crate::codec::Headers;
use crate::io::ConnectionInfo;
use crate::route::config::header_ops;
use crate::route::{HeaderOps, Matched};
use crate::router::{Exchange, Flow};
use crate::state::ConfigError;
use crate::telemetry::access_log::LogContext;

/// Changes of requests and responses, each in order.
#[derive(Clone, Debug, Default)]
pub struct Mutations {
    /// Of the request.
    pub request: Vec<HeaderOps>,
    /// Of the response.
    pub response: Vec<HeaderOps>,
}

/// The filter.
pub struct HeaderMutation {
    /// The chain's own changes.
    pub own: Arc<Mutations>,
    /// The route's changes come last, so that they win over its virtual host's.
    pub most_specific_wins: bool,
}

impl Mutations {
    /// Compiles the changes.
    ///
    /// # Errors
    /// Everything that is wrong in them.
    pub fn compile(config: Option<&proto::Mutations>) -> Result<Self, Vec<ConfigError>> {
        let Some(config) = config else { return Ok(Self::default()) };
        let mut errors = Vec::new();
        let mut of = |list: &[rules::HeaderMutation], path: &str| {
            let mut ops = Vec::with_capacity(list.len());
            for (index, mutation) in list.iter().enumerate() {
                match one(mutation) {
                    Ok(op) => ops.push(op),
                    Err(found) => {
                        errors.extend(found.into_iter().map(|e| e.at(format!("mutations.{path}[{index}]"))));
                    }
                }
            }
            ops
        };
        let request = of(&config.request_mutations, "request_mutations");
        let response = of(&config.response_mutations, "response_mutations");
        if errors.is_empty() { Ok(Self { request, response }) } else { Err(errors) }
    }
}

fn one(mutation: &rules::HeaderMutation) -> Result<HeaderOps, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let ops = match &mutation.action {
        Some(Action::Remove(name)) => header_ops(&[], std::slice::from_ref(name), "x", &mut errors),
        Some(Action::Append(option)) => header_ops(std::slice::from_ref(option), &[], "x", &mut errors),
        Some(Action::RemoveOnMatch(_)) => {
            return Err(ConfigError::unsupported("remove_on_match", "removing fields by a pattern").into());
        }
        None => return Err(ConfigError::missing("action").into()),
    };
    let place = |e: ConfigError| ConfigError {
        path: e.path.replace("x_headers_to_add[0]", "append").replace("x_headers_to_remove[0]", "remove"),
        ..e
    };
    if errors.is_empty() { Ok(ops) } else { Err(errors.into_iter().map(place).collect()) }
}

impl HeaderMutation {
    /// The changes that hold for a request: the chain's, then those of its route, virtual host and configuration.
    fn all<'a>(&'a self, matched: Option<&'a Matched>, name: &'a str) -> Vec<&'a Mutations> {
        let of = |p: &'a PerRoute| match p.get(name) {
            Some(PerFilter::HeaderMutation(mutations)) => Some(&**mutations),
            _ => None,
        };
        let mut routes: Vec<_> = matched.into_iter().flat_map(Matched::per_filter).filter_map(of).collect();
        if self.most_specific_wins {
            routes.reverse();
        }
        routes.insert(0, &*self.own);
        routes
    }

    /// Changes a request.
    pub(super) fn request_head(&self, exchange: &mut Exchange, name: &str) {
        let Exchange { head, matched, flow, connection, .. } = exchange;
        let all = self.all(matched.as_ref(), name);
        if all.iter().flat_map(|m| &m.response).any(HeaderOps::speaks) {
            flow.keep_whole();
        }
        flow.info(|info| {
            for ops in all.iter().flat_map(|m| &m.request) {
                // Formats see the request as the changes before left it.
                let mut changed = head.headers.clone();
                let context = LogContext {
                    request: Some(head),
                    configured: Some(&**flow),
                    ..LogContext::new(info, connection)
                };
                ops.apply(&mut changed, &context);
                head.headers = changed;
            }
        });
    }

    /// Changes a response.
    pub(super) fn response_head(
        &self,
        headers: &mut Headers,
        matched: Option<&Matched>,
        name: &str,
        (flow, connection): (&Flow, &ConnectionInfo),
    ) {
        let kept = flow.kept_head.borrow();
        flow.info(|info| {
            for ops in self.all(matched, name).iter().flat_map(|m| &m.response) {
                let before = headers.clone();
                let context = LogContext {
                    request: kept.as_ref(),
                    response: Some(&before),
                    configured: Some(flow),
                    ..LogContext::new(info, connection)
                };
                ops.apply(headers, &context);
            }
        });
    }
}
