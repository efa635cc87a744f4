//! The application's own metrics, which the agent's port serves together with the proxy's, because an injector has told
//! Prometheus to ask there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::time::Instant;

use super::health::Target;
use crate::admin;

/// The environment variable in which an injector leaves the pod's annotations.
const VARIABLE: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";
/// How long the application may take where Prometheus does not say.
const PATIENCE: Duration = Duration::from_secs(10);
/// And at most.
const MOST_PATIENCE: Duration = Duration::from_secs(3600);
/// Of the time that Prometheus waits, this is for the answer's way, at most a tenth of it: what is there is lost if it comes too late.
const WAY: Duration = Duration::from_millis(500);
/// What an application may say at most; Istio's limit.
const LONGEST: usize = 10 << 20;
/// Prometheus' own text.
const TEXT: &str = "text/plain;version=0.0.4";
const TIMEOUT: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");
/// Ports of the mesh's own, at which no application is.
const OWN: [u16; 9] = [15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090];

/// A place where the application gives metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    port: u16,
    path: PathAndQuery,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Annotations {
    #[serde(default)]
    scrape: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    port: String,
    #[serde(default)]
    targets: Vec<TargetText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetText {
    port: String,
    #[serde(default)]
    path: String,
}

/// What the environment says; nothing if it says nothing.
pub(super) fn from_environment(own_port: u16) -> anyhow::Result<Vec<Place>> {
    match std::env::var(VARIABLE) {
        Ok(text) if !text.trim().is_empty() => parse(&text, own_port).context(VARIABLE),
        _ => Ok(Vec::new()),
    }
}

/// Istio's defaults: port 80, path /metrics; `scrape` is on unless it is `false`; `targets` take the place of port and path.
pub(super) fn parse(text: &str, own_port: u16) -> anyhow::Result<Vec<Place>> {
    let annotations: Annotations = serde_json::from_str(text)?;
    if annotations.scrape == "false" {
        return Ok(Vec::new());
    }
    let mut targets = annotations.targets;
    if targets.is_empty() {
        targets.push(TargetText { port: annotations.port, path: annotations.path });
    }
    let one = |target: TargetText| {
        let port = if target.port.is_empty() { "80" } else { target.port.trim() };
        let port: u16 = port.parse().with_context(|| format!("port {port:?}"))?;
        if port == own_port || OWN.contains(&port) {
            bail!(
                "port {port} is the mesh's own, not the application's: was the pod injected twice? Set the annotation \
                 prometheus.io/port to where the application gives its metrics"
            );
        }
        let path = if target.path.is_empty() { "/metrics" } else { &target.path };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Place { port, path: path.parse().with_context(|| format!("path {path:?}"))? })
    };
    targets.into_iter().map(one).collect()
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    OpenMetrics,
    /// A draft of it.
    Older,
}

impl Format {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics | Self::Older => admin::OPEN_METRICS,
        }
    }

    /// By an answer's content type. What says nothing, or is any kind of text, is taken for Prometheus' text, as Istio does;
    /// anything else cannot stand in one answer with it.
    fn of(content_type: &str) -> anyhow::Result<Self> {
        let mut parts = content_type.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        if media == "application/openmetrics-text" {
            let version = parts.find_map(|p| p.strip_prefix("version=")).map(|v| v.trim_matches('"'));
            return Ok(match version {
                Some("1.0.0") => Self::OpenMetrics,
                None | Some("" | "0.0.1") => Self::Older,
                // A later version is text all the same.
                Some(_) => Self::Text,
            });
        }
        if media.is_empty() || media.starts_with("text/") {
            return Ok(Self::Text);
        }
        bail!("its content type {content_type:?} cannot be merged with text")
    }
}

/// What an application said.
#[derive(Debug)]
pub(super) struct Scraped {
    pub(super) format: Format,
    /// Without the end that OpenMetrics has, with the end of the last line.
    pub(super) text: Bytes,
}

/// Until when everything is to be there, however often the application is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    patience: Duration,
    at: Instant,
}

impl Deadline {
    /// As Prometheus says, from now on.
    pub(super) fn of(asked: &HeaderMap) -> Self {
        let seconds = asked.get(&TIMEOUT).and_then(|v| v.to_str().ok()?.parse::<f64>().ok());
        let said =
            seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).map(|said| said.min(MOST_PATIENCE));
        let patience = said.map_or(PATIENCE, |said| said - WAY.min(said / 10));
        Self { patience, at: Instant::now() + patience }
    }

    /// One that has passed. Clocks of timers are coarse: within a deadline of now an answer may still come.
    #[cfg(test)]
    pub(super) fn passed() -> Self {
        Self { patience: Duration::ZERO, at: Instant::now() - Duration::from_secs(1) }
    }
}

/// What is asked where Prometheus' text alone is wanted.
pub(super) fn for_text(asked: &HeaderMap) -> HeaderMap {
    let mut asked = asked.clone();
    asked.insert(header::ACCEPT, http::HeaderValue::from_static(TEXT));
    asked
}

/// Asks the application, with what Prometheus said of the format, of itself and of its patience.
pub(super) async fn scrape(
    place: &Place,
    asked: &HeaderMap,
    pod: IpAddr,
    deadline: Deadline,
) -> anyhow::Result<Scraped> {
    let answered = tokio::time::timeout_at(deadline.at, ask(place, asked, pod)).await;
    answered.with_context(|| format!("not within {:?}", deadline.patience))?
}

