//! The names that a proxy's clusters are made of, each looked up by one task, whoever wants it.
//!
//! A thousand names must not become a flood: so many are asked for at once, and those that have been asked for before wait for their
//! turn, of which a second has no more than [`TURNS`]. A name that nobody has asked for yet need not wait for one, because a cluster does.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until};
use xds_protos::envoy::config::cluster::v3::cluster::DnsLookupFamily;

use super::resolver::{Answer, Resolvers};
use crate::cluster::config::DnsTimes;

/// So many names are asked for at the same time.
const AT_ONCE: usize = 64;
/// So many names that have been asked for before are asked for again in a second.
const TURNS: u32 = 50;
/// So many failing names are told of in the time after it; the others are counted.
const TOLD: (u32, Duration) = (10, Duration::from_secs(10));

/// What is known of a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Its addresses, as they were last told.
    pub addresses: Arc<[IpAddr]>,
    /// The last question was answered.
    pub answered: bool,
}

type Asked = Pin<Box<dyn Future<Output = Answer> + Send>>;
type Ask = Box<dyn Fn(Arc<str>, DnsLookupFamily) -> Asked + Send + Sync>;

/// What is asked for.
type Question = (Arc<str>, DnsLookupFamily);
type Sender = Arc<watch::Sender<Option<Known>>>;

/// The names; clones share them.
#[derive(Clone)]
pub struct Names(Arc<Inner>);

struct Inner {
    ask: Ask,
    /// By question: each is asked as often as somebody wants it.
    followed: Mutex<HashMap<Question, Vec<(DnsTimes, Sender)>>>,
    at_once: Semaphore,
    /// When the next turn is.
    next: Mutex<Instant>,
    /// Names that could not be resolved the last time.
    failing: AtomicUsize,
    /// Since when lines about failures are counted, and how many there were.
    told: Mutex<(Instant, u32)>,
}

impl Default for Names {
    fn default() -> Self {
        let resolvers = Arc::new(Resolvers::default());
        Self::by(Box::new(move |host, family| {
            let resolvers = resolvers.clone();
            Box::pin(async move { resolvers.ask(host, family, AT_ONCE).await })
        }))
    }
}

impl Names {
    fn by(ask: Ask) -> Self {
        Self(Arc::new(Inner {
            ask,
            followed: Mutex::default(),
            at_once: Semaphore::new(AT_ONCE),
            next: Mutex::new(Instant::now()),
            failing: AtomicUsize::new(0),
            told: Mutex::new((Instant::now(), 0)),
        }))
    }

    /// What is known of a name from now on; nothing until it was asked for once. It is asked for as long as somebody follows it.
    pub fn follow(
        &self,
        host: &str,
        family: DnsLookupFamily,
        times: DnsTimes,
    ) -> watch::Receiver<Option<Known>> {
        let question: Question = (host.into(), family);
        let mut followed = self.0.followed.lock();
        let asked = followed.entry(question.clone()).or_default();
        if let Some((_, sender)) = asked.iter().find(|(other, _)| *other == times) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        let sender = Arc::new(sender);
        asked.push((times, sender.clone()));
        tokio::task::spawn_local(keep_asking(self.0.clone(), question, times, sender));
        receiver
    }
}

