//! Names that are not the mesh's: from what was answered before, or from the servers. The same question is asked once at a
//! time, however many wait for its answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cache::{Answer, Cache, Known, Question, aged, stale};
use super::message::Query;
use super::stats::Stats;
use super::upstream::{ServerStatus, Upstream};

/// Who has an answer past its time waits no longer than this for a new one (RFC 8767, section 5).
const STALE_AFTER: Duration = Duration::from_millis(1800);

/// What is asked now, and who waits for it.
type Flights = HashMap<Question, Vec<oneshot::Sender<Outcome>>>;
type Outcome = Result<Arc<Answer>, ResponseCode>;

/// The resolver; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstream: Upstream,
    cache: Mutex<Cache>,
    flights: Mutex<Flights>,
    stats: Stats,
}

/// How old an answer is.
#[derive(Clone, Copy)]
enum Age {
    /// So many seconds.
    Fresh(u32),
    /// Too old.
    Stale,
}

impl Resolver {
    pub(super) fn new(upstream: Upstream, stats: Stats) -> Self {
        let (cache, flights) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { upstream, cache, flights, stats }))
    }

    /// The servers.
    pub(super) fn upstream(&self) -> &Upstream {
        &self.0.upstream
    }

    /// How many answers are kept, their bytes, and how the servers are.
    pub(super) fn status(&self) -> ((usize, usize), Vec<ServerStatus>) {
        (self.0.cache.lock().size(), self.0.upstream.status())
    }

    /// The answer to a question, or the code of a failure.
    pub(super) async fn answer(&self, query: &Query) -> Result<Message, ResponseCode> {
        if !query.options.is_empty() {
            let (message, _) = self.0.upstream.ask(&query.question, &query.options).await?;
            let options = message.edns.as_ref().map(|edns| edns.options().options.clone());
            let mut response = respond(query, &answer(message), Age::Fresh(0));
            if let (Some(edns), Some(options)) = (&mut response.edns, options) {
                edns.options_mut().options.extend(options);
            }
            return Ok(response);
        }
        let (answer, age) = self.resolve(&query.question).await?;
        Ok(respond(query, &answer, age))
    }

    async fn resolve(&self, question: &Question) -> Result<(Arc<Answer>, Age), ResponseCode> {
        let stats = &self.0.stats;
        let known = self.0.cache.lock().get(question, Instant::now());
        let old = match known {
            Known::Fresh(answer, age) => {
                stats.cached.inc();
                return Ok((answer, Age::Fresh(age)));
            }
            Known::Failing => return Err(ResponseCode::ServFail),
            Known::Stale { answer, ask: false } => {
                stats.stale.inc();
                return Ok((answer, Age::Stale));
            }
            Known::Stale { answer, ask: true } => Some(answer),
            Known::Unknown => None,
        };
        let asked = self.ask(question);
        let Some(old) = old else {
            let answer = asked.await.unwrap_or(Err(ResponseCode::ServFail))?;
            return Ok((answer, Age::Fresh(0)));
        };
        // The question goes on being asked, whoever waits for it.
        match tokio::time::timeout(STALE_AFTER, asked).await {
            Ok(Ok(Ok(answer))) => Ok((answer, Age::Fresh(0))),
            _ => {
                stats.stale.inc();
                Ok((old, Age::Stale))
            }
        }
    }

    /// Asks the servers, or waits with those who have.
    fn ask(&self, question: &Question) -> oneshot::Receiver<Outcome> {
        let (waiter, answer) = oneshot::channel();
        let mut flights = self.0.flights.lock();
        if let Some(waiters) = flights.get_mut(question) {
            waiters.push(waiter);
            return answer;
        }
        flights.insert(question.clone(), vec![waiter]);
        drop(flights);
        let flight = Flight { inner: self.0.clone(), question: question.clone(), landed: false };
        tokio::spawn(flight.run());
        answer
    }
}

/// One question on its way. When it ends, however it does, the next one may be asked.
struct Flight {
    inner: Arc<Inner>,
    question: Question,
    landed: bool,
}

impl Flight {
    async fn run(mut self) {
        let outcome = self.inner.upstream.ask(&self.question, &[]).await;
        let now = Instant::now();
        let outcome = match outcome {
            Ok((message, size)) => {
                let answer = Arc::new(answer(message));
                self.inner.cache.lock().put(self.question.clone(), answer.clone(), size, now);
                Ok(answer)
            }
            Err(code) => {
                self.inner.cache.lock().fail(self.question.clone(), now);
                Err(code)
            }
        };
        let waiters = self.inner.flights.lock().remove(&self.question);
        self.landed = true;
        for waiter in waiters.into_iter().flatten() {
            // One that went away needs no answer.
            let _ = waiter.send(outcome.clone());
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        self.inner.flights.lock().remove(&self.question);
    }
}

fn answer(message: Message) -> Answer {
    Answer {
        code: message.metadata.response_code,
        authentic: message.metadata.authentic_data,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
    }
}

/// What an application gets of an answer.
fn respond(query: &Query, answer: &Answer, age: Age) -> Message {
    let mut response = query.respond(answer.code);
    response.metadata.authentic_data = answer.authentic && query.wants_authentic();
    let ttl = |ttl: u32| match age {
        Age::Fresh(seconds) => aged(ttl, seconds),
        Age::Stale => stale(ttl),
    };
    let sections = [
        (&answer.answers, &mut response.answers),
        (&answer.authorities, &mut response.authorities),
        (&answer.additionals, &mut response.additionals),
    ];
    for (from, to) in sections {
        to.extend(from.iter().cloned().map(|mut record| {
            record.ttl = ttl(record.ttl);
            record
        }));
    }
    response
}

#[cfg(test)]
mod tests;
