//! One case for each operator: what it says of a request of which everything is known, and of a connection of bytes.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use rustls_pki_types::CertificateDer;
use xds_protos::prost_types::Value;
use xds_protos::prost_types::value::Kind;

use super::*;
use crate::codec::{Headers, Protocol, WireBytes};
use crate::io::metadata::{Datum, Said as Told};
use crate::io::{Direction, Fingerprints, Io, TlsInfo};
use crate::telemetry::closing::Closing;
use crate::telemetry::record::{Try, UpstreamLine};
use crate::telemetry::{Flag, Flags, Wire};

const CLIENT: &[u8] = include_bytes!("../../../../certs/testdata/client.der");

fn tls() -> Arc<TlsInfo> {
    Arc::new(TlsInfo {
        version: "TLSv1.3",
        cipher: "TLS_AES_128_GCM_SHA256",
        group: "X25519MLKEM768",
        sni: Some("asked.example".into()),
        local_id: Some("spiffe://a/ns/b/sa/own".into()),
        local_certificate: Some(Arc::new(CertificateDer::from_slice(CLIENT).into_owned())),
        peer_chain: vec![CertificateDer::from_slice(CLIENT).into_owned()],
        session_id: vec![0xab; 3],
        peer_issuer: Some(CertificateDer::from_slice(CLIENT).into_owned()),
        peer_uri_sans: vec!["spiffe://a/ns/b/sa/c".to_owned()],
        peer_dns_sans: vec!["client.example".to_owned()],
        peer_subject: "CN=client,O=Acme\\, Inc".to_owned(),
        ..TlsInfo::default()
    })
}

fn fields(list: &[(&'static str, &'static str)]) -> Headers {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    list.iter().map(pair).collect()
}

fn metadata(text: &str) -> Option<Arc<Told>> {
    let value = Value { kind: Some(Kind::StringValue(text.to_owned())) };
    Told::new([("a.place".to_owned(), Struct { fields: [("k".to_owned(), value)].into() })])
}

fn connection() -> ConnectionInfo {
    ConnectionInfo {
        id: 7,
        direction: Direction::Inbound,
        direct_remote: "127.0.0.9:6000".parse().unwrap(),
        filter_chain: "chain".into(),
        sni: Some("shop.example".into()),
        tls: Some(tls()),
        fingerprints: Some(Arc::new(Fingerprints {
            ja3: Some("0a1b".to_owned()),
            ja4: Some("t13".to_owned()),
        })),
        direct_local: "127.0.10.2:8081".parse().unwrap(),
        listener_metadata: metadata("listener"),
        chain_metadata: metadata("chain"),
        ..ConnectionInfo::between("127.0.0.1:5000".parse().unwrap(), "127.0.10.1:8080".parse().unwrap())
    }
}

fn request() -> RequestHead {
    RequestHead {
        method: Method::GET,
        scheme: Bytes::from_static(b"https"),
        authority: Bytes::from_static(b"shop"),
        path: Bytes::from_static(b"/new?q=a%20b"),
        protocol: Protocol::Http2,
        upgrade: None,
        headers: fields(&[
            ("x-request-id", "id-1"),
            ("x-envoy-original-path", "/old?q=1"),
            ("user-agent", "me"),
        ]),
    }
}

