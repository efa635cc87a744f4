//! Envoy's format strings (`%COMMAND(ARGUMENTS):LENGTH%`), as access logs, tags of spans and added headers have them: their parts, and
//! which commands there are. The proxy compiles what stands here; the control plane refuses what no proxy of ours would compile.

/// Istio's default text of access logs, with the line's end.
pub const ISTIO_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// The keys of Istio's default JSON of access logs, and what they show.
pub const ISTIO_JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

/// A format that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` without its partner.
    #[error(
        "the format ends inside a command that starts at \"{0}\"; close it with %, or write %% for a percent sign"
    )]
    Unclosed(String),
    /// A command that Weft does not know.
    #[error("unknown command operator %{0}%; see Envoy's access log documentation for the names")]
    Unknown(String),
    /// A known command with arguments it does not take.
    #[error("command %{0}%: {1}")]
    Arguments(String, &'static str),
}

/// A part of a format string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// As it is.
    Text(String),
    /// What a request has in its place.
    Command {
        /// The operator.
        name: &'a str,
        /// What stands in its parentheses.
        arguments: Option<&'a str>,
        /// No more bytes than these.
        length: Option<usize>,
    },
}

/// The parts of a format string.
///
/// # Errors
/// A command does not end, or its length is no number.
pub fn parts(source: &str) -> Result<Vec<Part<'_>>, FormatError> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = source;
    while let Some(start) = rest.find('%') {
        text.push_str(&rest[..start]);
        let command = &rest[start + 1..];
        if let Some(after) = command.strip_prefix('%') {
            text.push('%');
            rest = after;
            continue;
        }
        let end = end_of_command(command).ok_or_else(|| FormatError::Unclosed(rest[start..].to_owned()))?;
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(split(&command[..end])?);
        rest = &command[end + 1..];
    }
    text.push_str(rest);
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

/// A command ends at the first `%` outside of its parentheses (a time format has percent signs inside them).
fn end_of_command(command: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (i, c) in command.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '%' if depth == 0 => return Some(i),
            _ => {}
        }
    }
    None
}

/// `NAME(ARGUMENTS):LENGTH` in its parts.
fn split(command: &str) -> Result<Part<'_>, FormatError> {
    let length = |text: &str| {
        text.parse()
            .map(Some)
            .map_err(|_| FormatError::Arguments(command.to_owned(), "the length is not a number"))
    };
    let (name, arguments, length) = match command.find('(') {
        Some(open) => {
            let close = command
                .rfind(')')
                .ok_or(FormatError::Arguments(command.to_owned(), "the parenthesis is not closed"))?;
            let after = &command[close + 1..];
            let length = match after.strip_prefix(':') {
                Some(text) => length(text)?,
                None if after.is_empty() => None,
                None => return Err(FormatError::Arguments(command.to_owned(), "text after the parenthesis")),
            };
            (&command[..open], Some(&command[open + 1..close]), length)
        }
        None => match command.split_once(':') {
            Some((name, text)) => (name, None, length(text)?),
            None => (command, None, None),
        },
    };
    Ok(Part::Command { name, arguments, length })
}

/// An operator among several of which the first that has something to say is taken (`%COALESCE%`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The operator.
    pub command: String,
    /// What stood in its parentheses.
    pub param: Option<String>,
    /// No more bytes than these.
    pub max_length: Option<usize>,
}

/// More than these in one another are refused: each is read by calls of its own.
const DEEPEST: usize = 4;

