//! Access log lines as most people have them: Envoy's default text, Istio's default text and Istio's default JSON. Each case has
//! them written behind a line that names it, in the same file, and they are compared without what must differ: times, ports that
//! the kernel gave, made-up ids, and the two proxies' addresses.

use serde_json::{Map, Value, json};
use xds_protos::format::{ISTIO_JSON, ISTIO_TEXT};

/// A logger of a file; without a format it is Envoy's own.
pub fn logger(path: &str, format: Option<Value>) -> Value {
    let mut log = json!({ "name": "envoy.access_loggers.file", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": path
    } });
    if let Some(format) = format {
        log["typed_config"]["log_format"] = format;
    }
    log
}

/// The loggers of the default lines. They write one after the other, and come behind the one that names the case.
pub fn loggers(path: &str) -> Vec<Value> {
    let object: Map<_, _> = ISTIO_JSON.iter().map(|(key, what)| ((*key).to_owned(), json!(what))).collect();
    vec![
        logger(path, None),
        logger(path, Some(json!({ "text_format_source": { "inline_string": ISTIO_TEXT } }))),
        logger(path, Some(json!({ "json_format": object }))),
    ]
}

/// The default lines of each request of a case in a log, in order; of what is not written as a whole, nothing.
pub fn of_case(log: &str, case: &str, any_endpoint: bool) -> Vec<String> {
    let mark = format!("{case:?}");
    let names = |line: &str| {
        // Of thousands of lines only these are worth taking apart.
        line.contains(&mark) && serde_json::from_str::<Value>(line).is_ok_and(|line| line["case"] == case)
    };
    // What is behind the last line's end is still being written.
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    let all: Vec<_> = whole.split('\n').collect();
    let of_request = |at: usize| {
        let default = masked(all.get(at + 1)?, any_endpoint);
        let text = masked(all.get(at + 2)?, any_endpoint);
        let object: Map<String, Value> = serde_json::from_str(all.get(at + 3)?)
            .unwrap_or_else(|e| panic!("behind a line of {case} comes no object ({e}): {}", all[at + 3]));
        let of_object = |(key, value): (&String, &Value)| match (key.as_str(), value) {
            ("duration", Value::Number(_)) => format!("{key}=<ms>"),
            ("upstream_service_time", value) if value.as_str().is_none_or(is_number) && !value.is_null() => {
                format!("{key}=<ms>")
            }
            ("start_time", Value::String(time)) if is_time(time) => format!("{key}=<time>"),
            (_, value) => format!("{key}={}", common(&value.to_string(), any_endpoint)),
        };
        let object: Vec<_> = object.iter().map(of_object).collect();
        Some(format!("{default}\n{text}\n{}", object.join(" ")))
    };
    let mut lines: Vec<_> = (0..all.len()).filter(|at| names(all[*at])).filter_map(of_request).collect();
    lines.sort();
    lines
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// `2026-01-31T01:02:03.004Z`
fn is_time(text: &str) -> bool {
    let shape = |b: u8| if b.is_ascii_digit() { b'0' } else { b };
    text.bytes().map(shape).eq(*b"0000-00-00T00:00:00.000Z")
}

/// A line of text without what must differ.
fn masked(line: &str, any_endpoint: bool) -> String {
    let line = match line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((time, rest)) if is_time(time) => format!("[<time>]{rest}"),
        _ => line.to_owned(),
    };
    let mut parts: Vec<_> = line.split('"').map(str::to_owned).collect();
    // The numbers end with the duration and the upstream's own.
    for part in parts.iter_mut().skip(2) {
        let mut words: Vec<_> = part.split(' ').collect();
        if let ["", .., received, sent, duration, service, ""] = words[..]
            && [received, sent, duration].into_iter().all(is_number)
        {
            let last = words.len() - 1;
            words[last - 2] = "<ms>";
            if is_number(service) {
                words[last - 1] = "<ms>";
            }
            *part = words.join(" ");
            break;
        }
    }
    common(&parts.join("\""), any_endpoint)
}

/// Text without ids, ports and addresses that differ.
fn common(text: &str, any_endpoint: bool) -> String {
    let text = ["127.30.0", "127.30.1", "127.30.3"]
        .iter()
        .fold(text.to_owned(), |text, net| text.replace(&format!("{net}.2"), &format!("{net}.1")));
    let (mut out, mut rest) = (String::new(), &text[..]);
    while let Some(next) = rest.chars().next() {
        if let Some((id, after)) = rest.split_at_checked(36)
            && is_id(id)
        {
            out += &format!("<id {}>", &id[14..15]);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("127.30.2.").filter(|_| any_endpoint) {
            out += "127.30.2.<any>";
            rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
        } else if let Some((port, after)) = rest.strip_prefix(':').and_then(|r| r.split_at_checked(5))
            && out.ends_with(|c: char| c.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port >= 32_768)
            && !after.starts_with(|c: char| c.is_ascii_digit())
        {
            out += ":<port>";
            rest = after;
        } else if let Some(after) = rest.strip_prefix("TLS_error") {
            // How two libraries word what is wrong with a certificate differs; that it is TLS's does not. In a code of details
            // there are no blanks, elsewhere it stands in quotes.
            let word = out.rsplit(['"', ' ']).next().is_some_and(|word| !word.is_empty());
            let ends = |c: char| c == '"' || (word && c == ' ');
            out += "TLS_error";
            rest = after.trim_start_matches(|c| !ends(c));
        } else {
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out
}

fn is_id(text: &str) -> bool {
    text.bytes().enumerate().all(|(at, b)| match at {
        8 | 13 | 18 | 23 => b == b'-',
        _ => b.is_ascii_hexdigit(),
    })
}

#[test]
fn what_must_differ_is_masked_and_nothing_else() {
    let line = |time: &str, address: &str, ms: &str, id: &str| {
        format!(
            "[{time}] \"GET /a HTTP/1.1\" 200 - 3 12 {ms} {ms} \"-\" \"agent\" \"{id}\" \"a\" \"{address}\" x"
        )
    };
    let masked = |line: &str| masked(line, false);
    let one =
        line("2026-01-31T01:02:03.004Z", "127.30.3.1:40000", "7", "c2a8e1f0-0000-4000-8000-000000000001");
    let two =
        line("2027-01-31T01:02:03.004Z", "127.30.3.2:50000", "12", "c2a8e1f0-0000-4000-8000-000000000002");
    assert_eq!(masked(&one), masked(&two));
    assert!(masked(&one).contains("200 - 3 12 <ms> <ms> \"-\""), "{}", masked(&one));
    for other in [
        two.replace("3 12", "3 13"),
        two.replace("12 12 \"-\"", "12 - \"-\""),
        two.replace("127.30.3.2:50000", "127.30.3.2:12000"),
        two.replace("-4000-", "-9000-"),
        two.replace("2027-01", "2027/01"),
    ] {
        assert_ne!(masked(&one), masked(&other), "{other}");
    }
    let failed =
        |text: &str| masked(&format!("503 UF x{{failure|TLS_error:_{text}}} \"TLS_error: {text} b\" 0"));
    assert_eq!(failed("one"), "503 UF x{failure|TLS_error \"TLS_error\" 0");
    assert_eq!(failed("one"), failed("other"));
}
