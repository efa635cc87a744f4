//! How eagerly proxies are sent to other replicas: as long as it helps.
//!
//! It does not where the way to the replicas is not random. With session affinity, routing by zone, weights, or a replica that is not
//! ready and has no proxies for that, whoever is sent away comes back, and would be sent away again for ever. So what a round of it has
//! brought is looked at, and after one that has brought nothing there is a pause, twice as long each time.

use std::time::{Duration, Instant};

/// After so long it is asked what a round has brought.
const ROUND: Duration = Duration::from_secs(10);
/// The first pause after a round that has brought nothing, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// Of so many that were sent one at least stays away: fewer are those who went for reasons of their own. Where one replica comes to
/// several by chance, a ninth stays away.
const STAYS: usize = 20;
/// So many more than its share are no clear excess, whatever a tenth of it is.
const SLACK: usize = 2;

/// What sending proxies away has brought so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// How many others there are.
    others: usize,
    round: Option<Round>,
    pause: Duration,
    /// When the pause ends.
    until: Option<Instant>,
}

#[derive(Debug)]
struct Round {
    began: Instant,
    /// How many proxies were here then.
    before: usize,
    sent: usize,
    /// Of them, those since the others were heard last: they may be on their way back still.
    late: usize,
}

impl Round {
    /// Whether enough stayed away, if so many are here.
    fn has_helped(&self, here: usize) -> bool {
        self.before.saturating_sub(here) > self.sent / STAYS
    }
}

impl Pace {
    /// How many of `mine` may be sent away until it is heard anew how many each of the others has.
    pub(super) fn heard(&mut self, mine: usize, others: &[usize], now: Instant) -> usize {
        if others.len() != self.others {
            // Who comes may be who was missing.
            *self = Self { others: others.len(), ..Self::default() };
        }
        if let Some(round) = &mut self.round {
            let late = std::mem::take(&mut round.late);
            if now.saturating_duration_since(round.began) >= ROUND {
                if round.has_helped(mine + late) {
                    (self.round, self.pause) = (None, Duration::ZERO);
                } else if late > 0 {
                    // It is not clear yet: look again once they have all had the time to come back.
                    return 0;
                } else {
                    self.give_up(now);
                }
            }
        }
        match self.until {
            Some(until) if now < until => 0,
            _ => excess_of(mine, others),
        }
    }

    /// `many` have been sent away of those that were here.
    pub(super) fn sent(&mut self, many: usize, before: usize, now: Instant) {
        if many > 0 {
            let round = self.round.get_or_insert(Round { began: now, before, sent: 0, late: 0 });
            round.sent += many;
            round.late += many;
        }
    }

    fn give_up(&mut self, now: Instant) {
        let sent = self.round.take().map_or(0, |round| round.sent);
        let first = self.pause.is_zero();
        self.pause = (self.pause * 2).clamp(PAUSE.0, PAUSE.1);
        self.until = Some(now + self.pause);
        if first {
            tracing::warn!(
                sent, pause = ?self.pause,
                "proxies that were sent to other control planes came back: nobody is sent for a while, and for longer each time. Look \
                 whether the Service of the control plane has session affinity, or routes by zone (sessionAffinity, trafficDistribution), \
                 and whether all replicas are ready"
            );
        } else {
            tracing::info!(sent, pause = ?self.pause, "proxies that were sent to other control planes came back again");
        }
    }
}

