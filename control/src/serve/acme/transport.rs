//! How the ACME client reaches its server: by the control plane's own HTTP client, with its TLS.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use crate::ca::http::send;

/// The roots by which servers are checked; the system's by default.
pub(super) struct Transport(pub(super) Option<PathBuf>);

impl HttpClient for Transport {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let roots = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            // It is whole already, and cannot fail.
            let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            let request = Request::from_parts(head, Full::new(body));
            match send(request, roots).await {
                Ok(answer) => {
                    let (parts, body) = answer.into_parts();
                    Ok(BytesResponse { parts, body: Box::new(body) })
                }
                Err(error) => Err(Error::Other(Box::new(error))),
            }
        })
    }
}
