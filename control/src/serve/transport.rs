//! A port's connections, each one task: what HTTP/2 has to do, and what the streams on it have to say, is polled together.
//!
//! Where each stream is a task of its own, a push and its acknowledgement go through several of them, and with thousands of
//! proxies the wakings, and the caches that they miss, cost more than the work. The library's connection gives its streams to
//! an executor; [`Beside`] keeps them with the connection that they are of.
//!
//! A connection that is to end ([`Leave`]) tells its client so (GOAWAY), lets its streams come to their end, and closes.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::service::Routes;

use crate::ca::PeerInfo;

/// Keepalives find a proxy that is gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a proxy may take to answer one.
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
/// A proxy's first request may name many resources.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Of all streams of a connection.
const WINDOW: u32 = 2 * STREAM_WINDOW;
/// What waits in a connection for the network: blocks that were written already. The rest of a response waits as references.
const WRITTEN: usize = 64 * 1024;
/// How long streams may go on on a connection that is to end.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Rounds that one waking may take before others have their turn.
const ROUNDS: usize = 8;

/// Whether a connection is to end. Requests on it carry this among their extensions, for streams that would never end by
/// themselves.
#[derive(Clone, Debug, Default)]
pub struct Leave(Arc<Leaving>);

#[derive(Debug, Default)]
struct Leaving {
    told: AtomicBool,
    nudge: Mutex<Option<Waker>>,
}

impl Leave {
    /// Has the connection end.
    pub fn tell(&self) {
        self.0.told.store(true, Ordering::Release);
        let nudge = self.0.nudge.lock().clone();
        if let Some(nudge) = nudge {
            nudge.wake();
        }
    }

    /// Whether it is to.
    pub fn told(&self) -> bool {
        self.0.told.load(Ordering::Acquire)
    }

