//! One case for each operator: what it says of a request of which everything is known, and of a connection of bytes.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use rustls_pki_types::CertificateDer;
use xds_protos::prost_types::Value;
use xds_protos::prost_types::value::Kind;

use super::*;
use crate::codec::{Headers, Protocol};
use crate::io::metadata::Datum;
use crate::io::{Direction, TlsInfo};
use crate::telemetry::Flag;

const CLIENT: &[u8] = include_bytes!("../../../../certs/testdata/client.der");

fn tls() -> Arc<TlsInfo> {
    Arc::new(TlsInfo {
        version: "TLSv1.3",
        cipher: "TLS_AES_128_GCM_SHA256",
        group: "X25519MLKEM768",
        sni: Some("asked.example".into()),
        local_id: Some("spiffe://a/ns/b/sa/own".into()),
        peer_chain: vec![CertificateDer::from_slice(CLIENT).into_owned()],
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

fn connection() -> ConnectionInfo {
    ConnectionInfo {
        id: 7,
        direction: Direction::Inbound,
        direct_remote: "127.0.0.9:6000".parse().unwrap(),
        filter_chain: "chain".into(),
        sni: Some("shop.example".into()),
        tls: Some(tls()),
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
    let at = |millis| stream.start + Duration::from_millis(millis);
    (stream.request_end, stream.request_sent) = (Some(at(3)), Some(at(4)));
    stream.upstream_first_byte = Some(at(9));
    stream.status = Some(StatusCode::SERVICE_UNAVAILABLE);
    stream.flags.set(Flag::UpstreamConnectionFailure);
    stream.details = Some("via_upstream".into());
    stream.connection_termination_details = Some("max".into());
    stream.upstream_failure = Some("tls: no".into());
    (stream.bytes_received, stream.bytes_sent, stream.attempts) = (11, 22, 2);
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
    stream.metadata.set("a.filter", &"k".into(), Datum::Text("v".into()));
    stream.filter_state.set(&"an.object".into(), "said \"so\"", true);
    stream
}

/// What a configuration says: each place has its own name under `k`.
struct Said;

impl Configured for Said {
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

const SHA256: &str = "9d908ce2e847fe496069c3bcfa203da33eb35f214b0f3a452c8a7deb0d94af5a";
const SHA1: &str = "6519b7adfa2e5bf7b951933fc0d70cff129889f8";

#[test]
fn each_operator_says_what_is_known_and_a_dash_of_what_is_not() {
    let (connection, stream, request) = (connection(), stream(), request());
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
    let mut empty = StreamInfo::new(None);
    empty.start = Instant::now();
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
        ("%REQUEST_DURATION% %REQUEST_TX_DURATION% %RESPONSE_DURATION%", "3 4 9", "- - -"),
        ("%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)%", "9000", "-"),
        ("%COMMON_DURATION(DS_RX_END:US_TX_END:ns)%", "1000000", "-"),
        ("%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS%", "127.0.11.1:81 127.0.11.1:81", "- -"),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%", "127.0.11.1 81", "- -"),
        ("%UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "127.0.11.2:82 127.0.11.2", "- -"),
        ("%UPSTREAM_LOCAL_PORT%", "82", "-"),
        ("%UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW%", "cluster cluster", "- -"),
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
        ("%CONNECTION_ID% %UPSTREAM_REQUEST_ATTEMPT_COUNT%", "7 2", "0 0"),
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
        ("%LOCAL_REPLY_BODY% %ACCESS_LOG_TYPE%", "no DownstreamEnd", "- TcpConnectionEnd"),
        ("%STREAM_ID%", "id-1", "-"),
        // x-request-id, x-envoy-original-path, user-agent and four pseudo-headers; :status and server; grpc-status.
        ("%REQUEST_HEADERS_BYTES%", "110", "0"),
        ("%RESPONSE_HEADERS_BYTES% %RESPONSE_TRAILERS_BYTES%", "20 12", "0 0"),
        ("%ENVIRONMENT(NO_SUCH_VARIABLE)%", "-", "-"),
        ("%TRACE_ID% %SPAN_ID%", "- -", "- -"),
        (
            "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_LOCAL_URI_SAN%",
            "spiffe://a/ns/b/sa/c spiffe://a/ns/b/sa/own",
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
            "spiffe://a/ns/b/sa/c spiffe://a/ns/b/sa/own",
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
fn operators_that_are_not_honoured_are_refused_by_name() {
    for name in [
        "UPSTREAM_WIRE_BYTES_SENT",
        "DOWNSTREAM_HEADER_BYTES_RECEIVED",
        "DOWNSTREAM_TLS_SESSION_ID",
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
        "START_TIME_LOCAL",
    ] {
        let bare = name.split('(').next().unwrap_or_default().to_owned();
        assert_eq!(Format::text(&format!("%{name}%")).unwrap_err(), FormatError::Unknown(bare));
    }
    for wrong in [
        "%CEL(a +)%",
        "%CEL%",
        "%CLUSTER_METADATA%",
        "%METADATA(LISTENER:a)%",
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
    ];
    let known: BTreeSet<_> = xds_protos::format::commands().collect();
    for name in &known {
        let compiles = |given: &Option<&str>| Operator::parse(name, *given).is_ok();
        assert!(arguments.iter().any(compiles), "{name}: no proxy compiles it");
    }
    // Every word of these files that is a command.
    let sources = [include_str!("operator.rs"), include_str!("tls.rs")];
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
