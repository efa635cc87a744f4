//! Random requests, of the same small vocabulary as the configurations, so that they meet.

use serde_json::{Value, json};

use super::configuration::{HEADERS, PARAMETERS, VALUES};
use super::random::Random;

fn target(random: &mut Random) -> String {
    let mut path = String::new();
    for _ in 0..random.below(4) {
        path.push('/');
        let usual = random.chance(85);
        path += if usual {
            random.pick(&["a", "b", "c", "A", "ab"])
        } else {
            random.pick(&["", ".", "..", "%2e%2e", "a%2Fb", "%41", "a%5cb", "a;x", "~", "%7E", "..;"])
        };
    }
    if path.is_empty() || random.chance(15) {
        path.push('/');
    }
    for number in 0..random.below(3) {
        path.push(if number == 0 { '?' } else { '&' });
        path += random.pick(PARAMETERS);
        if random.chance(80) {
            path.push('=');
            path += random.pick(&["one", "two", "5", "", "1x", "One", "%41"]);
        }
    }
    path
}

fn field(random: &mut Random) -> String {
    if random.chance(65) {
        return format!("{}: {}", random.pick(HEADERS), random.pick(VALUES));
    }
    let other = [
        "origin: http://a",
        "origin: http://b",
        "access-control-request-method: PUT",
        "content-type: application/grpc",
        "grpc-timeout: 2S",
        "x-forwarded-for: 10.0.0.1",
        "x-forwarded-for: 1.2.3.4, 10.0.0.1",
        "x-forwarded-proto: https",
        "x-forwarded-host: first.example",
        "x-request-id: mine",
        "x-envoy-retry-on: 5xx",
        "x-envoy-max-retries: 2",
        "x-envoy-upstream-rq-timeout-ms: 6000",
        "x-envoy-expected-rq-timeout-ms: 6000",
        "x-envoy-fault-abort-request: 451",
        "x-envoy-fault-abort-request-percentage: 0",
        "x-envoy-internal: true",
        "x-envoy-external-address: 1.1.1.1",
        "x-envoy-attempt-count: 9",
        "x-envoy-original-path: /o",
        "x-cluster: @two",
        "x-cluster: none",
        "x_under: 1",
        "cookie: a=1; b=2",
        "user-agent: tests",
        "via: 1.0 before",
        "te: trailers",
        "referer: /r",
        "expect: 100-continue",
        "accept-encoding: gzip",
        "server: mine",
    ];
    random.pick(&other).to_owned()
}

/// A request.
pub fn request(random: &mut Random) -> Value {
    let method =
        random.pick(&["GET", "GET", "GET", "GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH"]);
    let mut ask = json!({ "line": format!("{method} {}", target(random)) });
    if random.chance(60) {
        let hosts = [
            "a.example",
            "A.example",
            "a.example:80",
            "b.example",
            "c.b.example",
            "www.test",
            "other",
            "a.example.",
            "[::1]:81",
        ];
        ask["host"] = json!(random.pick(&hosts));
    }
    let mut fields: Vec<String> = Vec::new();
    for _ in 0..random.below(5) {
        let field = field(random);
        let name = |f: &str| f.split(':').next().map(str::to_owned);
        // Most names may come twice; of these, what comes of two is another matter (and another test's).
        if HEADERS.contains(&name(&field).as_deref().unwrap_or_default())
            || !fields.iter().any(|f| name(f) == name(&field))
        {
            fields.push(field);
        }
    }
    if random.chance(25) {
        ask["h2"] = json!(true);
        // Where underscores are dropped, Envoy logs a protocol error of an HTTP/2 request that it serves.
        fields.retain(|f| !f.starts_with("expect") && !f.starts_with("x_"));
    } else if random.chance(30) {
        ask["same"] = json!(true);
    }
    ask["headers"] = json!(fields);
    if matches!(method, "POST" | "PUT" | "PATCH") && random.chance(80) {
        ask["body"] = json!(random.pick(&["x", "hello", "a body of a few words"]));
    }
    ask
}
