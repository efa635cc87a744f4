//! What a chain's network filters would say of a connection that nobody made.

use std::sync::Arc;

use super::{Guard, NetworkChain};
use crate::filters::decide::{Said, Step};
use crate::io::{ConnectionInfo, Pass};

/// The names under which steps of network filters are known.
const RBAC: &str = "envoy.filters.network.rbac";
const EXT_AUTHZ: &str = "envoy.filters.network.ext_authz";

/// What became of a connection.
#[derive(Debug)]
pub struct Decided {
    /// What each filter said, in order.
    pub steps: Vec<Step>,
    /// Why it is closed, in Envoy's words, if it is.
    pub closed: Option<Arc<str>>,
}

impl NetworkChain {
    /// What becomes of a connection's first bytes. It has its notes, in which filters write.
    pub fn decide(&self, info: &Arc<ConnectionInfo>) -> Decided {
        let mut steps = Vec::new();
        for guard in &self.guards {
            match guard {
                Guard::Rbac(rbac) => {
                    let (found, tried) = rbac.findings(info);
                    let denied = matches!(rbac.data(info), Pass::Never(_));
                    let said = if denied { Said::Deny } else { Said::Pass };
                    steps.push(Step { filter: RBAC.into(), found, tried, said });
                    if denied {
                        let words = info.notes.as_ref().and_then(|notes| notes.termination.lock().clone());
                        return Decided { steps, closed: Some(words.unwrap_or_default()) };
                    }
                }
                Guard::ExtAuthz(filter) => {
                    let said = if filter.asks(info) { Said::Ask } else { Said::Pass };
                    steps.push(Step { filter: EXT_AUTHZ.into(), found: None, tried: None, said });
                }
            }
        }
        Decided { steps, closed: None }
    }
}
