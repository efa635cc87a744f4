//! Renders for all connections: proxies that are alike share one result.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use xds_protos::ResourceType;

use crate::queue::Revision;
use crate::render::{Memo, ProxyNode, ROOTS, Resources, render, roots};

/// What rendering depends on, beside the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Class {
    node: ProxyNode,
    secrets: bool,
}

#[derive(Debug, Default)]
struct Results {
    /// The revision that they are of.
    revision: u64,
    by_class: HashMap<Class, Arc<OnceLock<Arc<Resources>>>>,
}

/// The results of the latest revision.
#[derive(Debug, Default)]
pub struct RenderCache {
    results: Mutex<Results>,
    memo: Memo,
}

impl RenderCache {
    /// An empty cache.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Everything for a node at a revision. `secrets`: its connection may carry them.
    ///
    /// It takes as long as rendering does, for the first of its class; call it where a moment's work is no harm.
    pub fn resources(&self, revision: &Revision, node: &ProxyNode, secrets: bool) -> Arc<Resources> {
        // The id names one proxy, and nothing is rendered from it.
        let class = Class { node: ProxyNode { id: String::new(), ..node.clone() }, secrets };
        let cell = {
            let mut results = self.results.lock();
            if revision.number > results.revision {
                results.by_class.clear();
                results.revision = revision.number;
                self.memo.advance();
            }
            if revision.number < results.revision {
                // A slow connection at a state that is past already; its next one is here.
                Arc::default()
            } else {
                results.by_class.entry(class).or_default().clone()
            }
        };
        cell.get_or_init(|| {
            let began = std::time::Instant::now();
            let mut rendered = render(&revision.world, node, secrets, &self.memo);
            if secrets && let Some(roots) = roots(&revision.trust) {
                rendered.entry(ResourceType::Secret).or_default().insert(ROOTS.into(), roots);
            }
            metrics::histogram!("pilot_xds_push_context_init_seconds").record(began.elapsed().as_secs_f64());
            Arc::new(rendered)
        })
        .clone()
    }

    /// How many resources were rendered and encoded so far, by what they are. For tests and the metrics port.
    pub fn memo(&self) -> &Memo {
        &self.memo
    }
}
