//! The servers of resolv.conf: asked in their order, by UDP and where an answer does not fit by TCP. One that does not answer is
//! asked again while the next one is asked, and stands back for a while, longer each time.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::cache::Question;
use super::message::PAYLOAD;
use super::stats::Stats;

/// How long what is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// For an answer. An application's resolver asks again after five seconds; whatever we say should come before.
    pub(super) whole: Duration,
    /// A server that has not answered by now: the next one is asked as well.
    pub(super) step: Duration,
    /// How long a server stands back after its first failure, and at most.
    pub(super) back: [Duration; 2],
}

impl Default for Times {
    fn default() -> Self {
        Self {
            whole: Duration::from_millis(4500),
            step: Duration::from_secs(1),
            back: [Duration::from_secs(2), Duration::from_secs(30)],
        }
    }
}

/// Questions that are asked at the same time.
const MOST: usize = 512;

/// The servers; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Upstream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    servers: Vec<Server>,
    /// Where our questions come from that are being asked, and who waits there.
    own: Mutex<HashMap<SocketAddr, Arc<Notify>>>,
    asking: Semaphore,
    times: Times,
    stats: Stats,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    health: Mutex<Health>,
}

#[derive(Clone, Debug, Default)]
struct Health {
    failures: u32,
    back_until: Option<Instant>,
    last_error: Option<String>,
}

/// How a server is, for the admin page.
#[derive(Debug)]
pub(super) struct ServerStatus {
    pub(super) address: SocketAddr,
    /// Since its last answer.
    pub(super) failures: u32,
    /// Why, if there are any.
    pub(super) error: Option<String>,
}

/// What came of one attempt.
enum Outcome {
    /// What is asked for, or that it is not there; with its size.
    Answer(Box<Message>, usize),
    /// The server is there and does not help.
    Code(ResponseCode),
    Failed(String),
}

impl Upstream {
    pub(super) fn new(servers: &[SocketAddr], times: Times, stats: Stats) -> Self {
        let server = |address: &SocketAddr| Server { address: *address, health: Mutex::default() };
        let servers = servers.iter().map(server).collect();
        Self(Arc::new(Inner { servers, own: Mutex::default(), asking: Semaphore::new(MOST), times, stats }))
    }

    /// Asks; gives the answer and its size, or the code of a failure.
    pub(super) async fn ask(
        &self,
        question: &Question,
        options: &[(EdnsCode, EdnsOption)],
    ) -> Result<(Message, usize), ResponseCode> {
        let inner = &self.0;
        inner.stats.upstream_requests.inc();
        let answer = match inner.asking.try_acquire() {
            Ok(_permit) => inner.ask(question, options).await,
            Err(_) => Err(ResponseCode::ServFail),
        };
        if answer.is_err() {
            inner.stats.upstream_failures.inc();
        }
        answer
    }

    /// Whether a question comes from ourselves: the kernel has sent it back. Whoever waits for its answer waits no longer.
    pub(super) fn is_own(&self, peer: &SocketAddr) -> bool {
        let own = self.0.own.lock();
        let asker = own.get(peer);
        if let Some(asker) = asker {
            asker.notify_one();
        }
        asker.is_some()
    }

    pub(super) fn status(&self) -> Vec<ServerStatus> {
        let status = |server: &Server| {
            let health = server.health.lock().clone();
            ServerStatus { address: server.address, failures: health.failures, error: health.last_error }
        };
        self.0.servers.iter().map(status).collect()
    }
}

impl Inner {
    async fn ask(
        self: &Arc<Self>,
        question: &Question,
        options: &[(EdnsCode, EdnsOption)],
    ) -> Result<(Message, usize), ResponseCode> {
        let deadline = Instant::now() + self.times.whole;
        let asked = Arc::new(message(question, options));
        let mut attempts = JoinSet::new();
        // Each twice: a datagram may get lost.
        let order = self.order();
        let mut plan = order.iter().chain(&order).copied();
        let mut done = HashSet::new();
        let mut code = None;
        let mut next = plan.next();
        loop {
            let current = next.take();
            if let Some(server) = current {
                let (inner, asked) = (self.clone(), asked.clone());
                attempts.spawn(async move { (server, inner.attempt(server, &asked).await) });
            } else if attempts.is_empty() {
                return Err(code.unwrap_or(ResponseCode::ServFail));
            }
            let left = plan.clone().any(|server| !done.contains(&server));
            tokio::select! {
                Some(ended) = attempts.join_next() => {
                    let Ok((server, outcome)) = ended else { continue };
                    match outcome {
                        Outcome::Answer(message, size) => {
                            self.succeeded(server);
                            return Ok((*message, size));
                        }
                        Outcome::Code(given) => {
                            self.succeeded(server);
                            code = Some(given);
                        }
                        Outcome::Failed(error) => self.failed(server, error),
                    }
                    done.insert(server);
                    next = plan.find(|server| !done.contains(server));
                }
                () = sleep(self.times.step), if left => {
                    if let Some(server) = current {
                        self.failed(server, "does not answer".to_owned());
                    }
                    next = plan.find(|server| !done.contains(server));
                }
                () = sleep_until(deadline) => {
                    if let Some(server) = current {
                        self.failed(server, "does not answer".to_owned());
                    }
                    return Err(code.unwrap_or(ResponseCode::ServFail));
                }
            }
        }
    }