fn stream() -> StreamInfo {
    let mut stream = StreamInfo::new(Some(Protocol::Http2));
    stream.start_time = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
    let start = stream.start;
    let at = |millis| start + Duration::from_millis(millis);
    (stream.request_end, stream.request_sent) = (Some(at(3)), Some(at(4)));
    stream.upstream_first_byte = Some(at(9));
    stream.status = Some(StatusCode::SERVICE_UNAVAILABLE);
    stream.flags.set(Flag::UpstreamConnectionFailure);
    stream.details = Some("via_upstream".into());
    stream.connection_termination_details = Some("max".into());
    stream.upstream_failure = Some("tls: no".into());
    (stream.bytes_received, stream.bytes_sent, stream.attempts) = (11, 22, 3);
    stream.route = Some("route".into());
    stream.cluster = Some("cluster".into());
    stream.method = Some(Method::GET);
    stream.virtual_cluster = Some("virtual".into());
    stream.upstream_host = Some("127.0.11.1:81".parse().unwrap());
    stream.upstream_local = Some("127.0.11.2:82".parse().unwrap());
    stream.upstream_protocol = Some(Protocol::Http11);
    stream.upstream_tls = Some(tls());
    stream.client = Some("192.0.2.1:99".parse().unwrap());
    stream.grpc_status = Some(3);
    let line = UpstreamLine { id: 22, began: at(1), connected: at(3), secured: Some(at(4)) };
    let trail = &mut stream.trail;
    trail.line = Some(Rc::new(line));
    (trail.began, trail.ready) = (Some(at(5)), Some(at(6)));
    (trail.body_began, trail.answering, trail.answer_came) = (Some(at(10)), Some(at(11)), Some(at(12)));
    trail.tries.push(Try {
        began: at(1),
        took: Duration::ZERO,
        host: Some("127.0.11.3:83".parse().unwrap()),
        connection: Some(21),
        status: Some(503),
        failure: None,
        words: None,
        flags: Flags::default(),
        choice: None,
        pause: None,
    });
    let refused =
        Try { host: Some("127.0.11.4:84".parse().unwrap()), connection: None, ..trail.tries[0].clone() };
    trail.tries.push(refused);
    let wire = |from: u64| {
        Some(WireBytes {
            sent: from + 1,
            received: from + 2,
            headers_sent: from + 3,
            headers_received: from + 4,
            plain_headers_sent: from + 5,
            plain_headers_received: from + 6,
        })
    };
    stream.wire = Some(Box::new(Wire { downstream: wire(100), upstream: wire(200) }));
    stream.metadata.set("a.filter", &"k".into(), Datum::Text("v".into()));
    stream.filter_state.set(&"an.object".into(), "said \"so\"", true);
    stream
}

/// What a configuration says: each place has its own name under `k`.
struct Said;

impl Configured for Said {
    fn host_name(&self, address: SocketAddr) -> Option<Arc<str>> {
        (address.port() == 81).then(|| "host.example:81".into())
    }

    fn stat_name(&self) -> Option<Arc<str>> {
        Some("stats".into())
    }

    fn namespace(&self, of: Of, _: &StreamInfo, namespace: &str) -> Option<Struct> {
        let text = |text: String| Value { kind: Some(Kind::StringValue(text)) };
        let deep = Struct { fields: [("er".to_owned(), text("in".to_owned()))].into() };
        let fields = [
            ("k".to_owned(), text(format!("{of:?}"))),
            ("deep".to_owned(), Value { kind: Some(Kind::StructValue(deep)) }),
        ];
        (namespace == "a.place").then(|| Struct { fields: fields.into() })
    }
}

const LOCAL: &str = "CN=client,O=Acme\\, Inc 192.0.2.7";
const SHA256: &str = "9d908ce2e847fe496069c3bcfa203da33eb35f214b0f3a452c8a7deb0d94af5a";
const SHA1: &str = "6519b7adfa2e5bf7b951933fc0d70cff129889f8";

