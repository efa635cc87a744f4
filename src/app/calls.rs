//! Calls to other services, by name, through the sidecar.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{HeaderMap, Request};
use serde_json::{Value, json};

use crate::client::{Answer, Connection};

/// The port of a called service that does not say.
const PORT: u16 = 8080;

/// Headers that belong to the request as a whole, and so go along with every call that it causes: its id, its place in a
/// trace, and what routing may look at.
const PASSED_ON: [&str; 15] = [
    "x-request-id",
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-ot-span-context",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "canary",
    "end-user",
];

/// A service to call: NAME or NAME:PORT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callee {
    name: String,
    port: u16,
}

impl FromStr for Callee {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => {
                (name, port.parse().map_err(|_| format!("{text:?}: {port:?} is not a port"))?)
            }
            None => (text, PORT),
        };
        let fine =
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
        if fine {
            Ok(Self { name: name.to_owned(), port })
        } else {
            Err(format!("{text:?} is not NAME or NAME:PORT"))
        }
    }
}

/// The address in `http://IP:PORT`.
pub(super) fn proxy_address(url: &str) -> anyhow::Result<SocketAddr> {
    let bare = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    bare.parse().with_context(|| format!("--http-proxy (HTTP_PROXY) {url:?} is not http://IP:PORT"))
}

/// Calls services through the sidecar, over connections that are used again.
pub(super) struct Calls {
    callees: Vec<Callee>,
    proxy: Option<SocketAddr>,
    limit: Duration,
    idle: Mutex<Vec<Connection>>,
}

impl Calls {
    pub(super) fn new(callees: Vec<Callee>, proxy: Option<SocketAddr>, limit: Duration) -> Self {
        Self { callees, proxy, limit, idle: Mutex::default() }
    }

    /// Calls every service in turn, on behalf of a request with these headers. Gives what came of each, and whether all
    /// went well.
    pub(super) async fn all(&self, headers: &HeaderMap) -> (Vec<Value>, bool) {
        let (mut answers, mut fine) = (Vec::new(), true);
        for callee in &self.callees {
            let service = format!("{}:{}", callee.name, callee.port);
            let called = match tokio::time::timeout(self.limit, self.call(&service, headers)).await {
                Ok(called) => called,
                Err(_) => Err(anyhow::anyhow!("no answer within {:?}", self.limit)),
            };
            answers.push(match called {
                Ok(answer) => {
                    fine &= answer.status.is_success();
                    let text = || Value::String(answer.text().into_owned());
                    let body = serde_json::from_slice(&answer.body).unwrap_or_else(|_| text());
                    json!({"service": service, "status": answer.status.as_u16(), "answer": body})
                }
                Err(error) => {
                    fine = false;
                    json!({"service": service, "error": format!("{error:#}")})
                }
            });
        }
        (answers, fine)
    }

    async fn call(&self, service: &str, headers: &HeaderMap) -> anyhow::Result<Answer> {
        let Some(proxy) = self.proxy else {
            bail!(
                "{service} cannot be called: say where the sidecar's HTTP proxy is (--http-proxy, HTTP_PROXY)"
            );
        };
        let request = || {
            // A proxy is asked by the whole URL.
            let mut request = Request::get(format!("http://{service}/")).header("host", service);
            for name in PASSED_ON {
                for value in headers.get_all(name) {
                    request = request.header(name, value);
                }
            }
            request.body(Full::<Bytes>::default())
        };
        // One that was idle may just have been closed by the other side: then the request was not seen, and a new one takes it.
        let idle = self.with_idle(|idle| {
            idle.retain(|c| !c.is_closed());
            idle.pop()
        });
        if let Some(mut connection) = idle
            && let Ok(answer) = connection.send(request()?).await
        {
            self.with_idle(|idle| idle.push(connection));
            return Ok(answer);
        }
        let mut connection = Connection::open(proxy).await.context("the sidecar's HTTP proxy")?;
        let answer = connection.send(request()?).await?;
        self.with_idle(|idle| idle.push(connection));
        Ok(answer)
    }

    fn with_idle<T>(&self, f: impl FnOnce(&mut Vec<Connection>) -> T) -> T {
        f(&mut self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callee_has_a_port_or_the_usual_one() {
        assert_eq!("a-b".parse(), Ok(Callee { name: "a-b".to_owned(), port: 8080 }));
        assert_eq!("a.ns:81".parse(), Ok(Callee { name: "a.ns".to_owned(), port: 81 }));
        for wrong in ["", ":1", "a:b", "a/b", "http://a:1"] {
            assert!(wrong.parse::<Callee>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_proxy_is_an_url() {
        assert_eq!(proxy_address("http://127.0.10.1:15080/").unwrap(), "127.0.10.1:15080".parse().unwrap());
        assert!(proxy_address("http://nowhere").unwrap_err().to_string().contains("HTTP_PROXY"));
    }
}
