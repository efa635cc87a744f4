//! What of a Gateway's `infrastructure` reaches the pods that are made for it.
//!
//! The control plane makes those pods by a right of its own. Annotations by which the injector learns what is to run (image,
//! volumes, template) would hand that right to whoever may write a Gateway: of Istio's only a few go through.

use super::wanted::{MANAGED, Wanted};
use crate::model::gateway_api::Infrastructure;
use crate::model::values::Labels;

/// The label, and the annotation, by which a pod asks for the injector.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// Annotations of Istio's that say no more than how much a gateway may use, and what it logs.
const HARMLESS: [&str; 5] = [
    "sidecar.istio.io/logLevel",
    "sidecar.istio.io/proxyCPU",
    "sidecar.istio.io/proxyCPULimit",
    "sidecar.istio.io/proxyMemory",
    "sidecar.istio.io/proxyMemoryLimit",
];
/// Under which there are annotations for the Service, that mean nothing at a pod.
const OF_SERVICES: &str = "networking.istio.io";
/// Annotations that the pods have from the control plane.
const OWN: [(&str, &str); 4] = [
    ("inject.istio.io/templates", "gateway"),
    ("prometheus.io/path", "/stats/prometheus"),
    ("prometheus.io/port", "15020"),
    ("prometheus.io/scrape", "true"),
];

impl Wanted {
    /// Annotations of the pods.
    pub fn pod_annotations(&self) -> Labels {
        let given = self.infrastructure.annotations.iter().filter(|(name, _)| goes_through(name));
        let mut all: Labels = given.map(|(name, value)| (name.clone(), value.clone())).collect();
        all.extend(OWN.map(|(name, value)| (name.to_owned(), value.to_owned())));
        all
    }
}

/// Whether pods may have it from a Gateway.
fn goes_through(annotation: &str) -> bool {
    let domain = annotation.split_once('/').map_or("", |(domain, _)| domain);
    let istios = domain == "istio.io" || domain.ends_with(".istio.io");
    !istios || domain == OF_SERVICES || HARMLESS.contains(&annotation)
}

/// What the pods do not get: the field, why, and what to do.
pub(super) fn left_out(infrastructure: &Infrastructure) -> Vec<(String, String, String)> {
    let by_hand = format!(
        "take it away; a gateway that needs it is a Deployment of your own with the Gateway's label, and {MANAGED}: \"false\" on the Gateway"
    );
    let mut all = Vec::new();
    if infrastructure.labels.contains_key(INJECT) {
        let reason = "the pods do not get it: without the injector there is no gateway in them";
        let path = format!("spec.infrastructure.labels[{INJECT}]");
        all.push((path, reason.to_owned(), "take it away; istio.io/rev chooses who injects".to_owned()));
    }
    for (name, value) in &infrastructure.annotations {
        let path = || format!("spec.infrastructure.annotations[{name}]");
        if let Some((_, own)) = OWN.iter().find(|(own, _)| own == name) {
            if own != value {
                let reason = format!("the pods do not get it: the control plane writes {own:?} there");
                all.push((path(), reason, by_hand.clone()));
            }
        } else if !goes_through(name) {
            let reason = format!(
                "the pods do not get it: who may write a Gateway does not thereby say what pods run; of Istio's annotations they get {}",
                HARMLESS.join(", ")
            );
            all.push((path(), reason, by_hand.clone()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn infrastructure(annotations: &[(&str, &str)]) -> Infrastructure {
        let all = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Infrastructure { annotations: all.collect(), ..Infrastructure::default() }
    }

    #[test]
    fn a_gateway_does_not_say_what_its_pods_run() {
        let given = [
            ("cost", "low"),
            ("inject.istio.io/templates", "sidecar"),
            ("istio.io/reroute-virtual-interfaces", "eth1"),
            ("networking.istio.io/exportTo", "."),
            ("prometheus.io/port", "1"),
            ("prometheus.io/scrape", "true"),
            ("proxy.istio.io/config", "{}"),
            ("readiness.status.sidecar.istio.io/periodSeconds", "1"),
            ("sidecar.istio.io/inject", "false"),
            ("sidecar.istio.io/logLevel", "debug"),
            ("sidecar.istio.io/proxyCPU", "1"),
            ("sidecar.istio.io/proxyImage", "evil.example/any"),
            ("sidecar.istio.io/userVolume", "[{\"name\": \"host\", \"hostPath\": {\"path\": \"/\"}}]"),
        ];
        let infrastructure = infrastructure(&given);
        let wanted = Wanted { infrastructure: infrastructure.clone(), ..Wanted::default() };
        let pods = wanted.pod_annotations();
        let pods: Vec<_> = pods.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            pods,
            [
                ("cost", "low"),
                ("inject.istio.io/templates", "gateway"),
                ("networking.istio.io/exportTo", "."),
                ("prometheus.io/path", "/stats/prometheus"),
                ("prometheus.io/port", "15020"),
                ("prometheus.io/scrape", "true"),
                ("sidecar.istio.io/logLevel", "debug"),
                ("sidecar.istio.io/proxyCPU", "1"),
            ]
        );
        // What is not there as it was given is said, and nothing else.
        let said: Vec<_> = left_out(&infrastructure).into_iter().map(|(path, ..)| path).collect();
        let missing = given.iter().filter(|one| !pods.contains(one));
        let missing: Vec<_> =
            missing.map(|(name, _)| format!("spec.infrastructure.annotations[{name}]")).collect();
        assert_eq!(said, missing);
    }
}