/// The operators that `%COALESCE%` has in its parentheses.
///
/// # Errors
/// They are not as Envoy's documentation has them.
pub fn choices(arguments: Option<&str>) -> Result<Vec<Choice>, FormatError> {
    let bad = |what| FormatError::Arguments("COALESCE".to_owned(), what);
    let text = arguments.unwrap_or_default();
    if text.matches("COALESCE").count() >= DEEPEST {
        return Err(bad("has too many of its own kind in itself"));
    }
    let wrong = || {
        bad(
            "takes a JSON object with operators, a list of names or of objects with command, param, max_length",
        )
    };
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|_| wrong())?;
    let [("operators", serde_json::Value::Array(operators))] =
        object.iter().map(|(key, value)| (key.as_str(), value)).collect::<Vec<_>>()[..]
    else {
        return Err(wrong());
    };
    if operators.is_empty() {
        return Err(bad("needs an operator at least"));
    }
    let choice = |operator: &serde_json::Value| match operator {
        serde_json::Value::String(name) => {
            Some(Choice { command: name.clone(), param: None, max_length: None })
        }
        serde_json::Value::Object(fields) => {
            let mut choice = Choice { command: String::new(), param: None, max_length: None };
            for (key, value) in fields {
                match key.as_str() {
                    "command" => value.as_str()?.clone_into(&mut choice.command),
                    "param" => choice.param = Some(value.as_str()?.to_owned()),
                    "max_length" => {
                        let length = value.as_u64().and_then(|n| usize::try_from(n).ok());
                        choice.max_length = Some(length.filter(|n| *n > 0)?);
                    }
                    _ => return None,
                }
            }
            Some(choice).filter(|choice| !choice.command.is_empty())
        }
        _ => None,
    };
    operators.iter().map(|operator| choice(operator).ok_or_else(wrong)).collect()
}

