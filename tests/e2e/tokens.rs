//! RequestAuthentication in a running mesh: the control plane fetches an issuer's keys, and proxies get them with their
//! listeners.

use std::net::SocketAddr;

use serde_json::json;

use crate::authz::issuers::Issuers;
use crate::authz::tokens::Token;
use crate::support::control::Control;
use crate::support::eventually;
use crate::support::http::{exchange, get};
use crate::support::logged::Logged;
use crate::support::service::Service;

const CONTROL: &str = "127.61.4.1";
const PROXY: &str = "127.61.4.2";
const EDGE_CONTROL: &str = "127.61.4.3";
const EDGE: &str = "127.61.4.4";

fn mesh(app: u16, jwks: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: s, namespace: shop}}
spec:
  ingress: [{{port: {{number: 8080, protocol: HTTP, name: in}}, captureMode: NONE, defaultEndpoint: '127.0.0.1:{app}'}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: s, namespace: shop}}
spec: {{address: {PROXY}, labels: {{app: s}}}}
---
apiVersion: security.istio.io/v1beta1
kind: RequestAuthentication
metadata: {{name: s, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: s}}}}
  jwtRules: [{{issuer: me, jwksUri: '{jwks}'}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: s, namespace: shop}}
spec:
  rules:
    - {{to: [{{operation: {{paths: [/open]}}}}]}}
    - {{from: [{{source: {{requestPrincipals: ['me/*']}}}}], when: [{{key: 'request.auth.claims[realm][roles]', values: [admin]}}]}}
"
    )
}

fn token(key: &str, role: &str) -> String {
    let claims = json!({"iss": "me", "sub": "s", "exp": "+3600", "realm": {"roles": ["user", role]}});
    let token: Token = serde_json::from_value(json!({"key": key, "claims": claims})).unwrap();
    token.text()
}

/// The status of a request with this token, and its body.
fn ask(token: &str, path: &str) -> Option<(u16, String)> {
    let to: SocketAddr = format!("{PROXY}:8080").parse().unwrap();
    let header = if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    let request = format!("GET {path} HTTP/1.1\r\nhost: s\r\nconnection: close\r\n{header}\r\n");
    let (head, body) = exchange(to, &request).ok()?;
    Some((head.get(9..12)?.parse().ok()?, body))
}

fn status(token: &str, path: &str) -> Option<u16> {
    ask(token, path).map(|answer| answer.0)
}

/// How often an issuer was asked and gave no keys.
fn failures() -> u64 {
    let address = format!("{CONTROL}:15014").parse().unwrap();
    let (_, page) = get(address, "/metrics").unwrap_or_default();
    let line = page.lines().find_map(|line| line.strip_prefix("weft_jwks_fetches{result=\"failure\"} "));
    line.map_or(0, |count| count.parse().unwrap())
}

#[test]
fn keys_follow_their_issuer_and_stay_while_it_is_down() {
    let issuers = Issuers::start();
    let app = Service::start("app");
    issuers.later(true);
    let yaml = mesh(app.port, &format!("{}/gone/rsa", issuers.base));
    let control = Control::start_with(CONTROL, &yaml, &["--jwks-refresh-interval", "1s"]);
    let _proxy = Logged::proxy(CONTROL, PROXY, "shop", &["--interception-mode", "NONE"]);
    let (admin, user) = (token("rsa", "admin"), token("rsa", "guest"));
    eventually("the proxy serves", || status("", "/open") == Some(200));

    // Nobody's keys are known yet: no token passes, and requests without one do.
    let (refused, why) = ask(&admin, "/open").unwrap();
    assert_eq!((refused, why.as_str()), (401, "Jwks doesn't have key to match kid or alg from Jwt"));
    assert_eq!(status("", "/x"), Some(403));

    issuers.later(false);
    eventually("the issuer's token passes", || status(&admin, "/x") == Some(200));
    assert_eq!((status(&user, "/x"), status(&user, "/open")), (Some(403), Some(200)));
    assert_eq!(status(&token("other", "admin"), "/open"), Some(401));

    // It goes down, and is asked in vain several times.
    let before = failures();
    issuers.later(true);
    eventually("the issuer is missed", || failures() >= before + 2);
    assert_eq!((status(&admin, "/x"), status("", "/open")), (Some(200), Some(200)));
    assert_eq!(status(&token("other", "admin"), "/open"), Some(401));

    // Another set of keys at another place; then it is rotated.
    issuers.later(false);
    let yaml = mesh(app.port, &format!("{}/rotated/rsa,p256/p256,other", issuers.base));
    std::fs::write(control.config("mesh.yaml"), yaml).unwrap();
    let (next, last) = (token("p256", "admin"), token("other", "admin"));
    eventually("the second key is known", || status(&next, "/x") == Some(200));
    assert_eq!((status(&admin, "/x"), status(&last, "/x")), (Some(200), Some(401)));
    issuers.later(true);
    eventually("the third key is known", || status(&last, "/x") == Some(200));
    assert_eq!((status(&admin, "/x"), status(&next, "/x")), (Some(401), Some(200)));
}

