//! One proxy's stream, and what it is asked on it.
//!
//! A question's answer is sent no faster than its asker reads: the proxy may send [`CREDIT`] bytes, and then as many as were
//! taken. So what waits here has a bound, and nobody's answer waits behind another's.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;
use xds_protos::weft::inspect::v1alpha1::answer::Part;
use xds_protos::weft::inspect::v1alpha1::question::{Cancel, Get, More, What};
use xds_protos::weft::inspect::v1alpha1::{Answer, Question};

/// So much of an answer may wait here.
pub(super) const CREDIT: u32 = 256 * 1024;
/// So many parts of it, however small.
const PARTS: usize = 4096;
/// As many questions run on a link at the same time.
const AT_ONCE: usize = 16;
/// Messages that wait for a proxy that does not read.
const WAITING: usize = 256;
/// How long a proxy may take to begin its answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// No type of a page's is as long.
const TYPE: usize = 256;
/// An asker that reads nothing for so long, while something waits for it, is cut off.
const STALLED: Duration = Duration::from_secs(30);

/// A proxy's stream.
#[derive(Debug)]
pub struct Link {
    id: String,
    /// Where its connection comes from.
    address: String,
    questions: mpsc::Sender<Result<Question, Status>>,
    running: Mutex<Questions>,
    /// Told when there is nothing to be had from it any more.
    ended: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Questions {
    /// None may be asked any more.
    closed: bool,
    next: u64,
    under_way: HashMap<u64, UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    parts: mpsc::Sender<Part>,
    /// Its head was there.
    begun: bool,
    /// So many bytes may still come.
    credit: u32,
    /// When the asker last took something.
    taken: Instant,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many are asked as may be.
    #[error("{AT_ONCE} questions to this proxy are under way; end one of them, or try again")]
    Busy,
    /// It went away.
    #[error("the proxy's stream ended before it answered; it comes back by itself: try again")]
    Gone,
    /// It was silent.
    #[error("the proxy did not begin its answer within {PATIENCE:?}")]
    Silent,
    /// It said what makes no sense.
    #[error("the proxy's answer cannot be understood")]
    Wrong,
}

/// Messages for the proxy.
pub(super) type Outgoing = mpsc::Receiver<Result<Question, Status>>;

impl Link {
    /// A link, and what is to be sent to its proxy.
    pub(super) fn new(id: String, address: String) -> (Arc<Self>, Outgoing) {
        let (questions, outgoing) = mpsc::channel(WAITING);
        let (running, ended) = (Mutex::default(), tokio::sync::Notify::new());
        (Arc::new(Self { id, address, questions, running, ended }), outgoing)
    }

    /// Whose it is, and on which connection.
    pub(super) fn key(&self) -> (String, String) {
        (self.id.clone(), self.address.clone())
    }

    /// Its proxy's node id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Asks for a page. The answer's body comes as it is read.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn ask(self: &Arc<Self>, path: &str, query: &str) -> Result<Asked, Refused> {
        let (sender, parts) = mpsc::channel(PARTS);
        let id = {
            let mut running = self.running.lock();
            if running.closed {
                return Err(Refused::Gone);
            }
            if running.under_way.len() >= AT_ONCE {
                return Err(Refused::Busy);
            }
            running.next += 1;
            let id = running.next;
            let one = UnderWay { parts: sender, begun: false, credit: CREDIT, taken: Instant::now() };
            running.under_way.insert(id, one);
            id
        };
        // From here on it is taken back when it is dropped.
        let mut asked = Asked {
            id,
            link: self.clone(),
            parts,
            status: StatusCode::OK,
            kind: String::new(),
            taken: 0,
            whole: false,
        };
        let get = Get { path: path.to_owned(), query: query.to_owned(), credit: CREDIT };
        self.say(id, What::Get(get));
        let head = match tokio::time::timeout(PATIENCE, asked.parts.recv()).await {
            Ok(Some(Part::Head(head))) => head,
            Ok(Some(_)) => return Err(Refused::Wrong),
            Ok(None) => return Err(Refused::Gone),
            Err(_) => return Err(Refused::Silent),
        };
        let status = u16::try_from(head.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        // An answer that is only announced has no body.
        asked.status = status.filter(|status| status.as_u16() >= 200).ok_or(Refused::Wrong)?;
        asked.kind = head.content_type;
        Ok(asked)
    }

