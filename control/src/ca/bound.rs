//! A token that is bound to a pod belongs to that pod: the pod has to be there, be the same one and run as that service account,
//! and who shows its token should call from its address. Where connections do not keep their address (clusters behind NAT), the
//! last is only told.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use parking_lot::Mutex;
use serde_json::Value;
use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::review::TokenReview;
use super::token::{Subject, TokenError};

/// Between two lines of the log about the same.
const PAUSE: Duration = Duration::from_secs(60);

/// What becomes of a token that is bound to a pod and comes from elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BoundTokens {
    /// Pods are not looked at; that the API server knows the token is enough, as with istiod.
    Off,
    /// The token of another pod than it was made for is refused; one from another address than its pod's is taken, and told.
    #[default]
    Warn,
    /// Both are refused.
    Require,
}

/// A pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl BoundPod {
    /// One with both.
    pub(super) fn of(name: Option<&str>, uid: Option<&str>) -> Option<Self> {
        Some(Self { name: name?.to_owned(), uid: uid?.to_owned() })
    }
}

/// Looks at pods.
#[derive(Default)]
pub struct Binding {
    rule: BoundTokens,
    told: Mutex<Option<Instant>>,
}

impl Binding {
    /// Holds tokens to this rule.
    pub fn new(rule: BoundTokens) -> Self {
        Self { rule, told: Mutex::default() }
    }

    /// Whether a token that was found good may be shown from `peer`.
    pub async fn check(
        &self,
        subject: &Subject,
        peer: Option<IpAddr>,
        review: &TokenReview,
    ) -> Result<(), TokenError> {
        let Some(bound) = subject.pod.as_ref().filter(|_| self.rule != BoundTokens::Off) else {
            return Ok(());
        };
        let found = match review.pod(&subject.namespace, &bound.name).await {
            Ok(found) => found,
            Err(error) if self.rule == BoundTokens::Require => return Err(error),
            Err(error) => {
                self.say(&format!("{error}; the token is taken without looking at its pod (--bound-tokens)"));
                return Ok(());
            }
        };
        match judge(subject, bound, found.as_ref(), peer) {
            Judged::Fits => Ok(()),
            Judged::Refused(why) => Err(TokenError::Malformed(why)),
            Judged::Elsewhere(why) if self.rule == BoundTokens::Require => {
                Err(TokenError::Malformed(format!(
                    "{why}; if connections reach the control plane by NAT, start it with --bound-tokens warn"
                )))
            }
            Judged::Unknown(why) if self.rule == BoundTokens::Require => Err(TokenError::Unchecked(why)),
            Judged::Unknown(_) => Ok(()),
            Judged::Elsewhere(why) => {
                metrics::counter!("weft_bound_tokens_from_elsewhere_total").increment(1);
                let pod = format!("{}/{}", subject.namespace, bound.name);
                emit(Kind::Certificate, || {
                    Event::new(
                        Kind::Certificate,
                        Outcome::Failed,
                        Severity::Medium,
                        "authentication",
                        why.clone(),
                    )
                    .with("reason", "token_from_elsewhere")
                    .with("subject", pod.clone())
                    .with_some("source_address", peer.map(|p| p.to_string()))
                });
                self.say(&format!("{why}; it was taken (--bound-tokens require refuses it)"));
                Ok(())
            }
        }
    }