/// How many of `mine` are clearly too many beside what others have.
fn excess_of(mine: usize, others: &[usize]) -> usize {
    let total: usize = mine + others.iter().sum::<usize>();
    let share = total.div_ceil(1 + others.len());
    match mine > share + SLACK.max(share / 10) {
        true => mine - share,
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_clearly_more_than_a_share_is_too_much() {
        for (mine, others, excess) in [
            (1000, &[][..], 0),
            (500, &[500, 0, 0, 0], 300),
            (210, &[200, 200, 195, 195], 0),
            (230, &[200, 200, 185, 185], 30),
            (3, &[0], 0),
            (5, &[0], 0),
            (6, &[0], 3),
            (0, &[10], 0),
        ] {
            assert_eq!(excess_of(mine, others), excess, "{mine} beside {others:?}");
        }
    }

    /// Seconds, as they pass.
    fn seconds() -> impl Iterator<Item = (u64, Instant)> {
        let start = Instant::now();
        (0..).map(move |n| (n, start + Duration::from_secs(n)))
    }

    /// Others are heard every five seconds, ten may go a second, and all come back at once. How many were sent, second by second.
    fn in_vain(pace: &mut Pace, mine: usize, others: &[usize], times: &[(u64, Instant)]) -> Vec<usize> {
        let mut excess = 0;
        let each = times.iter().map(|(n, now)| {
            if n % 5 == 0 {
                excess = pace.heard(mine, others, *now);
            }
            let many = excess.min(10);
            pace.sent(many, mine, *now);
            excess -= many;
            many
        });
        each.collect()
    }

    #[test]
    fn where_proxies_come_back_they_are_sent_seldom_until_replicas_change() {
        let (mut pace, times) = (Pace::default(), seconds().take(5000).collect::<Vec<_>>());
        let sent = in_vain(&mut pace, 1000, &[0, 0], &times[..3600]);
        let all: usize = sent.iter().sum();
        // Rounds of ten seconds with pauses of up to 300.
        assert!((100..=2000).contains(&all), "{all} in an hour");
        let last: usize = sent[2700..].iter().sum();
        assert!((100..=300).contains(&last), "{last} in the last quarter: it is tried again, and seldom");
        let mut pauses: Vec<usize> =
            sent.split(|many| *many > 0).map(<[_]>::len).filter(|pause| *pause > 0).collect();
        // The last one may not be over.
        pauses.pop();
        assert!(pauses.is_sorted() && pauses[0] <= 20 && pauses[3] >= 70, "{pauses:?}");
        // In the midst of a pause one comes.
        let mut at = 3600;
        while pace.until.is_none_or(|until| until <= times[at + 5].1) {
            in_vain(&mut pace, 1000, &[0, 0], &times[at..at + 5]);
            at += 5;
        }
        let vain = in_vain(&mut pace, 1000, &[0, 0], &times[at..at + 5]);
        assert_eq!(vain, [0; 5]);
        let sent = in_vain(&mut pace, 1000, &[0, 0, 0], &times[at + 5..at + 10]);
        assert_eq!(sent, [10; 5]);
    }

    #[test]
    fn a_few_that_come_back_are_let_alone_as_well() {
        let (mut pace, times) = (Pace::default(), seconds().take(3600).collect::<Vec<_>>());
        let all: usize = in_vain(&mut pace, 6, &[0], &times).iter().sum();
        assert!((6..=120).contains(&all), "{all} in an hour");
    }

    #[test]
    fn where_the_way_is_random_it_goes_on_until_all_have_their_share() {
        // Two of 500 and three that are new; as many as are sent in a second are there again a second later, by turns.
        let mut here = [500_usize, 500, 0, 0, 0];
        let mut all: Vec<(Pace, usize)> = here.iter().map(|_| (Pace::default(), 0)).collect();
        let (mut turn, mut under_way, mut quiet) = (0, 0, 0);
        for (n, now) in seconds().take(120) {
            for _ in 0..std::mem::take(&mut under_way) {
                here[turn % 5] += 1;
                turn += 1;
            }
            let said = here;
            for (which, (pace, excess)) in all.iter_mut().enumerate() {
                let mine = here[which];
                if n % 5 == 0 {
                    let others: Vec<usize> =
                        said.iter().enumerate().filter(|(one, _)| *one != which).map(|(_, n)| *n).collect();
                    *excess = pace.heard(mine, &others, now);
                }
                let many = (*excess).min(10);
                pace.sent(many, mine, now);
                *excess -= many;
                here[which] -= many;
                under_way += many;
            }
            if under_way > 0 {
                quiet = n;
            }
        }
        assert!(here.iter().all(|n| (180..=222).contains(n)), "{here:?}");
        assert!(quiet <= 75, "the last went after {quiet} s");
    }

    #[test]
    fn once_it_helps_again_there_is_no_pause() {
        let (mut pace, times) = (Pace::default(), seconds().take(2000).collect::<Vec<_>>());
        let sent = in_vain(&mut pace, 100, &[0], &times[..1000]);
        assert!(!pace.pause.is_zero(), "{sent:?}");
        // From here on who is sent stays away.
        let (mut mine, mut excess) = (100_usize, 0);
        for (n, now) in &times[1000..] {
            if n % 5 == 0 {
                excess = pace.heard(mine, &[100 - mine], *now);
            }
            let many = excess.min(2);
            pace.sent(many, mine, *now);
            (excess, mine) = (excess - many, mine - many);
        }
        assert!(mine <= 55 && pace.pause.is_zero(), "{mine}: {pace:?}");
    }
}