async fn keep_asking(names: Arc<Inner>, question: Question, times: DnsTimes, sender: Sender) {
    let (host, family) = &question;
    let mut failures = 0u32;
    loop {
        // Before it waits for its turn as well: one that nobody follows takes no turn from others.
        let mut over = names.forget(&question, &sender);
        if !over && sender.borrow().is_some() {
            names.turn().await;
            over = names.forget(&question, &sender);
        }
        if over {
            if failures > 0 {
                names.failing.fetch_sub(1, Relaxed);
            }
            return;
        }
        let answer = {
            // Nobody closes it.
            let _one_of_them = names.at_once.acquire().await;
            (names.ask)(host.clone(), *family).await
        };
        let next = match answer {
            Ok((addresses, ttl)) => {
                if failures > 0 {
                    names.failing.fetch_sub(1, Relaxed);
                }
                failures = 0;
                sender.send_replace(Some(Known { addresses: addresses.into(), answered: true }));
                times.after(ttl)
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let known = sender.borrow().clone();
                // A cluster whose times have changed asks anew, and must not lose its hosts for that.
                let known = known.or_else(|| names.known(&question)).unwrap_or_default();
                let failing = match failures {
                    1 => names.failing.fetch_add(1, Relaxed) + 1,
                    _ => names.failing.load(Relaxed),
                };
                let kept = known.addresses.len();
                if failures == 1 && names.may_tell() {
                    tracing::warn!(cluster = %host, %error, kept, failing, "name not resolved; the last answers are kept");
                } else {
                    tracing::debug!(cluster = %host, %error, kept, failing, failures, "name not resolved");
                }
                sender.send_replace(Some(Known { answered: false, ..known }));
                times.after_failures(failures)
            }
        };
        tracing::debug!(name = %host, ?next, "name looked up");
        tokio::select! {
            () = sleep(next) => {}
            () = sender.closed() => {}
        }
    }
}

impl Inner {
    /// Ends what nobody follows any more, and says whether it did.
    fn forget(&self, question: &Question, sender: &Sender) -> bool {
        let mut followed = self.followed.lock();
        if sender.receiver_count() > 0 {
            return false;
        }
        if let Some(asked) = followed.get_mut(question) {
            asked.retain(|(_, other)| !Arc::ptr_eq(other, sender));
            if asked.is_empty() {
                followed.remove(question);
            }
        }
        true
    }

    /// What those who ask the same at other times know.
    fn known(&self, question: &Question) -> Option<Known> {
        let followed = self.followed.lock();
        let mut known = followed.get(question)?.iter().filter_map(|(_, sender)| sender.borrow().clone());
        known.find(|known| !known.addresses.is_empty())
    }

    /// Waits for a turn.
    async fn turn(&self) {
        let at = {
            let mut next = self.next.lock();
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_secs(1) / TURNS;
            at
        };
        sleep_until(at).await;
    }

    /// Whether one line more may be written about failures.
    fn may_tell(&self) -> bool {
        let mut told = self.told.lock();
        if told.0.elapsed() >= TOLD.1 {
            *told = (Instant::now(), 0);
        }
        told.1 += 1;
        told.1 <= TOLD.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use tokio::task::LocalSet;

    use super::*;

    const TIMES: DnsTimes = DnsTimes {
        refresh: Duration::from_secs(60),
        respect_ttl: true,
        least: Duration::ZERO,
        jitter: Duration::ZERO,
        failure: None,
    };
    const V4: DnsLookupFamily = DnsLookupFamily::V4Only;

    /// A server that counts, and answers for a second after a while; or not at all.
    #[derive(Clone, Default)]
    struct Server {
        asked: Arc<AtomicUsize>,
        now: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
        silent: Arc<AtomicBool>,
    }

    impl Server {
        fn names(&self) -> Names {
            let server = self.clone();
            Names::by(Box::new(move |_, _| {
                let server = server.clone();
                Box::pin(async move {
                    server.asked.fetch_add(1, Relaxed);
                    let now = server.now.fetch_add(1, Relaxed) + 1;
                    server.most.fetch_max(now, Relaxed);
                    let silent = server.silent.load(Relaxed);
                    sleep(Duration::from_millis(if silent { 10_000 } else { 20 })).await;
                    server.now.fetch_sub(1, Relaxed);
                    match silent {
                        true => Err("no answer".to_owned()),
                        false => Ok((vec![[192, 0, 2, 1].into()], Duration::from_secs(1))),
                    }
                })
            }))
        }

        fn asked(&self) -> usize {
            self.asked.load(Relaxed)
        }
    }

    /// On a clock that goes on by itself.
    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        LocalSet::new().block_on(&runtime.unwrap(), test);
    }

