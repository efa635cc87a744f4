//! What each of several control planes says of itself, where all of them read it: annotations of one Lease.
//!
//! Who says nothing new for a while is taken for gone, by the reader's own clock; what is said has a number that goes up. Those that
//! proxies reach by another name (revisions) are no replicas of one another.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

/// Under which names control planes say how many streams they have.
const PREFIX: &str = "streams.weft.io/";
/// Who says nothing new for so long is gone.
const SILENT: Duration = Duration::from_secs(20);
/// What somebody said who is gone is taken away after that.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// The board, as one of them sees it.
pub struct Board {
    api: Api<Lease>,
    name: String,
    key: String,
    /// By which name proxies reach this one, and its replicas.
    group: String,
    said: u64,
    /// What others said, since when.
    heard: HashMap<String, (String, Instant)>,
}

impl Board {
    /// The Lease `name`, on which this one writes as `identity`, for others of its `group` to read.
    pub(super) fn new(client: Client, namespace: &str, name: &str, identity: &str, group: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            key: key(identity),
            group: group.to_owned(),
            said: 0,
            heard: HashMap::new(),
        }
    }

    /// Says how many streams there are here, and gives how many each of the others has.
    ///
    /// # Errors
    /// The API server does not answer, or refuses.
    pub async fn say(&mut self, streams: usize) -> kube::Result<Vec<usize>> {
        self.said += 1;
        let now = Instant::now();
        let mut change =
            BTreeMap::from([(self.key.clone(), Some(format!("{streams} {} {}", self.said, self.group)))]);
        let gone = self.heard.iter().filter(|(_, (_, since))| now - *since > FORGOTTEN);
        change.extend(gone.map(|(key, _)| (key.clone(), None)));
        let patch = json!({"metadata": {"annotations": change}});
        let lease = match self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let mine = (self.key.clone(), change.remove(&self.key).flatten().unwrap_or_default());
                let metadata = ObjectMeta {
                    name: Some(self.name.clone()),
                    annotations: Some([mine].into()),
                    ..ObjectMeta::default()
                };
                let lease = Lease { metadata, spec: None };
                match self.api.create(&PostParams::default(), &lease).await {
                    // Another one was there first; it is written to next time.
                    Err(kube::Error::Api(status)) if status.code == 409 => return Ok(Vec::new()),
                    other => other?,
                }
            }
            other => other?,
        };
        Ok(self.hear(&lease.metadata.annotations.unwrap_or_default(), now))
    }

    fn hear(&mut self, all: &BTreeMap<String, String>, now: Instant) -> Vec<usize> {
        self.heard.retain(|key, _| all.contains_key(key));
        for (key, words) in all.iter().filter(|(key, _)| key.starts_with(PREFIX) && **key != self.key) {
            match self.heard.get_mut(key) {
                Some((known, _)) if known == words => {}
                Some(known) => *known = (words.clone(), now),
                None => {
                    self.heard.insert(key.clone(), (words.clone(), now));
                }
            }
        }
        let there = self.heard.values().filter(|(_, since)| now - *since <= SILENT);
        let read = |words: &str| {
            let mut words = words.splitn(3, ' ');
            let streams = words.next()?.parse().ok()?;
            (words.nth(1)? == self.group).then_some(streams)
        };
        there.filter_map(|(words, _)| read(words)).collect()
    }
}

/// An annotation's name for an identity: at most 63 letters, digits, dashes, dots and underscores, the first and last of them no
/// signs. Of a long one the end counts, which tells pods of one ReplicaSet apart.
fn key(identity: &str) -> String {
    let plain: String = identity
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '-' })
        .collect();
    let tail = &plain[plain.len().saturating_sub(63)..];
    let tail = tail.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    format!("{PREFIX}{}", if tail.is_empty() { "unnamed" } else { tail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_new_is_gone() {
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let mut board = Board::new(Client::try_from(config).unwrap(), "a", "b", "me", "it");
        let all = |first: &str, second: &str| {
            let of = |name: &str, words: &str| (format!("{PREFIX}{name}"), format!("{words} it"));
            let other = (format!("{PREFIX}canary"), "8 1 another".to_owned());
            BTreeMap::from([
                of("me", "7 1"),
                of("a", first),
                of("b", second),
                other,
                ("x/y".into(), "9 9 it".into()),
            ])
        };
        let mut heard = |first: &str, second: &str| {
            let mut heard = board.hear(&all(first, second), Instant::now());
            heard.sort_unstable();
            heard
        };
        assert_eq!(heard("3 1", "5 1"), [3, 5]);
        tokio::time::advance(SILENT).await;
        assert_eq!(heard("4 2", "5 1"), [4, 5]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(heard("4 3", "5 1"), [4]);
        // It was only slow.
        assert_eq!(heard("4 3", "5 2"), [4, 5]);
    }

    #[test]
    fn every_identity_has_a_name_that_kubernetes_takes() {
        assert_eq!(key("weft-control-7c9f-x2x4q"), "streams.weft.io/weft-control-7c9f-x2x4q");
        assert_eq!(key("host_0a/b c"), "streams.weft.io/host_0a-b-c");
        assert_eq!(key("ö"), "streams.weft.io/unnamed");
        let long = key(&format!("{}-x2x4q", "a".repeat(80)));
        assert!(long.len() == PREFIX.len() + 63 && long.ends_with("-x2x4q"), "{long}");
    }
}
