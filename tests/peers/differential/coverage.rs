//! The list of features and of the cases that are about each (`coverage.yaml`): at least three with different configurations,
//! for a feature that was compared in one configuration was compared by chance.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde_json::{Value, json};

use super::{cases, configured};

/// How many different configurations a feature is compared in.
const CONFIGURATIONS: usize = 3;

/// Configurations of all cases by their names, as text in which equal configurations are equal.
fn configurations() -> HashMap<String, String> {
    let mut all = HashMap::new();
    for case in cases::all() {
        let speaks = if matches!(case.client, super::case::Client::H2(_)) { "HTTP/2" } else { "HTTP/1" };
        let configuration = json!([case.hcm, case.route, case.routes, case.cluster, speaks]);
        all.insert(case.name.to_owned(), configuration.to_string());
    }
    for case in configured::all() {
        let clusters: BTreeMap<_, _> = case
            .clusters
            .iter()
            .map(|(name, c)| {
                let endpoints: Vec<_> = c.endpoints.iter().map(|e| json!([e.fields, e.locality])).collect();
                (name, json!([c.fields, c.h2, c.tls, endpoints]))
            })
            .collect();
        let own: Vec<&Value> =
            vec![&case.listener, &case.chain, &case.hcm, &case.router, &case.route_config, &case.vhost];
        let configuration = json!([
            own,
            case.chains,
            case.network,
            case.tcp,
            case.filters,
            case.vhosts,
            case.routes,
            [&case.route, &case.route_fields, &case.log_filter],
            case.formats,
            clusters
        ]);
        all.insert(case.name.clone(), configuration.to_string().replace(&case.name, "CASE"));
    }
    all
}

/// Whether `tests/peers` has this test, `module::file::name`.
fn is_test(name: &str) -> bool {
    let Some((module, test)) = name.rsplit_once("::") else { return false };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(module.replace("::", "/"));
    let text = std::fs::read_to_string(path.with_extension("rs")).unwrap_or_default();
    text.contains(&format!("#[test]\nfn {test}()"))
}

#[test]
fn each_feature_is_compared_in_three_configurations() {
    let features: BTreeMap<String, BTreeMap<String, Vec<String>>> =
        serde_saphyr::from_str(include_str!("coverage.yaml")).expect("coverage.yaml is read");
    let known = configurations();
    let mut faults = Vec::new();
    for (feature, cases) in features.values().flatten() {
        let mut different = BTreeSet::new();
        for case in cases {
            match known.get(case) {
                Some(configuration) => _ = different.insert(configuration.clone()),
                None if is_test(case) => _ = different.insert(case.clone()),
                None => faults.push(format!("{feature}: there is no case {case}")),
            }
        }
        if different.len() < CONFIGURATIONS {
            faults.push(format!(
                "{feature}: {} different configurations, not {CONFIGURATIONS}",
                different.len()
            ));
        }
    }
    assert!(faults.is_empty(), "coverage.yaml:\n{}", faults.join("\n"));
}