async fn ask(place: &Place, asked: &HeaderMap, pod: IpAddr) -> anyhow::Result<Scraped> {
    let loopback: IpAddr =
        if pod.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    // As Istio: the application may listen on the loopback alone, or on the pod's address alone.
    let local = Target::new(Some(&loopback.to_string()), place.port, pod).await?;
    let stream = match local.connect().await {
        Ok(stream) => stream,
        Err(error) if pod == loopback => return Err(error),
        Err(_) => Target::new(None, place.port, pod).await?.connect().await?,
    };
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::get(place.path.as_str())
        .header(header::HOST, format!("localhost:{}", place.port))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    if let Some(accept) = accept(asked) {
        request.headers_mut().insert(header::ACCEPT, accept);
    }
    for name in [&header::USER_AGENT, &TIMEOUT] {
        if let Some(value) = asked.get(name) {
            request.headers_mut().insert(name, value.clone());
        }
    }
    let response = client.send_request(request).await.context("no answer")?;
    if response.status() != StatusCode::OK {
        bail!("status {}", response.status().as_u16());
    }
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let format = Format::of(content_type.unwrap_or_default())?;
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    let body =
        body.map_err(|e| anyhow::anyhow!("its answer breaks off, or is longer than {LONGEST} bytes: {e}"))?;
    Ok(Scraped { format, text: without_end(body.to_bytes()) })
}

/// What Prometheus accepts, but protobuf, which nothing can be merged with.
fn accept(asked: &HeaderMap) -> Option<http::HeaderValue> {
    let all = asked.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let kept: Vec<_> = all.map(str::trim).filter(|v| !v.is_empty() && !v.contains("protobuf")).collect();
    if kept.is_empty() { None } else { http::HeaderValue::from_str(&kept.join(",")).ok() }
}

/// Takes the mark at the end of OpenMetrics away, because more may follow, and ends the last line.
fn without_end(text: Bytes) -> Bytes {
    const END: &[u8] = b"# EOF";
    let trimmed = text.trim_ascii_end();
    match trimmed.strip_suffix(END) {
        Some(before) if before.last().is_none_or(|b| *b == b'\n') => text.slice(..before.len()),
        _ if text.is_empty() || text.ends_with(b"\n") => text,
        _ => [&text[..], b"\n"].concat().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(text: &str) -> Vec<String> {
        let places = parse(text, 15020).unwrap();
        places.into_iter().map(|p| format!("{}{}", p.port, p.path)).collect()
    }

    #[test]
    fn annotations_are_read_with_istios_defaults() {
        assert_eq!(places(r#"{"scrape": "true", "path": "/m?x=1", "port": "9100"}"#), ["9100/m?x=1"]);
        assert_eq!(places("{}"), ["80/metrics"]);
        assert_eq!(places(r#"{"scrape": "false", "port": "9100"}"#), [""; 0]);
        let targets = r#"{"port": "1", "targets": [{"port": "8080", "path": "a"}, {"port": "9100"}]}"#;
        assert_eq!(places(targets), ["8080/a", "9100/metrics"]);
        for (bad, words) in [
            (r#"{"port": "web"}"#, "port \"web\""),
            (r#"{"port": "15020"}"#, "the mesh's own"),
            (r#"{"targets": [{"port": "015090"}]}"#, "the mesh's own"),
            (r#"{"interval": "1s"}"#, "interval"),
        ] {
            let error = format!("{:#}", parse(bad, 15020).unwrap_err());
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn the_format_is_what_the_application_says() {
        for (kind, format) in [
            ("", Some(Format::Text)),
            ("text/plain; version=0.0.4", Some(Format::Text)),
            ("text/html", Some(Format::Text)),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", Some(Format::OpenMetrics)),
            ("application/openmetrics-text; charset=utf-8", Some(Format::Older)),
            ("application/openmetrics-text; version=9", Some(Format::Text)),
            ("application/vnd.google.protobuf; encoding=delimited", None),
        ] {
            assert_eq!(Format::of(kind).ok(), format, "{kind}");
        }
        let mut asked = HeaderMap::new();
        let said = "application/vnd.google.protobuf;q=0.7, application/openmetrics-text;version=1.0.0;q=0.6,*/*;q=0.1";
        asked.insert(header::ACCEPT, http::HeaderValue::from_static(said));
        assert_eq!(accept(&asked).unwrap(), "application/openmetrics-text;version=1.0.0;q=0.6,*/*;q=0.1");
    }

    #[test]
    fn all_is_there_before_prometheus_gives_up() {
        let patience = |said: &'static str| {
            let mut asked = HeaderMap::new();
            asked.insert(TIMEOUT, http::HeaderValue::from_static(said));
            Deadline::of(&asked).patience
        };
        for (said, millis) in [
            ("10", 9_500),
            ("3.5", 3_150),
            ("0", 0),
            ("-1", 10_000),
            ("soon", 10_000),
            ("1e15", 3_599_500),
            ("1e300", 10_000),
        ] {
            assert_eq!(patience(said), Duration::from_millis(millis), "{said}");
        }
        assert_eq!(Deadline::of(&HeaderMap::new()).patience, PATIENCE);
    }

    #[test]
    fn the_end_is_taken_away() {
        for (text, without) in [
            ("a 1\n# EOF\n", "a 1\n"),
            ("a 1\n# EOF", "a 1\n"),
            ("# EOF\n", ""),
            ("a 1\n", "a 1\n"),
            ("a 1", "a 1\n"),
            ("a{b=\"# EOF\"} 1 # EOF\n", "a{b=\"# EOF\"} 1 # EOF\n"),
            ("", ""),
        ] {
            assert_eq!(without_end(Bytes::from_static(text.as_bytes())), without);
        }
    }
}
