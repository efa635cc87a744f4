//! What the servers have answered, for as long as it holds: by its TTL (RFC 2308 for what is not there), and after that for a day
//! in case nobody answers any more (RFC 8767). Failures are remembered for a moment, longer each time (RFC 9520), so that a
//! name that cannot be resolved is no flood of questions. Bounded by number and size; what was not used longest goes first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::time::Instant;

/// The most answers that are kept.
const MOST: usize = 10_000;
/// The most bytes of answers that are kept, as they were on the wire.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// An answer holds no longer than this, whatever it says (RFC 8767 allows a week).
const LONGEST: u32 = 24 * 60 * 60;
/// What is not there may be tomorrow (RFC 2308, section 5).
const LONGEST_NEGATIVE: u32 = 60 * 60;
/// How long an answer may be used after its time.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// The TTL of an answer after its time (RFC 8767, section 4).
const STALE_TTL: u32 = 30;
/// After a failure nobody is asked for so long; twice as long after the next, up to the second.
const FAILURE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What is asked: everything that an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) kind: RecordType,
    /// Signatures are wanted.
    pub(super) dnssec: bool,
    /// They need not be checked.
    pub(super) unchecked: bool,
}

/// What a server has answered.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    /// The server has checked signatures.
    pub(super) authentic: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Answer {
    /// Whether the name, or a record of the type, is not there.
    fn is_negative(&self) -> bool {
        self.code == ResponseCode::NXDomain || self.answers.is_empty()
    }

    /// How long it holds, in seconds. What is not there holds as long as the zone's SOA says, and without one not at all.
    fn ttl(&self) -> u32 {
        if self.is_negative() {
            let soa = self.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            return soa.unwrap_or(0).min(LONGEST_NEGATIVE);
        }
        let records = self.answers.iter().map(|record| record.ttl);
        records.min().unwrap_or(0).min(LONGEST)
    }
}

/// What is known about a question.
#[derive(Debug, PartialEq)]
pub(super) enum Known {
    /// An answer, and how many seconds old it is.
    Fresh(Arc<Answer>, u32),
    /// An answer after its time. Asking may be worthwhile, or has just failed.
    Stale { answer: Arc<Answer>, ask: bool },
    /// Asking has just failed, and nothing is known.
    Failing,
    /// Nothing.
    Unknown,
}

/// The TTL that a record has by now.
pub(super) fn aged(ttl: u32, age: u32) -> u32 {
    ttl.saturating_sub(age)
}

/// The TTL that a record has after its time.
pub(super) fn stale(ttl: u32) -> u32 {
    ttl.min(STALE_TTL)
}

#[derive(Debug)]
struct Entry {
    /// What was answered, when, for how many seconds, and its size.
    answer: Option<(Arc<Answer>, Instant, u32)>,
    size: usize,
    failures: u32,
    not_before: Instant,
    used: u64,
}

/// The answers.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Question, Entry>,
    /// By when they were last used.
    order: BTreeMap<u64, Question>,
    clock: u64,
    bytes: usize,
}

