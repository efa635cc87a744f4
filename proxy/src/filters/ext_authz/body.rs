//! As much of a request's body as is kept for a check, and goes on to the upstream after it.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use crate::codec::{Body, BodyError, BodyStream, Frame};

/// What was read.
pub struct Kept {
    /// The bytes; of those that are more than was asked for, only as many as were.
    pub bytes: Bytes,
    /// There was more.
    pub more: bool,
}

/// Reads of a body at most so many bytes, or until there is more, and puts it back as it was.
///
/// # Errors
/// It broke off.
pub async fn keep(body: &mut Body, most: usize) -> Result<Kept, BodyError> {
    let (mut frames, mut size, mut ended) = (VecDeque::new(), 0, false);
    while size <= most {
        match body.frame().await {
            None => {
                ended = true;
                break;
            }
            Some(frame) => {
                let frame = frame?;
                ended = matches!(frame, Frame::Trailers(_));
                if let Frame::Data(data) = &frame {
                    size += data.len();
                    ended = body.remaining() == Some(0);
                }
                frames.push_back(frame);
                if ended {
                    break;
                }
            }
        }
    }
    let mut bytes = BytesMut::with_capacity(size.min(most));
    for frame in &frames {
        if let Frame::Data(data) = frame {
            let room = most - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    let rest = std::mem::take(body);
    *body = match (frames.pop_front(), ended) {
        (None, _) => Body::Empty,
        (Some(Frame::Data(only)), true) if frames.is_empty() => Body::Full(only),
        (Some(first), ended) => {
            frames.push_front(first);
            if ended { Body::Frames(frames) } else { Body::stream(Again { frames, rest }) }
        }
    };
    Ok(Kept { bytes: bytes.freeze(), more: size > most || !ended })
}

/// What was read, and then what was not.
struct Again {
    frames: VecDeque<Frame>,
    rest: Body,
}

impl BodyStream for Again {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.rest.poll_frame(cx),
        }
    }

    fn remaining(&self) -> Option<u64> {
        let kept = self.frames.iter().map(|f| match f {
            Frame::Data(data) => data.len() as u64,
            Frame::Trailers(_) => 0,
        });
        Some(self.rest.remaining()? + kept.sum::<u64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(parts: &[&'static str]) -> Body {
        Body::Frames(parts.iter().map(|p| Frame::Data(Bytes::from_static(p.as_bytes()))).collect())
    }

    async fn read(body: &mut Body) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(Ok(Frame::Data(data))) = body.frame().await {
            all.extend_from_slice(&data);
        }
        all
    }

    #[tokio::test]
    async fn what_is_kept_is_still_there_for_the_upstream() {
        for (parts, most, kept, more) in [
            (&["ab", "cd"][..], 10, "abcd", false),
            (&["ab", "cd"], 4, "abcd", false),
            (&["ab", "cd", "ef"], 3, "abc", true),
            (&[], 3, "", false),
        ] {
            let mut body = frames(parts);
            let got = keep(&mut body, most).await.unwrap();
            assert_eq!((&*got.bytes, got.more), (kept.as_bytes(), more), "{parts:?}");
            assert_eq!(read(&mut body).await, parts.concat().as_bytes());
        }
    }
}
