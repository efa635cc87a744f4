//! The replay body: what of a request's body has come is kept, so that another try can send it again.
//!
//! It exists only where a retry policy needs it. Up to the limit it keeps every frame; beyond it forgets them all and the
//! try under way is the last. Tries share the source: whichever reads on appends to what is kept.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::codec::{Body, BodyError, BodyStream, Frame, Headers};

enum Kept {
    Data(Bytes),
    Trailers(Headers),
}

struct Shared {
    source: Body,
    kept: Vec<Kept>,
    size: u64,
    limit: u64,
    ended: bool,
    /// Over the limit, or the source failed: nobody can start again.
    spoiled: bool,
    /// Called when the body proves too large.
    too_large: Option<Box<dyn FnOnce()>>,
}

impl Shared {
    fn give_up(&mut self) {
        self.spoiled = true;
        if let Some(tell) = self.too_large.take() {
            tell();
        }
    }
}

/// A body that can be sent more than once.
#[derive(Clone)]
pub struct Replay {
    shared: Rc<RefCell<Shared>>,
}

impl Replay {
    /// Keeps up to `limit` bytes of `source`; calls `too_large` if that does not suffice.
    pub fn new(source: Body, limit: u64, too_large: Box<dyn FnOnce()>) -> Self {
        let over = matches!(&source, Body::Full(b) if b.len() as u64 > limit);
        let (kept, too_large) = (Vec::new(), Some(too_large));
        let mut shared = Shared { source, kept, size: 0, limit, ended: false, spoiled: false, too_large };
        if over {
            shared.give_up();
        }
        Self { shared: Rc::new(RefCell::new(shared)) }
    }

    /// Whether another try can have the whole body.
    pub fn can_replay(&self) -> bool {
        !self.shared.borrow().spoiled
    }

    /// Keep nothing more: the try under way is the last.
    pub fn abandon(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.spoiled = true;
        shared.too_large = None;
        shared.limit = 0;
    }

    /// The body for one try, from its beginning.
    pub fn body(&self) -> Body {
        if let (Body::Empty, true) = {
            let shared = self.shared.borrow();
            (
                if shared.source.is_empty() { Body::Empty } else { Body::Full(Bytes::new()) },
                shared.kept.is_empty(),
            )
        } {
            return Body::Empty;
        }
        Body::stream(Reader { shared: self.shared.clone(), position: 0 })
    }
}

struct Reader {
    shared: Rc<RefCell<Shared>>,
    position: usize,
}

impl BodyStream for Reader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        if let Some(kept) = shared.kept.get(self.position) {
            let frame = match kept {
                Kept::Data(data) => Frame::Data(data.clone()),
                Kept::Trailers(trailers) => Frame::Trailers(trailers.clone()),
            };
            self.position += 1;
            return Poll::Ready(Some(Ok(frame)));
        }
        if shared.ended {
            return Poll::Ready(None);
        }
        let Poll::Ready(frame) = shared.source.poll_frame(cx) else { return Poll::Pending };
        match &frame {
            None => shared.ended = true,
            Some(Err(_)) => shared.spoiled = true,
            Some(Ok(frame)) => {
                let (kept, size) = match frame {
                    Frame::Data(data) => (Kept::Data(data.clone()), data.len() as u64),
                    Frame::Trailers(trailers) => (Kept::Trailers(trailers.clone()), 0),
                };
                shared.ended |= matches!(kept, Kept::Trailers(_));
                shared.size += size;
                if shared.size > shared.limit {
                    shared.give_up();
                    shared.kept = Vec::new();
                    self.position = 0;
                } else if !shared.spoiled {
                    shared.kept.push(kept);
                    self.position += 1;
                }
            }
        }
        Poll::Ready(frame)
    }

    fn remaining(&self) -> Option<u64> {
        let shared = self.shared.borrow();
        let rest = shared.kept.get(self.position..).unwrap_or_default();
        let kept: u64 = rest.iter().map(|k| if let Kept::Data(d) = k { d.len() as u64 } else { 0 }).sum();
        if shared.ended { Some(kept) } else { shared.source.remaining().map(|r| r + kept) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(body: &mut Body) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(Ok(Frame::Data(data))) = body.frame().await {
            all.extend_from_slice(&data);
        }
        all
    }

    fn frames(parts: &[&'static str]) -> Body {
        Body::Frames(parts.iter().map(|p| Frame::Data(Bytes::from_static(p.as_bytes()))).collect())
    }

    #[tokio::test]
    async fn every_try_reads_the_whole_body_even_if_an_earlier_one_stopped_in_the_middle() {
        let replay =
            Replay::new(frames(&["ab", "cd", "ef"]), 100, Box::new(|| panic!("it is not too large")));
        let mut first = replay.body();
        assert!(matches!(first.frame().await, Some(Ok(Frame::Data(d))) if d == "ab"));
        drop(first);
        assert!(replay.can_replay());
        assert_eq!(read(&mut replay.body()).await, b"abcdef");
        assert_eq!(read(&mut replay.body()).await, b"abcdef");
    }

    #[tokio::test]
    async fn over_the_limit_the_try_goes_on_and_is_the_last() {
        let told = Rc::new(std::cell::Cell::new(0));
        let tell = || {
            let told = told.clone();
            Box::new(move || told.set(told.get() + 1)) as Box<dyn FnOnce()>
        };
        let replay = Replay::new(frames(&["ab", "cd", "ef"]), 3, tell());
        let mut body = replay.body();
        assert_eq!(read(&mut body).await, b"abcdef");
        assert!(!replay.can_replay());
        assert_eq!(told.get(), 1);
        assert!(Replay::new(Body::Empty, 0, tell()).body().is_empty());
        assert_eq!(told.get(), 1);
    }
}
