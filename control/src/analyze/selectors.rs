//! Selectors that select no workload.

use super::scene::{Scene, few, written};
use super::{Code, Message};
use crate::model::values::selects;
use crate::model::{Labels, Meta};

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    // Where no workloads are written down, nothing can be said of who is selected.
    if world.workloads().is_empty() {
        return;
    }
    let of_policies = world
        .all_authorization_policies()
        .iter()
        .map(|p| (&p.meta, &p.spec.selector, "the policy holds for nobody"));
    let of_modes =
        world.peer_authentications().iter().map(|p| (&p.meta, &p.spec.selector, "the mode holds for nobody"));
    let of_tokens = world
        .request_authentications()
        .iter()
        .map(|p| (&p.meta, &p.spec.selector, "nobody's tokens are checked by it"));
    let of_limits =
        world.rate_limits().iter().map(|p| (&p.meta, &p.spec.selector, "nobody's requests are limited"));
    let of_compressions =
        world.compressions().iter().map(|p| (&p.meta, &p.spec.selector, "nobody's answers are compressed"));
    let of_telemetries =
        world.telemetries().iter().map(|p| (&p.meta, &p.spec.selector, "nobody's logs and metrics change"));
    let of_proxies =
        world.proxy_configs().iter().map(|p| (&p.meta, &p.spec.selector, "nobody's proxy is started by it"));
    let of_metrics =
        world.metric_definitions().iter().map(|p| (&p.meta, &p.spec.selector, "nobody counts the metric"));
    for (meta, selector, then) in of_policies
        .chain(of_modes)
        .chain(of_tokens)
        .chain(of_limits)
        .chain(of_compressions)
        .chain(of_telemetries)
        .chain(of_proxies)
        .chain(of_metrics)
    {
        let selector = selector.as_ref().map(|selector| &selector.labels);
        check(scene, meta, "spec.selector.matchLabels", selector, then, found);
    }
    for sidecar in world.sidecars() {
        let selector = sidecar.spec.workload_selector.as_ref().map(|selector| &selector.labels);
        check(scene, &sidecar.meta, "spec.workloadSelector.labels", selector, "it holds for nobody", found);
    }
    for gateway in world.gateways() {
        let selector = &gateway.spec.selector;
        let here = || world.workloads().iter().filter(|workload| workload.is_gateway());
        let place = gateway.spec.namespace.as_deref();
        let served = |w: &std::sync::Arc<crate::model::Workload>| {
            place.is_none_or(|place| place == w.meta.namespace) && selects(selector, w.labels())
        };
        if !selector.is_empty() && !here().any(served) {
            let labels = known(selector, here().map(|workload| workload.labels()));
            let why = format!("{} is no gateway workload's: nobody opens its ports", written(selector));
            let help =
                format!("gateway workloads are those with the annotation weft.dev/role: gateway; {labels}");
            found.push(Message::of(Code::SelectsNothing, &gateway.meta, "spec.selector", why, help));
        }
    }
}

fn check(
    scene: &Scene<'_>,
    meta: &Meta,
    path: &str,
    selector: Option<&Labels>,
    then: &str,
    found: &mut Vec<Message>,
) {
    let Some(selector) = selector.filter(|selector| !selector.is_empty()) else { return };
    // A Sidecar of the root namespace with a selector holds in that namespace, as all others do.
    if scene.scope(&meta.namespace).any(|workload| selects(selector, workload.labels())) {
        return;
    }
    let labels = known(selector, scene.scope(&meta.namespace).map(|workload| workload.labels()));
    let why = format!("{} is no workload's in {}: {then}", written(selector), meta.namespace);
    found.push(Message::of(Code::SelectsNothing, meta, path, why, labels));
}

/// What the labels that a selector asks for are among these.
fn known<'a>(selector: &Labels, labels: impl Iterator<Item = &'a Labels>) -> String {
    let labels: Vec<_> = labels.collect();
    let of_keys = labels.iter().flat_map(|labels| {
        labels
            .iter()
            .filter(|(key, _)| selector.contains_key(*key))
            .map(|(key, value)| format!("{key}={value}"))
    });
    let same = few(of_keys);
    let all =
        few(labels.iter().flat_map(|labels| labels.iter().map(|(key, value)| format!("{key}={value}"))));
    match (same.is_empty(), all.is_empty()) {
        (false, _) => format!("workloads there have {same}"),
        (true, false) => format!("workloads there have {all}"),
        (true, true) => "there are no workloads there; check the namespace".to_owned(),
    }
}