impl Cache {
    /// What is known now.
    pub(super) fn get(&mut self, question: &Question, now: Instant) -> Known {
        let Some(entry) = self.entries.get_mut(question) else { return Known::Unknown };
        self.clock += 1;
        if let Some(key) = self.order.remove(&entry.used) {
            self.order.insert(self.clock, key);
        }
        entry.used = self.clock;
        let failing = now < entry.not_before;
        match &entry.answer {
            Some((answer, since, ttl)) => {
                let age = now.saturating_duration_since(*since);
                if age < Duration::from_secs((*ttl).into()) {
                    return Known::Fresh(answer.clone(), u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
                }
                // That something was not there is nothing to hold on to.
                let kept = !answer.is_negative() && age < Duration::from_secs((*ttl).into()) + STALE;
                match (kept, failing) {
                    (true, _) => Known::Stale { answer: answer.clone(), ask: !failing },
                    (false, true) => Known::Failing,
                    (false, false) => Known::Unknown,
                }
            }
            None if failing => Known::Failing,
            None => Known::Unknown,
        }
    }

    /// Keeps an answer of so many bytes.
    pub(super) fn put(&mut self, question: Question, answer: Arc<Answer>, size: usize, now: Instant) {
        let ttl = answer.ttl();
        self.remove(&question);
        // What holds for no time may still be all there is when nobody answers.
        if answer.is_negative() && ttl == 0 {
            return;
        }
        self.insert(
            question,
            Entry { answer: Some((answer, now, ttl)), size, failures: 0, not_before: now, used: 0 },
        );
    }

    /// Asking has failed.
    pub(super) fn fail(&mut self, question: Question, now: Instant) {
        let before = self.remove(&question);
        let failures = before.as_ref().map_or(0, |entry| entry.failures);
        let [first, most] = FAILURE;
        let wait = first.saturating_mul(1 << failures.min(10)).min(most);
        let (answer, size) = before.map_or((None, 0), |entry| (entry.answer, entry.size));
        let failures = failures.saturating_add(1);
        self.insert(question, Entry { answer, size, failures, not_before: now + wait, used: 0 });
    }

    /// How many there are, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    fn insert(&mut self, question: Question, mut entry: Entry) {
        self.clock += 1;
        entry.used = self.clock;
        self.bytes += entry.size;
        self.order.insert(self.clock, question.clone());
        self.entries.insert(question, entry);
        while self.entries.len() > MOST || self.bytes > MOST_BYTES {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.bytes -= entry.size;
            }
        }
    }

    fn remove(&mut self, question: &Question) -> Option<Entry> {
        let entry = self.entries.remove(question)?;
        self.order.remove(&entry.used);
        self.bytes -= entry.size;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, SOA};

    use super::super::settings::name;
    use super::*;

    fn question(host: &str) -> Question {
        Question { name: name(host).unwrap(), kind: RecordType::A, dnssec: false, unchecked: false }
    }

    fn record(ttl: u32) -> Record {
        Record::from_rdata(name("a.example").unwrap(), ttl, RData::A(A::new(10, 0, 0, 1)))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let zone = name("example").unwrap();
        Record::from_rdata(zone.clone(), ttl, RData::SOA(SOA::new(zone.clone(), zone, 1, 1, 1, 1, minimum)))
    }

    fn answer(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Arc<Answer> {
        Arc::new(Answer { code, authentic: false, answers, authorities, additionals: Vec::new() })
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn an_answer_holds_as_long_as_its_shortest_record_and_is_kept_a_day_longer() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        let given = answer(ResponseCode::NoError, vec![record(60), record(20)], Vec::new());
        cache.put(question("a.example"), given.clone(), 100, start);
        let mut at = |n| cache.get(&question("A.Example"), start + seconds(n));
        assert_eq!(at(0), Known::Fresh(given.clone(), 0));
        assert_eq!(at(19), Known::Fresh(given.clone(), 19));
        assert_eq!(at(20), Known::Stale { answer: given.clone(), ask: true });
        assert_eq!(at(86_419), Known::Stale { answer: given.clone(), ask: true });
        assert_eq!(at(86_420), Known::Unknown);
        let other = Question { kind: RecordType::AAAA, ..question("a.example") };
        assert_eq!(cache.get(&other, start), Known::Unknown);
        assert_eq!((aged(60, 19), aged(5, 9), stale(300), stale(7)), (41, 0, 30, 7));
    }

    #[test]
    fn what_is_not_there_holds_as_long_as_the_zone_says() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        for (host, code, authority, holds) in [
            ("nx.example", ResponseCode::NXDomain, vec![soa(300, 40)], 40),
            ("nodata.example", ResponseCode::NoError, vec![soa(30, 900)], 30),
            ("long.example", ResponseCode::NXDomain, vec![soa(999_999, 999_999)], 3600),
            ("silent.example", ResponseCode::NXDomain, vec![], 0),
        ] {
            let given = answer(code, Vec::new(), authority);
            cache.put(question(host), given.clone(), 50, start);
            if holds > 0 {
                let known = cache.get(&question(host), start + seconds(holds - 1));
                assert_eq!(known, Known::Fresh(given, holds as u32 - 1), "{host}");
            }
            // It is no answer for when nobody answers.
            assert_eq!(cache.get(&question(host), start + seconds(holds)), Known::Unknown, "{host}");
        }
    }

    #[test]
    fn failures_are_asked_about_less_and_less_and_leave_what_was_known() {
        let (mut cache, mut now) = (Cache::default(), Instant::now());
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            cache.fail(question("down.example"), now);
            let mut after =
                |millis| cache.get(&question("down.example"), now + Duration::from_millis(millis));
            assert_eq!(after(wait * 1000 - 1), Known::Failing, "{wait}");
            assert_eq!(after(wait * 1000), Known::Unknown, "{wait}");
            now += seconds(wait);
        }
        let given = answer(ResponseCode::NoError, vec![record(10)], Vec::new());
        cache.put(question("down.example"), given.clone(), 100, now);
        now += seconds(10);
        cache.fail(question("down.example"), now);
        assert_eq!(
            cache.get(&question("down.example"), now),
            Known::Stale { answer: given.clone(), ask: false }
        );
        now += seconds(1);
        assert_eq!(cache.get(&question("down.example"), now), Known::Stale { answer: given, ask: true });
    }

    #[test]
    fn it_is_bounded_and_forgets_what_was_not_used() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let given = answer(ResponseCode::NoError, vec![record(60)], Vec::new());
        cache.put(question("first.example"), given.clone(), 100, now);
        cache.put(question("second.example"), given.clone(), 100, now);
        for n in 0..MOST - 1 {
            cache.get(&question("first.example"), now);
            cache.put(question(&format!("{n}.example")), given.clone(), 100, now);
        }
        assert_eq!(cache.size(), (MOST, MOST * 100));
        assert_eq!(cache.get(&question("second.example"), now), Known::Unknown);
        assert_eq!(cache.get(&question("first.example"), now), Known::Fresh(given.clone(), 0));
        // Few that are large are as bounded as many.
        for n in 0..300 {
            cache.put(question(&format!("{n}.large")), given.clone(), 65_000, now);
        }
        assert!(cache.size().1 <= MOST_BYTES, "{:?}", cache.size());
        assert_eq!(cache.get(&question("299.large"), now), Known::Fresh(given.clone(), 0));
        // The same again takes no more room.
        let before = cache.size();
        cache.put(question("299.large"), given, 65_000, now);
        assert_eq!(cache.size(), before);
        assert_eq!(cache.entries.len(), cache.order.len());
    }
}
