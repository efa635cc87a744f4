//! A probe by HTTP, as kubelet makes it: a certificate is not checked, redirects are followed within the host.

use std::sync::{Arc, LazyLock};

use ::http::uri::{Authority, PathAndQuery};
use ::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::config::HttpGet;
use super::dial::Target;
use super::{Asked, Outcome};

/// So much of an answer is passed on.
const LONGEST: usize = 10 * 1024;
/// After so many redirects a probe fails.
const REDIRECTS: usize = 10;
/// Fields of a connection, which end here.
const HOP: [header::HeaderName; 5] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::UPGRADE, header::TE];

/// Where a request goes.
struct Place {
    target: Target,
    tls: bool,
    path: PathAndQuery,
    authority: HeaderValue,
}

pub(super) async fn probe(target: &Target, get: &HttpGet, asked: &Asked<'_>) -> anyhow::Result<Outcome> {
    let headers = headers(get, asked);
    let mut place = Place {
        target: target.clone(),
        tls: get.tls,
        path: get.path.clone(),
        authority: authority(target, get, asked)?,
    };
    for _ in 0..=REDIRECTS {
        let response = send(&place, &headers).await?;
        let status = response.status();
        if !status.is_redirection() {
            return Ok(Outcome { status, body: beginning(response.into_body()).await });
        }
        match next(&place, status, response.headers())? {
            Some(next) => place = next,
            // To another host, or to nowhere: the application has answered, and kubelet would call that good. Without its
            // Location the status itself would make no sense.
            None => return Ok(Outcome { status: StatusCode::OK, body: Vec::new() }),
        }
    }
    bail!("{REDIRECTS} redirects, and no end")
}

/// What the probe says, with the configured fields in the place of its own.
fn headers(get: &HttpGet, asked: &Asked<'_>) -> HeaderMap {
    let mut headers = asked.headers.clone();
    headers.remove(header::HOST);
    HOP.iter().for_each(|name| drop(headers.remove(name)));
    get.headers.iter().for_each(|(name, _)| drop(headers.remove(name)));
    for (name, value) in &get.headers {
        headers.append(name, value.clone());
    }
    headers
}

/// The configured name; or the one that the probe has, with the application's port in the place of ours.
fn authority(target: &Target, get: &HttpGet, asked: &Asked<'_>) -> anyhow::Result<HeaderValue> {
    if let Some(authority) = &get.authority {
        return Ok(authority.clone());
    }
    let port = target.address.port();
    let Some(said) = asked.headers.get(header::HOST) else {
        return Ok(HeaderValue::from_str(&format!("{}:{port}", target.host))?);
    };
    let parsed = said.to_str().ok().and_then(|s| s.parse::<Authority>().ok());
    match parsed {
        Some(parsed) if parsed.port_u16() == Some(asked.port) => {
            Ok(HeaderValue::from_str(&format!("{}:{port}", parsed.host()))?)
        }
        _ => Ok(said.clone()),
    }
}

/// Where a redirect leads, if it is followed.
fn next(place: &Place, status: StatusCode, headers: &HeaderMap) -> anyhow::Result<Option<Place>> {
    let followed = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = headers.get(header::LOCATION).filter(|_| followed);
    let Some(location) = location.and_then(|l| l.to_str().ok()).filter(|l| !l.is_empty()) else {
        return Ok(None);
    };
    let wrong = || format!("a redirect to {location:?}");
    if location.contains("://") && !location.starts_with(['/', '?']) {
        let absolute: Uri = location.split('#').next().unwrap_or_default().parse().with_context(wrong)?;
        let tls = match absolute.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Ok(None),
        };
        let Some(authority) = absolute.authority().filter(|a| a.host() == place.target.host) else {
            return Ok(None);
        };
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        return Ok(Some(Place {
            target: place.target.at(port),
            tls,
            path: absolute.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
            authority: HeaderValue::from_str(authority.as_str()).with_context(wrong)?,
        }));
    }
    let without = location.split('#').next().unwrap_or_default();
    let path = match without.as_bytes().first() {
        // A host without a scheme.
        Some(b'/') if without.starts_with("//") => return Ok(None),
        Some(b'/') => without.to_owned(),
        Some(b'?') => format!("{}{without}", place.path.path()),
        _ => {
            let base = place.path.path();
            format!("{}{without}", &base[..=base.rfind('/').unwrap_or_default()])
        }
    };
    let (target, authority) = (place.target.clone(), place.authority.clone());
    Ok(Some(Place { target, tls: place.tls, path: path.parse().with_context(wrong)?, authority }))
}

