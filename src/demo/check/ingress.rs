//! What the gateway answers, asked with a plain socket.

use super::observe::http::{Request, fetch};
use super::report::Check;
use super::scene::Scene;

const HOST: &str = "api.ecotrack.platform.dev";

/// The design's paths, an unknown host and an unknown path.
pub async fn checks(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    let gateway = scene.gateway()?;
    let mut checks = Vec::new();
    for (path, service) in [
        ("/api/users", "user-service"),
        ("/api/products", "product-service"),
        ("/api/orders", "order-service"),
    ] {
        let answer = fetch(gateway, &Request::get(HOST, path)).await;
        let seen = match &answer {
            Ok(answer) => format!("{} by {}", answer.status(), super::apps::service(answer)),
            Err(failure) => failure.to_string(),
        };
        checks.push(Check::equal(format!("ingress: {path}"), format!("200 by {service}"), seen));
    }
    for (what, host, path) in [
        ("an unknown host", "other.ecotrack.platform.dev", "/api/users"),
        ("an unknown path", HOST, "/api/unknown"),
    ] {
        let seen = match fetch(gateway, &Request::get(host, path)).await {
            Ok(answer) => answer.status().to_string(),
            Err(failure) => failure.to_string(),
        };
        checks.push(Check::equal(format!("ingress: {what}"), 404, seen));
    }
    Ok(checks)
}