    fn say(&self, id: u64, what: What) {
        if self.questions.try_send(Ok(Question { id, what: Some(what) })).is_err() {
            // It does not read what it is asked, so that it cannot even be told to stop.
            self.end();
        }
    }

    /// Takes what the proxy says.
    ///
    /// # Errors
    /// The proxy does not keep to what it was asked.
    pub(super) fn hear(&self, answer: Answer) -> Result<(), &'static str> {
        let mut running = self.running.lock();
        // What was taken back meanwhile may have been answered already.
        let Some(one) = running.under_way.get_mut(&answer.id) else { return Ok(()) };
        let mut part = match answer.part {
            Some(Part::Node(_)) => return Err("it said who it is once more"),
            None => return Ok(()),
            Some(part) => part,
        };
        match &mut part {
            // Heads do not count against the credit, so there is one, and it is short.
            Part::Head(_) if one.begun => return Err("it began an answer twice"),
            Part::Head(head) if head.content_type.len() > TYPE => {
                return Err("the type of its answer is longer than 256 bytes");
            }
            Part::Head(_) => one.begun = true,
            Part::Body(_) if !one.begun => return Err("it sent a body before its head"),
            Part::Body(bytes) => {
                let rest = u32::try_from(bytes.len()).ok().and_then(|many| one.credit.checked_sub(many));
                one.credit = rest.ok_or("it sent more than it was asked for")?;
                // A piece of a message keeps all of it in memory, whatever else was in there.
                *bytes = Bytes::copy_from_slice(bytes);
            }
            Part::Node(_) | Part::End(_) => {}
        }
        let last = matches!(part, Part::End(_));
        let lost = one.parts.try_send(part).is_err();
        if last || lost {
            running.under_way.remove(&answer.id);
        }
        drop(running);
        if lost {
            self.say(answer.id, What::Cancel(Cancel {}));
        }
        Ok(())
    }

    /// Tells the proxy why its stream ends.
    pub(super) fn refuse(&self, wrong: &str) {
        let _ = self.questions.try_send(Err(Status::invalid_argument(wrong)));
    }

    /// Whether something is asked.
    pub(super) fn is_busy(&self) -> bool {
        !self.running.lock().under_way.is_empty()
    }

    /// Lets go of askers that do not read.
    pub(super) fn cut_off(&self, now: Instant) {
        let mut running = self.running.lock();
        let stalled = |one: &UnderWay| {
            let waits = one.parts.capacity() < one.parts.max_capacity();
            waits && now.saturating_duration_since(one.taken) > STALLED
        };
        let all: Vec<u64> =
            running.under_way.iter().filter(|(_, one)| stalled(one)).map(|(id, _)| *id).collect();
        for id in &all {
            running.under_way.remove(id);
        }
        drop(running);
        for id in all {
            tracing::debug!(proxy = self.id, "whoever asked for a page does not read it: cut off");
            self.say(id, What::Cancel(Cancel {}));
        }
    }

    /// Ends it: all that is asked breaks off.
    pub(super) fn end(&self) {
        let mut running = self.running.lock();
        running.closed = true;
        running.under_way.clear();
        drop(running);
        self.ended.notify_one();
    }

    /// Until it was ended here.
    pub(super) async fn until_ended(&self) {
        self.ended.notified().await;
    }

