//! An event as a line of ArcSight's Common Event Format, version 0, which most systems that correlate events read:
//! `CEF:0|Weft|Weft|VERSION|EVENT|NAME|SEVERITY|EXTENSION`. No header of syslog stands before it, as is right in a file: who ships lines by
//! syslog puts its own there.
//!
//! What the format's dictionary has a key for stands under that key, cut to that key's length; what an operator searches for and
//! has none is in one of the six custom strings, each with one meaning in all events; the rest has keys of ours, named as the format
//! wants those of vendors to be: `Weft`, and the name of docs/security-events.md.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{Event, Kind, Origin, Outcome, Severity};

/// The most that the dictionary allows of most texts.
const TEXT: usize = 1023;
/// The most of an id given elsewhere (`externalId`).
const ID: usize = 40;

/// The custom strings: our name, key, label.
const STRINGS: [(&str, &str, &str); 6] = [
    ("trace_id", "cs1", "traceId"),
    ("policy", "cs2", "policy"),
    ("operation", "cs3", "operation"),
    ("resource", "cs4", "resource"),
    ("serial", "cs5", "serial"),
    ("command_id", "cs6", "commandId"),
];

/// The keys of one end of a connection. `src` and `dst` are for IPv4 alone.
struct End {
    v4: &'static str,
    v6: [&'static str; 3],
    port: &'static str,
}

const SOURCE: End = End { v4: "src", v6: ["c6a2", "c6a2Label", "Source IPv6 Address"], port: "spt" };
const DESTINATION: End =
    End { v4: "dst", v6: ["c6a3", "c6a3Label", "Destination IPv6 Address"], port: "dpt" };

/// The event as a line, without its end.
pub fn to_line(event: &Event, origin: &Origin) -> String {
    let mut line = String::from("CEF:0");
    let severity = severity(event.severity).to_string();
    for field in ["Weft", "Weft", env!("CARGO_PKG_VERSION"), event.kind.name(), name(event.kind), &severity] {
        line.push('|');
        header(&mut line, field);
    }
    line.push('|');
    let mut extension = Extension { line, begun: false };
    extension.put("rt", TEXT, &millis(event.time));
    extension.put("act", 63, action(event));
    extension.put("outcome", 63, if event.outcome == Outcome::Ok { "success" } else { "failure" });
    extension.put("msg", TEXT, &event.message);
    extension.put("deviceFacility", TEXT, event.by);
    extension.put("deviceProcessName", TEXT, origin.component);
    extension.put("dvchost", 100, &origin.workload);
    extension.put("deviceExternalId", 255, &format!("{}/{}", origin.namespace, origin.workload));
    for (name, value) in event.fields() {
        match value {
            Value::String(text) => extension.field(event, name, text),
            other => extension.field(event, name, &other.to_string()),
        }
    }
    extension.line
}

struct Extension {
    line: String,
    begun: bool,
}

impl Extension {
    /// One key and its value, if there is one.
    fn put(&mut self, key: &str, longest: usize, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.begun {
            self.line.push(' ');
        }
        self.begun = true;
        self.line.push_str(key);
        self.line.push('=');
        let end = (0..=longest.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        value(&mut self.line, &text[..end.unwrap_or_default()]);
    }

    fn field(&mut self, event: &Event, name: &str, text: &str) {
        if let Some((_, key, label)) = STRINGS.iter().find(|(ours, ..)| *ours == name) {
            self.put(&format!("{key}Label"), TEXT, label);
            return self.put(key, 4000, text);
        }
        match name {
            "source_address" => self.end(&SOURCE, name, text),
            "destination_address" => self.end(&DESTINATION, name, text),
            "source_principal" => self.put("suser", TEXT, text),
            "actor" if event.field("source_principal").is_none() => self.put("suser", TEXT, text),
            "destination_principal" => self.put("duser", TEXT, text),
            "sni" => self.put("dhost", TEXT, text),
            "method" => self.put("requestMethod", TEXT, text),
            // A request's URL is its authority and its path; of the two one puts both.
            "path" => {
                let authority = event.text("authority").unwrap_or_default();
                self.put("request", TEXT, &format!("{authority}{text}"));
            }
            "authority" => {
                if event.field("sni").is_none() {
                    self.put("dhost", TEXT, host(text));
                }
                if event.field("path").is_none() {
                    self.put("request", TEXT, text);
                }
            }
            "reason" => self.put("reason", TEXT, text),
            // Half an id finds nothing.
            "request_id" if text.len() <= ID => self.put("externalId", ID, text),
            "status" if text.parse::<i64>().is_ok() => {
                self.put("cn1Label", TEXT, "status");
                self.put("cn1", TEXT, text);
            }
            "count" if text.parse::<u32>().is_ok() => self.put("cnt", TEXT, text),
            "expires" => match OffsetDateTime::parse(text, &Rfc3339) {
                Ok(time) => {
                    self.put("deviceCustomDate1Label", TEXT, "expires");
                    self.put("deviceCustomDate1", TEXT, &millis(time));
                }
                Err(_) => self.own(name, text),
            },
            _ => self.own(name, text),
        }
    }

    /// An address, with its port if it has one; what is none goes under a key of ours.
    fn end(&mut self, keys: &End, name: &str, text: &str) {
        let parsed = text.parse::<SocketAddr>().map(|at| (at.ip(), Some(at.port())));
        let Ok((address, port)) = parsed.or_else(|_| text.parse::<IpAddr>().map(|ip| (ip, None))) else {
            return self.own(name, text);
        };
        match address.to_canonical() {
            IpAddr::V4(ip) => self.put(keys.v4, TEXT, &ip.to_string()),
            IpAddr::V6(ip) => {
                let [key, label, words] = keys.v6;
                self.put(label, TEXT, words);
                self.put(key, TEXT, &ip.to_string());
            }
        }
        if let Some(port) = port {
            self.put(keys.port, TEXT, &port.to_string());
        }
    }

    /// `source_address` under `WeftSourceAddress`.
    fn own(&mut self, name: &str, text: &str) {
        let mut key = String::from("Weft");
        for word in name.split(|c: char| !c.is_ascii_alphanumeric()) {
            let mut letters = word.chars();
            key.extend(letters.next().map(|c| c.to_ascii_uppercase()));
            key.push_str(letters.as_str());
        }
        self.put(&key, usize::MAX, text);
    }
}

/// What its kind is called by people. Nothing of the single event may be in it.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Denied => "Request or connection denied",
        Kind::HandshakeFailed => "TLS handshake failed",
        Kind::ConfigRejected => "Configuration rejected",
        Kind::Certificate => "Certificate issued, renewed or refused",
        Kind::Admin => "Administration",
        Kind::Quarantine => "Quarantine of a workload",
        Kind::Ejection => "Endpoint ejected or returned",
        Kind::Breaker => "Circuit breaker open",
        Kind::Canary => "Version on trial weighted",
        Kind::Suppressed => "Events suppressed",
    }
}