    #[test]
    fn a_thousand_names_that_hold_a_second_are_a_bounded_number_of_questions() {
        run(async {
            let server = Server::default();
            let names = server.names();
            let mut followed: Vec<_> =
                (0..1000).map(|n| names.follow(&format!("s{n}.example"), V4, TIMES)).collect();
            let began = Instant::now();
            for one in &mut followed {
                one.wait_for(Option::is_some).await.unwrap();
            }
            // Each once, without waiting for turns; no more than so many at the same time.
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            assert_eq!(server.most.load(Relaxed), AT_ONCE);
            let before = server.asked();
            sleep(Duration::from_secs(60)).await;
            let asked = server.asked() - before;
            assert!((50 * 55..=50 * 61).contains(&asked), "{asked}");
            // The last answers stay while nobody answers, and there are no more questions than before.
            server.silent.store(true, Relaxed);
            sleep(Duration::from_secs(120)).await;
            let before = server.asked();
            sleep(Duration::from_secs(60)).await;
            assert!(server.asked() - before <= 50 * 61, "{}", server.asked() - before);
            for one in &followed {
                let known = one.borrow().clone().unwrap();
                assert_eq!((&*known.addresses, known.answered), (&[IpAddr::from([192, 0, 2, 1])][..], false));
            }
            server.silent.store(false, Relaxed);
            for one in &mut followed {
                one.wait_for(|known| known.as_ref().is_some_and(|known| known.answered)).await.unwrap();
            }
        });
    }

    #[test]
    fn clusters_of_the_same_name_share_its_questions_and_nobody_asks_for_the_last_ones() {
        run(async {
            let server = Server::default();
            let names = server.names();
            let all: Vec<_> = (0..100).map(|_| names.follow("a.example", V4, TIMES)).collect();
            sleep(Duration::from_secs(100)).await;
            let asked = server.asked();
            assert!((80..=100).contains(&asked), "{asked}");
            // Another family is another question.
            let other = names.follow("a.example", DnsLookupFamily::V6Only, TIMES);
            sleep(Duration::from_millis(500)).await;
            assert!(other.borrow().is_some());
            drop((all, other));
            sleep(Duration::from_secs(2)).await;
            let asked = server.asked();
            sleep(Duration::from_secs(100)).await;
            assert_eq!((server.asked(), names.0.followed.lock().len()), (asked, 0));
        });
    }

    #[test]
    fn who_asks_at_other_times_while_nobody_answers_has_the_last_answers() {
        run(async {
            let server = Server::default();
            let names = server.names();
            let mut before = names.follow("a.example", V4, TIMES);
            before.wait_for(Option::is_some).await.unwrap();
            server.silent.store(true, Relaxed);
            let changed = DnsTimes { refresh: Duration::from_secs(5), ..TIMES };
            let mut after = names.follow("a.example", V4, changed);
            let mut other = names.follow("b.example", V4, changed);
            let mut family = names.follow("a.example", DnsLookupFamily::V6Only, changed);
            let known = after.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            assert_eq!((&*known.addresses, known.answered), (&[IpAddr::from([192, 0, 2, 1])][..], false));
            // Of what was never answered there is nothing.
            for nothing in [&mut other, &mut family] {
                assert_eq!(*nothing.wait_for(Option::is_some).await.unwrap(), Some(Known::default()));
            }
            // It keeps them when the other one is gone.
            drop(before);
            sleep(Duration::from_secs(60)).await;
            assert_eq!(after.borrow().clone(), Some(known));
            drop((after, other, family));
            sleep(Duration::from_secs(60)).await;
            assert_eq!((names.0.followed.lock().len(), names.0.failing.load(Relaxed)), (0, 0));
        });
    }

    #[test]
    fn names_that_nobody_follows_any_more_hold_nobody_up() {
        run(async {
            let server = Server::default();
            let names = server.names();
            let rarely = DnsTimes { refresh: Duration::from_secs(3600), respect_ttl: false, ..TIMES };
            let mut gone: Vec<_> =
                (0..1000).map(|n| names.follow(&format!("s{n}.example"), V4, rarely)).collect();
            let mut kept = names.follow("kept.example", V4, TIMES);
            for one in gone.iter_mut().chain([&mut kept]) {
                one.wait_for(Option::is_some).await.unwrap();
            }
            drop(gone);
            let before = server.asked();
            sleep(Duration::from_secs(10)).await;
            assert!(server.asked() - before >= 7, "{}", server.asked() - before);
        });
    }
}
