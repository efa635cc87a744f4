//! Bodies that are more than one piece: a long stream, the echo of a request, and bytes after an upgrade.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::Interval;

/// Any body of an answer.
pub(super) type AnyBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// A body that is there at once.
pub(super) fn whole(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).map_err(|e: Infallible| match e {}).boxed_unsync()
}

/// A stream's shape, from the query of `/stream`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shape {
    chunks: u64,
    interval: Duration,
    size: usize,
}

impl Shape {
    /// Ten chunks of 64 bytes, ten a second, where the query does not say.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut shape = Self { chunks: 10, interval: Duration::from_millis(100), size: 64 };
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let number = || value.parse::<u64>().map_err(|_| format!("{key}: {value:?} is not a number"));
            match key {
                "chunks" => shape.chunks = number()?,
                "size" => shape.size = usize::try_from(number()?.clamp(16, 1 << 20)).unwrap_or(64),
                "interval" => shape.interval = crate::cli::parse_duration(value)?,
                _ => return Err(format!("{key}: there are chunks, interval and size")),
            }
        }
        Ok(shape)
    }
}

/// Chunks at intervals, each a numbered line; a reader sees at once whether one is missing.
pub(super) fn stream(shape: Shape) -> AnyBody {
    let mut interval = tokio::time::interval(shape.interval.max(Duration::from_micros(100)));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    Stream { interval, sent: 0, shape }.boxed_unsync()
}

struct Stream {
    interval: Interval,
    sent: u64,
    shape: Shape,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.sent == self.shape.chunks {
            return Poll::Ready(None);
        }
        std::task::ready!(self.interval.poll_tick(context));
        self.sent += 1;
        let mut line = format!("{:0width$}", self.sent, width = self.shape.size - 1);
        line.push('\n');
        Poll::Ready(Some(Ok(Frame::data(line.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent == self.shape.chunks
    }
}

/// Sends a request's body back while it comes, trailers included.
pub(super) fn echo<B>(request: Request<B>) -> Response<AnyBody>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Send + 'static,
{
    let kind = request.headers().get("content-type").cloned();
    let mut response = Response::new(request.into_body().boxed_unsync());
    if let Some(kind) = kind {
        response.headers_mut().insert("content-type", kind);
    }
    response
}

/// Agrees to whatever protocol the request wants, and echoes every byte from there.
pub(super) fn upgrade<B: Send + 'static>(mut request: Request<B>) -> Response<AnyBody> {
    let Some(protocol) = request.headers().get("upgrade").cloned() else {
        let mut response = Response::new(whole("ask with an Upgrade header\n"));
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return response;
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        // The other side going away is the usual end.
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
    });
    let mut response = Response::new(whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("upgrade", protocol);
    response.headers_mut().insert("connection", hyper::header::HeaderValue::from_static("upgrade"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_has_its_chunks_and_each_its_number() {
        let shape = Shape::parse("chunks=3&interval=1ms&size=16").unwrap();
        let all = stream(shape).collect().await.unwrap().to_bytes();
        assert_eq!(&all[..], b"000000000000001\n000000000000002\n000000000000003\n");
        assert!(Shape::parse("speed=1").unwrap_err().contains("chunks"));
        assert!(Shape::parse("chunks=x").is_err());
    }
}