/// What Weft did.
fn action(event: &Event) -> &'static str {
    match (event.kind, event.outcome) {
        (_, Outcome::Denied) => "deny",
        (Kind::ConfigRejected, _) => "reject",
        (Kind::HandshakeFailed, _) => "close",
        (Kind::Certificate, Outcome::Ok) => match event.by {
            "authority" => "issue",
            _ => "renew",
        },
        (Kind::Quarantine, Outcome::Ok) => match event.text("operation") {
            Some("release") => "release",
            _ => "quarantine",
        },
        (Kind::Suppressed, _) => "count",
        (_, Outcome::Ok) => "allow",
        (_, Outcome::Failed) => "fail",
    }
}

/// Of 0 to 10: up to 3 is low, up to 6 medium, up to 8 high.
fn severity(severity: Severity) -> u8 {
    match severity {
        Severity::Info => 1,
        Severity::Low => 3,
        Severity::Medium => 5,
        Severity::High => 8,
    }
}

fn millis(time: OffsetDateTime) -> String {
    (time.unix_timestamp_nanos() / 1_000_000).to_string()
}

/// An authority without its port.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// In the header pipes and backslashes are escaped, and a line's end cannot be.
fn header(line: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '|' | '\\' => line.extend(['\\', c]),
            c if ends_lines(c) => line.push(' '),
            c => line.push(c),
        }
    }
}

