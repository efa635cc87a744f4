//! Proxies over several control planes: a stream lasts as long as its proxy lets it, and a control plane that is new would have
//! none until proxies start anew.
//!
//! So a connection has an age at which it ends, and while this control plane has clearly more than its share of all streams it
//! sends the excess away, some each second, those first that have been here longest. Nothing is lost by it: a stream ends when
//! its proxy has taken what it was sent, the proxy keeps what it has, connects to whom it then reaches, and gets what differs.
//! Whether that has helped says [`Pace`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use clap::Args;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::pace::Pace;
use super::transport::Leave;
use crate::kubernetes::Board;

/// How long proxies stay.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpreadArgs {
    /// When a proxy's connection ends, a tenth sooner or later: it then connects anew, perhaps to another replica. 0s: never
    #[arg(
        long,
        visible_alias = "keepaliveMaxServerConnectionAge",
        value_name = "DURATION",
        default_value = "30m",
        value_parser = xds_protos::duration::parse
    )]
    pub max_connection_age: Duration,
    /// How many proxies a second are sent to other replicas while this one has clearly more than its share, and as long as they do
    /// not come back. Replicas know each other by a Lease of their namespace; 0: nobody is sent
    #[arg(long, value_name = "N", env = "WEFT_REBALANCE_RATE", default_value_t = 10)]
    pub rebalance_rate: u32,
}

impl SpreadArgs {
    /// Spreads the proxies of this control plane, which serves by now, over all that write on the board.
    pub fn start(self, crowd: &Crowd, board: Option<Board>) {
        let board = board.filter(|_| self.rebalance_rate > 0);
        tokio::spawn(crowd.clone().spread(self, others(board, crowd.clone())));
    }
}

/// How often control planes say how many streams they have.
const SAY: Duration = Duration::from_secs(5);

/// How often it is looked who is to go.
const TICK: Duration = Duration::from_secs(1);
/// Whoever came a moment ago is not sent on.
const SETTLED: Duration = Duration::from_secs(10);

/// Streams that may be sent away. Cloning it shares them.
#[derive(Clone, Debug, Default)]
pub struct Crowd(Arc<All>);

#[derive(Debug, Default)]
struct All {
    next: AtomicU64,
    /// In the order in which they came.
    here: Mutex<BTreeMap<u64, Stay>>,
}

#[derive(Debug)]
struct Stay {
    leave: Leave,
    since: Instant,
    /// How its age differs from others', so that those who came together do not go together: from 0.9 to 1.1.
    jitter: f64,
}

/// A stream's place among them; dropping it takes it out.
#[derive(Debug)]
pub(super) struct Member {
    number: u64,
    leave: Leave,
    crowd: Crowd,
}

impl Member {
    /// When it is to go; never, if it is nobody.
    ///
    /// Who tells it wakes the connection's task, which polls this.
    pub(super) async fn told(member: Option<&Self>) {
        std::future::poll_fn(|_| match member {
            Some(member) if member.leave.told() => Poll::Ready(()),
            _ => Poll::Pending,
        })
        .await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.crowd.0.here.lock().remove(&self.number);
    }
}

/// Why streams are sent away.
const AGE: &str = "age";
const SHARE: &str = "share";

impl Crowd {
    /// Takes a stream that has come.
    pub(super) fn enter(&self, leave: Leave, now: Instant) -> Member {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let stay = Stay { leave: leave.clone(), since: now, jitter: 0.9 + 0.2 * fastrand::f64() };
        self.0.here.lock().insert(number, stay);
        Member { number, leave, crowd: self.clone() }
    }

