//! What a traced request leaves: the span, the id that tells, and nothing where it is not traced.

use serde_json::{Value, json};

use super::*;
use crate::telemetry::trace::{Kind, Span};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn traced(more: Value) -> Value {
    let mut tracing = json!({"provider": {"name": "otlp", "typed_config": {
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "service_name": "shop",
        "grpc_service": {"envoy_grpc": {"cluster_name": "collector"}}}}});
    tracing.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"tracing": tracing, "always_set_request_id_in_response": true})
}

/// The answer to a request, and the spans that it leaves.
async fn spans(settings: Value, path: &str, fields: &[(&str, &str)]) -> (Reply, Vec<Span>) {
    let context = CompileContext::for_tests();
    let config = compile_with(&context, settings, hello(), json!([])).unwrap();
    let (reply, ..) = call(config, request("GET", path, fields)).await;
    (reply, context.tracers.taken())
}

fn tag<'a>(span: &'a Span, name: &str) -> Option<&'a str> {
    span.tags.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

#[tokio::test]
async fn a_traced_request_leaves_a_span_below_the_one_that_it_came_with() {
    let fields = [("traceparent", PARENT), ("user-agent", "me"), ("user-id", "u-1")];
    let tags = json!({"custom_tags": [
        {"tag": "user.id", "request_header": {"name": "user-id"}},
        {"tag": "http.url", "value": "%REQ(:SCHEME)%://%REQ(:AUTHORITY)%%PATH(NQ:ORIG_OR_PATH):256%"}]});
    let (reply, spans) = spans(traced(tags), "/hello?token=secret", &fields).await;
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(span.ids.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
    assert_eq!((span.ids.parent, span.remote), (Some(0xb7ad_6b71_6920_3331), true));
    assert_eq!((span.kind, span.status), (Kind::Server, 200));
    for (name, value) in [
        ("http.method", "GET"),
        ("http.url", "http://a.com/hello"),
        ("http.status_code", "200"),
        ("user_agent", "me"),
        ("user.id", "u-1"),
        ("component", "proxy"),
        ("response_flags", "-"),
        ("peer.address", "10.0.0.1"),
    ] {
        assert_eq!(tag(span, name), Some(value), "{name}");
    }
    let id = reply.head.headers.get_str(&HeaderName::from_static("x-request-id")).unwrap();
    assert_eq!((&id[14..15], tag(span, "guid:x-request-id")), ("9", Some(id)));
}

#[tokio::test]
async fn who_is_not_traced_leaves_nothing() {
    let unwanted = PARENT.replace("-01", "-00");
    assert!(spans(traced(json!({})), "/hello", &[("traceparent", &unwanted)]).await.1.is_empty());
    let (reply, spans) = spans(traced(json!({"random_sampling": {"value": 0}})), "/hello", &[]).await;
    assert!(spans.is_empty());
    let id = reply.head.headers.get_str(&HeaderName::from_static("x-request-id")).unwrap();
    assert_eq!(&id[14..15], "4");
}

#[tokio::test]
async fn a_request_without_a_route_is_traced_and_an_error_is_told() {
    let (_, spans) = spans(traced(json!({})), "/nowhere", &[]).await;
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((span.status, tag(span, "error"), tag(span, "response_flags")), (404, None, Some("NR")));
}

#[test]
fn what_cannot_be_traced_is_refused_by_its_path() {
    for (tracing, expected) in [
        (json!({"provider": {"name": "x"}}), "tracing.provider.typed_config"),
        (
            json!({"provider": {"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"}}}),
            "grpc_service or http_service",
        ),
        (
            json!({"provider": {"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig", "collector_cluster": "c"}}}),
            "collector_endpoint",
        ),
        (json!({"random_sampling": {"value": 101}}), "tracing.random_sampling"),
        (json!({"custom_tags": [{"tag": "a"}]}), "tracing.custom_tags[0]"),
        (json!({"custom_tags": [{"tag": "a", "value": "%NOPE%"}]}), "tracing.custom_tags[0].value"),
        (
            json!({"custom_tags": [{"tag": "a", "metadata": {"kind": {"cluster": {}}, "metadata_key": {"key": "a", "path": [{"key": "b"}]}}}]}),
            "tracing.custom_tags[0].metadata.kind",
        ),
    ] {
        let error = compile(json!({"tracing": tracing}), hello(), json!([])).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