    /// An asker reads; so many bytes may come in place of those that it took.
    fn took(&self, id: u64, many: u32) {
        let mut running = self.running.lock();
        let Some(one) = running.under_way.get_mut(&id) else { return };
        one.taken = Instant::now();
        if many == 0 {
            return;
        }
        one.credit = one.credit.saturating_add(many);
        drop(running);
        self.say(id, What::More(More { credit: many }));
    }
}

/// An answer: its head, and its body as it comes. Dropping it tells the proxy to stop.
#[derive(Debug)]
pub struct Asked {
    id: u64,
    link: Arc<Link>,
    parts: mpsc::Receiver<Part>,
    /// Its status.
    pub status: StatusCode,
    /// Its type.
    pub kind: String,
    /// So many bytes were read and not given back to the proxy as credit yet.
    taken: u32,
    whole: bool,
}

impl Body for Asked {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.whole {
            return Poll::Ready(None);
        }
        match std::task::ready!(self.parts.poll_recv(cx)) {
            Some(Part::Body(bytes)) => {
                self.taken = self.taken.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                let give = if self.taken >= CREDIT / 4 { std::mem::take(&mut self.taken) } else { 0 };
                self.link.took(self.id, give);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Part::End(_)) => {
                self.whole = true;
                Poll::Ready(None)
            }
            Some(_) | None => {
                self.whole = true;
                // Not an end: whoever reads must not take a part for all of it.
                Poll::Ready(Some(Err(io::Error::other("the proxy's answer broke off"))))
            }
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let was_there = self.link.running.lock().under_way.remove(&self.id).is_some();
        if was_there {
            self.link.say(self.id, What::Cancel(Cancel {}));
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use xds_protos::weft::inspect::v1alpha1::answer::{End, Head};

    use super::*;

    fn link() -> (Arc<Link>, Outgoing) {
        Link::new("sidecar~10.0.0.1~a.shop~d".into(), "10.0.0.1:1".into())
    }

    fn asked(outgoing: &mut Outgoing) -> (u64, What) {
        let question = outgoing.try_recv().expect("a question").unwrap();
        (question.id, question.what.unwrap())
    }

    fn part(link: &Link, id: u64, part: Part) -> Result<(), &'static str> {
        link.hear(Answer { id, part: Some(part) })
    }

    fn head(status: u32) -> Part {
        Part::Head(Head { status, content_type: "text/plain".into() })
    }

    fn body(bytes: usize) -> Part {
        Part::Body(vec![b'x'; bytes].into())
    }

    /// A question whose answer has begun.
    async fn begun(link: &Arc<Link>, outgoing: &mut Outgoing) -> (u64, Asked) {
        let asking = tokio::spawn({
            let link = link.clone();
            async move { link.ask("/stats", "usedonly").await }
        });
        let question = outgoing.recv().await.unwrap().unwrap();
        assert!(
            matches!(question.what, Some(What::Get(get)) if get.path == "/stats" && get.query == "usedonly")
        );
        part(link, question.id, head(200)).unwrap();
        (question.id, asking.await.unwrap().unwrap())
    }

    #[tokio::test]
    async fn answers_of_several_questions_come_apart_whole() {
        let (link, mut outgoing) = link();
        let (first, one) = begun(&link, &mut outgoing).await;
        let (second, two) = begun(&link, &mut outgoing).await;
        part(&link, second, Part::Body("two".into())).unwrap();
        part(&link, first, Part::Body("o".into())).unwrap();
        part(&link, second, Part::End(End {})).unwrap();
        part(&link, first, Part::Body("ne".into())).unwrap();
        part(&link, first, Part::End(End {})).unwrap();
        assert_eq!((one.status, one.kind.as_str()), (StatusCode::OK, "text/plain"));
        assert_eq!(one.collect().await.unwrap().to_bytes(), "one");
        assert_eq!(two.collect().await.unwrap().to_bytes(), "two");
        assert!(outgoing.try_recv().is_err(), "nobody is told to stop what is whole");
    }

    #[tokio::test]
    async fn a_proxy_gets_credit_as_its_asker_reads_and_may_not_send_more() {
        let (link, mut outgoing) = link();
        let (id, mut asked_for) = begun(&link, &mut outgoing).await;
        for _ in 0..4 {
            part(&link, id, body(CREDIT as usize / 4)).unwrap();
        }
        assert!(outgoing.try_recv().is_err(), "nothing was read");
        asked_for.frame().await.unwrap().unwrap();
        let (_, more) = asked(&mut outgoing);
        assert!(matches!(more, What::More(More { credit }) if credit == CREDIT / 4), "{more:?}");
        part(&link, id, body(CREDIT as usize / 4)).unwrap();
        assert_eq!(part(&link, id, body(1)), Err("it sent more than it was asked for"));
    }

    #[tokio::test]
    async fn a_proxy_begins_an_answer_once_and_shortly_before_its_body() {
        let (link, mut outgoing) = link();
        let (id, _asked) = begun(&link, &mut outgoing).await;
        assert_eq!(part(&link, id, head(200)), Err("it began an answer twice"));
        let asking = tokio::spawn({
            let link = link.clone();
            async move { link.ask("/stats", "").await.map(|asked| asked.kind.clone()) }
        });
        let id = outgoing.recv().await.unwrap().unwrap().id;
        assert_eq!(part(&link, id, body(1)), Err("it sent a body before its head"));
        let long = |bytes: usize| Part::Head(Head { status: 200, content_type: "t".repeat(bytes) });
        assert!(part(&link, id, long(TYPE + 1)).unwrap_err().contains("longer than 256 bytes"));
        part(&link, id, long(TYPE)).unwrap();
        assert_eq!(asking.await.unwrap().unwrap().len(), TYPE);
        link.refuse("it began an answer twice");
        let last = std::iter::from_fn(|| outgoing.try_recv().ok()).last().unwrap();
        assert_eq!(last.unwrap_err().message(), "it began an answer twice");
    }

    #[tokio::test]
    async fn an_asker_that_leaves_or_does_not_read_is_told_to_the_proxy() {
        let (link, mut outgoing) = link();
        let (id, gone) = begun(&link, &mut outgoing).await;
        drop(gone);
        assert!(matches!(asked(&mut outgoing), (of, What::Cancel(_)) if of == id));
        part(&link, id, body(1)).unwrap();

        let (id, mut slow) = begun(&link, &mut outgoing).await;
        let later = Instant::now() + STALLED + Duration::from_secs(1);
        link.cut_off(later);
        assert!(outgoing.try_recv().is_err(), "nothing waits for it");
        part(&link, id, body(1)).unwrap();
        link.cut_off(later);
        assert!(matches!(asked(&mut outgoing), (of, What::Cancel(_)) if of == id));
        slow.frame().await.unwrap().unwrap();
        assert!(slow.frame().await.unwrap().is_err(), "it is not told that that was all");
    }

    #[tokio::test]
    async fn what_is_asked_ends_with_the_stream_and_has_a_bound() {
        let (link, mut outgoing) = link();
        let mut all = Vec::new();
        for _ in 0..AT_ONCE {
            all.push(begun(&link, &mut outgoing).await.1);
        }
        assert_eq!(link.ask("/", "").await.unwrap_err(), Refused::Busy);
        link.end();
        assert!(all.remove(0).frame().await.unwrap().is_err());
        assert_eq!(link.ask("/", "").await.unwrap_err(), Refused::Gone);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_proxy_is_not_waited_for() {
        let (link, mut outgoing) = link();
        assert_eq!(link.ask("/", "").await.unwrap_err(), Refused::Silent);
        assert!(matches!(asked(&mut outgoing).1, What::Get(_)));
        assert!(matches!(asked(&mut outgoing).1, What::Cancel(_)));
    }
}
