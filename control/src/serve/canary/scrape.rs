//! What proxies have counted of the requests to a cluster, as their own `/stats/prometheus` tells: Weft's and Envoy's alike.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Method;
use tokio::task::JoinSet;

use super::breaker::Seen;
use super::machine::Counts;
use crate::ca::http::Client;

/// Where proxies answer, in Istio's pods as in Weft's.
const PORT: u16 = 15090;
/// How long a proxy may take; one that takes longer is left out this time.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest page that is read.
const LONGEST: usize = 64 * 1024 * 1024;
/// As many proxies as are asked at the same time.
const AT_ONCE: usize = 64;

/// Totals of one cluster at one proxy, since the proxy began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// All answers.
    pub requests: u64,
    /// Those 5xx.
    pub errors: u64,
    /// How many took at most so many milliseconds.
    times: Vec<(f64, u64)>,
}

impl Totals {
    /// So many more took at most as long as a bucket's bound says, in the order of the bounds.
    pub fn took_at_most(&mut self, bound: &str, count: u64) {
        let bound = match bound {
            "+Inf" => f64::INFINITY,
            text => text.parse().unwrap_or(f64::INFINITY),
        };
        match self.times.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, total)) => *total += count,
            None => {
                let place = self.times.partition_point(|(known, _)| *known < bound);
                self.times.insert(place, (bound, count));
            }
        }
    }
}

/// The cluster whose requests are counted: a subset of a host, at any of its ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The full host.
    pub host: String,
    /// The subset.
    pub subset: String,
}

/// Pages of proxies; who does not answer is not among them.
pub async fn pages(addresses: Vec<IpAddr>) -> Vec<(IpAddr, String)> {
    let mut waiting = addresses.into_iter();
    let mut under_way = JoinSet::new();
    let mut pages = Vec::new();
    loop {
        while under_way.len() < AT_ONCE
            && let Some(address) = waiting.next()
        {
            under_way.spawn(async move {
                let page = tokio::time::timeout(PATIENCE, page(address)).await;
                (address, page.ok().and_then(Result::ok))
            });
        }
        match under_way.join_next().await {
            Some(Ok((address, Some(page)))) => pages.push((address, page)),
            Some(_) => {}
            None => return pages,
        }
    }
}

async fn page(address: IpAddr) -> anyhow::Result<String> {
    let client =
        Client::new(&format!("http://{}", SocketAddr::new(address, PORT)), None)?.with_longest(LONGEST);
    let (status, body) = client
        .call(
            Method::GET,
            "/stats/prometheus?filter=upstream_rq_%7Coutlier_detection%7Ccircuit_breakers",
            &[],
            None,
        )
        .await?;
    anyhow::ensure!(status.is_success(), "{status}");
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// What a page says of a cluster.
pub fn totals(page: &str, wanted: &Wanted) -> Totals {
    let mut totals = Totals::default();
    let middle = format!("|{}|", wanted.subset);
    for line in page.lines().filter(|line| line.contains("upstream_rq") && line.contains(&middle)) {
        let Some((name, labels, value)) = labelled(line) else { continue };
        let Some(rest) = name.strip_prefix("envoy_cluster_") else { continue };
        let Some((subset, what)) = about(rest, &labels, &wanted.host) else { continue };
        if subset != wanted.subset {
            continue;
        }
        if let Some(class) = class(what, &labels) {
            totals.requests += value as u64;
            if class == '5' {
                totals.errors += value as u64;
            }
            continue;
        }
        if what == "upstream_rq_time_bucket" {
            totals.took_at_most(label(&labels, "le"), value as u64);
        }
    }
    totals
}

/// A label by Envoy's own name, or by the one that the bootstrap of a mesh gives it.
fn either<'a>(labels: &Labels<'a>, of_envoy: &str, of_istio: &str) -> &'a str {
    match label(labels, of_envoy) {
        "" => label(labels, of_istio),
        value => value,
    }
}

/// The first digit of the answers that a metric counts, if it counts answers by that: `upstream_rq_xx{...="5"}` as Envoy has it, or
/// `upstream_rq{...="5xx"}` as in Istio's meshes.
fn class(what: &str, labels: &Labels<'_>) -> Option<char> {
    let counts = matches!(what, "upstream_rq_xx" | "upstream_rq");
    counts.then(|| either(labels, "envoy_response_code_class", "response_code_class").chars().next())?
}

