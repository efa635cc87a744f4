//! Our proxies under a real istiod, in the places of Envoys: Istio installed by its own charts on a real API server, pods in network
//! namespaces whose traffic the kernel redirects to sidecars of ours, and a gateway of ours at the edge. What is shown is shown by
//! requests of applications that know nothing of it, and by what other applications saw.
//!
//! istiod takes many minutes to build: `tests/peers/install --long` brings it, and `.ci/long` runs this.

mod applications;
mod changes;
mod cluster;
mod edge;
mod finer;
mod limits;
mod outside;
mod pods;
mod security;
mod shop;
mod telemetry;
mod traffic;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::programs::until_or;
use pods::Pod;
use shop::Shop;

/// How istiod counts what a proxy refused.
const REJECTS: &str = "pilot_total_xds_rejects";

/// A filter of Envoy's that our proxy does not have, for requests of the client.
const FILTER: &str = "
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: client, namespace: shop}
spec:
  workloadSelector: {labels: {app: client}}
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_OUTBOUND
      listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.lua
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          default_source_code: {inline_string: 'function envoy_on_request(handle) end'}
";

/// istiod knows each proxy, and everything that it sent was acknowledged, by what it says.
fn all_is_acknowledged(shop: &Shop<'_>) {
    for pod in shop.proxies() {
        let resources =
            || shop.cluster.synced(&pod.id()).map(|one| one["resources"].clone()).unwrap_or_default();
        let story = || format!("{:#}\n{}", resources(), pod.log());
        until_or("everything is acknowledged", story, || {
            let known = resources();
            let mut known = known.as_object().into_iter().flat_map(|kinds| kinds.values()).peekable();
            known.peek().is_some()
                && known.all(|kind| kind["sent"] == kind["acked"] && kind["lastError"].is_null())
        });
    }
}

/// What a proxy has to say against what it was sent.
fn complaints(pod: &Pod) -> Vec<String> {
    let log = pod.log();
    let bad = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    let of_that = |line: &&str| line.contains(" weft_proxy::xds::") || line.contains(" weft_proxy::state::");
    log.lines().filter(bad).filter(of_that).map(str::to_owned).collect()
}

/// The same, and nothing was refused on the way, by what either side says.
fn nothing_is_refused(shop: &Shop<'_>) {
    all_is_acknowledged(shop);
    for pod in shop.proxies() {
        let complaints = complaints(pod);
        assert!(complaints.is_empty(), "{}: {complaints:#?}", pod.id());
    }
    assert_eq!(shop.cluster.counted(REJECTS), 0.0, "{}", shop.cluster.log());
}

/// A filter that our proxy does not have: istiod is told so, and everything goes on as before.
fn what_is_refused_is_told(shop: &Shop<'_>) {
    shop.cluster.server.apply(FILTER);
    let client = shop.pod("client");
    let told = || {
        let synced = shop.cluster.synced(&client.id()).unwrap_or_default();
        synced["resources"]["type.googleapis.com/envoy.config.listener.v3.Listener"]["lastError"].clone()
    };
    let told_all = || told().to_string();
    until_or("istiod hears of it", told_all, || {
        told_all().contains("lua") && shop.cluster.counted(REJECTS) > 0.0
    });
    assert!(complaints(client).iter().any(|line| line.contains("lua")), "{}", client.log());
    assert_eq!(client.get(shop::WEB, "web", "/", &[]).status, 200);
    shop.cluster.server.kubectl(&["-n", "shop", "delete", "envoyfilter", "client"]);
    all_is_acknowledged(shop);
}

/// What is shown, and how.
type Step = (&'static str, fn(&mut Shop<'_>));

/// Everything that is shown, in this order: later steps build on what earlier ones configured.
const STEPS: [Step; 19] = [
    ("all are in step", |shop| nothing_is_refused(shop)),
    ("services", |shop| traffic::reaches_what_there_is(shop)),
    ("telemetry", |shop| telemetry::tells_of_both_sides(shop)),
    ("rules", |shop| traffic::rules_are_followed(shop)),
    ("limits", |shop| limits::are_kept(shop)),
    ("finer telemetry", |shop| finer::telemetry_is_followed(shop)),
    ("filters and affinity", |shop| finer::filters_and_affinity_are_followed(shop)),
    ("routes of bytes", |shop| finer::bytes_are_routed(shop)),
    ("outside", |shop| outside::is_reached_as_far_as_it_is_known(shop)),
    ("edge", |shop| edge::opens_the_shop(shop)),
    ("Gateway API", |shop| edge::follows_the_gateway_api(shop)),
    ("mutual TLS", |shop| security::connections_are_by_mutual_tls(shop)),
    ("changes", |shop| changes::are_followed_without_a_failed_request(shop)),
    ("tokens", |shop| security::tokens_are_looked_at(shop)),
    ("policies", |shop| security::policies_are_followed(shop)),
    ("all are in step still", |shop| nothing_is_refused(shop)),
    ("a refusal", |shop| what_is_refused_is_told(shop)),
    ("an absence", changes::are_missed_and_made_up_for),
    ("all are in step again", |shop| all_is_acknowledged(shop)),
];

/// Goes through all steps; one that fails does not hide those after it.
fn drives(at: &str, mode: &str) {
    let host = cluster::network();
    host.inside(|| {
        let mut shop = Shop::start(&host, at, mode);
        let mut failed = Vec::new();
        for (name, step) in STEPS {
            if catch_unwind(AssertUnwindSafe(|| step(&mut shop))).is_err() {
                failed.push(name);
            }
        }
        assert!(failed.is_empty(), "these failed, as is told above: {failed:?}");
    });
}

#[test]
#[ignore = "istiod takes many minutes to build"]
fn a_real_istiod_drives_our_proxies_by_delta() {
    drives("127.36.19.1", "delta");
}

#[test]
#[ignore = "istiod takes many minutes to build"]
fn a_real_istiod_drives_our_proxies_by_the_state_of_the_world() {
    drives("127.36.19.2", "sotw");
}