/// A gateway whose routes are chosen by what tokens say.
fn edge(jwks: &str, admins: u16, users: u16) -> String {
    let entry = |name: &str, port: u16| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: edge}}
spec:
  hosts: [{name}.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
---"
        )
    };
    entry("admins", admins)
        + &entry("users", users)
        + &format!(
            "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: gateway, namespace: edge}}
spec: {{address: {EDGE}, labels: {{istio: ingress}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gateway, namespace: edge}}
spec:
  selector: {{istio: ingress}}
  servers: [{{port: {{number: 8080, name: http, protocol: HTTP}}, hosts: ['*']}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: gateway, namespace: edge}}
spec:
  selector: {{matchLabels: {{istio: ingress}}}}
  jwtRules: [{{issuer: me, jwksUri: '{jwks}', forwardOriginalToken: true}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: by-claim, namespace: edge}}
spec:
  hosts: [a.com]
  gateways: [gateway]
  http:
    - match: [{{headers: {{'@request.auth.claims.realm.roles': {{exact: admin}}}}}}]
      route: [{{destination: {{host: admins.com}}}}]
    - match: [{{uri: {{prefix: /guests}}, withoutHeaders: {{'@request.auth.claims[sub]': {{exact: s}}}}}}]
      directResponse: {{status: 418}}
    - route: [{{destination: {{host: users.com}}}}]
"
        )
}

#[test]
fn claims_choose_routes_at_a_gateway() {
    let issuers = Issuers::start();
    let (admins, users) = (Service::start("admins"), Service::start("users"));
    let yaml = edge(&format!("{}/up/rsa", issuers.base), admins.port, users.port);
    let _control = Control::start(EDGE_CONTROL, &yaml);
    let _proxy = Logged::proxy(EDGE_CONTROL, EDGE, "edge", &["--role", "gateway"]);
    let ask = |token: &str, path: &str| {
        let header =
            if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
        let request = format!("GET {path} HTTP/1.1\r\nhost: a.com\r\nconnection: close\r\n{header}\r\n");
        let (head, body) = exchange(format!("{EDGE}:8080").parse().unwrap(), &request).unwrap_or_default();
        (head.get(9..12).unwrap_or_default().to_owned(), body)
    };
    let of = |status: &str, body: &str| (status.to_owned(), body.to_owned());
    eventually("the gateway serves", || ask("", "/") == of("200", "users"));
    assert_eq!(ask(&token("rsa", "admin"), "/"), of("200", "admins"));
    assert_eq!(ask(&token("rsa", "guest"), "/"), of("200", "users"));
    // What a token that nobody vouches for says chooses nothing.
    assert_eq!(ask(&token("other", "admin"), "/").0, "401");
    assert_eq!(ask("", "/guests").0, "418");
    assert_eq!(ask(&token("rsa", "guest"), "/guests"), of("200", "users"));
}
