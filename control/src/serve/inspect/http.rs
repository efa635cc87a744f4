//! What operators call: `GET /proxies` lists who is connected and can be asked, `GET /proxies/PROXY/admin/PAGE` gives a page of one's
//! admin interface, each with a bearer token.
//!
//! A token is somebody's own, so it is taken over TLS (the webhooks' port), or from this machine (the debug port, also by
//! `kubectl port-forward`), and not in plain text over a network.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use serde_json::{Value, json};
use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::super::Proxies;
use super::access::{Access, Denied, Somebody};
use super::places::Places;
use super::{Links, Missing, Refused, There, find, is_called, is_named_rightly, meant, short, there};

/// A body of any kind.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A page that somebody reads again and again is told so often.
const AGAIN: Duration = Duration::from_secs(60);
/// As many readers and pages are kept apart for that.
const KEPT: usize = 4096;

/// Answers operators. Cloning it shares it.
#[derive(Clone)]
pub struct Operators {
    proxies: Proxies,
    links: Links,
    access: Access,
    places: Places,
    told: Arc<Mutex<HashMap<Reading, (Instant, u64)>>>,
}

/// Who reads which page of whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reading {
    actor: String,
    proxy: String,
    page: String,
}

/// A body of a text.
pub fn whole(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Whether a path is answered here.
pub fn is_ours(path: &str) -> bool {
    path == "/proxies" || path.starts_with("/proxies/")
}

impl Operators {
    /// Answers for the connected `proxies`, whose streams are in `links`, to whom `access` lets in.
    pub fn new(proxies: Proxies, links: Links, access: Access) -> Self {
        Self { proxies, links, access, places: Places::default(), told: Arc::default() }
    }

    /// Answers a request, which came over TLS or in plain text.
    pub async fn answer<B>(
        &self,
        request: &Request<B>,
        from: Option<SocketAddr>,
        tls: bool,
    ) -> Response<Body> {
        match self.try_answer(request, from, tls).await {
            Ok(response) => response,
            Err(denied) => {
                refused(request, from, &denied);
                error(&denied)
            }
        }
    }

    async fn try_answer<B>(
        &self,
        request: &Request<B>,
        from: Option<SocketAddr>,
        tls: bool,
    ) -> Result<Response<Body>, Denied> {
        let deny = |status, why: String| Err(Denied { status, why });
        if !tls && !from.is_some_and(|from| from.ip().to_canonical().is_loopback()) {
            return deny(
                StatusCode::FORBIDDEN,
                "a token is not taken in plain text over a network, and the one that was sent should be replaced: ask by HTTPS at \
                 --webhook-port (15017), or from this machine (kubectl -n istio-system port-forward deploy/istiod 8080)"
                    .to_owned(),
            );
        }
        let who = self.access.who(request.headers()).await?;
        if request.method() != Method::GET {
            return deny(
                StatusCode::METHOD_NOT_ALLOWED,
                "pages are read by GET, and nothing is changed here".to_owned(),
            );
        }
        // Before anything is looked for: whoever asks again and again gets no more of it than others.
        let place = self.places.take(&who.name)?;
        let path = request.uri().path();
        if path == "/proxies" || path == "/proxies/" {
            return self.list(&who).await;
        }
        let named = path.strip_prefix("/proxies/").and_then(|rest| rest.split_once("/admin/"));
        let named = named.filter(|(name, _)| !name.is_empty() && !name.contains('/'));
        let Some((name, page)) = named.map(|(name, page)| (unescaped(name), page)) else {
            return deny(
                StatusCode::NOT_FOUND,
                "there are /proxies and /proxies/PROXY/admin/PAGE, such as /proxies/cart-1.shop/admin/config_dump".to_owned(),
            );
        };
        let name = name.as_str();
        let named = short(name).rsplit_once('.').map_or("", |(_, namespace)| namespace);
        let mut has_proxies = false;
        let all = there(&self.proxies, &self.links, |proxy| {
            has_proxies |= proxy.node.namespace == named;
            is_called(&proxy.node.id, name)
        });
        let all = meant(&all);
        // Of whom nothing is known it is asked by the name, so that nobody is told who is there who may not know it.
        let known: BTreeSet<_> = all.iter().map(|one| one.namespace.as_str()).collect();
        for namespace in &known {
            self.access.allow(&who, namespace, true).await?;
        }
        if known.is_empty() {
            self.access.allow(&who, named, has_proxies).await?;
        }
        let link = match find(&all) {
            Ok(link) => link,
            Err(missing) => {
                let near = || self.near(named);
                let (status, why) = explain(name, missing, near);
                return deny(status, why);
            }
        };
        let page = format!("/{page}");
        let query = request.uri().query().unwrap_or_default();
        let asked = link.ask(&page, query).await.map_err(|why| Denied {
            status: match why {
                Refused::Busy => StatusCode::TOO_MANY_REQUESTS,
                Refused::Silent => StatusCode::GATEWAY_TIMEOUT,
                Refused::Gone | Refused::Wrong => StatusCode::BAD_GATEWAY,
            },
            why: format!("{}: {why}", link.id()),
        })?;
        let status = asked.status;
        // Names that somebody thought of would be told one by one.
        let named = if status == StatusCode::NOT_FOUND { "/(no such page)" } else { page.as_str() };
        self.tell(&who, link.id(), named, from);
        let kind = HeaderValue::from_str(&asked.kind)
            .unwrap_or(HeaderValue::from_static("application/octet-stream"));
        // The place goes with the last of the body.
        let body = asked.map_frame(move |frame| {
            let _ = &place;
            frame
        });
        let mut response = Response::new(body.boxed_unsync());
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }

    async fn list(&self, who: &Somebody) -> Result<Response<Body>, Denied> {
        let all = there(&self.proxies, &self.links, |_| true);
        let namespaces: BTreeSet<_> = all.iter().map(|one| one.namespace.clone()).collect();
        let allowed = self.access.allowed(who, &namespaces).await?;
        if allowed.is_empty()
            && let Some(one) = namespaces.first()
        {
            self.access.allow(who, one, true).await?;
        }
        // An id may be there several times, and of several namespaces where it is not the proxy's own.
        let mut ids: BTreeMap<(&str, &str), Vec<&There>> = BTreeMap::new();
        for one in all.iter().filter(|one| allowed.contains(&one.namespace)) {
            ids.entry((&one.id, &one.namespace)).or_default().push(one);
        }
        let lines: Vec<Value> = ids.into_values().filter_map(|these| line(&these)).collect();
        let hidden = namespaces.difference(&allowed).count();
        let page = json!({"proxies": lines, "hiddenNamespaces": hidden});
        let mut response = Response::new(whole(format!("{page:#}\n")));
        let kind = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }

    /// The names of a namespace's proxies.
    fn near(&self, namespace: &str) -> Vec<String> {
        let all = there(&self.proxies, &self.links, |proxy| proxy.node.namespace == namespace);
        let all = all.iter().filter(|one| is_named_rightly(&one.id, &one.namespace));
        let names: BTreeSet<_> = all.map(|one| short(&one.id).to_owned()).collect();
        names.into_iter().collect()
    }

    /// Tells who read what. Who reads a page again and again (a table that follows) is told once a minute, with how often.
    fn tell(&self, who: &Somebody, proxy: &str, page: &str, from: Option<SocketAddr>) {
        let reading = Reading { actor: who.name.clone(), proxy: proxy.to_owned(), page: page.to_owned() };
        let Some(times) = self.due(reading, Instant::now()) else { return };
        emit(Kind::Admin, || {
            let words = format!("{} read {page} of {proxy}", who.name);
            Event::new(Kind::Admin, Outcome::Ok, Severity::Low, "inspect", words)
                .with_some("source_address", from.map(|from| from.to_string()))
                .with("actor", who.name.as_str())
                .with("proxy", proxy)
                .with("operation", format!("GET {page}"))
                .with("count", times)
        });
    }

    /// How often it was read since it was told last, if it is to be told now.
    fn due(&self, reading: Reading, now: Instant) -> Option<u64> {
        let mut told = self.told.lock();
        if let Some((at, times)) = told.get_mut(&reading) {
            *times += 1;
            if now.saturating_duration_since(*at) < AGAIN {
                return None;
            }
            let all = std::mem::take(times);
            *at = now;
            return Some(all);
        }
        if told.len() >= KEPT {
            told.retain(|_, (at, _)| now.saturating_duration_since(*at) < AGAIN);
        }
        // What has no place is told each time.
        if told.len() < KEPT {
            told.insert(reading, (now, 0));
        }
        Some(1)
    }
}

/// A path's part without its escapes.
fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let escape = hex.filter(|_| *first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(escape.unwrap_or(*first));
        rest = if escape.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The line of the list for those of one id and namespace.
fn line(these: &[&There]) -> Option<Value> {
    let all = meant(these.iter().copied());
    let Some(one) = all.first() else {
        // Not under the name that it has no right to.
        let one = these.first()?;
        let why = format!(
            "the name in its id does not end in .{}, the namespace that it is of: it is not asked under another's name",
            one.namespace
        );
        return Some(json!({
            "proxy": one.id, "name": one.id, "namespace": one.namespace, "agent": one.agent, "address": one.address,
            "verified": one.verified, "asked": false, "why": why,
        }));
    };
    let why = find(&all).err().map(|missing| explain(&one.id, missing, Vec::new).1);
    Some(json!({
        "proxy": one.id, "name": short(&one.id), "namespace": one.namespace, "agent": one.agent, "address": one.address,
        "verified": one.verified, "asked": why.is_none(), "why": why,
    }))
}

/// What is said of a proxy that cannot be asked here; `near` are the names of its namespace.
fn explain(name: &str, missing: Missing, near: impl Fn() -> Vec<String>) -> (StatusCode, String) {
    match missing {
        Missing::Unknown => {
            let namespace = short(name).rsplit_once('.').map_or("", |(_, namespace)| namespace);
            let near = near();
            let near = match near.is_empty() {
                true => format!("none of namespace {namespace:?} is"),
                false => {
                    format!("of its namespace there are {}", near.join(", "))
                }
            };
            let why = format!(
                "no proxy {name} is connected to this control plane; {near}. Each of several control planes knows its own"
            );
            (StatusCode::NOT_FOUND, why)
        }
        Missing::Closed(agent) => {
            let agent = if agent.is_empty() { "of an unknown kind".to_owned() } else { agent };
            let why = format!(
                "{name} ({agent}) has no stream to this control plane on which it could be asked: an Envoy has none, nor has a proxy of ours that is \
                 older, or is connected in plain text from another machine (--inspect-plaintext), and a new one has it a moment after it connects. Ask its admin interface: kubectl port-forward POD 15000"
            );
            (StatusCode::NOT_IMPLEMENTED, why)
        }
        Missing::Several(who) => (
            StatusCode::CONFLICT,
            format!("several proxies say that they are {name}: {}; none of them is asked", who.join(", ")),
        ),
    }
}

fn error(denied: &Denied) -> Response<Body> {
    let mut response = Response::new(whole(format!("{:#}\n", json!({"error": denied.why}))));
    *response.status_mut() = denied.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if denied.status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Tells of what was not given, where that was somebody's doing.
fn refused<B>(request: &Request<B>, from: Option<SocketAddr>, denied: &Denied) {
    let asked = matches!(
        denied.status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED
    );
    if !asked {
        return;
    }
    emit(Kind::Admin, || {
        let (method, path) = (request.method(), request.uri().path());
        Event::new(
            Kind::Admin,
            Outcome::Denied,
            Severity::Medium,
            "inspect",
            format!("{method} {path} was refused: {}", denied.why),
        )
        .with_some("source_address", from.map(|from| from.to_string()))
        .with("operation", format!("{method} {path}"))
        .with("status", denied.status.as_u16())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operators(directory: &std::path::Path) -> Operators {
        let file = directory.join("token");
        std::fs::write(&file, "t").unwrap();
        Operators::new(Proxies::default(), Links::default(), Access::new(Some(file), None))
    }

    async fn ask(
        operators: &Operators,
        method: &str,
        path: &str,
        token: &str,
        from: &str,
        tls: bool,
    ) -> (u16, String) {
        let request =
            Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
        let from = format!("{from}:1").parse().unwrap();
        let response = operators.answer(&request.body(()).unwrap(), Some(from), tls).await;
        let status = response.status().as_u16();
        (
            status,
            String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned(),
        )
    }

    #[tokio::test]
    async fn a_token_is_taken_by_tls_or_from_this_machine() {
        let directory = tempfile::tempdir().unwrap();
        let operators = operators(directory.path());
        for (method, path, token, from, tls, status, words) in [
            ("GET", "/proxies", "t", "127.0.0.1", false, 200, "\"proxies\": []"),
            ("GET", "/proxies", "t", "10.0.0.1", true, 200, "\"proxies\": []"),
            ("GET", "/proxies", "t", "10.0.0.1", false, 403, "by HTTPS"),
            ("GET", "/proxies", "u", "127.0.0.1", false, 401, "--inspect-token-file"),
            (
                "GET",
                "/proxies/a.shop/admin/stats",
                "t",
                "127.0.0.1",
                false,
                404,
                "no proxy a.shop is connected",
            ),
            ("GET", "/proxies/a.shop", "t", "127.0.0.1", false, 404, "/proxies/PROXY/admin/PAGE"),
            ("POST", "/proxies/a.shop/admin/quitquitquit", "t", "127.0.0.1", false, 405, "read by GET"),
            ("POST", "/proxies/a.shop/admin/quitquitquit", "u", "127.0.0.1", false, 401, "Bearer"),
        ] {
            let (said, text) = ask(&operators, method, path, token, from, tls).await;
            assert!(
                said == status && text.contains(words),
                "{method} {path} {token} {from} {tls}: {said} {text}"
            );
        }
    }

    #[tokio::test]
    async fn nobody_looks_for_proxies_who_has_no_place() {
        let directory = tempfile::tempdir().unwrap();
        let operators = operators(directory.path());
        let all: Vec<_> = std::iter::from_fn(|| operators.places.take("inspect token").ok()).collect();
        for path in ["/proxies", "/proxies/a.shop/admin/stats"] {
            let (status, text) = ask(&operators, "GET", path, "t", "127.0.0.1", false).await;
            assert!(status == 429 && text.contains("already"), "{path}: {status} {text}");
        }
        drop(all);
        assert_eq!(ask(&operators, "GET", "/proxies", "t", "127.0.0.1", false).await.0, 200);
    }

    #[test]
    fn a_proxys_id_may_be_escaped() {
        assert_eq!(unescaped("sidecar%7E10.0.0.1~a%2fb%zz%4"), "sidecar~10.0.0.1~a/b%zz%4");
    }

    #[test]
    fn a_page_that_is_read_again_and_again_is_told_with_how_often() {
        let directory = tempfile::tempdir().unwrap();
        let operators = operators(directory.path());
        let one = |page: &str| Reading { actor: "a".into(), proxy: "p".into(), page: page.into() };
        let now = Instant::now();
        assert_eq!(operators.due(one("/stats"), now), Some(1));
        assert_eq!(operators.due(one("/stats"), now), None);
        assert_eq!(operators.due(one("/certs"), now), Some(1));
        assert_eq!(operators.due(one("/stats"), now + AGAIN), Some(2));
        assert_eq!(operators.due(one("/stats"), now + AGAIN), None);
    }
}
