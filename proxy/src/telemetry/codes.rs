//! Answers counted by status and by class under Envoy's names: `upstream_rq_completed`, `upstream_rq_2xx`,
//! `upstream_rq_200`, and the same for some of them alone (`external.upstream_rq_200`).
//!
//! A counter is made when its status first comes; finding it takes no lock.

use std::sync::{Arc, LazyLock, OnceLock};

use http::StatusCode;

use super::registry::{Counter, Group};

/// Which answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All.
    All,
    /// Those to internal requests.
    Internal,
    /// Those to others.
    External,
    /// Those of canaries.
    Canary,
    /// Those that were followed by another try.
    Retry,
}

const SHARES: [(Share, &str); 5] = [
    (Share::All, ""),
    (Share::Internal, "internal."),
    (Share::External, "external."),
    (Share::Canary, "canary."),
    (Share::Retry, "retry."),
];

/// Statuses of one class, and the class itself.
const PAGE: usize = 101;
const CLASS: usize = 100;

/// Names by share, class and place in the page; the last is the total's.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut names = Vec::new();
    for (_, prefix) in SHARES {
        for class in 0..10 {
            names.extend((0..CLASS).map(|n| format!("{prefix}upstream_rq_{}", class * 100 + n)));
            names.push(format!("{prefix}upstream_rq_{class}xx"));
        }
        names.push(format!("{prefix}upstream_rq_completed"));
    }
    names
});

type Page = Box<[OnceLock<Counter>; PAGE]>;

/// The counters of one cluster, route or virtual cluster.
#[derive(Debug)]
pub struct Codes {
    group: Arc<Group>,
    /// Made with the first answer: most clusters never have one.
    made: OnceLock<Box<Made>>,
}

#[derive(Debug)]
struct Made {
    pages: [[OnceLock<Page>; 10]; SHARES.len()],
    completed: [OnceLock<Counter>; SHARES.len()],
}

impl Made {
    fn new() -> Box<Self> {
        let pages = std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new()));
        Box::new(Self { pages, completed: std::array::from_fn(|_| OnceLock::new()) })
    }
}

impl Codes {
    /// Counters in this group.
    pub fn new(group: &Arc<Group>) -> Self {
        Self { group: group.clone(), made: OnceLock::new() }
    }

    /// Counts an answer.
    pub fn count(&self, share: Share, status: StatusCode) {
        let (class, place) = (usize::from(status.as_u16() / 100), usize::from(status.as_u16() % 100));
        let share = share as usize;
        let made = self.made.get_or_init(Made::new);
        let Some(page) = made.pages[share].get(class) else { return };
        let page = page.get_or_init(|| Box::new(std::array::from_fn(|_| OnceLock::new())));
        let first = share * (10 * PAGE + 1) + class * PAGE;
        for place in [place, CLASS] {
            page[place].get_or_init(|| self.group.counter(&NAMES[first + place])).inc();
        }
        let name = share * (10 * PAGE + 1) + 10 * PAGE;
        made.completed[share].get_or_init(|| self.group.counter(&NAMES[name])).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::Metric;
    use super::*;

    #[test]
    fn answers_are_counted_by_class_and_status_and_share() {
        let group = Group::new("codes", Vec::new());
        let codes = Codes::new(&group);
        for (share, status) in [
            (Share::All, 200),
            (Share::All, 204),
            (Share::All, 503),
            (Share::Retry, 503),
            (Share::External, 999),
        ] {
            codes.count(share, StatusCode::from_u16(status).unwrap());
        }
        let mut all: Vec<_> = group
            .entries()
            .iter()
            .map(|e| match e.metric {
                Metric::Counter(c) => format!("{} {}", e.name, c.value()),
                _ => String::new(),
            })
            .collect();
        all.sort();
        assert_eq!(
            all,
            [
                "external.upstream_rq_999 1",
                "external.upstream_rq_9xx 1",
                "external.upstream_rq_completed 1",
                "retry.upstream_rq_503 1",
                "retry.upstream_rq_5xx 1",
                "retry.upstream_rq_completed 1",
                "upstream_rq_200 1",
                "upstream_rq_204 1",
                "upstream_rq_2xx 2",
                "upstream_rq_503 1",
                "upstream_rq_5xx 1",
                "upstream_rq_completed 3",
            ]
        );
    }
}
