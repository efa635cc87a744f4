//! An authority that the replicas of a control plane share: its state is in a Secret of their namespace. Whoever finds none makes
//! it, and of several who do so at once, one is the first.
//!
//! What is in the Secret is what `weft ca backup` writes. It is read at the start and not written again: the root stays. An
//! intermediate that grows old is replaced by each replica for itself, which nobody notices, for it comes with every leaf.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use time::OffsetDateTime;

use super::backup;
use super::store::{Shape, State};

/// The key of the Secret's data.
const KEY: &str = "authority.json";
/// Between two tries to reach the API server.
const RETRY: Duration = Duration::from_secs(3);

/// Whether asking again is of no use: who asks may not, or what is asked is wrong. A server that is busy or about to end says so
/// with other codes.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 401 | 403 | 404 | 405 | 422))
}

/// Takes the authority of a Secret, or makes it.
///
/// # Errors
/// The Secret holds something else, or may not be read or made. An API server that cannot be reached is waited for.
pub async fn open(client: Client, namespace: &str, name: &str, shape: Shape) -> anyhow::Result<State> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let at = || format!("the certificate authority's Secret {namespace}/{name} (--ca-secret)");
    loop {
        let found = match api.get_opt(name).await {
            Ok(found) => found,
            Err(error) if is_final(&error) => return Err(error).with_context(at),
            Err(error) => {
                tracing::warn!(%error, "waiting for the API server: {} cannot be read yet", at());
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        if let Some(secret) = found {
            let data = secret.data.unwrap_or_default();
            let Some(ByteString(bytes)) = data.get(KEY) else {
                bail!("{} has no {KEY}: it is somebody else's; choose another name", at());
            };
            let text = std::str::from_utf8(bytes).context("not text").with_context(at)?;
            return backup::decode(text).with_context(at);
        }
        let made = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let now = OffsetDateTime::now_utc();
            backup::encode(&State::create(shape, now)?, now)
        });
        let text = made.await??;
        let secret = Secret {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            type_: Some("weft.dev/certificate-authority".to_owned()),
            data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(text.as_bytes().to_vec()))])),
            ..Secret::default()
        };
        match api.create(&PostParams::default(), &secret).await {
            Ok(_) => tracing::info!("{} was made", at()),
            // Another replica was faster: its authority is everybody's.
            Err(kube::Error::Api(error)) if error.code == 409 => {}
            Err(error) if is_final(&error) => return Err(error).with_context(at),
            Err(error) => {
                tracing::warn!(%error, "waiting for the API server: {} cannot be made yet", at());
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