/// What a command takes in its parentheses.
#[derive(Clone, Copy, Debug)]
enum Takes {
    Nothing,
    /// A form of times, if any.
    Time,
    /// The name of a header field, and behind `?` that of another.
    Field,
    /// Something; what it has to be.
    Some(&'static str),
    /// One of these, if anything.
    OneOf(&'static [&'static str], &'static str),
    /// An expression in CEL.
    Cel,
    /// How many bits of an address, if anything.
    Bits,
    /// Operators in JSON.
    Choices,
    /// `NAMESPACE:KEY:KEY...`
    Metadata,
    /// The same behind what it is of: `DYNAMIC:`.
    MetadataOf,
    /// `POINT:POINT:UNIT`
    Duration,
    /// `KEY:PLAIN` or `KEY:TYPED`
    FilterState,
}

/// What metadata may be of.
pub const OF: &str = "takes DYNAMIC, CLUSTER, ROUTE, UPSTREAM_HOST, VIRTUAL_HOST, LISTENER or LISTENER_FILTER_CHAIN, and behind a \
colon a namespace";

const KINDS: [&str; 7] =
    ["DYNAMIC", "CLUSTER", "ROUTE", "UPSTREAM_HOST", "VIRTUAL_HOST", "LISTENER", "LISTENER_FILTER_CHAIN"];

/// What an address may be cut to.
pub const BITS: &str = "takes how many bits of the address are shown, 0 to 128";

/// What a duration is between, and counted in.
pub const POINTS_AND_UNIT: &str = "takes two of DS_HS_BEG, DS_HS_END, DS_RX_BEG, DS_RX_END, US_CX_BEG, US_CX_END, US_HS_END, US_TX_BEG, \
US_TX_END, US_RX_BEG, US_RX_BODY_BEG, US_RX_END, DS_TX_BEG, DS_TX_END, and one of ms, us, ns";

const WHICH_SERVER_NAME: &str =
    "takes SNI_ONLY, SNI_FIRST or HOST_FIRST, then a colon and ORIG, HOST or ORIG_OR_HOST";

const SERVER_NAMES: &[&str] = &[
    "SNI_ONLY",
    "SNI_FIRST",
    "HOST_FIRST",
    "SNI_ONLY:ORIG",
    "SNI_ONLY:HOST",
    "SNI_ONLY:ORIG_OR_HOST",
    "SNI_FIRST:ORIG",
    "SNI_FIRST:HOST",
    "SNI_FIRST:ORIG_OR_HOST",
    "HOST_FIRST:ORIG",
    "HOST_FIRST:HOST",
    "HOST_FIRST:ORIG_OR_HOST",
];

/// Every command that the proxy compiles. (It knows best: a test of its own holds that it knows these, and no others.)
const COMMANDS: &[(&str, Takes)] = {
    use Takes::{
        Bits, Cel, Choices, Duration, Field, FilterState, Metadata, MetadataOf, Nothing, OneOf, Some, Time,
    };
    &[
        ("ACCESS_LOG_TYPE", Nothing),
        ("BYTES_RECEIVED", Nothing),
        ("BYTES_RETRANSMITTED", Nothing),
        ("BYTES_SENT", Nothing),
        ("CEL", Cel),
        ("CLUSTER_METADATA", Metadata),
        ("COALESCE", Choices),
        ("COMMON_DURATION", Duration),
        ("CONNECTION_ID", Nothing),
        ("CONNECTION_TERMINATION_DETAILS", Nothing),
        ("CUSTOM_FLAGS", Nothing),
        ("DOWNSTREAM_CX_RTT", Nothing),
        ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", Nothing),
        ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", Nothing),
        ("DOWNSTREAM_DETECTED_CLOSE_TYPE", Nothing),
        ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS", Nothing),
        ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID", Nothing),
        ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT", Bits),
        ("DOWNSTREAM_DIRECT_LOCAL_PORT", Nothing),
        ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Nothing),
        ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Bits),
        ("DOWNSTREAM_DIRECT_REMOTE_PORT", Nothing),
        ("DOWNSTREAM_HANDSHAKE_DURATION", Nothing),
        ("DOWNSTREAM_HEADER_BYTES_RECEIVED", Nothing),
        ("DOWNSTREAM_HEADER_BYTES_SENT", Nothing),
        ("DOWNSTREAM_LOCAL_ADDRESS", Nothing),
        ("DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID", Nothing),
        ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Bits),
        ("DOWNSTREAM_LOCAL_CLOSE_REASON", Nothing),
        ("DOWNSTREAM_LOCAL_DNS_SAN", Nothing),
        ("DOWNSTREAM_LOCAL_EMAIL_SAN", Nothing),
        ("DOWNSTREAM_LOCAL_IP_SAN", Nothing),
        ("DOWNSTREAM_LOCAL_OTHERNAME_SAN", Nothing),
        ("DOWNSTREAM_LOCAL_PORT", Nothing),
        ("DOWNSTREAM_LOCAL_SUBJECT", Nothing),
        ("DOWNSTREAM_LOCAL_URI_SAN", Nothing),
        ("DOWNSTREAM_PEER_CERT", Nothing),
        ("DOWNSTREAM_PEER_CERT_V_END", Time),
        ("DOWNSTREAM_PEER_CERT_V_START", Time),
        ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1", Nothing),
        ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256", Nothing),
        ("DOWNSTREAM_PEER_CHAIN_SERIALS", Nothing),
        ("DOWNSTREAM_PEER_DNS_SAN", Nothing),
        ("DOWNSTREAM_PEER_EMAIL_SAN", Nothing),
        ("DOWNSTREAM_PEER_FINGERPRINT_1", Nothing),
        ("DOWNSTREAM_PEER_FINGERPRINT_256", Nothing),
        ("DOWNSTREAM_PEER_IP_SAN", Nothing),
        ("DOWNSTREAM_PEER_ISSUER", Nothing),
        ("DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256", Nothing),
        ("DOWNSTREAM_PEER_ISSUER_SERIAL", Nothing),
        ("DOWNSTREAM_PEER_OTHERNAME_SAN", Nothing),
        ("DOWNSTREAM_PEER_SERIAL", Nothing),
        ("DOWNSTREAM_PEER_SUBJECT", Nothing),
        ("DOWNSTREAM_PEER_URI_SAN", Nothing),
        ("DOWNSTREAM_REMOTE_ADDRESS", Nothing),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Bits),
        ("DOWNSTREAM_REMOTE_PORT", Nothing),
        ("DOWNSTREAM_TLS_CIPHER", Nothing),
        ("DOWNSTREAM_TLS_GROUP", Nothing),
        ("DOWNSTREAM_TLS_SESSION_ID", Nothing),
        ("DOWNSTREAM_TLS_VERSION", Nothing),
        ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", Nothing),
        ("DOWNSTREAM_WIRE_BYTES_RECEIVED", Nothing),
        ("DOWNSTREAM_WIRE_BYTES_SENT", Nothing),
        ("DURATION", Nothing),
        ("DYNAMIC_METADATA", Metadata),
        ("EMIT_TIME", Time),
        ("EMIT_TIME_LOCAL", Time),
        ("ENVIRONMENT", Some("give it a variable's name")),
        ("FILTER_CHAIN_NAME", Nothing),
        ("FILTER_STATE", FilterState),
        (
            "GRPC_STATUS",
            OneOf(&["CAMEL_STRING", "SNAKE_STRING", "NUMBER"], "takes CAMEL_STRING, SNAKE_STRING or NUMBER"),
        ),
        ("GRPC_STATUS_NUMBER", Nothing),
        ("HOSTNAME", Nothing),
        ("LOCAL_REPLY_BODY", Nothing),
        ("METADATA", MetadataOf),
        ("PACKETS_RETRANSMITTED", Nothing),
        (
            "PATH",
            OneOf(
                &[
                    "WQ",
                    "NQ",
                    ":ORIG",
                    ":PATH",
                    ":ORIG_OR_PATH",
                    "WQ:ORIG",
                    "WQ:PATH",
                    "WQ:ORIG_OR_PATH",
                    "NQ:ORIG",
                    "NQ:PATH",
                    "NQ:ORIG_OR_PATH",
                ],
                "takes WQ or NQ, then a colon and ORIG, PATH or ORIG_OR_PATH",
            ),
        ),
        ("PROTOCOL", Nothing),
        ("QUERY_PARAM", Some("give it a parameter's name")),
        ("QUERY_PARAMS", OneOf(&["ORIG"], "takes ORIG or nothing")),
        ("REQ", Field),
        ("REQUESTED_SERVER_NAME", OneOf(SERVER_NAMES, WHICH_SERVER_NAME)),
        ("REQUEST_DURATION", Nothing),
        ("REQUEST_HEADER", Field),
        ("REQUEST_HEADERS_BYTES", Nothing),
        ("REQUEST_TX_DURATION", Nothing),
        ("REQ_WITHOUT_QUERY", Field),
        ("RESP", Field),
        ("RESPONSE_CODE", Nothing),
        ("RESPONSE_CODE_DETAILS", OneOf(&["ALLOW_WHITESPACES"], "takes ALLOW_WHITESPACES or nothing")),
        ("RESPONSE_DURATION", Nothing),
        ("RESPONSE_FLAGS", Nothing),
        ("RESPONSE_FLAGS_LONG", Nothing),
        ("RESPONSE_HEADER", Field),
        ("RESPONSE_HEADERS_BYTES", Nothing),
        ("RESPONSE_TRAILER", Field),
        ("RESPONSE_TRAILERS_BYTES", Nothing),
        ("RESPONSE_TX_DURATION", Nothing),
        ("ROUNDTRIP_DURATION", Nothing),
        ("ROUTE_NAME", Nothing),
        ("SPAN_ID", Nothing),
        ("START_TIME", Time),
        ("START_TIME_LOCAL", Time),
        ("STREAM_ID", Nothing),
        ("TLS_JA3_FINGERPRINT", Nothing),
        ("TLS_JA4_FINGERPRINT", Nothing),
        ("TRACE_ID", Nothing),
        ("TRAILER", Field),
        ("TYPED_CEL", Cel),
        ("UNIQUE_ID", Nothing),
        ("UPSTREAM_CLUSTER", Nothing),
        ("UPSTREAM_CLUSTER_RAW", Nothing),
        ("UPSTREAM_CONNECTION_ID", Nothing),
        ("UPSTREAM_CONNECTION_IDS_ATTEMPTED", Nothing),
        ("UPSTREAM_CONNECTION_POOL_READY_DURATION", Nothing),
        ("UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", Nothing),
        ("UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", Nothing),
        ("UPSTREAM_DETECTED_CLOSE_TYPE", Nothing),
        ("UPSTREAM_FILTER_STATE", FilterState),
        ("UPSTREAM_HEADER_BYTES_RECEIVED", Nothing),
        ("UPSTREAM_HEADER_BYTES_SENT", Nothing),
        ("UPSTREAM_HOST", Nothing),
        ("UPSTREAM_HOSTS_ATTEMPTED", Nothing),
        ("UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT", Nothing),
        ("UPSTREAM_HOST_NAME", Nothing),
        ("UPSTREAM_HOST_NAMES_ATTEMPTED", Nothing),
        ("UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT", Nothing),
        ("UPSTREAM_HOST_NAME_WITHOUT_PORT", Nothing),
        ("UPSTREAM_LOCAL_ADDRESS", Nothing),
        ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Bits),
        ("UPSTREAM_LOCAL_CLOSE_REASON", Nothing),
        ("UPSTREAM_LOCAL_DNS_SAN", Nothing),
        ("UPSTREAM_LOCAL_IP_SAN", Nothing),
        ("UPSTREAM_LOCAL_PORT", Nothing),
        ("UPSTREAM_LOCAL_URI_SAN", Nothing),
        ("UPSTREAM_METADATA", Metadata),
        ("UPSTREAM_PEER_CERT", Nothing),
        ("UPSTREAM_PEER_CERT_V_END", Time),
        ("UPSTREAM_PEER_CERT_V_START", Time),
        ("UPSTREAM_PEER_DNS_SAN", Nothing),
        ("UPSTREAM_PEER_IP_SAN", Nothing),
        ("UPSTREAM_PEER_ISSUER", Nothing),
        ("UPSTREAM_PEER_SUBJECT", Nothing),
        ("UPSTREAM_PEER_URI_SAN", Nothing),
        ("UPSTREAM_PROTOCOL", Nothing),
        ("UPSTREAM_REMOTE_ADDRESS", Nothing),
        ("UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID", Nothing),
        ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Bits),
        ("UPSTREAM_REMOTE_PORT", Nothing),
        ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Nothing),
        ("UPSTREAM_SERVER_NAME", Nothing),
        ("UPSTREAM_TLS_CIPHER", Nothing),
        ("UPSTREAM_TLS_GROUP", Nothing),
        ("UPSTREAM_TLS_SESSION_ID", Nothing),
        ("UPSTREAM_TLS_VERSION", Nothing),
        ("UPSTREAM_TRANSPORT_FAILURE_REASON", Nothing),
        ("UPSTREAM_WIRE_BYTES_RECEIVED", Nothing),
        ("UPSTREAM_WIRE_BYTES_SENT", Nothing),
        ("VIRTUAL_CLUSTER_NAME", Nothing),
    ]
};

