//! What is asked for less often: metrics and logs of one's own, a filter by an EnvoyFilter, affinity, somebody else's decision, and
//! routes of bytes. Everything is taken away again.

use std::collections::BTreeSet;

use serde_json::Value;

use super::shop::{DATABASE, FRONT, Shop, WEB};
use super::telemetry::{has, metrics};
use crate::programs::{until, until_or};

const TELEMETRY: &str = "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: finer, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  metrics:
  - providers: [{name: prometheus}]
    overrides:
    - match: {metric: REQUEST_COUNT, mode: SERVER}
      tagOverrides:
        method: {value: request.method}
        source_version: {operation: REMOVE}
  accessLogging:
  - providers: [{name: envoy}]
    filter: {expression: 'response.code >= 400'}
  tracing:
  - providers: [{name: spans}]
    randomSamplingPercentage: 100
    customTags: {shop: {literal: {value: 'yes'}}}
";

/// As Istio's documentation has it for a limit that each proxy keeps by itself.
const LIMIT: &str = "
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: limit, namespace: shop}
spec:
  workloadSelector: {labels: {app: web}}
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          '@type': type.googleapis.com/udpa.type.v1.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          value:
            stat_prefix: http_local_rate_limiter
            token_bucket: {max_tokens: 4, tokens_per_fill: 4, fill_interval: 600s}
            filter_enabled: {runtime_key: local_rate_limit_enabled, default_value: {numerator: 100, denominator: HUNDRED}}
            filter_enforced: {runtime_key: local_rate_limit_enforced, default_value: {numerator: 100, denominator: HUNDRED}}
            response_headers_to_add: [{append_action: APPEND_IF_EXISTS_OR_ADD, header: {key: x-limited, value: 'yes'}}]
";

const CUSTOM: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asked, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: CUSTOM
  provider: {name: asked}
  rules: [{to: [{operation: {paths: [/status/*]}}]}]
";

const BYTES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: database, namespace: shop}
spec:
  hosts: [database]
  tcp:
  - match: [{sourceLabels: {app: client}}]
    route: [{destination: {host: archive, port: {number: 6000}}}]
";

/// Labels of one's own, and only failures in the log.
pub fn telemetry_is_followed(shop: &Shop<'_>) {
    let (client, first) = (shop.pod("client"), shop.pod("web-1"));
    shop.cluster.server.apply(TELEMETRY);
    let labels = ["reporter=\"destination\"", "method=\"PUT\"", "source_app=\"client\""];
    until_or(
        "the label is counted",
        || metrics(first),
        || {
            client.ask(WEB, "web", "PUT /old/put", &[]);
            has(&metrics(first), "istio_requests_total{", &labels)
        },
    );
    let counted = metrics(first);
    let line = counted.lines().find(|l| labels.iter().all(|label| l.contains(label))).unwrap();
    assert!(!line.contains("source_version="), "{line}");
    // Asked one after the other, by the same proxy.
    let second = shop.pod("web-2");
    let written = |path: &str| {
        let log = second.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.any(|line| line["path"] == path)
    };
    let mut round = 0;
    until("only failures are written down", || {
        round += 1;
        let [good, bad] = [format!("/quiet?{round}"), format!("/status/418?{round}")];
        for path in [&good, &bad] {
            client.get(WEB, "web", path, &["x-user: tester"]);
        }
        until("the failure is written down", || written(&bad));
        !written(&good)
    });
    shop.cluster.server.kubectl(&["-n", "shop", "delete", "telemetry", "finer"]);
}

/// A limit by a filter that an EnvoyFilter puts in; who is asked for a decision; who is sent to the same server each time.
pub fn filters_and_affinity_are_followed(shop: &Shop<'_>) {
    let (client, server) = (shop.pod("client"), &shop.cluster.server);
    server.apply(LIMIT);
    let mut limited = None;
    until_or(
        "requests are limited",
        || shop.pod("web-1").log(),
        || {
            let seen = client.get(WEB, "web", "/old/limited", &[]);
            let is = seen.status == 429;
            limited = is.then_some(seen);
            is
        },
    );
    let seen = limited.unwrap();
    assert_eq!(
        (seen.body.as_str(), seen.field("x-limited")),
        ("local_rate_limited", Some("yes")),
        "{seen:?}"
    );
    server.kubectl(&["-n", "shop", "delete", "envoyfilter", "limit"]);
    until("they are not limited", || client.get(WEB, "web", "/old/more", &[]).status == 200);

    server.apply(CUSTOM);
    // Who is asked answers as the path says; a no is the answer.
    let denied = || client.get(WEB, "web", "/status/403", &[]).body == "stranger";
    until_or("somebody else decides", || shop.pod("web-1").log(), || (0..4).all(|_| denied()));
    assert!(client.get(WEB, "web", "/status/200", &[]).body.starts_with("web-"));
    server.kubectl(&["-n", "shop", "delete", "authorizationpolicy", "asked"]);
    until("nobody else decides", || client.get(WEB, "web", "/status/403", &[]).body.starts_with("web-"));

    server.apply(
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: front, namespace: shop}, \
         spec: {host: front, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}}",
    );
    let of = |user: &str| {
        let field = format!("x-user: {user}");
        let all: BTreeSet<_> = (0..10).map(|_| client.get(FRONT, "front", "/", &[&field]).body).collect();
        all
    };
    until_or(
        "each has a server",
        || client.cluster("outbound|80||front.shop.svc.cluster.local").to_string(),
        || {
            let all: Vec<_> = (0..12).map(|n| of(&format!("user-{n}"))).collect();
            all.iter().all(|servers| servers.len() == 1)
                && all.iter().flatten().collect::<BTreeSet<_>>().len() == 2
        },
    );
    server.kubectl(&["-n", "shop", "delete", "destinationrule", "front"]);
}

/// Connections of one workload go elsewhere.
pub fn bytes_are_routed(shop: &Shop<'_>) {
    let (client, server) = (shop.pod("client"), &shop.cluster.server);
    server.apply(BYTES);
    until_or("bytes go elsewhere", || client.log(), || client.greeting(DATABASE) == "memberping");
    assert_eq!(shop.pod("web-1").greeting(DATABASE), "databaseping");
    server.kubectl(&["-n", "shop", "delete", "virtualservice", "database"]);
    until("they go where they went", || client.greeting(DATABASE) == "databaseping");
}
