//! Which hop of a request follows from which: a server's proxy from the try that came to it, a client's proxy from the request
//! during which its workload sent it.

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::inspect::Seen;

/// As much may the clocks of two machines differ.
const SKEW: Duration = Duration::seconds(5);

/// A hop, and those that follow from it.
#[derive(Debug)]
pub struct Hop {
    /// What its proxy has kept.
    pub seen: Seen,
    /// In the order of their time.
    pub below: Vec<Hop>,
}

fn start(request: &Value) -> OffsetDateTime {
    let text = request["start"].as_str().unwrap_or_default();
    OffsetDateTime::parse(text, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn after(request: &Value, millis: &Value) -> OffsetDateTime {
    start(request) + Duration::seconds_f64(millis.as_f64().unwrap_or(0.0) / 1000.0)
}

/// How far a try of `sender` at where `seen` was taken in is from that, in time.
fn distance(sender: &Seen, seen: &Seen) -> Option<Duration> {
    if sender.request["direction"] == "inbound" {
        return None;
    }
    // A connection is known by the address that it came from.
    if sender.request["upstreamLocal"].is_string()
        && sender.request["upstreamLocal"] != seen.request["remote"]
    {
        return None;
    }
    let tries = sender.request["attempts"].as_array()?.iter();
    let here = tries.filter(|one| one["host"].is_string() && one["host"] == seen.request["local"]);
    let apart = here.map(|one| (start(&seen.request) - after(&sender.request, &one["beganMs"])).abs());
    apart.min().filter(|apart| *apart <= SKEW)
}

/// Whether two were there at the same time, as far as clocks can tell.
pub(super) fn overlap(one: &Seen, other: &Seen) -> bool {
    let ends = |seen: &Seen| (start(&seen.request), after(&seen.request, &seen.request["durationMs"]));
    let ((from, until), (other_from, other_until)) = (ends(one), ends(other));
    from <= other_until + SKEW && other_from <= until + SKEW
}

/// Whether `seen` was sent by the workload of the same proxy while it was serving `outer`.
fn within(outer: &Seen, seen: &Seen) -> bool {
    let (from, until) = (start(&outer.request), after(&outer.request, &outer.request["durationMs"]));
    outer.proxy == seen.proxy
        && outer.request["direction"] == "inbound"
        && seen.request["direction"] != "inbound"
        && (from..=until).contains(&start(&seen.request))
}

/// The hop that this one follows from.
fn parent(all: &[Seen], at: usize) -> Option<usize> {
    let others = || all.iter().enumerate().filter(|(other, _)| *other != at);
    let sender = others().filter_map(|(i, other)| Some((distance(other, &all[at])?, i))).min();
    let outer =
        || others().filter(|(_, other)| within(other, &all[at])).max_by_key(|(_, o)| start(&o.request));
    sender.map(|(_, i)| i).or_else(|| outer().map(|(i, _)| i))
}

/// All hops in their order.
pub(super) fn tree(seen: &[Seen]) -> Vec<Hop> {
    let mut all = seen.to_vec();
    all.sort_by_key(|one| start(&one.request));
    let mut parents: Vec<_> = (0..all.len()).map(|at| parent(&all, at)).collect();
    for at in 0..all.len() {
        // Clocks may be so far apart that one would follow from itself.
        let mut up = parents[at];
        for _ in 0..all.len() {
            match up {
                Some(above) if above == at => {
                    parents[at] = None;
                    break;
                }
                Some(above) => up = parents[above],
                None => break,
            }
        }
    }
    below(&all, &parents, None)
}

fn below(all: &[Seen], parents: &[Option<usize>], of: Option<usize>) -> Vec<Hop> {
    let own = (0..all.len()).filter(|at| parents[*at] == of);
    own.map(|at| Hop { seen: all[at].clone(), below: below(all, parents, Some(at)) }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(proxy: &str, direction: &str, second: u32, local: &str, hosts: &[&str]) -> Seen {
        let attempts: Vec<_> = hosts.iter().map(|host| json!({"host": host, "beganMs": 1.0})).collect();
        Seen {
            proxy: proxy.to_owned(),
            request: json!({"direction": direction, "start": format!("2026-01-01T00:00:0{second}.5Z"), "durationMs": 900.0,
                "local": local, "attempts": attempts}),
        }
    }

    fn shape(hops: &[Hop]) -> String {
        let one = |hop: &Hop| {
            let below = if hop.below.is_empty() { String::new() } else { format!("({})", shape(&hop.below)) };
            format!("{} {}{below}", hop.seen.proxy, hop.seen.request["direction"].as_str().unwrap())
        };
        hops.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn hops_stand_in_the_order_in_which_the_request_passed_them() {
        let all = [
            seen("c", "inbound", 1, "10.0.0.3:80", &["127.0.0.1:80"]),
            seen("b", "outbound", 1, "10.9.0.2:80", &["10.0.0.4:80", "10.0.0.3:80"]),
            seen("d", "inbound", 1, "10.0.0.4:80", &["127.0.0.1:80"]),
            seen("b", "inbound", 1, "10.0.0.2:80", &["127.0.0.1:80"]),
            seen("a", "outbound", 1, "10.9.0.1:80", &["10.0.0.2:80"]),
        ];
        assert_eq!(shape(&tree(&all)), "a outbound(b inbound(b outbound(c inbound, d inbound)))");
        // Without the hops that connect them.
        assert_eq!(shape(&tree(&[all[0].clone(), all[4].clone()])), "c inbound, a outbound");
    }

    #[test]
    fn a_later_request_of_the_same_id_is_another_one() {
        let all = [
            seen("a", "outbound", 1, "10.9.0.1:80", &["10.0.0.2:80"]),
            seen("b", "inbound", 1, "10.0.0.2:80", &[]),
            seen("b", "outbound", 9, "10.9.0.2:80", &[]),
        ];
        assert_eq!(shape(&tree(&all)), "a outbound(b inbound), b outbound");
    }

    #[test]
    fn hops_that_would_follow_from_each_other_are_all_shown() {
        let all = [
            seen("a", "outbound", 1, "10.0.0.2:80", &["10.0.0.1:80"]),
            seen("b", "outbound", 1, "10.0.0.1:80", &["10.0.0.2:80"]),
        ];
        assert_eq!(shape(&tree(&all)).matches("outbound").count(), 2);
    }
}
