//! Extension providers, who are asked whether requests may pass: one by HTTP, one by gRPC, until the process ends. What they
//! say is in the path that they are asked about (`/allow`, `/deny`, `/teapot`, `/error`, `/slow`), and of connections in the
//! client's address. What they were told is in the field `x-saw` of a yes.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};
use xds_protos::envoy::config::core::v3::address::Address;
use xds_protos::envoy::service::auth::v3::CheckRequest;
use xds_protos::prost::Message;

use super::clients;

/// Ports of loopback.
pub struct Providers {
    pub http: u16,
    pub grpc: u16,
}

/// A client whose connections are refused, and one about whom nothing can be said.
const REFUSED: &str = "127.0.0.66";
const UNKNOWN: &str = "127.0.0.77";

impl Providers {
    pub fn start() -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (http, grpc) = (listen(), listen());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let ports = Self { http: port(&http), grpc: port(&grpc) };
        std::thread::spawn(move || {
            for stream in http.incoming().flatten() {
                // A client that goes away has what it wants.
                std::thread::spawn(move || by_http(stream));
            }
        });
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(by_grpc(grpc));
        });
        ports
    }
}

fn by_http(stream: TcpStream) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(head) = clients::head(&mut reader)? {
        let field = |name: &str| {
            let of_name = |line: &String| {
                let (found, value) = line.split_once(": ")?;
                found.eq_ignore_ascii_case(name).then(|| value.to_owned())
            };
            head.iter().skip(1).find_map(of_name).unwrap_or_else(|| "-".to_owned())
        };
        let mut body = vec![0; field("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let mut words = head[0].split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let saw = saw(method, target, field, &String::from_utf8_lossy(&body));
        let path = target.strip_prefix("/check").unwrap_or(target);
        let (status, more, body) = if path.starts_with("/deny") {
            ("403 Forbidden", "x-reason: because\r\nx-hidden: h\r\n".to_owned(), "no")
        } else if path.starts_with("/teapot") {
            ("418 I'm a teapot", String::new(), "teapot")
        } else if path.starts_with("/error") {
            ("500 Internal Server Error", String::new(), "broken")
        } else {
            if path.starts_with("/slow") {
                // Until whoever asked has lost patience.
                let _ = reader.read(&mut [0])?;
                return Ok(());
            }
            ("200 OK", format!("x-saw: {saw}\r\nx-user: alice\r\nx-down: d\r\n"), "")
        };
        write!(writer, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{more}\r\n{body}", body.len())?;
    }
    Ok(())
}

/// What somebody was told, without spaces.
fn saw(method: &str, target: &str, field: impl Fn(&str) -> String, body: &str) -> String {
    let body = if body.is_empty() { "-" } else { body };
    let [a, b, added] = ["x-a", "x-b-1", "x-added"].map(field);
    format!("{method};{target};a={a};b={b};added={added};body={body}")
}

async fn by_grpc(listener: TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request, respond));
            }
        });
    }
}

async fn answer(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let mut stream = request.into_body();
    let mut data = Vec::new();
    while let Some(Ok(piece)) = stream.data().await {
        let _ = stream.flow_control().release_capacity(piece.len());
        data.extend_from_slice(&piece);
    }
    let check = CheckRequest::decode(data.get(5..).unwrap_or_default()).unwrap_or_default();
    let said = said(&check);
    if said.is_none() && check_path(&check).starts_with("/slow") {
        // Until whoever asked has lost patience.
        let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        return;
    }
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    if let Some(said) = &said {
        let message = xds_protos::json::encode("envoy.service.auth.v3.CheckResponse", said).unwrap();
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).unwrap());
        frame.extend_from_slice(&message);
        let _ = stream.send_data(frame.freeze(), false);
    }
    let mut trailers = http::HeaderMap::new();
    let status = if said.is_some() { "0" } else { "13" };
    trailers.insert("grpc-status", http::HeaderValue::from_static(status));
    let _ = stream.send_trailers(trailers);
}

fn check_path(check: &CheckRequest) -> &str {
    let request = check.attributes.as_ref().and_then(|a| a.request.as_ref()?.http.as_ref());
    request.map_or("", |http| http.path.as_str())
}

/// The answer; none if there is none.
fn said(check: &CheckRequest) -> Option<Value> {
    let attributes = check.attributes.as_ref()?;
    let Some(http) = attributes.request.as_ref().and_then(|r| r.http.as_ref()) else {
        let address = attributes.source.as_ref()?.address.as_ref()?.address.as_ref()?;
        let Address::SocketAddress(address) = address else { return None };
        let ip = SocketAddr::new(address.address.parse().ok()?, 0).ip().to_string();
        return match ip.as_str() {
            REFUSED => Some(json!({"status": {"code": 7}})),
            UNKNOWN => None,
            _ => Some(json!({"status": {"code": 0}})),
        };
    };
    let field = |name: &str| http.headers.get(name).cloned().unwrap_or_else(|| "-".to_owned());
    let raw = String::from_utf8_lossy(&http.raw_body);
    let body = if http.body.is_empty() { raw.into_owned() } else { http.body.clone() };
    let saw = saw(&http.method, &http.path, field, &body);
    let option = |key: &str, value: &str| json!({"header": {"key": key, "value": value}});
    let no = |status: u32, body: &str| {
        json!({"status": {"code": 7}, "denied_response": {
            "status": {"code": status}, "body": body, "headers": [option("x-reason", "because")]}})
    };
    if http.path.starts_with("/deny") {
        Some(no(403, "no"))
    } else if http.path.starts_with("/teapot") {
        Some(no(418, "teapot"))
    } else if http.path.starts_with("/error") || http.path.starts_with("/slow") {
        None
    } else {
        Some(json!({"status": {"code": 0}, "ok_response": {
            "headers": [option("x-saw", &saw), option("x-user", "alice")],
            "response_headers_to_add": [option("x-down", "d")]}}))
    }
}
