//! As much of a Kubernetes API server as a control plane asks: lists, watches, and reviews of tokens.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::Mutex;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// How often watches on which nothing happens are told so.
const BOOKMARK: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Collection {
    items: BTreeMap<(String, String), Value>,
    watches: Vec<mpsc::UnboundedSender<Bytes>>,
}

#[derive(Default)]
struct State {
    /// By path, such as `/api/v1/pods`.
    collections: HashMap<String, Collection>,
    version: u64,
}

/// The server. Cloning it shares its objects.
#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<State>>);

type Body = BoxBody<Bytes, Infallible>;

impl Api {
    /// Serves a kind, of which there may be no object.
    pub fn define(&self, path: &str) {
        if let Ok(mut state) = self.0.lock() {
            state.collections.entry(path.to_owned()).or_default();
        }
    }

    /// Puts an object, or changes it; watches are told.
    pub fn put(&self, path: &str, mut object: Value) {
        let Ok(mut state) = self.0.lock() else { return };
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let collection = state.collections.entry(path.to_owned()).or_default();
        let kind = if collection.items.contains_key(&name) { "MODIFIED" } else { "ADDED" };
        collection.tell(kind, &object);
        collection.items.insert(name, object);
    }

    /// Serves until the process ends.
    pub async fn serve(self) -> anyhow::Result<SocketAddr> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let api = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let api = api.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let api = api.clone();
                        async move { Ok::<_, Infallible>(api.answer(request).await) }
                    });
                    let io = TokioIo::new(stream);
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        });
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(BOOKMARK).await;
                self.bookmark();
            }
        });
        Ok(address)
    }

    fn bookmark(&self) {
        let Ok(mut state) = self.0.lock() else { return };
        let version = state.version.to_string();
        for collection in state.collections.values_mut() {
            let object = json!({"kind": "Any", "apiVersion": "v1", "metadata": {"resourceVersion": version}});
            collection.tell("BOOKMARK", &object);
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let query = parts.uri.query().unwrap_or_default();
        if parts.method == Method::POST && path.ends_with("/tokenreviews") {
            let review = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            let mut review: Value = serde_json::from_slice(&review).unwrap_or_default();
            // A token of the benchmark says whose it is.
            let token = review["spec"]["token"].as_str().unwrap_or_default();
            let claims = token.split('.').nth(1).and_then(|c| BASE64_URL_SAFE_NO_PAD.decode(c).ok());
            let claims: Value = claims.and_then(|c| serde_json::from_slice(&c).ok()).unwrap_or_default();
            let who = claims["sub"].as_str().unwrap_or_default().to_owned();
            review["status"] = json!({
                "authenticated": true, "audiences": ["istio-ca"],
                "user": {"username": who},
            });
            return whole(StatusCode::CREATED, &review);
        }
        if parts.method != Method::GET {
            return refusal(StatusCode::FORBIDDEN);
        }
        let Ok(mut state) = self.0.lock() else { return refusal(StatusCode::INTERNAL_SERVER_ERROR) };
        let version = state.version.to_string();
        // What a group has.
        if let Some(group) = path.strip_prefix("/apis/").filter(|p| p.matches('/').count() == 1) {
            let names = state.collections.keys().filter_map(|k| k.strip_prefix(path)?.strip_prefix('/'));
            let resources: Vec<_> = names
                .map(|name| {
                    json!({"name": name, "singularName": "", "namespaced": true, "kind": name, "verbs": ["list", "watch"]})
                })
                .collect();
            let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources});
            return whole(StatusCode::OK, &list);
        }
        let Some(collection) = state.collections.get_mut(path) else {
            // A kind of which there is nothing.
            if path.contains("/leases") {
                return refusal(StatusCode::FORBIDDEN);
            }
            let collection = state.collections.entry(path.to_owned()).or_default();
            return collection.answer(query, &version);
        };
        collection.answer(query, &version)
    }
}

impl Collection {
    fn tell(&mut self, kind: &str, object: &Value) {
        let mut line = json!({"type": kind, "object": object}).to_string();
        line.push('\n');
        let line = Bytes::from(line);
        self.watches.retain(|watch| watch.send(line.clone()).is_ok());
    }

    fn answer(&mut self, query: &str, version: &str) -> Response<Body> {
        if query.contains("watch=true") {
            let (sender, receiver) = mpsc::unbounded_channel();
            self.watches.push(sender);
            let frames = UnboundedReceiverStream::new(receiver).map(|b| Ok::<_, Infallible>(Frame::data(b)));
            return Response::new(BodyExt::boxed(StreamBody::new(frames)));
        }
        let items: Vec<_> = self.items.values().collect();
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items});
        whole(StatusCode::OK, &list)
    }
}

fn whole(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

fn refusal(status: StatusCode) -> Response<Body> {
    let reason = status.canonical_reason().unwrap_or_default().replace(' ', "");
    let text = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": "the benchmark's API server does not do that", "code": status.as_u16()});
    whole(status, &text)
}
