use serde_json::{Value, json};
use xds_protos::envoy::config::accesslog::v3::AccessLog as Proto;

use super::*;
use crate::io::ConnectionInfo;
use crate::state::CompileContext;
use crate::telemetry::StreamInfo;
use crate::telemetry::access_log::{AccessLog, AccessLogConfig, LogContext};

const OTLP: &str =
    "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig";
const HTTP: &str = "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig";
const TCP: &str = "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig";

fn compile(kind: &str, config: Value, context: &CompileContext) -> Result<AccessLog, String> {
    let mut config = config;
    config["@type"] = kind.into();
    let proto: Proto = xds_protos::json::from_value(json!({"name": "log", "typed_config": config})).unwrap();
    let compiled = AccessLogConfig::compile(&proto, context);
    let errors = |all: Vec<crate::state::ConfigError>| crate::state::error::join(&all);
    compiled.map(|log| log.open().unwrap()).map_err(errors)
}

fn service() -> Value {
    json!({"envoy_grpc": {"cluster_name": "collector"}})
}

#[test]
fn what_cannot_be_honoured_is_refused_by_its_place() {
    let context = CompileContext::for_tests();
    let common = |more: Value| {
        let mut all = json!({"log_name": "l", "grpc_service": service(), "transport_api_version": "V3"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"common_config": all})
    };
    for (kind, config, expected) in [
        (OTLP, json!({}), "typed_config.grpc_service or http_service"),
        (
            OTLP,
            json!({"grpc_service": service(), "common_config": {"log_name": "l", "grpc_service": service(), "transport_api_version": "V3"}}),
            "several collectors",
        ),
        (
            OTLP,
            json!({"grpc_service": service(), "body": {"int_value": 1}}),
            "typed_config.body: must be text",
        ),
        (
            OTLP,
            json!({"grpc_service": service(), "body": {"string_value": "%NOPE%"}}),
            "typed_config.body.string_value: unknown command",
        ),
        (
            OTLP,
            json!({"grpc_service": service(), "attributes": {"values": [{"key": "a", "value": {"array_value": {"values": [{"bool_value": true}]}}}]}}),
            "typed_config.attributes.values[0].value.array_value.values[0]: must be text",
        ),
        (
            OTLP,
            json!({"grpc_service": service(), "buffer_flush_interval": "0s"}),
            "buffer_flush_interval: must be longer",
        ),
        (HTTP, common(json!({"transport_api_version": "AUTO"})), "common_config.transport_api_version"),
        (HTTP, common(json!({"log_name": ""})), "common_config.log_name"),
        (HTTP, common(json!({"grpc_stream_retry_policy": {}})), "common_config.grpc_stream_retry_policy"),
        (TCP, json!({}), "common_config"),
        (
            TCP,
            common(
                json!({"custom_tags": [{"tag": "t", "metadata": {"kind": {"route": {}}, "metadata_key": {"key": "k", "path": [{"key": "p"}]}}}]}),
            ),
            "common_config.custom_tags[0].metadata.kind",
        ),
    ] {
        let error = compile(kind, config.clone(), &context).err().unwrap_or_default();
        assert!(error.contains(expected), "{expected}: {error} of {config}");
    }
    let mut config = common(json!({}));
    config["additional_request_headers_to_log"] = json!(["a b"]);
    let error = compile(HTTP, config, &context).err().unwrap_or_default();
    assert!(error.contains("typed_config.additional_request_headers_to_log[0]: "), "{error}");
}

#[tokio::test(start_paused = true)]
async fn without_a_collector_entries_are_lost_and_counted_and_nobody_waits() {
    let context = CompileContext::for_tests();
    let common = json!({"log_name": "l", "grpc_service": service(), "transport_api_version": "V3"});
    let configs = [
        (OTLP, json!({"grpc_service": service(), "stat_prefix": "away."}), "open_telemetry_access_log.away"),
        (HTTP, json!({"common_config": common}), "grpc_access_log"),
        (TCP, json!({"common_config": common}), "grpc_access_log"),
    ];
    let work = tokio::task::LocalSet::new();
    work.spawn_local(context.loggers.clone().run());
    let (stream, connection) = (
        StreamInfo::new(None),
        ConnectionInfo::between("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()),
    );
    for (kind, config, name) in configs {
        let stats = super::stats(name);
        let (written, dropped) = (stats.written.value(), stats.dropped.value());
        let log = compile(kind, config, &context).unwrap();
        (0..3).for_each(|_| log.log(&LogContext::new(&stream, &connection)));
        assert_eq!(stats.written.value() - written, 3);
        let lost = async {
            while stats.dropped.value() - dropped < 3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        work.run_until(async { tokio::time::timeout(Duration::from_secs(200), lost).await })
            .await
            .expect(name);
        assert_eq!(stats.dropped.value() - dropped, 3);
    }
}

#[test]
fn loggers_that_are_alike_are_one() {
    let context = CompileContext::for_tests();
    let config =
        json!({"common_config": {"log_name": "l", "grpc_service": service(), "transport_api_version": "V3"}});
    let other =
        json!({"common_config": {"log_name": "m", "grpc_service": service(), "transport_api_version": "V3"}});
    let _logs = [config.clone(), config, other].map(|config| compile(HTTP, config, &context).unwrap());
    assert_eq!(context.loggers.new.lock().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_at_the_end_is_counted_as_lost() {
    let context = CompileContext::for_tests();
    let config = json!({"grpc_service": service(), "stat_prefix": "left."});
    let log = compile(OTLP, config, &context).unwrap();
    let stats = super::stats("open_telemetry_access_log.left");
    let (limit, began) = (Duration::from_secs(1), tokio::time::Instant::now());
    assert_eq!(context.loggers.flush(limit).await, 0);
    assert_eq!(began.elapsed(), Duration::ZERO, "nothing waited");
    let (stream, connection) = (
        StreamInfo::new(None),
        ConnectionInfo::between("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()),
    );
    (0..3).for_each(|_| log.log(&LogContext::new(&stream, &connection)));
    // Nobody runs the loggers here.
    assert_eq!(context.loggers.flush(limit).await, 3);
    assert!(began.elapsed() < 2 * limit, "{:?}", began.elapsed());
    assert_eq!(stats.dropped.value(), 3);
}