/// The subset, and the metric's name behind the cluster's, if it is about the wanted host. An Envoy without tag rules of its own cuts a cluster's name at
/// its first dot, and has the rest in the metric's name.
fn about<'a>(rest: &'a str, labels: &Labels<'a>, wanted: &str) -> Option<(&'a str, &'a str)> {
    let cluster = either(labels, "envoy_cluster_name", "cluster_name");
    let cluster = cluster.strip_suffix(';').unwrap_or(cluster);
    let (_, name) = cluster.strip_prefix("outbound|")?.split_once('|')?;
    let (subset, host) = name.split_once('|')?;
    if host == wanted {
        return Some((subset, rest));
    }
    let (first, others) = wanted.split_once('.')?;
    if host != first {
        return None;
    }
    let sanitized: String = others.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    Some((subset, rest.strip_prefix(&sanitized)?.trim_start_matches('_')))
}

/// What a page says of a host's circuits, all of its ports and subsets together; nothing if the proxy does not know the host.
pub fn seen(page: &str, host: &str) -> Option<Seen> {
    let (mut seen, mut known) = (Seen::default(), false);
    for line in page.lines().filter(|line| line.contains("\"outbound|")) {
        let Some((name, labels, value)) = labelled(line) else { continue };
        let Some(rest) = name.strip_prefix("envoy_cluster_") else { continue };
        let Some((_, what)) = about(rest, &labels, host) else { continue };
        known = true;
        let value = value as u64;
        match class(what, &labels) {
            Some('5') => seen.failures += value,
            Some(_) => seen.successes += value,
            None => {}
        }
        match what {
            "outlier_detection_ejections_active" => seen.ejected += value,
            "outlier_detection_ejections_enforced_total" => seen.ejections += value,
            "circuit_breakers_default_cx_open"
            | "circuit_breakers_default_rq_open"
            | "circuit_breakers_default_rq_pending_open" => seen.reached += value,
            _ => {}
        }
    }
    known.then_some(seen)
}

/// Labels with their values, as they are written.
pub type Labels<'a> = Vec<(&'a str, &'a str)>;

fn label<'a>(labels: &Labels<'a>, name: &str) -> &'a str {
    labels.iter().find(|(key, _)| *key == name).map(|(_, value)| *value).unwrap_or_default()
}

/// Name, labels and value of a line of metrics in Prometheus' text; none where it has no labels, or is none. Escapes in values
/// stay as they are.
pub fn labelled(line: &str) -> Option<(&str, Labels<'_>, f64)> {
    let (name, mut rest) = line.split_once('{')?;
    let mut labels = Vec::new();
    while !rest.starts_with('}') {
        let (key, quoted) = rest.trim_start_matches(',').split_once("=\"")?;
        let mut escaped = false;
        let end = quoted.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        })?;
        labels.push((key, &quoted[..end]));
        rest = &quoted[end + 1..];
    }
    Some((name, labels, rest[1..].trim().parse().ok()?))
}

/// What has been added since the last time, by proxy and cluster.
#[derive(Debug, Default)]
pub struct Before(HashMap<(String, Wanted), Totals>);

impl Before {
    /// What a proxy has counted of a cluster since it was asked last; nothing the first time, for that is history. One that counts
    /// less than before has begun anew.
    pub fn since(&mut self, proxy: &str, wanted: &Wanted, now: Totals) -> Counts {
        let known = self.0.insert((proxy.to_owned(), wanted.clone()), now.clone());
        let Some(mut before) = known else { return Counts::default() };
        if now.requests < before.requests {
            before = Totals::default();
        }
        let mut below = 0;
        let times = now.times.iter().map(|(bound, count)| {
            let earlier =
                before.times.iter().find(|(known, _)| known == bound).map_or(0, |(_, count)| *count);
            let cumulative = count.saturating_sub(earlier);
            let own = cumulative.saturating_sub(below);
            below = cumulative.max(below);
            (*bound, own)
        });
        let times = times.collect();
        Counts {
            requests: now.requests - before.requests,
            errors: now.errors.saturating_sub(before.errors),
            times,
        }
    }

    /// A proxy of which nothing was heard has counted nothing so far; for whoever knows that it would have been heard.
    pub fn begin(&mut self, proxy: &str, wanted: &Wanted) {
        self.0.entry((proxy.to_owned(), wanted.clone())).or_default();
    }

