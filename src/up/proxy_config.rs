//! Annotation `proxy.istio.io/config`: Istio's ProxyConfig of one workload, as far as the supervisor honours it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use weft_control::model::proxy_config::Layers;

/// What the annotation says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ProxyConfig {
    pub(super) environment: BTreeMap<String, String>,
    pub(super) concurrency: Option<u32>,
    pub(super) drain: Option<Duration>,
    pub(super) listener_drain: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Text {
    #[serde(default)]
    proxy_metadata: BTreeMap<String, String>,
    concurrency: Option<u32>,
    drain_duration: Option<String>,
    termination_drain_duration: Option<String>,
}

impl ProxyConfig {
    /// With the mesh's ProxyConfigs: what the workload says itself goes before those of namespaces, and that which selects it
    /// before all.
    pub(super) fn under(mut self, layers: Layers) -> Self {
        for below in [layers.own, layers.root].into_iter().flatten() {
            self.concurrency = self.concurrency.or(below.spec.concurrency);
            for (name, value) in &below.spec.environment_variables {
                self.environment.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        if let Some(above) = layers.workload {
            self.concurrency = above.spec.concurrency.or(self.concurrency);
            self.environment.extend(above.spec.environment_variables.clone());
        }
        self
    }

    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let text: Text = serde_saphyr::from_str(text).context(
            "there may be proxyMetadata (the proxy's environment), concurrency, drainDuration and \
             terminationDrainDuration",
        )?;
        let time = |name: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(crate::cli::parse_duration).transpose();
            parsed.map_err(|e| anyhow::anyhow!("{name}: {e}"))
        };
        Ok(Self {
            concurrency: text.concurrency,
            drain: time("terminationDrainDuration", &text.termination_drain_duration)?,
            listener_drain: time("drainDuration", &text.drain_duration)?,
            environment: text.proxy_metadata,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_becomes_environment_and_the_unknown_is_refused() {
        let text = "proxyMetadata:\n  SECRET_TTL: 8s\nconcurrency: 1\nterminationDrainDuration: 2s\n";
        let config = ProxyConfig::parse(text).unwrap();
        assert_eq!(config.environment["SECRET_TTL"], "8s");
        assert_eq!((config.concurrency, config.drain), (Some(1), Some(Duration::from_secs(2))));
        let error = format!("{:#}", ProxyConfig::parse("holdApplicationUntilProxyStarts: true").unwrap_err());
        assert!(
            error.contains("holdApplicationUntilProxyStarts") && error.contains("proxyMetadata"),
            "{error}"
        );
    }
}
