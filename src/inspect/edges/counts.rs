//! What one proxy's page of metrics says of each edge.

use weft_control::serve::canary::labelled;

use super::{Between, Edges, End};

/// Counts of one end of an edge.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct Counts {
    /// Requests.
    pub(in super::super) requests: f64,
    /// Those that the server could serve.
    pub(in super::super) good: f64,
    /// Requests, and connections of bytes, that came by mutual TLS.
    pub(in super::super) mutual: f64,
    /// Connections of bytes.
    pub(in super::super) opened: f64,
    /// Bytes of these to the client.
    pub(in super::super) sent: f64,
    /// Bytes of these from the client.
    pub(in super::super) received: f64,
    /// Durations: upper bound in milliseconds, and how many took at most so long. Sorted.
    pub(in super::super) buckets: Vec<(f64, f64)>,
}

/// Codes of gRPC that are the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
const SERVER_FAULTS: [&str; 6] = ["2", "4", "12", "13", "14", "15"];

impl Counts {
    pub(in super::super) fn is_empty(&self) -> bool {
        self.requests == 0.0 && self.opened == 0.0 && self.sent == 0.0 && self.received == 0.0
    }

    /// The share of requests that were served; none without requests.
    pub(in super::super) fn success(&self) -> Option<f64> {
        (self.requests > 0.0).then(|| self.good / self.requests)
    }

    /// The time, in milliseconds, that this share of requests took at most, in a straight line within its bucket as Prometheus has it.
    pub(in super::super) fn percentile(&self, share: f64) -> Option<f64> {
        let (_, all) = self.buckets.last().copied().filter(|(_, all)| *all > 0.0)?;
        let wanted = all * share;
        let place = self.buckets.iter().position(|(_, below)| *below >= wanted)?;
        let (bound, below) = self.buckets[place];
        let (from, before) = if place == 0 { (0.0, 0.0) } else { self.buckets[place - 1] };
        // Beyond the last bound nothing more is known.
        if bound.is_infinite() {
            return Some(from);
        }
        let within = if below > before { (wanted - before) / (below - before) } else { 1.0 };
        Some(from + (bound - from) * within)
    }

