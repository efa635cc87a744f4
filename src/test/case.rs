//! A test as it is written.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A document with cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Test {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    pub(super) kind: String,
    pub(super) metadata: Name,
    pub(super) cases: Vec<Case>,
}

/// A document's name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Name {
    pub(super) name: String,
}

/// A connection or a request, and what is expected of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// The workload whose request it is; or the gateway that it comes to.
    #[serde(default)]
    pub from: Option<String>,
    /// The workload that may let it in.
    #[serde(default)]
    pub to: Option<String>,
    /// With `to`: who asks. Without, somebody outside of the mesh, in plain text.
    #[serde(default)]
    pub identity: Option<String>,
    /// The proxy's own port that is dialled: of the workload, where it has several, or of the gateway.
    #[serde(default)]
    pub port: Option<u16>,
    /// With `from`, of a sidecar: what its application dials, `HOST:PORT`.
    #[serde(default)]
    pub connect: Option<String>,
    /// The connection begins TLS and asks for this server name.
    #[serde(default)]
    pub sni: Option<String>,
    /// The connection begins TLS and offers these application protocols.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// `METHOD URL`, or with `to`: `METHOD /path`.
    #[serde(default)]
    pub request: Option<String>,
    /// Header fields of the request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// What is expected: names of what was found, and values.
    pub expect: Map<String, Value>,
}

impl Case {
    /// Method and target of the request.
    pub(super) fn request(&self) -> anyhow::Result<Option<(&str, &str)>> {
        let Some(request) = &self.request else { return Ok(None) };
        let (method, target) = request.trim().split_once(' ').with_context(|| {
            format!("request {request:?}: write METHOD and what is asked for, such as GET /path")
        })?;
        let target = target.trim();
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            bail!("request {request:?}: {method:?} is no method; write it in capitals, such as GET");
        }
        if target.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()) {
            bail!("request {request:?}: {target:?} has blanks (%20 is one)");
        }
        Ok(Some((method, target)))
    }

    /// The parts of a request whose target is a URL.
    ///
    /// # Errors
    /// It is none.
    pub fn asked(&self) -> anyhow::Result<Option<AskedUrl<'_>>> {
        let Some((method, url)) = self.request()? else {
            if !self.headers.is_empty() {
                bail!(
                    "headers are parts of a request: say which, such as request: GET http://HOST:PORT/path"
                );
            }
            return Ok(None);
        };
        let (scheme, rest) = url
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
            .with_context(|| format!("request: {url:?} is no URL; write http://HOST:PORT/path"))?;
        let secure = scheme == "https";
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            Some((host, port)) => {
                (host, port.parse().with_context(|| format!("request: port {port:?} of {url:?}"))?)
            }
            None => (authority, if secure { 443 } else { 80 }),
        };
        Ok(Some(AskedUrl { method, authority, path, host, port, secure }))
    }
}

/// A request to a URL.
#[derive(Clone, Copy, Debug)]
pub struct AskedUrl<'a> {
    /// The method.
    pub method: &'a str,
    /// Host and port as written.
    pub authority: &'a str,
    /// The path with its query.
    pub path: &'a str,
    /// The host.
    pub host: &'a str,
    /// The port.
    pub port: u16,
    /// It is https.
    pub secure: bool,
}

impl AskedUrl<'_> {
    /// The head as HTTP/1.1 writes it. A header `host` is asked for in place of the URL's.
    pub fn head(&self, headers: &BTreeMap<String, String>) -> String {
        let is_host = |name: &str| name.eq_ignore_ascii_case("host");
        let given = headers.iter().find(|(name, _)| is_host(name));
        let host = given.map_or(self.authority, |(_, value)| value);
        let mut text = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.path);
        for (name, value) in headers.iter().filter(|(name, _)| !is_host(name)) {
            text += &format!("{name}: {value}\r\n");
        }
        text + "\r\n"
    }
}