/// Why a command is refused where a stream has not ended.
pub const AT_THE_END: &str = "is known when a stream has ended: only access logs can tell it";

/// The same for a format that is written before a stream has ended, as added fields and tags of spans are.
///
/// # Errors
/// Why no proxy compiles it.
pub fn check_early(source: &str) -> Result<(), FormatError> {
    check(source)?;
    parts(source)?.iter().try_for_each(|part| match part {
        Part::Text(_) => Ok(()),
        Part::Command { name, arguments, .. } => known_early(name, *arguments),
    })
}

fn known_early(name: &str, arguments: Option<&str>) -> Result<(), FormatError> {
    const LATE: [&str; 4] =
        ["_WIRE_BYTES_SENT", "_WIRE_BYTES_RECEIVED", "_HEADER_BYTES_SENT", "_HEADER_BYTES_RECEIVED"];
    if LATE.iter().any(|end| name.ends_with(end)) {
        return Err(FormatError::Arguments(name.to_owned(), AT_THE_END));
    }
    if name != "COALESCE" {
        return Ok(());
    }
    let choices = choices(arguments)?;
    choices.iter().try_for_each(|choice| known_early(&choice.command, choice.param.as_deref()))
}

/// The names of all commands.
pub fn commands() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, _)| *name)
}