async fn send(place: &Place, headers: &HeaderMap) -> anyhow::Result<::http::Response<Incoming>> {
    let stream = place.target.connect().await?;
    if !place.tls {
        return http1(stream, place, headers).await;
    }
    // A name only where there is one: the address itself is no name to show.
    let name = ServerName::try_from(place.target.host.trim_matches(['[', ']']))?.to_owned();
    let stream = TlsConnector::from(ANYBODY.clone()).connect(name, stream).await;
    let stream = stream.with_context(|| format!("TLS to {}", place.target.address))?;
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => http2(stream, place, headers).await,
        _ => http1(stream, place, headers).await,
    }
}

async fn http1<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    place: &Place,
    headers: &HeaderMap,
) -> anyhow::Result<::http::Response<Incoming>> {
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = Uri::from(place.path.clone());
    *request.headers_mut() = headers.clone();
    request.headers_mut().insert(header::HOST, place.authority.clone());
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    client.send_request(request).await.context("no answer")
}

async fn http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    place: &Place,
    headers: &HeaderMap,
) -> anyhow::Result<::http::Response<Incoming>> {
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut client, connection) = handshake.await?;
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::GET;
    let uri = Uri::builder().scheme("https").authority(place.authority.as_bytes());
    *request.uri_mut() = uri.path_and_query(place.path.clone()).build().context("the Host to ask for")?;
    *request.headers_mut() = headers.clone();
    client.send_request(request).await.context("no answer")
}

/// The beginning of an answer; what does not come is not missed, since the status is what counts.
async fn beginning(mut body: Incoming) -> Vec<u8> {
    let mut kept = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            kept.extend_from_slice(&data[..data.len().min(LONGEST - kept.len())]);
        }
        if kept.len() == LONGEST {
            break;
        }
    }
    kept
}

/// TLS to whoever is there: a probe asks whether the application answers, not who it is.
static ANYBODY: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let builder = ClientConfig::builder_with_provider(weft_certs::provider().clone());
    let builder = builder
        .with_protocol_versions(rustls::DEFAULT_VERSIONS)
        .unwrap_or_else(|e| unreachable!("the provider has cipher suites of every version: {e}"));
    let mut config =
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
});

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = weft_certs::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = weft_certs::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        weft_certs::provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn place(path: &str) -> Place {
        let target = Target::new(None, 8080, "10.0.0.1".parse().unwrap()).await.unwrap();
        Place {
            target,
            tls: false,
            path: path.parse().unwrap(),
            authority: HeaderValue::from_static("shop:8080"),
        }
    }

    #[tokio::test]
    async fn redirects_are_followed_within_the_host() {
        let from = place("/a/b?c").await;
        for (status, location, to) in [
            (302, "/login", Some("http 8080 /login shop:8080")),
            (301, "d", Some("http 8080 /a/d shop:8080")),
            (307, "?x", Some("http 8080 /a/b?x shop:8080")),
            (308, "http://10.0.0.1:9090/x#y", Some("http 9090 /x 10.0.0.1:9090")),
            (303, "https://10.0.0.1", Some("https 443 / 10.0.0.1")),
            (302, "http://shop/x", None),
            (302, "//10.0.0.1/x", None),
            (302, "ftp://10.0.0.1/x", None),
            (302, "", None),
            (304, "/x", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, HeaderValue::from_static(location));
            let next = next(&from, StatusCode::from_u16(status).unwrap(), &headers).unwrap();
            let shown = next.map(|p| {
                let scheme = if p.tls { "https" } else { "http" };
                let port = p.target.address.port();
                format!("{scheme} {port} {} {}", p.path, p.authority.to_str().unwrap())
            });
            assert_eq!(shown.as_deref(), to, "{status} {location}");
        }
    }

    #[tokio::test]
    async fn the_host_is_what_the_probe_says_with_the_applications_port() {
        let target = Target::new(None, 8080, "10.0.0.1".parse().unwrap()).await.unwrap();
        let get = |authority| HttpGet {
            tls: false,
            path: PathAndQuery::from_static("/"),
            headers: Vec::new(),
            authority,
        };
        for (said, configured, expected) in [
            (Some("10.0.0.1:15020"), None, "10.0.0.1:8080"),
            (Some("shop"), None, "shop"),
            (Some("shop:1"), None, "shop:1"),
            (None, None, "10.0.0.1:8080"),
            (Some("10.0.0.1:15020"), Some(HeaderValue::from_static("own")), "own"),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(said) = said {
                headers.insert(header::HOST, HeaderValue::from_static(said));
            }
            let asked = Asked { headers: &headers, port: 15020 };
            assert_eq!(authority(&target, &get(configured), &asked).unwrap(), expected, "{said:?}");
        }
    }
}
