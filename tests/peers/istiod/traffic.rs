//! What VirtualServices, DestinationRules, ServiceEntries and Sidecars do, by requests.

use std::collections::BTreeSet;

use super::pods::Answer;
use super::shop::{ANYTHING, BYTES, DATABASE, Shop, WEB};
use crate::programs::{until, until_or};

const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
";

const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - name: tester
    match: [{headers: {x-user: {exact: tester}}}]
    route: [{destination: {host: web, subset: v2}}]
  - name: old
    match: [{uri: {prefix: /old/}}]
    rewrite: {uri: /new/}
    route: [{destination: {host: web, subset: v1}, headers: {request: {set: {x-by: rule}}, response: {add: {x-said: rule}}}}]
  - name: slow
    match: [{uri: {exact: /never}}]
    timeout: 0.3s
    route: [{destination: {host: web, subset: v1}}]
  - name: flaky
    match: [{uri: {prefix: /flaky}}]
    retries: {attempts: 3, retryOn: 5xx, backoff: 1ms}
    route: [{destination: {host: web, subset: v1}}]
  - name: aborted
    match: [{uri: {prefix: /aborted}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: web, subset: v1}}]
  - name: delayed
    match: [{uri: {prefix: /delayed}}]
    fault: {delay: {fixedDelay: 0.4s, percentage: {value: 100}}}
    route: [{destination: {host: web, subset: v1}}]
  - name: copied
    match: [{uri: {prefix: /copied}}]
    mirrors: [{destination: {host: web, subset: v2}, percentage: {value: 100}}]
    route: [{destination: {host: web, subset: v1}}]
  - name: shared
    match: [{uri: {prefix: /shared}}]
    corsPolicy: {allowOrigins: [{exact: 'https://shop.example'}], allowMethods: [GET, PUT], maxAge: 60s}
    route: [{destination: {host: web, subset: v1}}]
  - name: moved
    match: [{uri: {prefix: /moved}}]
    redirect: {uri: /here, authority: shop.example, redirectCode: 308}
  - name: direct
    match: [{uri: {regex: '/direct/[0-9]+'}}]
    directResponse: {status: 201, body: {string: by itself}}
  - name: rest
    route:
    - {destination: {host: web, subset: v1}, weight: 80}
    - {destination: {host: web, subset: v2}, weight: 20}
";

/// The way of HTTP through both sidecars: its status, who answered, and what that was sent.
fn answered(answer: &Answer, by: &str) -> bool {
    answer.status == 200 && answer.body == by
}

/// Before there are rules: by name and by what is sniffed, bytes, a member of a headless service, and one's own service.
pub fn reaches_what_there_is(shop: &Shop<'_>) {
    let client = shop.pod("client");
    let story = || shop.pods.iter().map(super::pods::Pod::log).collect::<Vec<_>>().join("\n----\n");
    for name in ["web", "web.shop", "web.shop.svc.cluster.local", "web:80"] {
        let mut seen = client.get(WEB, name, "/", &[]);
        until_or("the web shop answers", story, || {
            seen = client.get(WEB, name, "/", &[]);
            seen.status == 200
        });
        assert!(seen.body.starts_with("web-"), "{seen:?}");
        assert_eq!(seen.field("server"), Some("envoy"), "{seen:?}");
    }
    let both = || {
        let seen: BTreeSet<_> = (0..20).map(|_| client.get(WEB, "web", "/", &[]).body).collect();
        seen.len() == 2
    };
    until("both versions answer", both);
    // What is said first tells whether it is HTTP, to both sidecars.
    assert!(client.get(ANYTHING, "web:7000", "/found-out", &[]).body.starts_with("web-"));
    let heads =
        shop.found_out.iter().flat_map(|application| application.asked("/found-out")).collect::<Vec<_>>();
    assert!(heads[0].to_lowercase().contains("x-forwarded-client-cert"), "{heads:?}");
    assert_eq!(client.echo(BYTES, "no HTTP\r\n"), "no HTTP\r\n");
    assert_eq!(client.greeting(DATABASE), "databaseping");
    // A member of a headless service, by mutual TLS: all its pods have sidecars, which istiod looks at when the Service changes.
    shop.cluster.server.kubectl(&["-n", "shop", "label", "service", "members", "all=known"]);
    let members = || client.cluster("outbound|6000||members.shop.svc.cluster.local");
    until_or(
        "members are reached by TLS",
        || members().to_string(),
        || members()["transport_socket"].is_object(),
    );
    assert_eq!(client.greeting("10.79.1.21:6000"), "memberping");
}

/// What a VirtualService with everything in it does.
pub fn rules_are_followed(shop: &Shop<'_>) {
    let (client, [first, second]) = (shop.pod("client"), &shop.web);
    // First what routes lead to, then the routes: istiod does not wait for a cluster to be warm.
    shop.cluster.server.apply(SUBSETS);
    let place = "outbound|80|v2|web.shop.svc.cluster.local::10.79.1.12:8080";
    until("the subsets are known", || client.page("/clusters").contains(place));
    shop.cluster.server.apply(RULES);
    let get = |path: &str| client.get(WEB, "web", path, &[]);
    until_or("the rules are followed", || client.log(), || get("/direct/1").status == 201);
    assert_eq!(get("/direct/1").body, "by itself");
    assert_eq!(get("/direct/x").status, 200, "no number");

    for _ in 0..10 {
        assert!(answered(&client.get(WEB, "web", "/", &["x-user: tester"]), "web-2"));
    }
    let seen = get("/old/thing?q=1");
    assert!(answered(&seen, "web-1") && seen.field("x-said") == Some("rule"), "{seen:?}");
    let head = first.asked("/new/thing?q=1").pop().expect("a request with its path rewritten");
    assert!(head.contains("x-by: rule"), "{head}");

    let seen = get("/never");
    assert!(seen.status == 504 && seen.body == "upstream request timeout", "{seen:?}");
    let seen = get("/flaky/1");
    assert!(answered(&seen, "web-1"), "{seen:?}");
    assert_eq!(first.asked("/flaky/1").len(), 3);
    let seen = get("/aborted");
    assert!(seen.status == 418 && first.asked("/aborted").is_empty(), "{seen:?}");
    let began = std::time::Instant::now();
    assert!(answered(&get("/delayed"), "web-1") && began.elapsed().as_millis() >= 400);
    assert!(answered(&get("/copied"), "web-1"));
    until("the copy arrives", || second.asked("/copied").len() == 1);
    // Its host is that of the request: istiod asks for it to be left so.
    let copy = second.asked("/copied").remove(0);
    assert!(copy.contains("host: web\r\n"), "{copy}");

    let ask = ["origin: https://shop.example", "access-control-request-method: PUT"];
    let seen = client.ask(WEB, "web", "OPTIONS /shared", &ask);
    assert_eq!(seen.status, 200, "{seen:?}");
    assert_eq!(seen.field("access-control-allow-origin"), Some("https://shop.example"), "{seen:?}");
    assert_eq!(seen.field("access-control-allow-methods"), Some("GET,PUT"), "{seen:?}");
    assert_eq!(seen.field("access-control-max-age"), Some("60"), "{seen:?}");
    assert!(first.asked("/shared").is_empty(), "a question about sharing is answered by the proxy");
    let seen = get("/moved");
    assert_eq!((seen.status, seen.field("location")), (308, Some("http://shop.example/here")), "{seen:?}");

    // 400 requests at 80 to 20: five standard deviations are 40.
    let share = (0..400).filter(|_| get("/weighed").body == "web-2").count();
    assert!((40..=120).contains(&share), "{share} of 400");
}