    /// What came since.
    pub(super) fn since(&self, before: Option<&Self>) -> Self {
        let Some(before) = before.filter(|b| b.requests <= self.requests && b.opened <= self.opened) else {
            return self.clone();
        };
        // A series that was idle for long is forgotten, and its counts with it.
        let more = |now: f64, before: f64| (now - before).max(0.0);
        let had =
            |bound: f64| before.buckets.iter().find(|(b, _)| *b == bound).map_or(0.0, |(_, count)| *count);
        Self {
            requests: self.requests - before.requests,
            good: more(self.good, before.good),
            mutual: more(self.mutual, before.mutual),
            opened: self.opened - before.opened,
            sent: more(self.sent, before.sent),
            received: more(self.received, before.received),
            buckets: self.buckets.iter().map(|(bound, count)| (*bound, more(*count, had(*bound)))).collect(),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.good += other.good;
        self.mutual += other.mutual;
        self.opened += other.opened;
        self.sent += other.sent;
        self.received += other.received;
        other.buckets.iter().for_each(|(bound, count)| self.below(*bound, *count));
    }

    fn below(&mut self, bound: f64, count: f64) {
        match self.buckets.binary_search_by(|(known, _)| known.total_cmp(&bound)) {
            Ok(place) => self.buckets[place].1 += count,
            Err(place) => self.buckets.insert(place, (bound, count)),
        }
    }
}

/// The edges of a page.
pub(in super::super) fn read(page: &str) -> Edges {
    let mut edges = Edges::new();
    for line in page.lines().filter(|line| line.starts_with("istio_")) {
        let Some((name, labels, value)) = labelled(line) else { continue };
        let label = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v).unwrap_or_default();
        let known = |key: &str| Some(label(key)).filter(|value| !["", "unknown"].contains(value));
        let first = |keys: &[&str]| keys.iter().find_map(|key| known(key)).unwrap_or("unknown").to_owned();
        let of = |key: &str| known(key).unwrap_or_default().to_owned();
        let between = Between {
            from: End {
                name: first(&["source_canonical_service", "source_workload"]),
                namespace: of("source_workload_namespace"),
            },
            to: End {
                name: first(&[
                    "destination_canonical_service",
                    "destination_service_name",
                    "destination_service",
                ]),
                namespace: known("destination_service_namespace")
                    .or(known("destination_workload_namespace"))
                    .unwrap_or_default()
                    .to_owned(),
            },
            protocol: first(&["request_protocol"]),
        };
        let mutual = if label("connection_security_policy") == "mutual_tls" { value } else { 0.0 };
        let change = |counts: &mut Counts| match name {
            "istio_requests_total" => {
                counts.requests += value;
                counts.mutual += mutual;
                // 0: no answer was sent.
                let code: u16 = label("response_code").parse().unwrap_or_default();
                if (1..500).contains(&code) && !SERVER_FAULTS.contains(&label("grpc_response_status")) {
                    counts.good += value;
                }
            }
            "istio_request_duration_milliseconds_bucket" => {
                // "+Inf" is read as what it says.
                counts.below(label("le").parse().unwrap_or(f64::INFINITY), value);
            }
            "istio_tcp_connections_opened_total" => {
                counts.opened += value;
                counts.mutual += mutual;
            }
            "istio_tcp_sent_bytes_total" => counts.sent += value,
            "istio_tcp_received_bytes_total" => counts.received += value,
            _ => {}
        };
        let both = match label("reporter") {
            "source" => &mut edges.entry(between).or_default().source,
            "destination" => &mut edges.entry(between).or_default().destination,
            _ => continue,
        };
        change(both);
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lines: &str) -> Counts {
        let edges = read(lines);
        assert_eq!(edges.len(), 1, "{edges:?}");
        edges.into_values().next().unwrap().source
    }

    #[test]
    fn times_are_in_a_straight_line_within_their_bucket() {
        let line = |le: &str, count: u32| {
            format!("istio_request_duration_milliseconds_bucket{{reporter=\"source\",le=\"{le}\"}} {count}\n")
        };
        let counts = counts(&(line("10", 50) + &line("20", 90) + &line("+Inf", 100)));
        assert_eq!(counts.percentile(0.5), Some(10.0));
        assert_eq!(counts.percentile(0.7), Some(15.0));
        assert_eq!(counts.percentile(0.99), Some(20.0), "nothing is known beyond the last bound");
        assert_eq!(Counts::default().percentile(0.5), None);
    }

    #[test]
    fn what_the_server_could_not_serve_is_no_success() {
        let line = |code: &str, grpc: &str| {
            format!(
                "istio_requests_total{{reporter=\"source\",response_code=\"{code}\",grpc_response_status=\"{grpc}\"}} 1\n"
            )
        };
        for (code, grpc, good) in [
            ("200", "", 1.0),
            ("404", "", 1.0),
            ("503", "", 0.0),
            ("0", "", 0.0),
            ("200", "14", 0.0),
            ("200", "5", 1.0),
        ] {
            assert_eq!(counts(&line(code, grpc)).good, good, "{code} {grpc}");
        }
    }

    #[test]
    fn connections_of_bytes_are_counted_with_what_they_carry() {
        let labels = "reporter=\"source\",source_workload=\"w\",destination_service_name=\"redis\"";
        let counts = counts(&format!(
            "istio_tcp_connections_opened_total{{{labels}}} 3\nistio_tcp_sent_bytes_total{{{labels}}} 70\nistio_tcp_received_bytes_total{{{labels}}} 9\n"
        ));
        assert_eq!((counts.opened, counts.sent, counts.received), (3.0, 70.0, 9.0));
    }
}
