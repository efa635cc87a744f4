//! Who calls whom, and how that goes: what proxies have counted (Istio's metrics, which Weft's proxies and Envoys both have), put
//! together for a whole mesh. `weft top` and `weft graph` show it.

mod counts;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

pub(super) use counts::Counts;
use counts::read;

use super::proxies::{Asked, Target};

/// One end of an edge: a canonical service, or a host outside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    pub(super) name: String,
    /// Empty for what is outside.
    pub(super) namespace: String,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        if self.namespace.is_empty() { Ok(()) } else { write!(f, ".{}", self.namespace) }
    }
}

/// Between whom, by which protocol (`http`, `grpc`, `tcp`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Between {
    pub(super) from: End,
    pub(super) to: End,
    pub(super) protocol: String,
}

/// What both ends have counted of an edge.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Both {
    /// By the caller's proxy.
    pub(super) source: Counts,
    /// By the called one's.
    pub(super) destination: Counts,
}

impl Both {
    /// The caller's counts: it sees what never arrived. The other end's where the caller has no proxy.
    pub(super) fn told(&self) -> &Counts {
        if self.source.is_empty() { &self.destination } else { &self.source }
    }

    /// The share of what came by mutual TLS, as the called one's proxy saw it; none where it has none.
    pub(super) fn mutual(&self) -> Option<f64> {
        let seen = &self.destination;
        let all = seen.requests + seen.opened;
        (all > 0.0).then(|| seen.mutual / all)
    }

    pub(super) fn json(&self, between: &Between, over: Option<Duration>) -> Value {
        let told = self.told();
        let end = |end: &End| json!({"name": end.name, "namespace": end.namespace});
        let time = |share: f64| told.percentile(share).filter(|ms| ms.is_finite());
        let rate = |value: f64| over.map(|over| value / over.as_secs_f64());
        json!({
            "from": end(&between.from), "to": end(&between.to), "protocol": between.protocol,
            "requests": told.requests, "requestsPerSecond": rate(told.requests), "success": told.success(),
            "p50": time(0.5), "p95": time(0.95), "p99": time(0.99), "mutualTls": self.mutual(),
            "connections": told.opened, "bytesSent": told.sent, "bytesReceived": told.received,
        })
    }
}

/// All edges.
pub(super) type Edges = BTreeMap<Between, Both>;

/// Pages of metrics, by proxy.
pub(super) type Pages = BTreeMap<String, Edges>;

/// Asks proxies for the edges that they have counted, and takes them apart from who was asked.
pub(super) async fn ask(targets: &[Target]) -> (Pages, Asked<()>) {
    let Asked { answers, targets, silent } =
        super::proxies::ask(targets, "/stats/prometheus?filter=istio", read).await;
    let pages = answers.into_iter().map(|(target, edges)| (target.key(), edges)).collect();
    (pages, Asked { answers: Vec::new(), targets, silent })
}

/// What came since `before`, of all proxies together. A proxy that was not there before has all of its counts from since; one that
/// counts less than before has begun anew.
pub(super) fn since(before: &Pages, now: &Pages) -> Edges {
    let mut all = Edges::new();
    for (proxy, edges) in now {
        let had = before.get(proxy);
        for (between, both) in edges {
            let known = had.and_then(|had| had.get(between));
            let sum = all.entry(between.clone()).or_default();
            sum.source.add(&both.source.since(known.map(|known| &known.source)));
            sum.destination.add(&both.destination.since(known.map(|known| &known.destination)));
        }
    }
    all.retain(|_, both| !both.told().is_empty());
    all
}

/// Only the edges that a namespace has a part in.
pub(super) fn within(mut edges: Edges, namespace: Option<&str>) -> Edges {
    if let Some(wanted) = namespace {
        edges.retain(|between, _| between.from.namespace == wanted || between.to.namespace == wanted);
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Pages {
        BTreeMap::from([("http://127.0.0.1:15090".to_owned(), read(text))])
    }

    fn requests(reporter: &str, code: u16, mutual: &str, count: u32) -> String {
        format!(
            "istio_requests_total{{reporter=\"{reporter}\",source_canonical_service=\"web\",source_workload_namespace=\"shop\",\
             destination_canonical_service=\"cart\",destination_service_namespace=\"shop\",request_protocol=\"http\",\
             response_code=\"{code}\",grpc_response_status=\"\",connection_security_policy=\"{mutual}\"}} {count}\n"
        )
    }

    #[test]
    fn both_ends_count_the_same_requests_and_the_callers_are_told() {
        let before =
            page(&(requests("source", 200, "unknown", 10) + &requests("destination", 200, "mutual_tls", 9)));
        let text = requests("source", 200, "unknown", 16)
            + &requests("source", 503, "unknown", 2)
            + &requests("destination", 200, "mutual_tls", 12)
            + &requests("destination", 200, "none", 1);
        let edges = since(&before, &page(&text));
        let [(between, both)] = edges.iter().collect::<Vec<_>>()[..] else { panic!("{edges:?}") };
        assert_eq!(
            (between.from.to_string().as_str(), between.to.to_string().as_str()),
            ("web.shop", "cart.shop")
        );
        assert_eq!((both.told().requests, both.told().success()), (8.0, Some(0.75)));
        assert_eq!(both.mutual(), Some(0.75));
        // Without a caller's proxy the other end's counts.
        let edges = since(&Pages::new(), &page(&requests("destination", 200, "none", 4)));
        assert_eq!(edges.values().next().unwrap().told().requests, 4.0);
        // Nothing new is no edge, and a proxy that began anew has counted since.
        assert!(since(&before, &before).is_empty());
        let anew = since(&before, &page(&requests("source", 200, "unknown", 3)));
        assert_eq!(anew.values().next().unwrap().told().requests, 3.0);
    }

    #[test]
    fn an_edge_belongs_to_the_namespaces_of_both_ends() {
        let edges = since(&Pages::new(), &page(&requests("source", 200, "unknown", 1)));
        assert_eq!(within(edges.clone(), Some("shop")).len(), 1);
        assert_eq!(within(edges, Some("other")).len(), 0);
    }
}