    /// What is the same for all streams of a connection, and for no others as long as one of them is kept.
    pub(super) fn connection(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Wakes the connection's task, and with it all of its streams.
    fn wakes(&self, waker: Waker) {
        *self.0.nudge.lock() = Some(waker);
    }
}

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the streams that a connection begins, for the task of the connection.
#[derive(Clone, Default)]
struct Beside(Arc<Mutex<Vec<Stream>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Beside {
    fn execute(&self, stream: F) {
        self.0.lock().push(Box::pin(stream));
    }
}

/// Streams are to be polled.
const STREAMS: u8 = 1;
/// The connection is.
const CONNECTION: u8 = 2;
/// The task runs: it sees for itself what is woken.
const RUNS: u8 = 4;

/// What in a task has been woken. While the task runs anyway, no scheduler has to hear of it: what streams have written wakes the
/// connection, and what the connection has read wakes streams.
struct Nudge {
    state: AtomicU8,
    task: Mutex<Option<Waker>>,
}

impl Nudge {
    /// The task begins, or goes on; gives what was woken before.
    fn begin(&self) -> u8 {
        self.state.swap(RUNS, Ordering::AcqRel) & !RUNS
    }

    /// Whether this was woken since; it is seen to now.
    fn take(&self, what: u8) -> bool {
        self.state.fetch_and(!what, Ordering::AcqRel) & what != 0
    }

    /// The task has nothing to do any more. False: something was woken meanwhile.
    fn end(&self) -> bool {
        self.state.compare_exchange(RUNS, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The task goes on another time, and sees to this then.
    fn pause(&self, what: u8) {
        self.state.fetch_or(what, Ordering::AcqRel);
        self.take(RUNS);
    }

    /// The task is this one.
    fn of(&self, task: &Waker) {
        let mut known = self.task.lock();
        if !known.as_ref().is_some_and(|known| known.will_wake(task)) {
            *known = Some(task.clone());
        }
    }

    fn wake(&self, what: u8) {
        if self.state.fetch_or(what, Ordering::AcqRel) == 0 {
            let task = self.task.lock().clone();
            if let Some(task) = task {
                task.wake();
            }
        }
    }
}

/// Wakes a part of a task.
struct Part<const WHAT: u8>(Arc<Nudge>);

impl<const WHAT: u8> Wake for Part<WHAT> {
    fn wake(self: Arc<Self>) {
        self.0.wake(WHAT);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake(WHAT);
    }
}

/// Serves one connection until it ends.
async fn drive<IO>(io: IO, peer: PeerInfo, routes: Routes)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (beside, leave) = (Beside::default(), Leave::default());
    let nudge = Arc::new(Nudge { state: AtomicU8::new(STREAMS | CONNECTION), task: Mutex::default() });
    let service = {
        let leave = leave.clone();
        service_fn(move |request: http::Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(leave.clone());
            let mut routes = routes.clone();
            async move { Ok::<_, Infallible>(routes.call(request).await.unwrap_or_else(|never| match never {})) }
        })
    };
    let connection = http2::Builder::new(beside.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(WRITTEN)
        // Streams last. With a limit, the one too many would wait for ever without a word, where many proxies' streams share a
        // connection (behind a relay of xDS). What a client may cost is no matter of this: it may open connections, too.
        .max_concurrent_streams(None::<u32>)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let mut streams: Vec<Stream> = Vec::new();
    let of_streams = Waker::from(Arc::new(Part::<STREAMS>(nudge.clone())));
    let of_connection = Waker::from(Arc::new(Part::<CONNECTION>(nudge.clone())));
    leave.wakes(Waker::from(Arc::new(Part::<{ STREAMS | CONNECTION }>(nudge.clone()))));
    // From when it is to end on, how long it may take.
    let mut grace: Option<Pin<Box<tokio::time::Sleep>>> = None;
    std::future::poll_fn(|task| {
        nudge.of(task.waker());
        let mut woken = nudge.begin();
        for _ in 0..ROUNDS {
            // What streams say is then written by the connection in the same round.
            if woken & STREAMS != 0 {
                let mut context = Context::from_waker(&of_streams);
                streams.retain_mut(|stream| stream.as_mut().poll(&mut context).is_pending());
            }
            if nudge.take(CONNECTION) || woken & CONNECTION != 0 {
                let mut context = Context::from_waker(&of_connection);
                if grace.is_none() && leave.told() {
                    connection.as_mut().graceful_shutdown();
                    grace = Some(Box::pin(tokio::time::sleep_until(Instant::now() + GRACE)));
                }
                match connection.as_mut().poll(&mut context) {
                    Poll::Ready(Ok(())) => return Poll::Ready(()),
                    Poll::Ready(Err(error)) => {
                        tracing::debug!(%error, "a connection of a proxy broke off");
                        return Poll::Ready(());
                    }
                    Poll::Pending => {}
                }
                if grace.as_mut().is_some_and(|grace| grace.as_mut().poll(&mut context).is_ready()) {
                    return Poll::Ready(());
                }
            }
            let begun = std::mem::take(&mut *beside.0.lock());
            if !begun.is_empty() {
                streams.extend(begun);
                nudge.wake(STREAMS);
            }
            if nudge.end() {
                return Poll::Pending;
            }
            woken = nudge.begin();
        }
        // Others first; what was woken is seen to after that.
        nudge.pause(woken);
        task.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Serves connections of the plaintext port; nobody is known there.
pub async fn plain(listener: TcpListener, routes: Routes) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                // Without it small responses wait for more; a connection that is gone already says so when it is read.
                let _ = stream.set_nodelay(true);
                let peer = PeerInfo { address: Some(from), ..PeerInfo::default() };
                tokio::spawn(drive(stream, peer, routes.clone()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: it passes when connections end.
                tracing::warn!(%error, "cannot accept a connection on the plaintext port");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves connections of the secure port, whose handshakes are done.
pub async fn secure(
    mut connections: tokio::sync::mpsc::Receiver<crate::ca::serving::Secure>,
    routes: Routes,
) {
    while let Some(connection) = connections.recv().await {
        let peer = connection.peer();
        tokio::spawn(drive(connection, peer, routes.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Wakings(AtomicUsize);

    impl Wake for Wakings {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_task_is_woken_once_and_not_at_all_while_it_runs() {
        let nudge = Arc::new(Nudge { state: AtomicU8::new(STREAMS), task: Mutex::default() });
        let wakings = Arc::new(Wakings::default());
        nudge.of(&wakings.clone().into());
        let count = || wakings.0.load(Ordering::Relaxed);
        let [streams, connection]: [Waker; 2] = [
            Arc::new(Part::<STREAMS>(nudge.clone())).into(),
            Arc::new(Part::<CONNECTION>(nudge.clone())).into(),
        ];
        assert_eq!(nudge.begin(), STREAMS);
        connection.wake_by_ref();
        assert!(nudge.take(CONNECTION) && !nudge.take(CONNECTION));
        assert!(nudge.end() && count() == 0);
        streams.wake_by_ref();
        connection.wake_by_ref();
        assert_eq!((nudge.begin(), count()), (STREAMS | CONNECTION, 1));
        streams.wake_by_ref();
        assert!(!nudge.end(), "what was woken meanwhile is seen");
        assert_eq!(nudge.begin(), STREAMS);
        connection.wake_by_ref();
        nudge.pause(STREAMS);
        assert_eq!((nudge.begin(), count()), (STREAMS | CONNECTION, 1));
        assert!(nudge.end());
        connection.wake_by_ref();
        assert_eq!(count(), 2);
    }
}
