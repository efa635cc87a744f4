//! The `caBundle` of a webhooks' configuration.

use std::fmt::Debug;
use std::sync::Arc;

use base64::Engine;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{LOOK, RETRY};
use crate::model::Trust;

/// Keeps the bundle of one configuration, for ever.
pub(super) async fn keep<K>(api: Api<K>, name: String, mut trust: watch::Receiver<Arc<Trust>>)
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize,
{
    let mut said = false;
    loop {
        let roots = trust.borrow_and_update().roots.clone();
        let tried = once(&api, &name, &roots).await;
        if !matches!(tried, Ok(false)) {
            metrics::counter!("webhook_patch_attempts_total", "name" => name.clone()).increment(1);
        }
        if let Err(error) = &tried {
            let reason = match error.downcast_ref() {
                Some(kube::Error::Api(status)) if status.code == 404 => "webhook_config_not_found",
                _ => "webhook_update_failure",
            };
            let labels = [("name", name.clone()), ("reason", reason.to_owned())];
            metrics::counter!("webhook_patch_failures_total", &labels).increment(1);
            if said {
                metrics::counter!("webhook_patch_retries_total", "name" => name.clone()).increment(1);
            }
        }
        let pause = match tried {
            Ok(written) => {
                if written {
                    tracing::info!(
                        configuration = name,
                        "the API server knows the roots of the webhooks' certificate"
                    );
                }
                said = false;
                LOOK
            }
            Err(error) => {
                // Until it is mended pods may not start: said loudly, and once.
                if !said {
                    tracing::error!(configuration = name, %error, "the roots of the webhooks' certificate cannot be written into their \
                        configuration; is it installed, and may this service account get and patch it? Trying again");
                }
                said = true;
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = trust.changed() => if changed.is_err() { return },
        }
    }
}

async fn once<K>(api: &Api<K>, name: &str, roots: &str) -> anyhow::Result<bool>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize,
{
    let found = serde_json::to_value(api.get(name).await?)?;
    let patch = patch(&found, roots);
    if patch.is_empty() {
        return Ok(false);
    }
    let patch: json_patch::Patch = serde_json::from_value(patch.into())?;
    api.patch(name, &PatchParams::default(), &Patch::Json::<()>(patch)).await?;
    Ok(true)
}

/// What makes the bundles right; nothing, if they are. Each change demands that its webhook still stands where it stood.
fn patch(configuration: &Value, roots: &str) -> Vec<Value> {
    let bundle = base64::engine::general_purpose::STANDARD.encode(roots);
    let mut patch = Vec::new();
    for (index, hook) in configuration["webhooks"].as_array().into_iter().flatten().enumerate() {
        if hook["clientConfig"]["caBundle"].as_str() != Some(&bundle) {
            patch.push(
                json!({"op": "test", "path": format!("/webhooks/{index}/name"), "value": hook["name"]}),
            );
            patch.push(json!({"op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle}));
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bundles_that_are_wrong_are_written() {
        let mut found = json!({"webhooks": [
            {"name": "a", "clientConfig": {"service": {}}},
            {"name": "b", "clientConfig": {"caBundle": "b2xk"}},
            {"name": "c", "clientConfig": {"caBundle": "cm9vdHM="}},
        ]});
        let made = patch(&found, "roots");
        assert_eq!(made.iter().filter(|one| one["op"] == "add").count(), 2);
        let made: json_patch::Patch = serde_json::from_value(made.into()).unwrap();
        let before = found.clone();
        json_patch::patch(&mut found, &made).unwrap();
        assert!(patch(&found, "roots").is_empty(), "{found}");
        // Somebody has put another webhook in the first's place.
        let mut other = before;
        other["webhooks"][0]["name"] = "z".into();
        assert!(json_patch::patch(&mut other, &made).is_err());
    }
}