/// Whether a proxy compiles this format string.
///
/// # Errors
/// Why it does not.
pub fn check(source: &str) -> Result<(), FormatError> {
    parts(source)?.iter().try_for_each(|part| match part {
        Part::Text(_) => Ok(()),
        Part::Command { name, arguments, .. } => command(name, *arguments),
    })
}

fn command(name: &str, arguments: Option<&str>) -> Result<(), FormatError> {
    let Some((_, takes)) = COMMANDS.iter().find(|(known, _)| *known == name) else {
        return Err(FormatError::Unknown(name.to_owned()));
    };
    let bad = |why| Err(FormatError::Arguments(name.to_owned(), why));
    let given = arguments.filter(|given| !given.is_empty());
    match (takes, given) {
        (Takes::Nothing, _) if arguments.is_some() => bad("takes no arguments"),
        (Takes::Time, Some(form)) if !is_time(form) => bad(
            "takes %Y %y %m %d %e %j %b %B %a %A %H %M %S %s %f %1f to %9f %E1S to %E9S %F %D %T %R %z %Z and text",
        ),
        (Takes::Field, given) if !given.is_some_and(are_fields) => {
            bad("give it a header name, such as (X-REQUEST-ID)")
        }
        (Takes::Some(what), None) => bad(what),
        (Takes::OneOf(words, what), Some(given)) if !words.contains(&given) => bad(what),
        (Takes::Cel, None) => bad("give it an expression, such as request.method"),
        (Takes::Cel, Some(text)) if crate::cel::compile(text).is_err() => Err(FormatError::Arguments(
            format!("{name}({text})"),
            "is no expression in CEL, or asks for what no stream has",
        )),
        (Takes::Metadata, given) if given.is_none_or(|path| path.starts_with(':')) => {
            bad("give it a namespace, such as a filter's name")
        }
        (Takes::MetadataOf, given) => match given.and_then(|given| given.split_once(':')) {
            None => bad(OF),
            Some((of, _)) if !KINDS.contains(&of) => bad(OF),
            Some((_, path)) if path.is_empty() || path.starts_with(':') => {
                bad("give it a namespace, such as a filter's name")
            }
            Some(_) => Ok(()),
        },
        (Takes::Duration, given) if !given.is_some_and(is_duration) => bad(POINTS_AND_UNIT),
        (Takes::Bits, Some(bits)) if !bits.parse::<u8>().is_ok_and(|bits| bits <= 128) => bad(BITS),
        (Takes::Choices, given) => {
            choices(given)?.iter().try_for_each(|choice| command(&choice.command, choice.param.as_deref()))
        }
        (Takes::FilterState, None) => bad("give it an object's name, such as (KEY:PLAIN)"),
        (Takes::FilterState, Some(given)) if given.contains(":FIELD:") => {
            bad("objects are texts and have no fields")
        }
        _ => Ok(()),
    }
}

