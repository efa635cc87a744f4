//! Responses on their way to the network: gRPC's frames, written from the shared resources block by block as the client takes them.
//!
//! A response may be megabytes, and thousands of proxies may get it at once. Each has a block of it at a time, and none before
//! its client has room for it; what waits are references.
//!
//! What makes the responses is polled here, too, when the last one is written: a session has no task of its own, and is asked for
//! nothing that its client has no room for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use tonic::Status;
use xds_protos::prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::session::{Push, Variant};

/// As much as one frame of HTTP/2, and one record of TLS, takes.
const BLOCK: usize = 16 * 1024;

/// The length of a field that holds so many bytes.
fn field_len(tag: u32, bytes: usize) -> usize {
    key_len(tag) + encoded_len_varint(bytes as u64) + bytes
}

fn put_field(tag: u32, bytes: &[u8], to: &mut BytesMut) {
    begin_field(tag, bytes.len(), to);
    to.put_slice(bytes);
}

fn begin_field(tag: u32, bytes: usize, to: &mut BytesMut) {
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(bytes as u64, to);
}

/// Tags of the fields of a resource: its version and name in `Resource`, and what is in `Any`. The rest of both messages is empty.
mod tag {
    pub(super) const VERSION: u32 = 1;
    pub(super) const RESOURCES: u32 = 2;
    pub(super) const TYPE_URL: u32 = 4;
    pub(super) const NONCE: u32 = 5;
    pub(super) const REMOVED: u32 = 6;
    pub(super) mod resource {
        pub(in super::super) const VERSION: u32 = 1;
        pub(in super::super) const RESOURCE: u32 = 2;
        pub(in super::super) const NAME: u32 = 3;
    }
    pub(super) mod any {
        pub(in super::super) const TYPE_URL: u32 = 1;
        pub(in super::super) const VALUE: u32 = 2;
    }
}

/// One response, as far as it is not written yet.
#[derive(Debug)]
struct Message {
    push: Push,
    variant: Variant,
    begun: bool,
    /// The resource that is next, and how many bytes of it are written.
    next: (usize, usize),
}

impl Message {
    fn any_len(&self, value: usize) -> usize {
        field_len(tag::any::TYPE_URL, self.push.kind.type_url().len()) + field_len(tag::any::VALUE, value)
    }

    /// Of the message in `resources`.
    fn item_len(&self, index: usize) -> usize {
        let (name, resource) = &self.push.upserts[index];
        let any = self.any_len(resource.bytes.len());
        match self.variant {
            Variant::StateOfTheWorld => any,
            Variant::Delta => {
                field_len(tag::resource::VERSION, resource.version.len())
                    + field_len(tag::resource::RESOURCE, any)
                    + field_len(tag::resource::NAME, name.len())
            }
        }
    }

    fn len(&self) -> usize {
        let push = &self.push;
        let fields = [(tag::VERSION, push.version.len()), (tag::TYPE_URL, push.kind.type_url().len())];
        let fields = fields.into_iter().chain([(tag::NONCE, push.nonce.len())]);
        let removed = push.removed.iter().map(|name| (tag::REMOVED, name.len()));
        let items = (0..push.upserts.len()).map(|index| (tag::RESOURCES, self.item_len(index)));
        fields.chain(removed).chain(items).map(|(tag, bytes)| field_len(tag, bytes)).sum()
    }

    /// The next block; none once all is written.
    fn block(&mut self) -> Option<Result<Bytes, Status>> {
        let left = self.push.upserts.len() - self.next.0;
        if self.begun && left == 0 {
            return None;
        }
        let mut block;
        if self.begun {
            block = BytesMut::with_capacity(BLOCK);
        } else {
            self.begun = true;
            let whole = self.len();
            let Ok(length) = u32::try_from(whole) else {
                return Some(Err(Status::out_of_range("a response of more than 4 GiB cannot be sent")));
            };
            block = BytesMut::with_capacity((whole + 5).min(BLOCK));
            // gRPC's prefix: not compressed, and so long.
            block.put_u8(0);
            block.put_u32(length);
            put_field(tag::VERSION, self.push.version.as_bytes(), &mut block);
            put_field(tag::TYPE_URL, self.push.kind.type_url().as_bytes(), &mut block);
            put_field(tag::NONCE, self.push.nonce.as_bytes(), &mut block);
            for name in &self.push.removed {
                put_field(tag::REMOVED, name.as_bytes(), &mut block);
            }
        }
        while self.next.0 < self.push.upserts.len() && block.len() < BLOCK {
            let (index, written) = self.next;
            if written == 0 {
                self.begin_item(index, &mut block);
            }
            let value = &self.push.upserts[index].1.bytes;
            let room = BLOCK.saturating_sub(block.len()).max(1);
            let end = value.len().min(written + room);
            block.put_slice(&value[written..end]);
            self.next = if end == value.len() { (index + 1, 0) } else { (index, end) };
        }
        Some(Ok(block.freeze()))
    }

    /// Everything of a resource before its content.
    fn begin_item(&self, index: usize, block: &mut BytesMut) {
        let (name, resource) = &self.push.upserts[index];
        begin_field(tag::RESOURCES, self.item_len(index), block);
        if self.variant == Variant::Delta {
            put_field(tag::resource::VERSION, resource.version.as_bytes(), block);
            put_field(tag::resource::NAME, name.as_bytes(), block);
            begin_field(tag::resource::RESOURCE, self.any_len(resource.bytes.len()), block);
        }
        put_field(tag::any::TYPE_URL, self.push.kind.type_url().as_bytes(), block);
        begin_field(tag::any::VALUE, resource.bytes.len(), block);
    }
}

/// Where a session puts its next response.
#[derive(Clone, Debug, Default)]
pub(super) struct Outlet(Arc<Mutex<Option<Result<Push, Status>>>>);