    /// Says so in the log, if it did not a moment ago.
    fn say(&self, what: &str) {
        let mut told = self.told.lock();
        if told.is_none_or(|at| at.elapsed() >= PAUSE) {
            *told = Some(Instant::now());
            tracing::warn!("{what}");
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Judged {
    Fits,
    /// It is not the pod that the token was made for.
    Refused(String),
    /// It is, and the token comes from another address.
    Elsewhere(String),
    /// Where the pod is cannot be told yet.
    Unknown(String),
}

/// What the pod says of a token. The caller's address is not compared for pods of the node's network.
fn judge(subject: &Subject, bound: &BoundPod, pod: Option<&Value>, peer: Option<IpAddr>) -> Judged {
    let name = format!("{}/{}", subject.namespace, bound.name);
    let refused = |what: &str| Judged::Refused(format!("it is bound to the pod {name}, which {what}"));
    let Some(pod) = pod else { return refused("is not there any more") };
    if pod["metadata"]["uid"].as_str() != Some(bound.uid.as_str()) {
        return refused("was replaced by another of its name");
    }
    let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    if account != subject.service_account {
        return refused(&format!("runs as {account:?}"));
    }
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return refused("has ended");
    }
    if pod["spec"]["hostNetwork"] == true {
        return Judged::Fits;
    }
    let several = pod["status"]["podIPs"].as_array().into_iter().flatten().map(|each| &each["ip"]);
    let all = several.chain([&pod["status"]["podIP"]]);
    let own: Vec<IpAddr> = all.filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    match peer.map(|p| p.to_canonical()) {
        Some(peer) if own.contains(&peer) => Judged::Fits,
        Some(peer) if !own.is_empty() => Judged::Elsewhere(format!(
            "the token of the pod {name} was shown from {peer}, and the pod is at {}",
            own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        )),
        Some(_) => Judged::Unknown(format!("the pod {name} has no address yet")),
        None => Judged::Unknown("the caller has no address".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn subject() -> Subject {
        Subject {
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
            pod: BoundPod::of(Some("cart-1"), Some("u1")),
            once: None,
        }
    }

    fn pod() -> Value {
        json!({"metadata": {"name": "cart-1", "uid": "u1"}, "spec": {"serviceAccountName": "cart"},
            "status": {"phase": "Running", "podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}, {"ip": "fd00::5"}]}})
    }

    #[test]
    fn a_pods_token_fits_that_pod_alone() {
        let with = |at: &str, value: Value| {
            let mut pod = pod();
            *pod.pointer_mut(at).unwrap() = value;
            pod
        };
        let judged = |pod: Option<&Value>, peer: &str| {
            let subject = subject();
            judge(&subject, subject.pod.as_ref().unwrap(), pod, peer.parse().ok())
        };
        for peer in ["10.0.0.5", "fd00::5", "::ffff:10.0.0.5"] {
            assert_eq!(judged(Some(&pod()), peer), Judged::Fits, "{peer}");
        }
        assert!(
            matches!(judged(Some(&pod()), "10.0.0.6"), Judged::Elsewhere(why) if why.contains("10.0.0.6"))
        );
        let mut host = pod();
        host["spec"]["hostNetwork"] = true.into();
        assert_eq!(judged(Some(&host), "10.0.0.6"), Judged::Fits);
        let without = with("/status", json!({"phase": "Pending"}));
        assert!(matches!(judged(Some(&without), "10.0.0.5"), Judged::Unknown(_)));
        assert!(matches!(judged(Some(&pod()), ""), Judged::Unknown(_)));
        for (pod, words) in [
            (None, "not there any more"),
            (Some(with("/metadata/uid", "u2".into())), "replaced"),
            (Some(with("/spec/serviceAccountName", "admin".into())), "admin"),
            (Some(with("/status/phase", "Failed".into())), "has ended"),
        ] {
            let judged = judged(pod.as_ref(), "10.0.0.5");
            assert!(matches!(&judged, Judged::Refused(why) if why.contains(words)), "{judged:?}");
        }
    }

    #[tokio::test]
    async fn what_becomes_of_a_token_from_elsewhere_says_the_rule() {
        use std::sync::{Arc, Mutex};

        use http::StatusCode;

        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("token");
        std::fs::write(&own, "control-plane").unwrap();
        let list = Arc::new(Mutex::new((StatusCode::OK, json!([pod()]))));
        let scripted = list.clone();
        let (url, _server) = crate::ca::testing::serve(move |asked| {
            assert_eq!(asked.what, "GET /api/v1/namespaces/shop/pods");
            let (status, items) = scripted.lock().unwrap().clone();
            (status, json!({"kind": "PodList", "items": items}))
        })
        .await;
        let review = TokenReview::new(&url, None, own).unwrap();
        let subject = subject();
        let check = async |rule, peer: &str| {
            Binding::new(rule).check(&subject, peer.parse().ok(), &review).await.map_err(|e| e.to_string())
        };
        let all = [BoundTokens::Off, BoundTokens::Warn, BoundTokens::Require];
        for rule in all {
            assert_eq!(check(rule, "10.0.0.5").await, Ok(()), "{rule:?}");
        }
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let counted = metrics::set_default_local_recorder(&recorder);
        let elsewhere = [Ok(()), Ok(()), Err(())];
        for (rule, expected) in all.into_iter().zip(elsewhere) {
            assert_eq!(check(rule, "10.0.0.6").await.map_err(|_| ()), expected, "{rule:?}");
        }
        drop(counted);
        let numbers = recorder.handle().render();
        assert!(numbers.contains("weft_bound_tokens_from_elsewhere_total 1"), "{numbers}");
        let words = check(BoundTokens::Require, "10.0.0.6").await.unwrap_err();
        assert!(words.contains("10.0.0.5") && words.contains("--bound-tokens"), "{words}");
        // A pod that is gone: only who does not look takes its token.
        list.lock().unwrap().1 = json!([]);
        for (rule, taken) in all.into_iter().zip([true, false, false]) {
            assert_eq!(check(rule, "10.0.0.5").await.is_ok(), taken, "{rule:?}");
        }
        // Who may not look at pods.
        list.lock().unwrap().0 = StatusCode::FORBIDDEN;
        for (rule, taken) in all.into_iter().zip([true, true, false]) {
            assert_eq!(check(rule, "10.0.0.5").await.is_ok(), taken, "{rule:?}");
        }
    }
}
