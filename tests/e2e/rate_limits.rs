//! RateLimits in our own gateway and sidecar, configured by our control plane.

use serde_json::json;

use crate::authz::tokens::{Token, key_set};
use crate::limits::{Issuer, Mesh};
use crate::support::control::Control;
use crate::support::eventually;
use crate::support::http::get;
use crate::support::logged::Logged;

/// Who issues the tokens of the mesh.
fn issuer() -> Issuer {
    let token = |plan: &str| {
        let claims = json!({"iss": "me", "sub": "s", "exp": "+3600", "plan": plan});
        let token: Token = serde_json::from_value(json!({"key": "p256", "claims": claims})).unwrap();
        token.text()
    };
    Issuer { keys: key_set(["p256"].into_iter()).to_string(), token }
}

#[test]
fn limits_hold_exactly_by_key_and_by_the_service_at_a_gateway_and_in_a_sidecar() {
    let control = "127.81.0.1";
    let mesh = Mesh::new("127.81.0.2", "127.81.0.3", issuer());
    let control = Control::start(control, &mesh.yaml());
    let gateway = Logged::proxy(control.ip, &mesh.gateway, "edge", &["--role", "gateway"]);
    let sidecar = Logged::proxy(
        control.ip,
        &mesh.sidecar,
        "shop",
        &["--label", "app=api", "--interception-mode", "NONE"],
    );
    eventually("the limits hold", || mesh.serves());
    mesh.play();

    // Who refused is told in logs by our proxy's details, and by every proxy with the field.
    gateway.says(&["/login 429 RL local_rate_limited{edge/shop/login} by=edge/shop/login"]);
    gateway.says(&["/open 429 RL request_rate_limited{edge/global/open} by=edge/global/open"]);
    gateway.says(&["/closed 503 RLSE rate_limiter_error by=-"]);
    sidecar.says(&["/stock 429 RL local_rate_limited{shop/api/stock} by=shop/api/stock"]);
    sidecar.says(&["- 0 RL", "local_rate_limited{shop/api/sessions}"]);
    gateway.says(&["- 0 RL", "request_rate_limited{edge/bytes/clients}"]);
    let stats = get(format!("{}:15000", mesh.gateway).parse().unwrap(), "/stats").unwrap().1;
    let number = |name: &str| -> u64 {
        let line = stats.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {name} in\n{stats}")).parse().unwrap()
    };
    assert_eq!(number("ratelimit.edge.shop.login.http_local_rate_limit.enforced"), 5);
    assert_eq!(number("ratelimit.edge.tried.tried.http_local_rate_limit.rate_limited"), 2);
    assert_eq!(number("ratelimit.edge.tried.tried.http_local_rate_limit.enforced"), 0);
    let backend = "cluster.outbound|80||backend.example.ratelimit.ratelimit.edge.global.open";
    assert_eq!(
        (number(&format!("{backend}.over_limit")), number(&format!("{backend}.failure_mode_allowed"))),
        (4, 3)
    );

    // A change of the limit is in force at once; the bucket of a rule that is new is full.
    let path = control.config("mesh.yaml");
    let text =
        std::fs::read_to_string(&path).unwrap().replace("{requests: 5, per: 1h}", "{requests: 1, per: 1h}");
    std::fs::write(&path, text).unwrap();
    let ask = || mesh.to_gateway("127.0.0.1", "POST /login", "").status;
    eventually("the new limit holds", || ask() == 200);
    assert_eq!((ask(), ask()), (429, 429));
}