    /// Forgets all but these.
    pub fn keep(&mut self, wanted: &[Wanted]) {
        self.0.retain(|(_, known), _| wanted.contains(known));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEFT: &str = r#"# TYPE envoy_cluster_upstream_rq_xx counter
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="outbound|80|v2|a.n.svc.cluster.local"} 90
envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="outbound|80|v2|a.n.svc.cluster.local"} 10
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="outbound|81|v2|a.n.svc.cluster.local"} 1
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="outbound|80|v1|a.n.svc.cluster.local"} 1000
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="outbound|80|v2|a.m.svc.cluster.local"} 1000
envoy_cluster_upstream_rq_retry{envoy_cluster_name="outbound|80|v2|a.n.svc.cluster.local"} 7
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="outbound|80|v2|a.n.svc.cluster.local",le="5"} 50
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="outbound|80|v2|a.n.svc.cluster.local",le="10"} 90
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="outbound|80|v2|a.n.svc.cluster.local",le="+Inf"} 101
"#;

    fn wanted() -> Wanted {
        Wanted { host: "a.n.svc.cluster.local".into(), subset: "v2".into() }
    }

    #[test]
    fn a_clusters_requests_are_added_up_over_its_ports() {
        let totals = totals(WEFT, &wanted());
        assert_eq!((totals.requests, totals.errors), (101, 10));
        assert_eq!(totals.times, [(5.0, 50), (10.0, 90), (f64::INFINITY, 101)]);
    }

    #[test]
    fn labels_may_have_the_names_of_istios_bootstrap() {
        let cluster = "cluster_name=\"outbound|80|v2|a.n.svc.cluster.local\"";
        let page = format!(
            "envoy_cluster_upstream_rq{{response_code_class=\"2xx\",{cluster}}} 4\n\
             envoy_cluster_upstream_rq{{response_code_class=\"5xx\",{cluster}}} 3\n\
             envoy_cluster_upstream_rq{{response_code=\"503\",{cluster}}} 3\n"
        );
        assert_eq!(totals(&page, &wanted()), Totals { requests: 7, errors: 3, times: vec![] });
        let seen = super::seen(&page, "a.n.svc.cluster.local").unwrap();
        assert_eq!((seen.failures, seen.successes), (3, 4));
    }

    #[test]
    fn an_envoy_that_cuts_names_at_their_first_dot_is_understood() {
        let name = "envoy_cluster_n_svc_cluster_local__upstream_rq_xx";
        let page = format!(
            "{name}{{envoy_response_code_class=\"5\",envoy_cluster_name=\"outbound|80|v2|a\"}} 3\n\
             {name}{{envoy_response_code_class=\"2\",envoy_cluster_name=\"outbound|80|v2|b\"}} 4\n"
        );
        assert_eq!(totals(&page, &wanted()), Totals { requests: 3, errors: 3, times: vec![] });
    }

    #[test]
    fn a_hosts_circuits_are_those_of_all_its_clusters() {
        let page = format!(
            "{WEFT}envoy_cluster_outlier_detection_ejections_active{{envoy_cluster_name=\"outbound|80|v2|a.n.svc.cluster.local\"}} 1
envoy_cluster_outlier_detection_ejections_enforced_total{{envoy_cluster_name=\"outbound|80|v2|a.n.svc.cluster.local\"}} 3
envoy_cluster_circuit_breakers_default_rq_open{{envoy_cluster_name=\"outbound|80||a.n.svc.cluster.local\"}} 1
"
        );
        let seen = super::seen(&page, "a.n.svc.cluster.local").unwrap();
        assert_eq!(seen, Seen { failures: 10, successes: 1091, ejected: 1, ejections: 3, reached: 1 });
        assert_eq!(super::seen(&page, "c.n.svc.cluster.local"), None);
    }

    #[test]
    fn what_was_counted_before_is_history() {
        let mut before = Before::default();
        let proxy = "10.0.0.1";
        let first = totals(WEFT, &wanted());
        assert_eq!(before.since(proxy, &wanted(), first.clone()), Counts::default());
        let mut next = first;
        next.requests += 5;
        next.errors += 1;
        // Two in the second bucket, and three in the last.
        next.times = vec![(5.0, 50), (10.0, 92), (f64::INFINITY, 106)];
        let counts = before.since(proxy, &wanted(), next);
        assert_eq!((counts.requests, counts.errors), (5, 1));
        assert_eq!(counts.times, [(5.0, 0), (10.0, 2), (f64::INFINITY, 3)]);
        // It began anew.
        let anew = Totals { requests: 2, errors: 0, times: vec![(5.0, 2)] };
        let counts = before.since(proxy, &wanted(), anew);
        assert_eq!((counts.requests, counts.times), (2, vec![(5.0, 2)]));
    }
}