impl Outlet {
    /// Waits until the last one is being written, and puts this one.
    ///
    /// Whoever takes it polls who puts it, so that there is nobody to be woken.
    pub(super) async fn send(&self, response: Result<Push, Status>) {
        let mut response = Some(response);
        std::future::poll_fn(|_| {
            let mut place = self.0.lock();
            if place.is_some() {
                return Poll::Pending;
            }
            *place = response.take();
            Poll::Ready(())
        })
        .await;
    }

    fn take(&self) -> Option<Result<Push, Status>> {
        self.0.lock().take()
    }
}

type Session = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body of a stream's answer.
pub(super) struct Responses {
    variant: Variant,
    outlet: Outlet,
    /// What fills the outlet; none once it came to its end.
    session: Option<Session>,
    now: Option<Message>,
    /// The end has been told.
    ended: bool,
}

impl Responses {
    /// What `session` makes of the outlet that it is given.
    pub(super) fn new<S>(variant: Variant, session: impl FnOnce(Outlet) -> S) -> Self
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let outlet = Outlet::default();
        let session: Session = Box::pin(session(outlet.clone()));
        Self { variant, outlet, session: Some(session), now: None, ended: false }
    }

    fn end(&mut self, status: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.ended = true;
        self.now = None;
        self.session = None;
        let mut trailers = http::HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

impl Body for Responses {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            match self.now.as_mut().and_then(Message::block) {
                Some(Ok(block)) => return Poll::Ready(Some(Ok(Frame::data(block)))),
                Some(Err(status)) => return self.end(&status),
                None => self.now = None,
            }
            match self.outlet.take() {
                Some(Ok(push)) => {
                    let variant = self.variant;
                    self.now = Some(Message { push, variant, begun: false, next: (0, 0) });
                    continue;
                }
                Some(Err(status)) => return self.end(&status),
                None => {}
            }
            let Some(session) = &mut self.session else { return self.end(&Status::ok("")) };
            if session.as_mut().poll(context).is_ready() {
                self.session = None;
            } else if self.outlet.0.lock().is_none() {
                return Poll::Pending;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use xds_protos::ResourceType;
    use xds_protos::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
    use xds_protos::prost::Message as _;

    use super::*;
    use crate::render::Resource;

    fn push(sizes: &[usize]) -> Push {
        let resource = |(n, size): (usize, &usize)| {
            let bytes: Vec<u8> = (0..*size).map(|i| (i * 7 + n) as u8).collect();
            (format!("name-{n}").into(), Resource { bytes: bytes.into(), version: format!("v{n}").into() })
        };
        Push {
            kind: ResourceType::Cluster,
            upserts: sizes.iter().enumerate().map(resource).collect(),
            removed: vec!["gone".into(), "gone-too".into()],
            nonce: "nonce/1".into(),
            version: "2026/1".into(),
        }
    }

    fn written(variant: Variant, push: Push) -> Vec<Bytes> {
        let mut message = Message { push, variant, begun: false, next: (0, 0) };
        std::iter::from_fn(|| message.block()).map(Result::unwrap).collect()
    }

    #[test]
    fn what_is_written_in_blocks_is_what_the_library_reads() {
        for sizes in [&[][..], &[0], &[1, 200, 0, 5], &[BLOCK - 60, 3, 200_000, 0, 17], &[BLOCK; 20]] {
            let message = |blocks: Vec<Bytes>, most: usize| {
                assert!(blocks.iter().all(|block| block.len() <= most), "{sizes:?}");
                let all: Vec<u8> = blocks.into_iter().flatten().collect();
                assert_eq!(
                    (all[0], u32::from_be_bytes(all[1..5].try_into().unwrap())),
                    (0, all.len() as u32 - 5)
                );
                all[5..].to_vec()
            };
            // A name and a version may stand at the edge.
            let delta = message(written(Variant::Delta, push(sizes)), BLOCK + 256);
            assert_eq!(DeltaDiscoveryResponse::decode(&*delta).unwrap(), push(sizes).into_delta());
            let all = Push { removed: Vec::new(), ..push(sizes) };
            let sotw = message(written(Variant::StateOfTheWorld, all), BLOCK + 256);
            assert_eq!(DiscoveryResponse::decode(&*sotw).unwrap(), push(sizes).into_sotw());
        }
    }

    #[tokio::test]
    async fn nothing_is_written_before_it_is_asked_for_and_the_end_is_told() {
        use http_body_util::BodyExt;
        let large = push(&[200_000]);
        let shared = large.upserts[0].1.bytes.clone();
        let mut body = Responses::new(Variant::Delta, |outlet| async move {
            outlet.send(Ok(large)).await;
            outlet.send(Ok(push(&[1]))).await;
        });
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(first.len() <= BLOCK + 256);
        // The rest is no copy: it is what all others have. And who makes responses waits until it is written.
        let left = &body.now.as_ref().unwrap().push.upserts[0].1.bytes;
        assert_eq!(left.as_ptr(), shared.as_ptr());
        assert!(body.session.is_some() && body.outlet.take().is_none());
        let (mut last, mut messages) = (None, 1);
        while let Some(frame) = body.frame().await {
            let frame = frame.unwrap();
            messages += usize::from(frame.data_ref().is_some_and(|data| data.len() < 200));
            last = Some(frame);
        }
        assert_eq!(messages, 2);
        assert_eq!(last.unwrap().into_trailers().unwrap()["grpc-status"], "0");
        let denied = |outlet: Outlet| async move { outlet.send(Err(Status::permission_denied("no"))).await };
        let mut body = Responses::new(Variant::Delta, denied);
        assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap()["grpc-status"], "7");
        assert!(body.frame().await.is_none());
    }
}