    /// How many there are that have not been told to go.
    pub fn len(&self) -> usize {
        self.0.here.lock().values().filter(|stay| !stay.leave.told()).count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends those away whose connections are of this age.
    pub(super) fn age(&self, age: Duration, now: Instant) -> u64 {
        let old = |stay: &Stay| now.saturating_duration_since(stay.since) >= age.mul_f64(stay.jitter);
        self.send(usize::MAX, usize::MAX, old) as u64
    }

    /// Sends about so many of an excess away, the oldest first, and never more than the excess.
    fn shed(&self, many: usize, excess: usize, now: Instant) -> usize {
        self.send(many, excess, |stay| now.saturating_duration_since(stay.since) >= SETTLED)
    }

    /// A connection goes with all of its streams, so that the last one may make them more than `many`; one that makes them more than
    /// `most` stays.
    fn send(&self, many: usize, most: usize, which: impl Fn(&Stay) -> bool) -> usize {
        let here = self.0.here.lock();
        let there = || here.values().filter(|stay| !stay.leave.told());
        // Most of the time nobody is to go.
        if !there().any(&which) {
            return 0;
        }
        let mut streams = HashMap::<_, usize>::new();
        for stay in there() {
            *streams.entry(stay.leave.connection()).or_default() += 1;
        }
        let (mut go, mut gone) = (Vec::new(), 0);
        for stay in there().filter(|stay| which(stay)) {
            if gone >= many {
                break;
            }
            let connection = stay.leave.connection();
            if let Some(all) = streams.get(&connection).copied().filter(|all| gone + all <= most) {
                streams.remove(&connection);
                gone += all;
                go.push(stay.leave.clone());
            }
        }
        drop(here);
        for leave in &go {
            leave.tell();
        }
        gone
    }

    /// Sends away who is to go, for ever. `others` has how many streams each of the other control planes said to have, anew each
    /// time that they are asked.
    async fn spread(self, args: SpreadArgs, mut others: watch::Receiver<Arc<[usize]>>) {
        // What is here counts for nothing yet, and shall be seen.
        for why in [AGE, SHARE] {
            metrics::counter!("weft_streams_sent_away", "why" => why).increment(0);
        }
        let (mut excess, mut pace) = (0, Pace::default());
        loop {
            tokio::time::sleep(TICK).await;
            let now = Instant::now();
            if !args.max_connection_age.is_zero() {
                let gone = self.age(args.max_connection_age, now);
                metrics::counter!("weft_streams_sent_away", "why" => AGE).increment(gone);
            }
            // What they said last holds until they say something else, however few went meanwhile: so it is worked off once.
            if others.has_changed().unwrap_or(false) {
                excess = pace.heard(self.len(), &others.borrow_and_update(), now);
            }
            let many = excess.min(args.rebalance_rate as usize);
            if many > 0 {
                let before = self.len();
                let gone = self.shed(many, excess, now);
                pace.sent(gone, before, now);
                excess = excess.saturating_sub(gone);
                metrics::counter!("weft_streams_sent_away", "why" => SHARE).increment(gone as u64);
                if gone > 0 {
                    tracing::info!(
                        proxies = gone,
                        left = self.len(),
                        "proxies are sent to other control planes: this one has more than its share"
                    );
                }
            }
        }
    }
}

/// How many streams each of the other control planes has, again and again; nothing without a board.
fn others(board: Option<Board>, crowd: Crowd) -> watch::Receiver<Arc<[usize]>> {
    let (sender, others) = watch::channel(Arc::from([]));
    if let Some(mut board) = board {
        tokio::spawn(async move {
            let mut refused = false;
            loop {
                // Whoever has just begun to serve is found to be ready, and gets proxies, a few seconds later: others would send
                // theirs in vain before.
                tokio::time::sleep(SAY).await;
                match tokio::time::timeout(SAY, board.say(crowd.len())).await {
                    Ok(Ok(others)) => {
                        metrics::gauge!("weft_control_planes").set(1.0 + others.len() as f64);
                        refused = false;
                        if sender.send(others.into()).is_err() {
                            return;
                        }
                    }
                    // One that may not, may not next time.
                    Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                        if !std::mem::replace(&mut refused, true) {
                            tracing::warn!(
                                error = %status.message,
                                "proxies are not spread over the replicas: this control plane may not write their Lease. Let \
                                 its Role create leases and patch weft-control-streams, or give --rebalance-rate 0"
                            );
                        }
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "the other control planes cannot be asked for their streams");
                    }
                    Err(_) => {
                        tracing::debug!("the other control planes cannot be asked for their streams in time")
                    }
                }
            }
        });
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_ages_differ() {
        let (crowd, start) = (Crowd::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let members: Vec<Member> = (0..100).map(|n| crowd.enter(Leave::default(), at(n / 50 * 60))).collect();
        let told = || members.iter().filter(|member| member.leave.told()).count();
        // Who has just come stays.
        assert_eq!(crowd.shed(1000, 1000, at(5)), 0);
        assert_eq!((crowd.shed(10, 1000, at(61)), told(), crowd.len()), (10, 10, 90));
        assert!(members[..10].iter().all(|member| member.leave.told()));
        assert_eq!((crowd.shed(1000, 1000, at(61)), told()), (40, 50));
        // Of an hour, a tenth sooner or later.
        let hour = Duration::from_secs(3600);
        assert_eq!(crowd.age(hour, at(60 + 3239)), 0);
        let some = crowd.age(hour, at(60 + 3600));
        assert!((1..50).contains(&some), "{some}");
        assert_eq!(some + crowd.age(hour, at(60 + 3961)), 50);
        assert!(crowd.is_empty());
        drop(members);
        assert!(crowd.0.here.lock().is_empty());
    }

    #[test]
    fn a_connection_goes_with_all_of_its_streams_and_no_more_go_than_are_too_many() {
        let (crowd, start) = (Crowd::default(), Instant::now());
        let mut members = Vec::new();
        let mut enter = |streams: usize| {
            let leave = Leave::default();
            members.extend((0..streams).map(|_| crowd.enter(leave.clone(), start)));
            leave
        };
        let [many, few, one, last] = [30, 5, 1, 1].map(&mut enter);
        let later = start + SETTLED;
        // The greatest is more than is too many: it stays, whatever its age.
        assert_eq!(crowd.shed(4, 8, later), 5);
        assert_eq!([&many, &few, &one, &last].map(Leave::told), [false, true, false, false]);
        assert_eq!(crowd.len(), 32);
        assert_eq!((crowd.shed(1, 3, later), one.told(), last.told()), (1, true, false));
        // It is more than may go in a second, and goes all the same.
        assert_eq!((crowd.shed(10, 40, later), many.told(), last.told()), (30, true, false));
        assert_eq!((crowd.age(SETTLED, later + SETTLED), crowd.len()), (1, 0));
    }
}
