use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use xds_protos::prost_types::Value;
use xds_protos::prost_types::value::Kind;

use super::*;
use crate::codec::Protocol;
use crate::codec::headers::{HeaderName, HeaderValue};
use crate::io::Direction;
use crate::io::metadata::Datum;
use crate::telemetry::Flag;

fn connection() -> ConnectionInfo {
    ConnectionInfo {
        id: 7,
        listener: "l".into(),
        direction: Direction::Inbound,
        ..ConnectionInfo::between("127.0.0.1:5000".parse().unwrap(), "127.0.10.1:8080".parse().unwrap())
    }
}

fn request() -> RequestHead {
    RequestHead {
        method: Method::GET,
        scheme: Bytes::from_static(b"http"),
        authority: Bytes::from_static(b"user-service:8080"),
        path: Bytes::from_static(b"/api/users?token=1"),
        protocol: Protocol::Http11,
        upgrade: None,
        headers: [(HeaderName::from_static("user-agent"), HeaderValue::from_static("curl/8"))]
            .into_iter()
            .collect(),
    }
}

fn line(format: &Format) -> String {
    let mut stream = StreamInfo::new(Some(Protocol::Http11));
    stream.start_time = std::time::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    stream.status = Some(StatusCode::SERVICE_UNAVAILABLE);
    stream.flags.set(Flag::UpstreamConnectionFailure);
    stream.details = Some("upstream_reset_before_response_started".into());
    stream.bytes_sent = 19;
    stream.cluster = Some("outbound|8080||a".into());
    stream.upstream_host = Some("127.0.11.1:8080".parse().unwrap());
    stream.metadata.set("a.filter", &"result".into(), Datum::Text("allowed".into()));
    let two = Value { kind: Some(Kind::NumberValue(2.0)) };
    stream.metadata.set("a.filter", &"n".into(), Datum::Other(Box::new(two)));
    let (connection, request) = (connection(), request());
    let context = LogContext { request: Some(&request), ..LogContext::new(&stream, &connection) };
    let mut out = Vec::new();
    format.write(&context, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn istios_default_line_has_every_field_in_its_place() {
    let text = line(&Format::text(xds_protos::format::ISTIO_TEXT).unwrap());
    assert_eq!(
        text,
        "[2023-11-14T22:13:20.123Z] \"GET /api/users?token=1 HTTP/1.1\" 503 UF \
         upstream_reset_before_response_started - \"-\" 0 19 0 - \"-\" \"curl/8\" \"-\" \"user-service:8080\" \
         \"127.0.11.1:8080\" outbound|8080||a - 127.0.10.1:8080 127.0.0.1:5000 - -\n"
    );
}

#[test]
fn json_keeps_numbers_and_nulls() {
    let format = Format::json(&serde_json::json!({
        "code": "%RESPONSE_CODE%", "ua": "%REQ(USER-AGENT)%", "none": "%REQ(X-NONE)%", "both": "a %PROTOCOL%",
        "in": {"path": "%REQ_WITHOUT_QUERY(:PATH)%"}
    }))
    .unwrap();
    let value: serde_json::Value = serde_json::from_str(&line(&format)).unwrap();
    assert_eq!(
        value,
        serde_json::json!({"code": 503, "ua": "curl/8", "none": null, "both": "a HTTP/1.1",
                           "in": {"path": "/api/users"}})
    );
}

#[test]
fn lengths_time_formats_and_percent_signs_are_honoured() {
    let format = Format::text("%REQ(:AUTHORITY):4% %START_TIME(%s.%3f)% 100%%").unwrap();
    assert_eq!(line(&format), "user 1700000000.123 100%");
}

#[test]
fn dynamic_metadata_is_text_in_a_line_and_a_value_in_json() {
    let format = Format::text(
        "%DYNAMIC_METADATA(a.filter:result)% %DYNAMIC_METADATA(a.filter)% %METADATA(DYNAMIC:a.filter:n)% %DYNAMIC_METADATA(b)%",
    );
    assert_eq!(line(&format.unwrap()), r#"allowed {"n":2,"result":"allowed"} 2 -"#);
    let format =
        Format::json(&serde_json::json!({"a": "%DYNAMIC_METADATA(a.filter)%", "b": "%DYNAMIC_METADATA(b)%"}));
    let value: serde_json::Value = serde_json::from_str(&line(&format.unwrap())).unwrap();
    assert_eq!(value, serde_json::json!({"a": {"n": 2, "result": "allowed"}, "b": null}));
    assert!(matches!(Format::text("%METADATA(NOBODY:a)%").unwrap_err(), FormatError::Arguments(..)));
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    assert_eq!(Format::text("%NOPE%").unwrap_err(), FormatError::Unknown("NOPE".to_owned()));
    assert!(matches!(Format::text("%REQ%").unwrap_err(), FormatError::Arguments(..)));
    assert!(matches!(Format::text("a %PROTOCOL").unwrap_err(), FormatError::Unclosed(_)));
    assert!(matches!(Format::text("%START_TIME(%Q)%").unwrap_err(), FormatError::Arguments(..)));
}

#[test]
fn lines_of_all_threads_reach_the_file_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let sink = Sink::open(&path).unwrap();
    assert!(Arc::ptr_eq(&sink, &Sink::open(&path).unwrap()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..100).for_each(|_| sink.append(|out| out.extend_from_slice(b"a line\n"))));
        }
    });
    drop(sink);
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&path).unwrap() != "a line\n".repeat(200) {
        assert!(std::time::Instant::now() < end, "lines are missing");
        std::thread::yield_now();
    }
}

#[test]
fn a_log_that_is_rotated_loses_no_line() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let sink = Sink::open(&path).unwrap();
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    let until = |what: &str, is: &dyn Fn() -> bool| {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while !is() {
            assert!(std::time::Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    sink.append(|out| out.extend_from_slice(b"before\n"));
    std::fs::rename(&path, &old).unwrap();
    // Until somebody says so the old file is written to, whatever it is called.
    sink.append(|out| out.extend_from_slice(b"renamed\n"));
    Sink::reopen_all();
    until("the new file", &|| path.exists());
    sink.append(|out| out.extend_from_slice(b"after\n"));
    until("the line", &|| read(&path) == "after\n");
    assert_eq!((read(&old).as_str(), sink.dropped()), ("before\nrenamed\n", 0));
}
