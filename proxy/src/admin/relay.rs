//! What the control plane asks this proxy on behalf of operators: pages of the admin interface that only read. It asks on a stream that
//! the proxy opens on the connection of its ADS stream, so nobody has to reach the admin interface for it.
//!
//! It stands beside everything else: where the stream ends it is tried again later, where the control plane knows no such stream (istiod
//! does not) or does not take this proxy's, on the next connection, and nothing else notices. Several questions run at the same time; each may have sent no more of its answer than the
//! control plane has asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use xds_protos::weft::inspect::v1alpha1::answer::{End, Head, Part};
use xds_protos::weft::inspect::v1alpha1::inspection_service_client::InspectionServiceClient;
use xds_protos::weft::inspect::v1alpha1::question::{Get, What};
use xds_protos::weft::inspect::v1alpha1::{Answer, Question};

use super::serve::{Page, read};
use super::{AdminState, pages, tap};
use crate::xds::Shared;

/// As many questions are answered at the same time.
const AT_ONCE: usize = 16;
/// Messages of answers that wait for the network.
const WAITING: usize = 16;
/// As much of a page is sent in one message.
const PIECE: usize = 32 * 1024;
/// More may not be asked for at once.
const MOST: u32 = 1024 * 1024;
/// The first pause after a stream that ended, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A stream that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(60);

/// Answers on each connection to the control plane, for ever.
pub async fn run(mut connections: watch::Receiver<Option<Shared>>, state: Arc<AdminState>) {
    let mut pause = PAUSE.0;
    loop {
        let Some(shared) = connections.borrow_and_update().clone() else {
            if connections.changed().await.is_err() {
                return;
            }
            continue;
        };
        let began = tokio::time::Instant::now();
        let ended = tokio::select! {
            ended = stream(shared, &state) => ended,
            changed = connections.changed() => match changed {
                Ok(()) => {
                    // Another connection, perhaps to another control plane.
                    pause = PAUSE.0;
                    continue;
                }
                Err(_) => return,
            },
        };
        let next = next_pause(pause, began.elapsed(), ended.code());
        tracing::debug!(code = ?ended.code(), reason = ended.message(), again_in = ?next, "no questions by the control plane");
        pause = next.unwrap_or(PAUSE.0);
        let again = async {
            match next {
                Some(pause) => tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = again => {}
            changed = connections.changed() => match changed {
                Ok(()) => pause = PAUSE.0,
                Err(_) => return,
            },
        }
    }
}

/// How long to wait at most, after a stream that lasted so long; none if the next one on this connection would end the same way.
fn next_pause(last: Duration, lasted: Duration, code: Code) -> Option<Duration> {
    match code {
        // It does not know the service; or it is in plain text, or by another name than the proxy's own.
        Code::Unimplemented | Code::PermissionDenied => None,
        _ if lasted > GOOD => Some(PAUSE.0),
        _ => Some((last * 2).min(PAUSE.1)),
    }
}

/// A question under way.
struct Running {
    task: AbortHandle,
    /// So many bytes it may send.
    credit: Arc<Semaphore>,
}

/// One stream, until it ends; whatever was asked on it ends with it.
async fn stream(shared: Shared, state: &Arc<AdminState>) -> Status {
    let (answers, queue) = mpsc::channel(WAITING);
    let node = Answer { id: 0, part: Some(Part::Node(state.node.clone())) };
    if answers.try_send(node).is_err() {
        return Status::internal("the queue is full");
    }
    let mut request = Request::new(ReceiverStream::new(queue));
    *request.metadata_mut() = shared.metadata;
    let mut questions = match InspectionServiceClient::new(shared.channel).inspect(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status,
    };
    let (mut running, mut tasks) = (HashMap::<u64, Running>::new(), JoinSet::new());
    loop {
        tokio::select! {
            question = questions.message() => match question {
                Ok(Some(question)) => hear(question, &mut running, &mut tasks, &answers, state),
                Ok(None) => return Status::cancelled("the control plane ended the stream"),
                Err(status) => return status,
            },
            Some(ended) = tasks.join_next() => match ended {
                Ok(id) => drop(running.remove(&id)),
                Err(_) => running.retain(|_, one| !one.task.is_finished()),
            },
        }
    }
}

fn hear(
    question: Question,
    running: &mut HashMap<u64, Running>,
    tasks: &mut JoinSet<u64>,
    answers: &mpsc::Sender<Answer>,
    state: &Arc<AdminState>,
) {
    let id = question.id;
    match question.what {
        Some(What::Get(get)) => {
            if running.contains_key(&id) {
                return;
            }
            let credit = Arc::new(Semaphore::new(get.credit.min(MOST) as usize));
            let busy = running.len() >= AT_ONCE;
            let (to, state) = (Out { id, credit: credit.clone(), answers: answers.clone() }, state.clone());
            let task = tasks.spawn_local(async move {
                // Whoever does not hear it any more has no use for it.
                let _ = answer(get, busy, &to, state).await;
                to.id
            });
            running.insert(id, Running { task, credit });
        }
        Some(What::More(more)) => {
            if let Some(one) = running.get(&id)
                && one.credit.available_permits() <= MOST as usize
            {
                one.credit.add_permits(more.credit.min(MOST) as usize);
            }
        }
        Some(What::Cancel(_)) => {
            if let Some(one) = running.remove(&id) {
                one.task.abort();
            }
        }
        None => {}
    }
}

/// The stream has ended.
struct Gone;

/// Where an answer goes.
struct Out {
    id: u64,
    credit: Arc<Semaphore>,
    answers: mpsc::Sender<Answer>,
}

impl Out {
    async fn part(&self, part: Part) -> Result<(), Gone> {
        self.answers.send(Answer { id: self.id, part: Some(part) }).await.map_err(|_| Gone)
    }

    async fn head(&self, status: StatusCode, kind: &str) -> Result<(), Gone> {
        self.part(Part::Head(Head { status: status.as_u16().into(), content_type: kind.to_owned() })).await
    }

    /// Sends a body's bytes as they may be sent.
    async fn body(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            let many = u32::try_from(piece.len()).map_err(|_| Gone)?;
            self.credit.acquire_many(many).await.map_err(|_| Gone)?.forget();
            self.part(Part::Body(piece)).await?;
        }
        Ok(())
    }
}

