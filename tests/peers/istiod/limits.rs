//! What DestinationRules say of connections, of servers that fail, and of TLS.

use super::shop::{Shop, WEB};
use crate::programs::{until, until_or};

/// A rule for the whole of the web shop.
fn rule(shop: &Shop<'_>, policy: &str) {
    shop.cluster.server.apply(&format!(
        "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: web, namespace: shop}}, \
         spec: {{host: web, trafficPolicy: {policy}, subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]}}}}"
    ));
}

/// As many requests at once; their statuses and bodies.
fn at_once(shop: &Shop<'_>, number: usize) -> Vec<(u16, String)> {
    std::thread::scope(|scope| {
        let ask = || {
            let seen = shop.pod("client").get(WEB, "web", "/never", &[]);
            (seen.status, seen.body)
        };
        let all: Vec<_> = (0..number).map(|_| scope.spawn(ask)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

/// One connection and one request that waits for it; a server that fails is left out; plain text where that is wanted.
pub fn are_kept(shop: &Shop<'_>) {
    let client = shop.pod("client");
    // All wait until the rule's timeout, as long as nothing keeps them.
    assert!(at_once(shop, 8).iter().all(|(status, _)| *status == 504));
    rule(shop, "{connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}");
    let mut seen = Vec::new();
    until_or(
        "the limits are kept",
        || client.log(),
        || {
            seen = at_once(shop, 8);
            seen.iter().any(|(status, _)| *status == 503)
        },
    );
    assert!(seen.iter().all(|(status, body)| *status == 504 || body.contains("overflow")), "{seen:?}");

    rule(
        shop,
        "{outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}}",
    );
    let tester = |path: &str| client.get(WEB, "web", path, &["x-user: tester"]);
    assert_eq!(tester("/").body, "web-2");
    until_or(
        "the one that fails is left out",
        || client.page("/clusters"),
        || {
            let seen = tester("/status/500");
            (seen.status, seen.body.as_str()) == (503, "no healthy upstream")
        },
    );
    assert_eq!(client.get(WEB, "web", "/old/one", &[]).body, "web-1", "the other one");
    rule(shop, "{tls: {mode: DISABLE}}");
    let plain = || {
        client.get(WEB, "web", "/bare", &[]);
        let heads = [shop.web[0].asked("/bare"), shop.web[1].asked("/bare")].concat();
        heads.iter().any(|head| !head.to_lowercase().contains("x-forwarded-client-cert"))
    };
    until("plain text is sent", plain);
    rule(shop, "{tls: {mode: ISTIO_MUTUAL}}");
    until("it is mutual TLS again", || {
        client.get(WEB, "web", "/again", &[]);
        let heads = [shop.web[0].asked("/again"), shop.web[1].asked("/again")].concat();
        heads.iter().any(|head| head.to_lowercase().contains("x-forwarded-client-cert"))
    });
}
