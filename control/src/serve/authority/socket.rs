//! The operator's socket: HTTP/1.1 with JSON, on a UNIX socket in the state directory (0600 in 0700). Who can open it can read
//! the keys beside it, too.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::UnixListener;

use super::Keeper;
use crate::ca::changes::ChangeError;

/// Its file in the state directory.
pub const SOCKET: &str = "admin.sock";

/// More than a certificate needs.
const LONGEST: usize = 64 * 1024;

/// Answers on the socket of a state directory for ever. Whoever calls this holds the directory's lock, so that a socket that is
/// there is left over.
pub fn listen(keeper: Keeper, directory: &Path) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let path = directory.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| path.display().to_string());
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| {
        format!("{}: cannot listen there (is the path longer than 107 bytes?)", path.display())
    })?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(serve(keeper, listener))
}

async fn serve(keeper: Keeper, listener: UnixListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: it passes.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let keeper = keeper.clone();
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let keeper = keeper.clone();
                async move { Ok::<_, Infallible>(answer(keeper, request).await) }
            });
            // A client that goes away ends only its own connection.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(keeper: Keeper, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let (status, body) = match (&head.method, head.uri.path()) {
        (&Method::GET, "/ca/status") => (StatusCode::OK, json!(keeper.status())),
        (&Method::POST, path) => {
            let path = path.to_owned();
            // Whoever is cut off sends no certificate that could be read.
            let sent =
                Limited::new(body, LONGEST).collect().await.map(|all| all.to_bytes()).unwrap_or_default();
            // Keys of 4096 bits take seconds.
            let done = tokio::task::spawn_blocking(move || change(&keeper, &path, &query, &sent)).await;
            match done {
                Ok(Some(Ok(body))) => (StatusCode::OK, body),
                Ok(Some(Err(error))) => (StatusCode::CONFLICT, refusal(&error)),
                Ok(None) => (StatusCode::NOT_FOUND, json!({"error": "there is no such command"})),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": error.to_string()})),
            }
        }
        _ => (StatusCode::NOT_FOUND, json!({"error": "there is no such page"})),
    };
    let mut response = Response::new(Full::from(format!("{body}\n")));
    *response.status_mut() = status;
    response
}

/// What is answered to a command that was not done; `refused` says that it is certain that nothing is different.
fn refusal(error: &ChangeError) -> Value {
    json!({"error": error.to_string(), "refused": error.is_refusal()})
}

/// Does what a command says; none if there is no such command.
fn change(keeper: &Keeper, path: &str, query: &str, sent: &[u8]) -> Option<Result<Value, ChangeError>> {
    let now = OffsetDateTime::now_utc();
    let authority = &keeper.authority;
    let done = match path {
        "/ca/rotate-intermediate" => authority.rotate_intermediate(now).map(|signs| json!({"signs": signs})),
        "/ca/rotate-root" => authority.begin_root_rotation(now).map(|began| json!({"began": began})),
        "/ca/rotate-root/abort" => authority.abort_root_rotation().map(|()| json!({"aborted": true})),
        "/ca/take-root-offline" => {
            let sha256 = query.strip_prefix("sha256=").unwrap_or_default();
            authority.take_root_offline(sha256).map(|()| json!({"offline": true}))
        }
        "/ca/request-intermediate" => authority.request_intermediate().map(|csr| json!({"request": csr})),
        "/ca/take-intermediate" => {
            let certificate = String::from_utf8_lossy(sent);
            authority.take_requested(&certificate, now).map(|signs| json!({"signs": signs}))
        }
        "/ca/revoke" => {
            let serial = query.strip_prefix("serial=").unwrap_or_default();
            authority.revoke(serial, now).map(|new| json!({"serial": serial, "new": new}))
        }
        _ => return None,
    };
    let fields = match &done {
        Ok(fields) => fields.clone(),
        Err(error) => json!({"refused": error.to_string()}),
    };
    keeper.audit.write("authority changed", json!({"command": path, "outcome": fields}));
    Some(done)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::ca::StoreError;

    #[test]
    fn an_answer_says_whether_it_is_certain_that_nothing_is_different() {
        let io = |what| StoreError::Io {
            path: PathBuf::from("journal.json"),
            source: std::io::Error::other(what),
        };
        let reason = Box::new(io("no space"));
        let unfinished = StoreError::Unfinished { path: PathBuf::from("journal.json"), reason };
        for (error, refused) in [
            (ChangeError::AlreadyOffline, true),
            (ChangeError::OtherRoot, true),
            (ChangeError::UnderWay, true),
            (io("no space").into(), false),
            (unfinished.into(), false),
        ] {
            let answer = refusal(&error);
            assert_eq!(answer["refused"], refused, "{answer}");
            assert_eq!(answer["error"], error.to_string());
        }
    }
}
