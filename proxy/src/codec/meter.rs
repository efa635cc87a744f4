//! What a stream takes on the wire: its heads, its body and what frames them, as they are read and written on its connection.
//!
//! Only a log that tells of it makes this known. The codec then has a meter for each request, which the handler gets with it
//! ([`Downstream`](super::Downstream)). An answer's last bytes are framed when its handler is long done, so whoever wants the final
//! numbers leaves a closure, which is called when the codec has written the last of them, or the stream is over without that.
//!
//! The connections of HTTP/2 to upstreams are shared by all, and count frames only if a log wanted them when they were made:
//! [`Wish`] is that log's. One that does not count leaves a stream's meter [blind](Meter::blind).

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes of a stream, as Envoy counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireBytes {
    /// Everything that was written.
    pub sent: u64,
    /// Everything that was read.
    pub received: u64,
    /// Of it fields: HTTP/1's lines, HTTP/2's frames of heads and trailers.
    pub headers_sent: u64,
    /// Of what was read.
    pub headers_received: u64,
    /// Fields before they were compressed.
    pub plain_headers_sent: u64,
    /// Fields after they were decompressed.
    pub plain_headers_received: u64,
}

type Then = Box<dyn FnOnce(Option<WireBytes>)>;

/// Counts one stream.
#[derive(Default)]
pub struct Meter {
    bytes: Cell<WireBytes>,
    blind: Cell<bool>,
    over: Cell<bool>,
    then: Cell<Option<Then>>,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").field("bytes", &self.bytes).field("over", &self.over).finish_non_exhaustive()
    }
}

impl Meter {
    /// Adds to the counts.
    pub fn count(&self, add: impl FnOnce(&mut WireBytes)) {
        let mut bytes = self.bytes.get();
        add(&mut bytes);
        self.bytes.set(bytes);
    }

    /// What was counted; nothing where some of it was not.
    pub fn bytes(&self) -> Option<WireBytes> {
        (!self.blind.get()).then(|| self.bytes.get())
    }

    /// Something goes by that is not counted.
    pub fn blind(&self) {
        self.blind.set(true);
    }

    /// Calls this with the final numbers: when the stream is over, or at once if it is.
    pub fn then(&self, then: Then) {
        if self.over.get() {
            then(self.bytes());
        } else {
            self.then.set(Some(then));
        }
    }

    /// The same, but if the stream is not over soon, with what is counted by then: a client that takes nothing more keeps nothing
    /// back from logs.
    pub fn then_in_time(self: &Rc<Self>, then: Then) {
        self.then(then);
        if self.over.get() {
            return;
        }
        let begins = WAITING.with_borrow_mut(|waiting| {
            waiting.push((Instant::now(), Rc::downgrade(self)));
            // One that is there looks after all.
            waiting.len() == 1
        });
        if begins {
            tokio::task::spawn_local(look_after());
        }
    }

    /// Whether somebody waits for its end.
    fn waits(&self) -> bool {
        let then = self.then.take();
        let waits = then.is_some();
        self.then.set(then);
        waits
    }

    /// Calls whoever waits with what is counted by now.
    fn tell(&self) {
        if let Some(then) = self.then.take() {
            then(self.bytes());
        }
    }

    /// The stream is over, and everything is counted.
    pub fn end(&self) {
        self.over.set(true);
        self.tell();
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Nobody is left to say that it is over.
        self.end();
    }
}

/// How long an answer's last bytes may wait for a client that does not take them.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for such.
const LOOK: Duration = Duration::from_secs(1);

thread_local! {
    /// Meters that somebody waits for, and since when. Never empty while it is looked after.
    static WAITING: RefCell<Vec<(Instant, Weak<Meter>)>> = const { RefCell::new(Vec::new()) };
}

/// Ends when nobody waits any more.
async fn look_after() {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = Instant::now();
        let mut late = Vec::new();
        let is_empty = WAITING.with_borrow_mut(|waiting| {
            waiting.retain(|(since, meter)| {
                let Some(meter) = meter.upgrade().filter(|meter| meter.waits()) else { return false };
                let is_late = now.saturating_duration_since(*since) >= PATIENCE;
                if is_late {
                    late.push(meter);
                }
                !is_late
            });
            waiting.is_empty()
        });
        late.iter().for_each(|meter| meter.tell());
        if is_empty {
            return;
        }
    }
}

static WISHES: AtomicUsize = AtomicUsize::new(0);

/// A log wants to know what streams take on the wire, as long as this lives.
#[derive(Debug)]
pub struct Wish(());

impl Wish {
    /// From now on new connections count.
    pub fn new() -> Self {
        WISHES.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Default for Wish {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        WISHES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a log wants to know.
pub(super) fn is_wished() -> bool {
    WISHES.load(Ordering::Relaxed) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_numbers_come_when_the_stream_is_over_and_once() {
        let told: Rc<Cell<(u32, u64)>> = Rc::default();
        let teller = |told: &Rc<Cell<(u32, u64)>>| -> Then {
            let told = told.clone();
            Box::new(move |bytes| told.set((told.get().0 + 1, bytes.map_or(0, |bytes| bytes.sent))))
        };
        let meter = Meter::default();
        meter.then(teller(&told));
        meter.count(|bytes| bytes.sent += 3);
        assert_eq!(told.get(), (0, 0));
        meter.end();
        assert_eq!(told.get(), (1, 3));
        // Whoever comes late is told at once.
        meter.then(teller(&told));
        assert_eq!(told.get(), (2, 3));
        drop(meter);
        assert_eq!(told.get(), (2, 3));
        // A meter that nobody ended does not take it along.
        let meter = Meter::default();
        meter.count(|bytes| bytes.sent += 5);
        meter.then(teller(&told));
        drop(meter);
        assert_eq!(told.get(), (3, 5));
        let blind = Meter::default();
        blind.blind();
        assert_eq!(blind.bytes(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_nothing_more_keeps_nothing_back_for_long() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let told: Rc<Cell<Option<(u64, Duration)>>> = Rc::default();
                let began = Instant::now();
                for round in 1..=2 {
                    let (meter, quick) = (Rc::new(Meter::default()), Rc::new(Meter::default()));
                    let own = told.clone();
                    let sent = |bytes: Option<WireBytes>| bytes.map_or(0, |bytes| bytes.sent);
                    meter.then_in_time(Box::new(move |bytes| own.set(Some((sent(bytes), began.elapsed())))));
                    let is_quick: Rc<Cell<bool>> = Rc::default();
                    let own = is_quick.clone();
                    quick.then_in_time(Box::new(move |_| own.set(true)));
                    meter.count(|bytes| bytes.sent += round);
                    quick.end();
                    assert!(is_quick.get() && told.take().is_none());
                    tokio::time::sleep(PATIENCE + LOOK).await;
                    let (bytes, when) = told.get().unwrap();
                    assert_eq!(bytes, round);
                    assert!(when >= PATIENCE && when <= 2 * (PATIENCE + LOOK) + LOOK, "{when:?}");
                    // What comes later is told nobody.
                    told.set(None);
                    meter.end();
                    assert!(told.get().is_none());
                    // Then nobody looks any more, until there is something to look after again.
                    tokio::time::sleep(2 * LOOK).await;
                    assert!(WAITING.with_borrow(Vec::is_empty));
                }
            })
            .await;
    }

    #[test]
    fn connections_count_while_somebody_wishes_it() {
        let wish = Wish::new();
        assert!(is_wished());
        drop(wish);
    }
}