/// `NAME` or `NAME?OTHER`, each a header field's or that of a pseudo header.
fn are_fields(given: &str) -> bool {
    const PSEUDO: [&str; 5] = [":method", ":path", ":authority", ":scheme", ":status"];
    let is_field = |name: &str| {
        // RFC 9110, section 5.6.2.
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        PSEUDO.contains(&name.to_ascii_lowercase().as_str()) || !name.is_empty() && name.bytes().all(token)
    };
    match given.split_once('?') {
        Some((first, other)) => is_field(first) && is_field(other),
        None => is_field(given),
    }
}

fn is_time(form: &str) -> bool {
    let mut rest = form;
    while let Some(start) = rest.find('%') {
        let spec = &rest[start + 1..];
        let length = match spec.as_bytes() {
            [b'E', b'1'..=b'9', b'S', ..] => 3,
            [b'1'..=b'9', b'f', ..] => 2,
            [one, ..] if b"fYymdejbBaAHMSszZ%FDRT".contains(one) => 1,
            _ => return false,
        };
        rest = &spec[length..];
    }
    true
}

fn is_duration(given: &str) -> bool {
    const POINTS: [&str; 14] = [
        "DS_HS_BEG",
        "DS_HS_END",
        "DS_RX_BEG",
        "DS_RX_END",
        "US_CX_BEG",
        "US_CX_END",
        "US_HS_END",
        "US_TX_BEG",
        "US_TX_END",
        "US_RX_BEG",
        "US_RX_BODY_BEG",
        "US_RX_END",
        "DS_TX_BEG",
        "DS_TX_END",
    ];
    match given.splitn(4, ':').collect::<Vec<_>>()[..] {
        [from, to, unit, ..] => {
            POINTS.contains(&from) && POINTS.contains(&to) && ["ms", "us", "ns"].contains(&unit)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_on_the_wire_are_told_at_the_end_alone() {
        for late in [
            "a %UPSTREAM_WIRE_BYTES_SENT%",
            "%DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED%",
            "%COALESCE({\"operators\": [\"PROTOCOL\", \"UPSTREAM_HEADER_BYTES_SENT\"]})%",
        ] {
            assert_eq!(check(late), Ok(()), "{late}");
            let refused = check_early(late).unwrap_err().to_string();
            assert!(refused.contains("_BYTES_") && refused.ends_with(AT_THE_END), "{late}: {refused}");
        }
        assert_eq!(check_early("%BYTES_SENT% %COALESCE({\"operators\": [\"PROTOCOL\"]})%"), Ok(()));
        assert!(check_early("%NOTHING%").is_err());
    }

    #[test]
    fn a_format_is_text_and_commands() {
        let all = parts("a%%b %REQ(X?Y):3% %START_TIME(%s.%3f)%%PROTOCOL%:8%BYTES_SENT:2%").unwrap();
        let text = |text: &str| Part::Text(text.to_owned());
        let command = |name, arguments, length| Part::Command { name, arguments, length };
        assert_eq!(
            all,
            [
                text("a%b "),
                command("REQ", Some("X?Y"), Some(3)),
                text(" "),
                command("START_TIME", Some("%s.%3f"), None),
                command("PROTOCOL", None, None),
                text(":8"),
                command("BYTES_SENT", None, Some(2)),
            ]
        );
        for (wrong, words) in [
            ("a %REQ(", "ends inside a command"),
            ("%REQ(X)x%", "text after"),
            ("%REQ(X):y%", "not a number"),
            ("50%", "write %%"),
        ] {
            assert!(parts(wrong).unwrap_err().to_string().contains(words), "{wrong}");
        }
    }

    #[test]
    fn what_no_proxy_compiles_is_refused_with_the_reason() {
        for fine in [
            "plain",
            "%REQ(:AUTHORITY)%%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
            "%START_TIME%",
            "%START_TIME(%Y/%m/%dT%H:%M:%E3S)%",
            "%GRPC_STATUS%",
            "%GRPC_STATUS(NUMBER)%",
            "%PATH(NQ:ORIG)%",
            "%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:ms)%",
            "%METADATA(DYNAMIC:envoy.filters.http.rbac:key)%",
            "%METADATA(CLUSTER:istio:services)%",
            "%UPSTREAM_METADATA(istio:workload)%",
            "%FILTER_STATE(wasm.upstream_peer:PLAIN)%",
            "%CEL(request.method == 'GET')%",
            "%DOWNSTREAM_PEER_CERT_V_END(%s)%",
            "%START_TIME_LOCAL(%H %Z)%",
            "%METADATA(LISTENER_FILTER_CHAIN:x)%",
            "%COALESCE({\"operators\": [\"REQUESTED_SERVER_NAME\", {\"command\": \"REQ\", \"param\": \":authority\"}]}):9%",
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%",
            "%REQUESTED_SERVER_NAME(SNI_FIRST:HOST)%",
        ] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        for (wrong, words) in [
            ("%RESPONSE_COD%", "unknown command operator %RESPONSE_COD%"),
            ("%RESPONSE_CODE(X)%", "takes no arguments"),
            ("%REQ%", "give it a header name"),
            ("%REQ(a b)%", "give it a header name"),
            ("%START_TIME(%Q)%", "takes %Y"),
            ("%GRPC_STATUS(LOUD)%", "CAMEL_STRING"),
            ("%PATH(X)%", "WQ or NQ"),
            ("%COMMON_DURATION(DS_RX_BEG:X:ms)%", "DS_RX_BEG"),
            ("%METADATA(NOBODY:x)%", "takes DYNAMIC"),
            ("%COALESCE({})%", "takes a JSON object"),
            ("%COALESCE({\"operators\": [\"NOTHING\"]})%", "unknown command operator %NOTHING%"),
            ("%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(129)%", "0 to 128"),
            ("%REQUESTED_SERVER_NAME(HOST)%", "SNI_FIRST"),
            ("%METADATA(ROUTE:)%", "give it a namespace"),
            ("%DYNAMIC_METADATA%", "give it a namespace"),
            ("%FILTER_STATE(k:FIELD:x)%", "no fields"),
            ("%CEL(nobody.knows)%", "no expression in CEL"),
            ("%ENVIRONMENT%", "a variable's name"),
        ] {
            let error = check(wrong).unwrap_err().to_string();
            assert!(error.contains(words), "{wrong}: {error}");
        }
    }
}
