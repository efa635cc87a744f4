//! Which path answers what.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::behaviour::{Behaving, Behaviour};
use super::bodies::{self, AnyBody, Shape, whole};
use super::caller::Caller;
use super::calls::Calls;
use super::record::Record;

/// The service: who it is, and what it does.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) workload: String,
    pub(super) version: String,
    pub(super) address: SocketAddr,
    pub(super) calls: Calls,
    pub(super) behaving: Behaving,
    pub(super) record: Record,
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<AnyBody> {
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    response
}

fn page(status: StatusCode, value: &Value) -> Response<AnyBody> {
    let mut response = text(status, format!("{value:#}\n"));
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}

impl Service {
    /// Answers a request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> hyper::Result<Response<AnyBody>> {
        match request.uri().path() {
            "/__recorded" => return Ok(self.recorded(&request)),
            "/__behaviour" => return self.behaviour(request).await,
            _ => {}
        }
        let (head, body) = request.into_parts();
        self.record.add(&head);
        let fate = self.behaving.next();
        if !fate.delay.is_zero() {
            tokio::time::sleep(fate.delay).await;
        }
        if let Some(status) = fate.fail {
            return Ok(page(status, &self.says(&head, json!({"failed": "as it was told to"}))));
        }
        Ok(match head.uri.path() {
            "/stream" => match Shape::parse(head.uri.query().unwrap_or_default()) {
                Ok(shape) => Response::new(bodies::stream(shape)),
                Err(wrong) => text(StatusCode::BAD_REQUEST, format!("{wrong}\n")),
            },
            "/whoami" => page(StatusCode::OK, &self.says(&head, json!({}))),
            "/echo" => bodies::echo(Request::from_parts(head, body)),
            "/ws" => bodies::upgrade(Request::from_parts(head, body)),
            _ => self.usual(head, body).await?,
        })
    }

    /// The usual answer: who is here, who called, and what those called in turn have said.
    async fn usual(&self, head: Parts, body: Incoming) -> hyper::Result<Response<AnyBody>> {
        let received = body.collect().await?.to_bytes().len();
        let (calls, fine) = self.calls.all(&head.headers).await;
        let status = if fine { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
        Ok(page(status, &self.says(&head, json!({"bodyBytes": received, "calls": calls}))))
    }

    fn says(&self, head: &Parts, more: Value) -> Value {
        let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
        let mut says = json!({
            "service": self.name,
            "workload": self.workload,
            "version": self.version,
            "address": self.address.to_string(),
            "caller": header("x-forwarded-client-cert").and_then(Caller::parse),
            "request": {
                "method": head.method.as_str(),
                "path": head.uri.path_and_query().map(ToString::to_string),
                "host": header("host").or(head.uri.authority().map(|a| a.as_str())),
                "id": header("x-request-id"),
                "canary": header("canary"),
            },
        });
        if let (Value::Object(says), Value::Object(more)) = (&mut says, more) {
            says.extend(more);
        }
        says
    }

    fn recorded(&self, request: &Request<Incoming>) -> Response<AnyBody> {
        match *request.method() {
            Method::GET => {
                let query = request.uri().query().unwrap_or_default();
                let last = query.strip_prefix("last=").map_or(Ok(usize::MAX), str::parse);
                match last.map(|n| serde_json::to_value(self.record.last(n))) {
                    Ok(Ok(value)) => page(StatusCode::OK, &value),
                    Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
                    Err(_) => text(StatusCode::BAD_REQUEST, "write ?last=N\n"),
                }
            }
            Method::DELETE => {
                self.record.forget();
                text(StatusCode::NO_CONTENT, "")
            }
            _ => text(StatusCode::METHOD_NOT_ALLOWED, "there are GET and DELETE\n"),
        }
    }

    async fn behaviour(&self, request: Request<Incoming>) -> hyper::Result<Response<AnyBody>> {
        match *request.method() {
            Method::GET => {}
            Method::DELETE => self.behaving.set(Behaviour::default()),
            Method::PUT | Method::POST => {
                let body = request.into_body().collect().await?.to_bytes();
                match Behaviour::parse(&body) {
                    Ok(behaviour) => self.behaving.set(behaviour),
                    Err(wrong) => return Ok(text(StatusCode::BAD_REQUEST, format!("{wrong}\n"))),
                }
            }
            _ => return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "there are GET, PUT and DELETE\n")),
        }
        Ok(page(StatusCode::OK, &json!(self.behaving.get())))
    }
}
