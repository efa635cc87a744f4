//! A stream's requests: gRPC's frames, read where they lie. Almost all of them are acknowledgements, which come whole in one
//! frame of HTTP/2 and are decoded from it; one that names thousands of resources is gathered, and its memory given back once
//! it is read.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use hyper::body::Body as _;
use tonic::Status;
use tonic::body::Body;
use xds_protos::prost::Message;

/// The longest request: as long as gRPC's servers take unless they are told otherwise.
const LONGEST: usize = 4 * 1024 * 1024;
/// A message's head: whether it is compressed, and its length.
const HEAD: usize = 5;

/// The requests of one stream.
pub(super) struct Requests<W> {
    body: Body,
    /// What came and was not read yet.
    come: Bytes,
    /// The beginning of a request, if `come` ended in the midst of it.
    gathered: BytesMut,
    of: PhantomData<fn() -> W>,
}

impl<W: Message + Default> Requests<W> {
    pub(super) fn new(body: Body) -> Self {
        Self { body, come: Bytes::new(), gathered: BytesMut::new(), of: PhantomData }
    }

    /// The next request; none when the client has said its last.
    pub(super) async fn message(&mut self) -> Result<Option<W>, Status> {
        std::future::poll_fn(|context| self.poll_message(context)).await
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<W>, Status>> {
        loop {
            if let Some(message) = self.whole()? {
                return Poll::Ready(W::decode(message).map(Some).map_err(|error| {
                    Status::internal(format!("a request that is no message of this stream: {error}"))
                }));
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
                return Poll::Ready(match self.come.is_empty() && self.gathered.is_empty() {
                    true => Ok(None),
                    false => Err(Status::internal("the stream ended in the midst of a request")),
                });
            };
            // Nothing is read from a client's trailers.
            let Ok(data) = frame?.into_data() else { continue };
            if self.gathered.is_empty() && self.come.is_empty() {
                self.come = data;
            } else {
                self.gathered.extend_from_slice(&std::mem::take(&mut self.come));
                self.gathered.extend_from_slice(&data);
            }
        }
    }

    /// A message without its head, if a whole one has come.
    fn whole(&mut self) -> Result<Option<Bytes>, Status> {
        let there: &[u8] = if self.gathered.is_empty() { &self.come } else { &self.gathered };
        let Some(&[compressed, a, b, c, d]) = there.get(..HEAD) else { return Ok(None) };
        if compressed != 0 {
            return Err(Status::unimplemented("a request is compressed; send it as it is (identity)"));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > LONGEST {
            return Err(Status::out_of_range(format!(
                "a request of {length} bytes; the longest that is taken has {LONGEST}"
            )));
        }
        if there.len() < HEAD + length {
            return Ok(None);
        }
        if !self.gathered.is_empty() {
            self.come = std::mem::take(&mut self.gathered).freeze();
        }
        self.come.advance(HEAD);
        let message = self.come.split_to(length);
        if self.come.is_empty() {
            // It would hold what it is a part of.
            self.come = Bytes::new();
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use xds_protos::envoy::service::discovery::v3::DeltaDiscoveryRequest;

    use super::*;

    fn request(names: usize) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: "type".into(),
            resource_names_subscribe: (0..names).map(|n| format!("name-{n}")).collect(),
            ..Default::default()
        }
    }

    fn framed(request: &DeltaDiscoveryRequest) -> Vec<u8> {
        let bytes = request.encode_to_vec();
        [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), &bytes].concat()
    }

    async fn read(pieces: &[&[u8]]) -> Result<Vec<DeltaDiscoveryRequest>, Status> {
        let frames: Vec<_> =
            pieces.iter().map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        let mut requests = Requests::new(Body::new(StreamBody::new(tokio_stream::iter(frames))));
        let mut all = Vec::new();
        while let Some(request) = requests.message().await? {
            all.push(request);
            // Nothing is kept of what was read.
            assert!(requests.gathered.capacity() == 0 || !requests.gathered.is_empty());
        }
        Ok(all)
    }

    #[tokio::test]
    async fn requests_come_whole_however_they_are_cut() {
        let all = [request(0), request(300), request(1), request(0)];
        let bytes: Vec<u8> = all.iter().flat_map(framed).collect();
        for cut in 0..bytes.len() {
            assert_eq!(read(&[&bytes[..cut], &bytes[cut..]]).await.unwrap(), all, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single).await.unwrap(), all);
    }

    #[tokio::test]
    async fn what_is_no_request_ends_the_stream_with_a_reason() {
        let whole = framed(&request(3));
        let code = |error: Status| error.code();
        assert_eq!(read(&[&whole[..whole.len() - 1]]).await.map_err(code), Err(tonic::Code::Internal));
        assert_eq!(read(&[&[1, 0, 0, 0, 0]]).await.map_err(code), Err(tonic::Code::Unimplemented));
        assert_eq!(read(&[&[0, 0x7f, 0, 0, 0]]).await.map_err(code), Err(tonic::Code::OutOfRange));
        assert_eq!(read(&[&[0, 0, 0, 0, 2, 0xff, 0xff]]).await.map_err(code), Err(tonic::Code::Internal));
        assert_eq!(read(&[]).await.unwrap(), []);
    }
}