/// In the extension equals signs, backslashes and lines' ends are escaped. There is no escape for other control characters, some of
/// which end lines to some readers.
fn value(line: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '=' | '\\' => line.extend(['\\', c]),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            c if ends_lines(c) => line.push(char::REPLACEMENT_CHARACTER),
            c => line.push(c),
        }
    }
}

fn ends_lines(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Reads a line by the format's rules, and by them alone.
    fn read(line: &str) -> (Vec<String>, BTreeMap<String, String>) {
        let (mut fields, mut field, mut characters) = (Vec::new(), String::new(), line.chars());
        while fields.len() < 7 {
            match characters.next().expect("seven pipes") {
                '|' => fields.push(std::mem::take(&mut field)),
                '\\' => match characters.next() {
                    Some(c @ ('|' | '\\')) => field.push(c),
                    other => panic!("{other:?} escaped in the header of {line}"),
                },
                c => field.push(c),
            }
        }
        // A key is the word before an equals sign that is not escaped; one space before it is no part of the value before.
        let text: Vec<char> = characters.collect();
        let (mut pairs, mut key, mut value, mut at) = (BTreeMap::new(), None, String::new(), 0);
        let mut keep = |key: Option<String>, value: String| match key {
            Some(key) => assert_eq!(pairs.insert(key, value), None, "a key twice in {line}"),
            None => assert_eq!(value, "", "a value without a key in {line}"),
        };
        while at < text.len() {
            match text[at] {
                '\\' => {
                    at += 1;
                    value.push(match text.get(at) {
                        Some(c @ ('\\' | '=')) => *c,
                        Some('n') => '\n',
                        Some('r') => '\r',
                        other => panic!("{other:?} escaped in the extension of {line}"),
                    });
                }
                '=' => {
                    let word = value.rfind(' ').map_or(0, |space| space + 1);
                    let next = value.split_off(word);
                    assert!(!next.is_empty() && next.chars().all(|c| c.is_ascii_alphanumeric()), "{line}");
                    value.pop();
                    keep(key.replace(next), std::mem::take(&mut value));
                }
                c => value.push(c),
            }
            at += 1;
        }
        keep(key, value);
        (fields, pairs)
    }

    /// The keys of the dictionary that we use, and the most that each may hold.
    const DICTIONARY: [(&str, usize); 40] = [
        ("act", 63),
        ("c6a2", 39),
        ("c6a2Label", 1023),
        ("c6a3", 39),
        ("c6a3Label", 1023),
        ("cn1", 19),
        ("cn1Label", 1023),
        ("cnt", 10),
        ("cs1", 4000),
        ("cs1Label", 1023),
        ("cs2", 4000),
        ("cs2Label", 1023),
        ("cs3", 4000),
        ("cs3Label", 1023),
        ("cs4", 4000),
        ("cs4Label", 1023),
        ("cs5", 4000),
        ("cs5Label", 1023),
        ("cs6", 4000),
        ("cs6Label", 1023),
        ("deviceCustomDate1", 19),
        ("deviceCustomDate1Label", 1023),
        ("deviceExternalId", 255),
        ("deviceFacility", 1023),
        ("deviceProcessName", 1023),
        ("dhost", 1023),
        ("dpt", 5),
        ("dst", 15),
        ("duser", 1023),
        ("dvchost", 100),
        ("externalId", 40),
        ("msg", 1023),
        ("outcome", 63),
        ("reason", 1023),
        ("request", 1023),
        ("requestMethod", 1023),
        ("rt", 19),
        ("spt", 5),
        ("src", 15),
        ("suser", 1023),
    ];

    /// Reads it, and holds what holds of every line.
    fn held(event: &Event, origin: &Origin) -> BTreeMap<String, String> {
        let line = to_line(event, origin);
        assert!(!line.chars().any(ends_lines), "{line:?}");
        let (fields, pairs) = read(&line);
        assert_eq!(fields[..3], ["CEF:0", "Weft", "Weft"], "{line}");
        assert_eq!(fields[3..5], [env!("CARGO_PKG_VERSION"), event.kind.name()], "{line}");
        assert!(!fields[5].is_empty() && fields[6].parse::<u8>().is_ok_and(|s| s <= 10), "{line}");
        for (key, value) in &pairs {
            match DICTIONARY.iter().find(|(known, _)| known == key) {
                Some((_, longest)) => assert!(value.len() <= *longest, "{key} is too long: {line}"),
                None => assert!(key.starts_with("Weft"), "{key} is nowhere: {line}"),
            }
            if let Some(of) = key.strip_suffix("Label") {
                assert!(pairs.contains_key(of), "{key} is the label of nothing: {line}");
            }
            if ["cs", "cn1", "c6a"].iter().any(|custom| key.starts_with(custom)) {
                assert!(
                    key.ends_with("Label") || pairs.contains_key(&format!("{key}Label")),
                    "{key}: {line}"
                );
            }
        }
        for key in ["cn1", "cnt", "rt", "deviceCustomDate1"].iter().filter_map(|key| pairs.get(*key)) {
            assert!(key.parse::<i64>().is_ok(), "{line}");
        }
        for key in ["spt", "dpt"].iter().filter_map(|key| pairs.get(*key)) {
            assert!(key.parse::<u16>().is_ok(), "{line}");
        }
        for key in ["src", "dst"].iter().filter_map(|key| pairs.get(*key)) {
            assert!(key.parse::<std::net::Ipv4Addr>().is_ok(), "{line}");
        }
        assert_eq!(pairs["rt"], millis(event.time));
        pairs
    }

    /// Every field that docs/security-events.md has.
    fn documented() -> Vec<String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security-events.md");
        let page = std::fs::read_to_string(path).unwrap();
        let table = page.split("| Field | |").nth(1).unwrap().split("\n\n").next().unwrap();
        let names: Vec<_> = table
            .lines()
            .filter_map(|row| row.split('|').nth(1))
            .flat_map(|names| names.split('`').skip(1).step_by(2))
            .filter(|name| !["time", "message"].contains(name))
            .map(str::to_owned)
            .collect();
        assert!(names.len() > 30, "{names:?}");
        names
    }

    #[test]
    fn whatever_somebody_outside_chose_comes_back_by_the_formats_rules_and_changes_no_other_field() {
        let hostile = [
            "a|b\\c=d",
            "x src=6.6.6.6 act=allow",
            "one\ntwo\r\nCEF:0|Else|Else|1|denied|Nothing|0|act=allow",
            "\\",
            "\\=\\n=\\",
            " before and after  ",
            "ünïcødé 結び目 🧶",
            "\u{0}\u{7}\u{b}\u{85}\u{2028}\u{2029}\t",
            "=",
        ];
        let origin = Origin { component: "proxy", namespace: "n|=\\\n".into(), workload: "w=1 |\\\n".into() };
        let plain = |text: &str| -> String {
            let other = |c: char| ends_lines(c) && !['\n', '\r'].contains(&c);
            text.chars().map(|c| if other(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
        };
        let names = documented();
        for kind in Kind::ALL {
            for outcome in [Outcome::Ok, Outcome::Failed, Outcome::Denied] {
                for text in hostile {
                    let mut event = Event::new(kind, outcome, Severity::High, "by=|\\", text);
                    for name in &names {
                        event = event.with(name, text);
                    }
                    let pairs = held(&event, &origin);
                    let of = |key: &str| pairs.get(key).unwrap_or_else(|| panic!("no {key} in {pairs:#?}"));
                    assert_eq!(of("msg"), &plain(text));
                    assert_eq!((of("dvchost"), of("deviceFacility")), (&origin.workload, &"by=|\\".into()));
                    for name in &names {
                        let own = format!("Weft{}", pascal(name));
                        let key: &str = match name.as_str() {
                            "trace_id" => "cs1",
                            "policy" => "cs2",
                            "operation" => "cs3",
                            "resource" => "cs4",
                            "serial" => "cs5",
                            "command_id" => "cs6",
                            "source_principal" => "suser",
                            "destination_principal" => "duser",
                            "sni" => "dhost",
                            "method" => "requestMethod",
                            "reason" => "reason",
                            "authority" | "path" => {
                                assert_eq!(of("request"), &plain(&format!("{text}{text}")));
                                continue;
                            }
                            "request_id" if text.len() <= ID => "externalId",
                            // No number, no address, no time: it is not under a key that wants one.
                            _ => &own,
                        };
                        assert_eq!(of(key), &plain(text), "{name}");
                    }
                    assert_eq!(of("act") == "deny", outcome == Outcome::Denied);
                    assert_eq!(of("outcome") == "success", outcome == Outcome::Ok);
                }
            }
        }
    }

    fn pascal(name: &str) -> String {
        name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
    }

    #[test]
    fn a_request_that_was_denied_has_the_dictionarys_keys() {
        let event =
            Event::new(Kind::Denied, Outcome::Denied, Severity::Medium, "rbac", "GET /api was denied")
                .with("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736")
                .with("request_id", "0cd2a8c0-7f4c-4b2c-9a1e-0c6e5b1f6f5a")
                .with("source_address", "10.0.0.7:4711")
                .with("source_principal", "spiffe://d/ns/a/sa/b")
                .with("destination_address", "[2001:db8::7]:8080")
                .with("destination_principal", "spiffe://d/ns/a/sa/c")
                .with("method", "GET")
                .with("path", "/api")
                .with("authority", "user-service:8080")
                .with("status", 403)
                .with("policy", "ns[a]-policy[b]-rule[0]")
                .with("listener", "inbound");
        let origin = Origin { component: "proxy", namespace: "n".into(), workload: "w-1".into() };
        let mut pairs = held(&event, &origin);
        pairs.remove("rt");
        let expected = [
            ("act", "deny"),
            ("outcome", "failure"),
            ("msg", "GET /api was denied"),
            ("deviceFacility", "rbac"),
            ("deviceProcessName", "proxy"),
            ("dvchost", "w-1"),
            ("deviceExternalId", "n/w-1"),
            ("cs1Label", "traceId"),
            ("cs1", "4bf92f3577b34da6a3ce929d0e0e4736"),
            ("externalId", "0cd2a8c0-7f4c-4b2c-9a1e-0c6e5b1f6f5a"),
            ("src", "10.0.0.7"),
            ("spt", "4711"),
            ("suser", "spiffe://d/ns/a/sa/b"),
            ("c6a3Label", "Destination IPv6 Address"),
            ("c6a3", "2001:db8::7"),
            ("dpt", "8080"),
            ("duser", "spiffe://d/ns/a/sa/c"),
            ("requestMethod", "GET"),
            ("request", "user-service:8080/api"),
            ("dhost", "user-service"),
            ("cn1Label", "status"),
            ("cn1", "403"),
            ("cs2Label", "policy"),
            ("cs2", "ns[a]-policy[b]-rule[0]"),
            ("WeftListener", "inbound"),
        ];
        let expected: BTreeMap<_, _> =
            expected.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        assert_eq!(pairs, expected);
        let line = to_line(&event, &origin);
        let head = format!(
            "CEF:0|Weft|Weft|{}|denied|Request or connection denied|5|rt=",
            env!("CARGO_PKG_VERSION")
        );
        assert!(line.starts_with(&head), "{line}");
    }

    #[test]
    fn numbers_times_and_long_texts_are_what_their_keys_want() {
        let long = "ä".repeat(600);
        let event = Event::new(Kind::Certificate, Outcome::Ok, Severity::Info, "authority", long.clone())
            .with("expires", "2026-11-26T20:50:33.5Z")
            .with("count", 7)
            .with("reason", long.clone())
            .with("request_id", "x".repeat(41))
            .with("actor", "ops")
            .with("source_address", "10.0.0.7");
        let origin =
            Origin { component: "control-plane", namespace: long.clone(), workload: "w".repeat(101) };
        let pairs = held(&event, &origin);
        assert_eq!((&*pairs["deviceCustomDate1"], &*pairs["cnt"]), ("1795726233500", "7"));
        assert_eq!((&*pairs["suser"], &*pairs["src"]), ("ops", "10.0.0.7"));
        assert_eq!((pairs.get("spt"), pairs["WeftRequestId"].len()), (None, 41));
        assert_eq!((pairs["reason"].as_str(), pairs["dvchost"].len()), (&*"ä".repeat(511), 100));
        assert_eq!(pairs["act"], "issue");
    }
}