#[test]
fn each_operator_says_what_is_known_and_a_dash_of_what_is_not() {
    let (mut connection, stream, request) = (connection(), stream(), request());
    let mut secured = (*tls()).clone();
    let at = |micros| stream.start - Duration::from_micros(micros);
    secured.handshake = Some((at(5000), at(1000)));
    connection.tls = Some(Arc::new(secured));
    let (response, trailers) = (fields(&[("server", "weft")]), fields(&[("grpc-status", "3")]));
    let http = LogContext {
        request: Some(&request),
        response: Some(&response),
        trailers: Some(&trailers),
        body: Some(b"no"),
        occasion: LogType::DownstreamEnd,
        configured: Some(&Said),
        ..LogContext::new(&stream, &connection)
    };
    let plain =
        ConnectionInfo::between("127.0.0.1:5000".parse().unwrap(), "127.0.10.1:8080".parse().unwrap());
    let plain = ConnectionInfo {
        handshake: Some(Duration::from_millis(5)),
        failure: Some("TLS_error: bad".into()),
        ..plain
    };
    let mut empty = StreamInfo::new(None);
    empty.start = Instant::now();
    empty.closing = Some(Box::new(Closing::ours("idle", true)));
    let bytes = LogContext { occasion: LogType::TcpConnectionEnd, ..LogContext::new(&empty, &plain) };
    let write = |format: &str, context: &LogContext<'_>| {
        let mut out = Vec::new();
        Format::text(format).unwrap_or_else(|e| panic!("{e}")).write(context, &mut out);
        String::from_utf8(out).unwrap()
    };
    let mut wrong = Vec::new();
    for (format, of_request, of_bytes) in [
        ("%REQ(:METHOD)% %REQ(X-NONE?USER-AGENT)% %REQ(:SCHEME)%", "GET me https", "- - -"),
        ("%REQUEST_HEADER(:AUTHORITY):2%", "sh", "-"),
        ("%REQ_WITHOUT_QUERY(:PATH)%", "/new", "-"),
        ("%RESP(SERVER)% %RESP(:STATUS)% %RESPONSE_HEADER(SERVER)%", "weft 503 weft", "- - -"),
        ("%TRAILER(GRPC-STATUS)% %RESPONSE_TRAILER(GRPC-STATUS)%", "3 3", "- -"),
        ("%PATH(NQ:ORIG)% %PATH(WQ:PATH)% %PATH(NQ)%", "/old /new?q=a%20b /old", "- - -"),
        ("%QUERY_PARAM(q)%", "a b", "-"),
        ("%PROTOCOL% %UPSTREAM_PROTOCOL%", "HTTP/2 HTTP/1.1", "- -"),
        ("%RESPONSE_CODE% %RESPONSE_CODE_DETAILS%", "503 via_upstream", "0 -"),
        ("%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%", "UF UpstreamConnectionFailure", "- -"),
        ("%CONNECTION_TERMINATION_DETAILS%", "max", "-"),
        ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", "tls: no", "-"),
        ("%BYTES_RECEIVED% %BYTES_SENT%", "11 22", "0 0"),
        ("%DOWNSTREAM_WIRE_BYTES_SENT% %DOWNSTREAM_WIRE_BYTES_RECEIVED%", "101 102", "0 0"),
        ("%DOWNSTREAM_HEADER_BYTES_SENT% %DOWNSTREAM_HEADER_BYTES_RECEIVED%", "103 104", "0 0"),
        ("%DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT%", "105", "0"),
        ("%DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED%", "106", "0"),
        ("%UPSTREAM_WIRE_BYTES_SENT% %UPSTREAM_WIRE_BYTES_RECEIVED%", "201 202", "0 0"),
        ("%UPSTREAM_HEADER_BYTES_SENT% %UPSTREAM_HEADER_BYTES_RECEIVED%", "203 204", "0 0"),
        ("%UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT%", "205", "0"),
        ("%UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED%", "206", "0"),
        ("%REQUEST_DURATION% %REQUEST_TX_DURATION% %RESPONSE_DURATION%", "3 4 9", "- - -"),
        ("%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)%", "9000", "-"),
        ("%COMMON_DURATION(DS_RX_END:US_TX_END:ns)%", "1000000", "-"),
        ("%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS%", "127.0.11.1:81 127.0.11.1:81", "- -"),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%", "127.0.11.1 81", "- -"),
        ("%UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "127.0.11.2:82 127.0.11.2", "- -"),
        ("%UPSTREAM_LOCAL_PORT%", "82", "-"),
        ("%UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW%", "stats cluster", "- -"),
        (
            "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_PORT%",
            "127.0.10.1:8080 8080",
            "127.0.10.1:8080 8080",
        ),
        ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "127.0.10.1", "127.0.10.1"),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_PORT%", "192.0.2.1:99 99", "127.0.0.1:5000 5000"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "192.0.2.1", "127.0.0.1"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "127.0.0.9:6000", "127.0.0.1:5000"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "127.0.0.9", "127.0.0.1"),
        ("%DOWNSTREAM_DIRECT_REMOTE_PORT%", "6000", "5000"),
        ("%REQUESTED_SERVER_NAME% %FILTER_CHAIN_NAME%", "shop.example chain", "- -"),
        ("%ROUTE_NAME% %VIRTUAL_CLUSTER_NAME%", "route virtual", "- -"),
        ("%CONNECTION_ID% %UPSTREAM_REQUEST_ATTEMPT_COUNT%", "7 3", "0 0"),
        ("%GRPC_STATUS% %GRPC_STATUS(CAMEL_STRING)%", "InvalidArgument InvalidArgument", "- -"),
        ("%GRPC_STATUS(SNAKE_STRING)%", "INVALID_ARGUMENT", "-"),
        ("%GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%", "3 3", "- -"),
        ("%DYNAMIC_METADATA(a.filter:k)% %METADATA(DYNAMIC:a.filter:k)%", "v v", "- -"),
        ("%CLUSTER_METADATA(a.place:k)% %METADATA(CLUSTER:a.place:k)%", "Cluster Cluster", "- -"),
        ("%UPSTREAM_METADATA(a.place:k)% %METADATA(UPSTREAM_HOST:a.place:k)%", "Host Host", "- -"),
        ("%METADATA(ROUTE:a.place:deep)% %METADATA(ROUTE:a.place:deep:er)%", "{\"er\":\"in\"} in", "- -"),
        ("%METADATA(ROUTE:a.place:none)% %CLUSTER_METADATA(b:k)%", "- -", "- -"),
        ("%FILTER_STATE(an.object:PLAIN)%", "said \"so\"", "-"),
        ("%FILTER_STATE(an.object)%", "\"said \\\"so\\\"\"", "-"),
        ("%FILTER_STATE(an.object:TYPED)%", "\"said \\\"so\\\"\"", "-"),
        ("%CEL(request.method)% %CEL(response.code >= 500)%", "GET true", "- -"),
        ("%TYPED_CEL(request.method)%", "GET", "-"),
        ("%BYTES_RETRANSMITTED% %PACKETS_RETRANSMITTED% %ROUNDTRIP_DURATION%", "0 0 -", "0 0 -"),
        ("%CUSTOM_FLAGS%%DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID%", "", ""),
        ("%UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID% %UPSTREAM_FILTER_STATE(a)%", " -", "- -"),
        ("%QUERY_PARAMS% %QUERY_PARAMS(ORIG)%", "q=a%20b q=a%20b", "- -"),
        (
            "%REQUESTED_SERVER_NAME(SNI_FIRST)% %REQUESTED_SERVER_NAME(SNI_ONLY)%",
            "shop.example shop.example",
            "- -",
        ),
        ("%REQUESTED_SERVER_NAME(HOST_FIRST:HOST)%", "shop", "-"),
        ("%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%", "via_upstream", "-"),
        ("%DOWNSTREAM_TRANSPORT_FAILURE_REASON%", "-", "TLS_error: bad"),
        ("%DOWNSTREAM_HANDSHAKE_DURATION%", "-", "5"),
        ("%UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT%", "host.example:81 host.example", "- -"),
        ("%UPSTREAM_HOSTS_ATTEMPTED%", "127.0.11.3:83,127.0.11.4:84,127.0.11.1:81", "-"),
        ("%UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT%", "127.0.11.3,127.0.11.4,127.0.11.1", "-"),
        ("%UPSTREAM_HOST_NAMES_ATTEMPTED%", "127.0.11.3:83,127.0.11.4:84,host.example:81", "-"),
        ("%UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT%", "127.0.11.3,127.0.11.4,host.example", "-"),
        ("%UPSTREAM_CONNECTION_IDS_ATTEMPTED% %UPSTREAM_CONNECTION_ID%", "21,22 22", "- 0"),
        ("%UPSTREAM_CONNECTION_POOL_READY_DURATION%", "1", "-"),
        (
            "%COMMON_DURATION(DS_RX_BEG:US_CX_BEG:us)% %COMMON_DURATION(US_CX_BEG:US_CX_END:us)%",
            "1000 2000",
            "- -",
        ),
        (
            "%COMMON_DURATION(US_CX_END:US_HS_END:us)% %COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)%",
            "1000 6000",
            "- -",
        ),
        ("%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%", "10000", "-"),
        (
            "%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)% %COMMON_DURATION(DS_RX_BEG:DS_TX_BEG:us)%",
            "12000 11000",
            "- -",
        ),
        // What came before what it is counted from.
        ("%COMMON_DURATION(US_RX_BEG:US_CX_BEG:us)%", "-", "-"),
        (
            "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS% %DOWNSTREAM_DIRECT_LOCAL_PORT%",
            "127.0.10.2:8081 8081",
            "127.0.10.1:8080 8080",
        ),
        ("%DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT(9)%", "127.0.0.0/9", "127.0.0.0/9"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(24)%", "192.0.2.0/24", "127.0.0.0/24"),
        ("%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(0)%", "0.0.0.0/0", "-"),
        ("%METADATA(VIRTUAL_HOST:a.place:k)%", "VirtualHost", "-"),
        (
            "%METADATA(LISTENER:a.place:k)% %METADATA(LISTENER_FILTER_CHAIN:a.place:k)%",
            "listener chain",
            "- -",
        ),
        (
            "%COALESCE({\"operators\": [\"TRACE_ID\", {\"command\": \"REQ\", \"param\": \":path\", \"max_length\": 3}]})%",
            "/ne",
            "-",
        ),
        ("%DOWNSTREAM_LOCAL_SUBJECT% %DOWNSTREAM_LOCAL_IP_SAN%", LOCAL, "- -"),
        ("%DOWNSTREAM_LOCAL_DNS_SAN% %DOWNSTREAM_LOCAL_EMAIL_SAN%", "client.example -", "- -"),
        ("%DOWNSTREAM_LOCAL_OTHERNAME_SAN% %DOWNSTREAM_PEER_OTHERNAME_SAN%", "- -", "- -"),
        ("%DOWNSTREAM_PEER_EMAIL_SAN%", "-", "-"),
        ("%UPSTREAM_LOCAL_DNS_SAN% %UPSTREAM_LOCAL_IP_SAN%", "client.example 192.0.2.7", "- -"),
        ("%DOWNSTREAM_TLS_SESSION_ID% %UPSTREAM_TLS_SESSION_ID%", "ababab ababab", "- -"),
        ("%DOWNSTREAM_PEER_ISSUER_SERIAL%", "f00dbeef", "-"),
        ("%DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256%", SHA256, "-"),
        ("%TLS_JA3_FINGERPRINT% %TLS_JA4_FINGERPRINT%", "0a1b t13", "- -"),
        ("%DOWNSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_DETECTED_CLOSE_TYPE%", "Normal Normal", "Normal Normal"),
        ("%DOWNSTREAM_LOCAL_CLOSE_REASON% %UPSTREAM_LOCAL_CLOSE_REASON%", "- -", "idle idle"),
        ("%DOWNSTREAM_CX_RTT%", "-", "-"),
        (
            "%COMMON_DURATION(DS_HS_BEG:DS_HS_END:us)% %COMMON_DURATION(DS_HS_END:DS_RX_BEG:ms)%",
            "4000 1",
            "- -",
        ),
        ("%LOCAL_REPLY_BODY% %ACCESS_LOG_TYPE%", "no DownstreamEnd", "- TcpConnectionEnd"),
        ("%STREAM_ID%", "id-1", "-"),
        // x-request-id, x-envoy-original-path, user-agent and four pseudo-headers; :status and server; grpc-status.
        ("%REQUEST_HEADERS_BYTES%", "110", "0"),
        ("%RESPONSE_HEADERS_BYTES% %RESPONSE_TRAILERS_BYTES%", "20 12", "0 0"),
        ("%ENVIRONMENT(NO_SUCH_VARIABLE)%", "-", "-"),
        ("%TRACE_ID% %SPAN_ID%", "- -", "- -"),
        (
            "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_LOCAL_URI_SAN%",
            "spiffe://a/ns/b/sa/c spiffe://a/ns/b/sa/c",
            "- -",
        ),
        ("%DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_PEER_IP_SAN%", "client.example 192.0.2.7", "- -"),
        ("%DOWNSTREAM_PEER_SUBJECT%", "CN=client,O=Acme\\, Inc", "-"),
        ("%DOWNSTREAM_PEER_ISSUER%", "CN=root,O=Root \\\"R\\\"", "-"),
        ("%DOWNSTREAM_PEER_SERIAL% %DOWNSTREAM_PEER_CHAIN_SERIALS%", "f00dbeef f00dbeef", "- -"),
        ("%DOWNSTREAM_PEER_FINGERPRINT_256%", SHA256, "-"),
        ("%DOWNSTREAM_PEER_FINGERPRINT_1%", SHA1, "-"),
        ("%DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256%", SHA256, "-"),
        ("%DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1%", SHA1, "-"),
        ("%DOWNSTREAM_PEER_CERT_V_START%", "2024-02-03T04:05:06.000Z", "-"),
        ("%DOWNSTREAM_PEER_CERT_V_END(%b %e %Y)%", "Apr  4 2043", "-"),
        ("%DOWNSTREAM_PEER_CERT:39%", "-----BEGIN%20CERTIFICATE-----%0AMIIBkTC", "-"),
        ("%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_GROUP%", "TLSv1.3 X25519MLKEM768", "- -"),
        ("%DOWNSTREAM_TLS_CIPHER%", "TLS_AES_128_GCM_SHA256", "-"),
        (
            "%UPSTREAM_PEER_URI_SAN% %UPSTREAM_LOCAL_URI_SAN%",
            "spiffe://a/ns/b/sa/c spiffe://a/ns/b/sa/c",
            "- -",
        ),
        ("%UPSTREAM_PEER_DNS_SAN% %UPSTREAM_PEER_IP_SAN%", "client.example 192.0.2.7", "- -"),
        ("%UPSTREAM_PEER_SUBJECT% %UPSTREAM_SERVER_NAME%", "CN=client,O=Acme\\, Inc asked.example", "- -"),
        ("%UPSTREAM_PEER_ISSUER%", "CN=root,O=Root \\\"R\\\"", "-"),
        ("%UPSTREAM_PEER_CERT_V_START(%s)% %UPSTREAM_PEER_CERT_V_END(%F)%", "1706933106 2043-04-04", "- -"),
        ("%UPSTREAM_PEER_CERT:10%", "-----BEGIN", "-"),
        ("%UPSTREAM_TLS_VERSION% %UPSTREAM_TLS_CIPHER%", "TLSv1.3 TLS_AES_128_GCM_SHA256", "- -"),
        ("%UPSTREAM_TLS_GROUP%", "X25519MLKEM768", "-"),
    ] {
        let said = (write(format, &http), write(format, &bytes));
        if (said.0.as_str(), said.1.as_str()) != (of_request, of_bytes) {
            wrong.push(format!("{format}: {said:?} for {:?}", (of_request, of_bytes)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (format, expected) in [
        ("", "2023-11-14T22:13:20.123Z"),
        ("(%Y/%m/%dT%H:%M:%S%z %s)", "2023/11/14T22:13:20+0000 1700000000"),
        ("(%s.%3f %6f %9f %f %1f)", "1700000000.123 123456 123456789 123456789 1"),
        ("(%a %A %b %B %e %j %y)", "Tue Tuesday Nov November 14 318 23"),
        ("(%D %F %R %T %E6S %Z 100%%)", "11/14/23 2023-11-14 22:13 22:13:20 20.123456 UTC 100%"),
    ] {
        assert_eq!(write(&format!("%START_TIME{format}%"), &http), expected);
    }
    // What is otherwise each time.
    let random = write("%UNIQUE_ID%", &http);
    assert!(
        random.len() == 36 && random.as_bytes()[14] == b'4' && random != write("%UNIQUE_ID%", &http),
        "{random}"
    );
    for format in ["%DURATION%", "%RESPONSE_TX_DURATION%", "%EMIT_TIME(%s)%"] {
        assert!(write(format, &http).parse::<u64>().is_ok(), "{format}");
    }
    assert!(!write("%HOSTNAME%", &http).is_empty());
    assert_eq!(write("%ENVIRONMENT(PATH)%", &http), std::env::var("PATH").unwrap_or("-".to_owned()));
}

#[test]
fn resets_are_told_by_who_made_them() {
    let connection = connection();
    let said = |by_downstream: Option<bool>, occasion: LogType| {
        let mut stream = StreamInfo::new(None);
        stream.closing = by_downstream.map(|by| Box::new(Closing::reset(by)));
        let context = LogContext { occasion, ..LogContext::new(&stream, &connection) };
        let mut out = Vec::new();
        let format =
            "%DOWNSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_LOCAL_CLOSE_REASON%";
        Format::text(format).unwrap().write(&context, &mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(said(Some(true), LogType::TcpConnectionEnd), "RemoteReset Normal -");
    assert_eq!(said(Some(false), LogType::TcpConnectionEnd), "LocalReset RemoteReset -");
    assert_eq!(said(None, LogType::TcpConnectionEnd), "Normal Normal -");
    assert_eq!(said(None, LogType::NotSet), "Normal - -", "a listener's line, without an upstream");
}

#[tokio::test]
async fn a_format_that_speaks_of_the_round_trip_has_it_measured() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut io = Io::tcp(listener.accept().await.unwrap().0);
    let format = Format::text("%DOWNSTREAM_CX_RTT%").unwrap();
    assert!(crate::io::Rare::RoundTrip.is_wanted());
    let mut connection = connection();
    connection.round_trip = io.round_trip();
    let (stream, mut out) = (stream(), Vec::new());
    format.write(&LogContext::new(&stream, &connection), &mut out);
    let millis: u32 = String::from_utf8(out).unwrap().parse().unwrap();
    assert!(millis < 10_000, "{millis}");
}

#[test]
fn bytes_on_the_wire_that_were_not_counted_are_no_number_and_are_told_at_the_end_alone() {
    let (connection, mut stream) = (connection(), stream());
    let write = |stream: &StreamInfo, side: &str| {
        let mut out = Vec::new();
        let format = Format::text(&format!("%{side}_WIRE_BYTES_SENT%")).unwrap();
        format.write(&LogContext::new(stream, &connection), &mut out);
        String::from_utf8(out).unwrap()
    };
    stream.wire = Some(Box::new(Wire { downstream: Some(WireBytes::default()), upstream: None }));
    assert_eq!((write(&stream, "DOWNSTREAM"), write(&stream, "UPSTREAM")), ("0".to_owned(), "-".to_owned()));
    stream.wire = None;
    assert_eq!(write(&stream, "DOWNSTREAM"), "-");
    // Of a connection of bytes, those that were copied.
    let mut bytes = StreamInfo::new(None);
    bytes.wire = Some(Box::new(Wire::of_copied(5, 7)));
    assert_eq!((write(&bytes, "DOWNSTREAM"), write(&bytes, "UPSTREAM")), ("7".to_owned(), "5".to_owned()));
    let wanted = |format: &str| {
        let mut wanted = Wanted::default();
        Format::text(format).unwrap().wants(&mut wanted);
        wanted.wire
    };
    assert_eq!(wanted("%BYTES_SENT% %CEL(request.size)%"), None);
    let inside = "%COALESCE({\"operators\": [\"TRACE_ID\", \"UPSTREAM_HEADER_BYTES_SENT\"]})%";
    assert_eq!(wanted(inside), Some("UPSTREAM_HEADER_BYTES_SENT"));
    let refused = Format::text(inside).and_then(Format::known_early).unwrap_err().to_string();
    assert!(refused.contains("%UPSTREAM_HEADER_BYTES_SENT%") && refused.contains("access logs"), "{refused}");
    assert!(Format::text("%BYTES_SENT%").and_then(Format::known_early).is_ok());
}

#[test]
fn operators_that_are_not_honoured_are_refused_by_name() {
    for name in ["UPSTREAM_CX_RTT", "UPSTREAM_PEER_ISSUER_SERIAL", "TLS_JA5_FINGERPRINT"] {
        let bare = name.split('(').next().unwrap_or_default().to_owned();
        assert_eq!(Format::text(&format!("%{name}%")).unwrap_err(), FormatError::Unknown(bare));
    }
    for wrong in [
        "%CEL(a +)%",
        "%CEL%",
        "%CLUSTER_METADATA%",
        "%METADATA(NOBODY:a)%",
        "%COMMON_DURATION(DS_RX_BEG:nothing:ms)%",
        "%COALESCE({\"operators\": []})%",
        "%COALESCE({\"operators\": [\"REQ\"]})%",
        "%FILTER_STATE%",
        "%FILTER_STATE(a:FIELD:b)%",
        "%STREAM_ID(a)%",
        "%DOWNSTREAM_PEER_CERT(a)%",
    ] {
        assert!(matches!(Format::text(wrong).unwrap_err(), FormatError::Arguments(..)), "{wrong}");
    }
}

/// The control plane refuses formats whose commands it does not know, and lets through no others than are compiled here.
#[test]
fn the_control_plane_knows_the_commands_that_are_compiled_and_what_they_take() {
    use std::collections::BTreeSet;

    use super::operator::Operator;

    let arguments = [
        None,
        Some("x"),
        Some("DYNAMIC:x"),
        Some("DS_RX_BEG:DS_TX_END:ms"),
        Some("request.method"),
        Some("%s"),
        Some("8"),
        Some("SNI_FIRST"),
        Some("ORIG"),
        Some("{\"operators\": [\"PROTOCOL\"]}"),
    ];
    let known: BTreeSet<_> = xds_protos::format::commands().collect();
    for name in &known {
        let compiles = |given: &Option<&str>| Operator::parse(name, *given).is_ok();
        assert!(arguments.iter().any(compiles), "{name}: no proxy compiles it");
    }
    // Every word of these files that is a command.
    let sources =
        [include_str!("operator/parse.rs"), include_str!("operator/wire.rs"), include_str!("tls.rs")];
    let is_word = |word: &&str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    for word in sources.iter().flat_map(|source| source.split('"')).filter(is_word) {
        for name in [word.to_owned(), format!("DOWNSTREAM_{word}"), format!("UPSTREAM_{word}")] {
            let unknown = matches!(Operator::parse(&name, None), Err(FormatError::Unknown(_)));
            assert!(
                unknown || known.contains(name.as_str()),
                "{name} is compiled, and xds_protos::format does not know it"
            );
        }
    }
    for format in [
        "%REQ(:PATH)%",
        "%REQ%",
        "%REQ(a b)%",
        "%START_TIME(%Y%Q)%",
        "%START_TIME(%E3S%9f)%",
        "%GRPC_STATUS(X)%",
        "%PATH(NQ:PATH)%",
        "%PATH(NQ:X)%",
        "%COMMON_DURATION(DS_RX_BEG:US_TX_END:ns)%",
        "%COMMON_DURATION(DS_RX_BEG)%",
        "%METADATA(DYNAMIC:a:b)%",
        "%METADATA(CLUSTER:a)%",
        "%FILTER_STATE(a:FIELD:b)%",
        "%CEL(request.method)%",
        "%CEL(1 +)%",
        "%DURATION(x)%",
        "%QUERY_PARAM%",
        "%NOTHING%",
        "%DURATION",
    ] {
        let (checked, compiled) = (xds_protos::format::check(format), Format::text(format));
        assert_eq!(checked.is_ok(), compiled.is_ok(), "{format}: {checked:?}, {compiled:?}");
    }
}
