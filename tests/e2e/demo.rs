//! The demonstration, as a program sees it.

use serde_json::Value;

use crate::support::mesh::alone;
use crate::support::{stderr, stdout, weft_tidy};

#[test]
fn the_demo_shows_every_service_with_traffic_and_mutual_tls_and_ends_by_itself() {
    let _alone = alone();
    let temporary = tempfile::tempdir().unwrap();
    let flags = ["demo", "--loopback", "109", "--rate", "10", "--duration", "4s", "--output", "json"];
    let output = weft_tidy(temporary.path(), &flags);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(last["client"]["answered"].as_u64().unwrap() > 5, "{last}");
    assert_eq!(last["client"]["failed"], 0, "{last}");
    let services = last["services"].as_array().unwrap();
    let names: Vec<_> = services.iter().map(|s| s["service"].as_str().unwrap()).collect();
    let expected = [
        "istio-ingressgateway",
        "notification-service",
        "order-service",
        "payment-service",
        "product-service",
        "user-service",
    ];
    assert_eq!(names, expected);
    for service in services {
        assert_eq!(service["up"], service["instances"], "{service}");
        assert!(service["requestsPerSecond"].as_f64().unwrap() > 0.0, "{service}");
        assert_eq!(service["success"], 100.0, "{service}");
        assert!(service["p99"].as_f64().unwrap() > 0.0, "{service}");
        assert!(service["certificateAge"].as_u64().unwrap() < 600, "{service}");
        if service["service"] != "istio-ingressgateway" {
            assert_eq!(service["mutualTls"], 100.0, "{service}");
        }
    }
    let canary = services[5]["canary"].as_f64().unwrap();
    assert!(canary > 0.0 && canary < 100.0, "{canary}");
}