    /// The servers in the order in which to ask them: those that stand back come last.
    fn order(&self) -> Vec<usize> {
        let now = Instant::now();
        let until = |n: &usize| self.servers[*n].health.lock().back_until.filter(|until| *until > now);
        let mut order: Vec<usize> = (0..self.servers.len()).collect();
        order.sort_by_key(until);
        order
    }

    fn succeeded(&self, server: usize) {
        *self.servers[server].health.lock() = Health::default();
    }

    fn failed(&self, server: usize, error: String) {
        let server = &self.servers[server];
        let mut health = server.health.lock();
        if health.failures == 0 {
            tracing::warn!(server = %server.address, error, "a DNS server does not answer; others are asked first");
        }
        let [first, most] = self.times.back;
        let back = first.saturating_mul(1 << health.failures.min(10)).min(most);
        health.failures = health.failures.saturating_add(1);
        health.back_until = Some(Instant::now() + back);
        health.last_error = Some(error);
    }

    async fn attempt(&self, server: usize, asked: &Message) -> Outcome {
        let address = self.servers[server].address;
        let exchanged = match self.exchange(address, asked).await {
            // A server that does not know EDNS.
            Ok((answer, _)) if answer.metadata.response_code == ResponseCode::FormErr => {
                let mut plain = asked.clone();
                plain.edns = None;
                self.exchange(address, &plain).await
            }
            other => other,
        };
        match exchanged {
            Ok((answer, size)) => match answer.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => Outcome::Answer(Box::new(answer), size),
                code => Outcome::Code(code),
            },
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    /// One question and its answer, by UDP, and by TCP if it does not fit.
    async fn exchange(&self, server: SocketAddr, asked: &Message) -> std::io::Result<(Message, usize)> {
        let mut asked = asked.clone();
        asked.metadata.id = fastrand::u16(..);
        let bytes = asked.to_vec().map_err(std::io::Error::other)?;
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        // A port of its own for each question, so that guessing an answer is guessing that, too.
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        let own = self.own(socket.local_addr()?);
        socket.send(&bytes).await?;
        let mut buffer = vec![0; 4096];
        let (answer, size) = loop {
            let size = tokio::select! {
                received = socket.recv(&mut buffer) => received?,
                () = own.came_back.notified() => {
                    return Err(std::io::Error::other("the kernel sends what it is asked back to this proxy"));
                }
            };
            if let Some(answer) = answer_to(&asked, &buffer[..size]) {
                break (answer?, size);
            }
        };
        drop(own);
        if answer.metadata.truncation {
            return self.exchange_by_tcp(server, &asked, &bytes).await;
        }
        Ok((answer, size))
    }

    async fn exchange_by_tcp(
        &self,
        server: SocketAddr,
        asked: &Message,
        bytes: &[u8],
    ) -> std::io::Result<(Message, usize)> {
        let mut stream = TcpStream::connect(server).await?;
        let _own = self.own(stream.local_addr()?);
        let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
        let size = usize::from(stream.read_u16().await?);
        let mut buffer = vec![0; size];
        stream.read_exact(&mut buffer).await?;
        let answer = answer_to(asked, &buffer)
            .unwrap_or_else(|| Err(std::io::Error::other("answers something that was not asked")));
        Ok((answer?, size))
    }

    fn own(&self, address: SocketAddr) -> Own<'_> {
        let came_back = Arc::<Notify>::default();
        self.own.lock().insert(address, came_back.clone());
        Own { inner: self, address, came_back }
    }
}

/// An address of a question that is being asked.
struct Own<'a> {
    inner: &'a Inner,
    address: SocketAddr,
    came_back: Arc<Notify>,
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.inner.own.lock().remove(&self.address);
    }
}

/// The question as we ask it.
fn message(question: &Question, options: &[(EdnsCode, EdnsOption)]) -> Message {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.unchecked;
    // Says that we understand the answer's word about signatures (RFC 6840, section 5.7).
    message.metadata.authentic_data = true;
    message.add_query(Query::query(question.name.clone(), question.kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_dnssec_ok(question.dnssec);
    edns.options_mut().options.extend(options.iter().cloned());
    message.set_edns(edns);
    message
}

/// The message, if it answers the question; one that cannot be read is an error if its number is right.
fn answer_to(asked: &Message, bytes: &[u8]) -> Option<std::io::Result<Message>> {
    let id = bytes.get(..2)?;
    if id != asked.metadata.id.to_be_bytes() {
        return None;
    }
    let answer = match Message::from_vec(bytes) {
        Ok(answer) => answer,
        Err(error) => return Some(Err(std::io::Error::other(format!("its answer cannot be read: {error}")))),
    };
    let same = answer.queries == asked.queries
        // Servers that could not read the question do not repeat it.
        || (answer.queries.is_empty() && answer.metadata.response_code != ResponseCode::NoError);
    (answer.metadata.message_type == MessageType::Response && same).then_some(Ok(answer))
}
