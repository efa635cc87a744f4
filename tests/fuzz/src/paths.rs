//! Paths: two spellings of one path are one path to the rules and to the upstream, and what the rules decided is what a plain
//! reading of the forwarded path gives.

use std::sync::{Arc, OnceLock};

use http::{HeaderName, StatusCode};
use serde_json::{Value, json};
use weft_proxy::http::HcmConfig;
use weft_proxy::state::Tables;

use super::proxy::{ask, compile, get};

/// Denied: these paths, what begins so, what ends so.
const EXACT: [&str; 4] = ["/admin", "/a/b/c", "/x", "/metrics/all"];
const PREFIX: [&str; 4] = ["/api/", "/internal", "/a//", "/x/y/"];
const SUFFIX: [&str; 4] = [".php", "/secret", "~", "-key"];
const PATH: HeaderName = HeaderName::from_static("x-path");

/// The first byte chooses the settings, the second how many changes of spelling follow as (kind, place); the rest is a path.
pub fn check(data: &[u8]) {
    let [settings, count, rest @ ..] = data else { return };
    let Some((changes, path)) = rest.split_at_checked(usize::from(count % 8) * 2) else { return };
    if !path.starts_with(b"/") || !path.iter().all(u8::is_ascii_graphic) {
        return;
    }
    let settings = Settings { merge: settings & 1 != 0, unescape: settings & 2 != 0 };
    let mut other = path.to_vec();
    for change in changes.chunks_exact(2) {
        respell(&mut other, change[0], usize::from(change[1]), settings);
    }
    let (first, second) = (Seen::of(path, settings), Seen::of(&other, settings));
    let show = || format!("{:?} and {:?}", String::from_utf8_lossy(path), String::from_utf8_lossy(&other));
    assert_eq!(first, second, "two spellings of one path: {}", show());
    let Some(path) = first.path else { return };
    let bare = path.split(['?', '#']).next().unwrap_or_default();
    let denied = EXACT.contains(&bare)
        || PREFIX.iter().any(|p| bare.starts_with(p))
        || SUFFIX.iter().any(|s| bare.ends_with(s));
    assert_eq!(first.status == StatusCode::FORBIDDEN, denied, "{bare} is denied: {denied}");
    // Path parameters are Envoy's exception: dots before a semicolon are looked at once.
    if !bare.contains(';') {
        let dots = |s: &str| matches!(s.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
        assert!(!bare.split('/').any(dots) && !bare.contains('\\'), "{bare} can be read in two ways");
        let again = Seen::of(path.as_bytes(), settings);
        assert_eq!(again.path.as_ref(), Some(&path), "the next hop sees another path");
        assert_eq!(again.status, first.status);
    }
}

#[derive(Clone, Copy)]
struct Settings {
    merge: bool,
    unescape: bool,
}

/// What became of a request: the answer, and the path as the rules saw it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: StatusCode,
    path: Option<String>,
}

impl Seen {
    fn of(path: &[u8], settings: Settings) -> Self {
        static FILTERS: [OnceLock<Arc<HcmConfig>>; 4] = [const { OnceLock::new() }; 4];
        let number = usize::from(settings.merge) + 2 * usize::from(settings.unescape);
        let filter = FILTERS[number].get_or_init(|| Arc::new(filter(settings)));
        let reply = ask(filter, get(path));
        let path = reply.head.headers.get(&PATH).and_then(|v| v.to_str().ok()).map(str::to_owned);
        Self { status: reply.head.status, path }
    }
}

fn filter(settings: Settings) -> HcmConfig {
    let rule = |matching: Value| json!({"url_path": {"path": matching}});
    let exact = EXACT.iter().map(|t| rule(json!({"exact": t})));
    let prefix = PREFIX.iter().map(|t| rule(json!({"prefix": t})));
    let suffix = SUFFIX.iter().map(|t| rule(json!({"suffix": t})));
    // One policy for each, so that the engine finds them by its index.
    let policies: serde_json::Map<_, _> = exact
        .chain(prefix)
        .chain(suffix)
        .enumerate()
        .map(|(i, rule)| (format!("p{i}"), json!({"permissions": [rule], "principals": [{"any": true}]})))
        .collect();
    let filter = json!({"name": "envoy.filters.http.rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {"action": "DENY", "policies": policies}}});
    // The path as it is when rules have been asked: local answers are of this route, too.
    let routes = json!([{"match": {"prefix": "/"}, "direct_response": {"status": 200},
        "response_headers_to_add": [{"header": {"key": "x-path", "value": "%REQ(:PATH)%"}}]}]);
    let mut more = json!({"merge_slashes": settings.merge});
    if settings.unescape {
        more["path_with_escaped_slashes_action"] = json!("UNESCAPE_AND_FORWARD");
    }
    compile(&Tables::default(), &[filter], routes, more).expect("the configuration is good")
}

/// Spells a path in another way, if there is one of this kind at this place.
fn respell(path: &mut Vec<u8>, kind: u8, place: usize, settings: Settings) {
    let end = path.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(path.len());
    let at = place % end.max(1);
    let (Some(byte), plain) = (path.get(at).copied(), !path[..end].contains(&b';')) else { return };
    let dotted = path[..end].windows(2).any(|w| matches!(w, [b'/' | b'\\', b'.' | b'%']) || w == b"%2")
        || path[..end].contains(&b'\\');
    // A digit of an escape is no character of its own.
    let escaped = (1..=2).any(|back| at >= back && path[at - back] == b'%');
    let slash = byte == b'/';
    match kind % 6 {
        0 if plain
            && !escaped
            && (byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')) =>
        {
            path.splice(at..=at, format!("%{byte:02x}").into_bytes());
        }
        1 if slash => drop(path.splice(at..=at, *b"/./")),
        2 if slash => drop(path.splice(at..=at, *b"/z/../")),
        3 if slash && at > 0 => path[at] = b'\\',
        // Dots are resolved before slashes are merged, and of nothing but slashes two stay, as in Envoy.
        4 if slash && settings.merge && !dotted && path[..end].iter().any(|b| *b != b'/') => {
            drop(path.splice(at..=at, *b"//"))
        }
        5 if slash && at > 0 && settings.unescape => drop(path.splice(at..=at, *b"%2F")),
        _ => {}
    }
}