async fn answer(get: Get, busy: bool, to: &Out, state: Arc<AdminState>) -> Result<(), Gone> {
    let page = if busy {
        Page::error(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("this proxy answers {AT_ONCE} questions at a time, and has them"),
        )
    } else if get.path == "/weft/tap" {
        match tap::begin(pages::pairs(&get.query)) {
            Ok(mut lines) => {
                to.head(StatusCode::OK, "application/x-ndjson").await?;
                while let Some(Ok(frame)) = lines.frame().await {
                    to.body(frame.into_data().unwrap_or_default()).await?;
                }
                return to.part(Part::End(End {})).await;
            }
            Err(wrong) => Page::error(StatusCode::BAD_REQUEST, wrong),
        }
    } else {
        // As by GET: what changes something is refused.
        read(get.path, get.query, false, false, state).await
    };
    to.head(page.status, page.kind).await?;
    to.body(page.body.into()).await?;
    to.part(Part::End(End {})).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_plane_that_asks_nothing_is_let_alone_and_one_that_broke_off_is_tried_again() {
        let second = Duration::from_secs(1);
        for code in [Code::Unimplemented, Code::PermissionDenied] {
            assert_eq!(next_pause(PAUSE.0, second, code), None);
            assert_eq!(next_pause(PAUSE.0, GOOD * 2, code), None);
        }
        assert_eq!(next_pause(second * 8, second, Code::Unavailable), Some(second * 16));
        assert_eq!(next_pause(second * 200, second, Code::Unauthenticated), Some(PAUSE.1));
        assert_eq!(next_pause(second * 200, GOOD * 2, Code::Unavailable), Some(PAUSE.0));
    }

    #[tokio::test]
    async fn no_more_is_sent_than_was_asked_for() {
        let (answers, mut heard) = mpsc::channel(WAITING);
        let credit = Arc::new(Semaphore::new(PIECE + 10));
        let out = Out { id: 7, credit: credit.clone(), answers };
        let long = Bytes::from(vec![b'x'; 3 * PIECE]);
        let sending = tokio::spawn(async move { out.body(long).await.is_ok() });
        let size = |answer: Option<Answer>| match answer.unwrap() {
            Answer { id: 7, part: Some(Part::Body(bytes)) } => bytes.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(size(heard.recv().await), PIECE);
        tokio::task::yield_now().await;
        assert!(heard.try_recv().is_err(), "ten bytes are not enough for the next piece");
        credit.add_permits(2 * PIECE - 10);
        assert_eq!((size(heard.recv().await), size(heard.recv().await)), (PIECE, PIECE));
        assert!(sending.await.unwrap());
    }
}
