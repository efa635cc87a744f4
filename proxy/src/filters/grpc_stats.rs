//! `envoy.filters.http.grpc_stats`: counts gRPC requests and their messages, by cluster and, where wanted, by method.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use xds_protos::envoy::extensions::filters::http::grpc_stats::v3 as proto;

use crate::codec::{Body, BodyError, BodyStream, Frame};
use crate::router::{Exchange, Flow};
use crate::telemetry::StreamInfo;
use crate::telemetry::registry::{Counter, Group};

/// Methods beyond so many are not counted for themselves: their names are the callers' to choose.
const MOST_METHODS: usize = 10_000;

/// By cluster and method.
type ByMethod = HashMap<(Arc<str>, String), Arc<MethodCounters>>;

/// The filter.
pub struct GrpcStats {
    methods: Methods,
    replace_dots: bool,
    counters: Mutex<ByMethod>,
}

/// Which methods are counted for themselves.
enum Methods {
    All,
    /// Of these services and methods; others are counted together.
    Listed(HashSet<(String, String)>),
}

/// The numbers of a method of a cluster, or of all others of it.
pub struct MethodCounters {
    group: Arc<Group>,
    /// What stands before their names: `grpc.`, or `grpc.<service>.<method>.`.
    stem: String,
    total: Counter,
    success: Counter,
    failure: Counter,
    requests: Counter,
    responses: Counter,
    by_status: Mutex<HashMap<u32, Counter>>,
}

impl GrpcStats {
    /// Compiles the filter.
    pub fn compile(config: &proto::FilterConfig) -> Self {
        use proto::filter_config::PerMethodStatSpecifier as Spec;
        let methods = match &config.per_method_stat_specifier {
            Some(Spec::StatsForAllMethods(true)) => Methods::All,
            Some(Spec::IndividualMethodStatsAllowlist(list)) => Methods::Listed(
                list.services
                    .iter()
                    .flat_map(|s| s.method_names.iter().map(|m| (s.name.clone(), m.clone())))
                    .collect(),
            ),
            _ => Methods::Listed(HashSet::new()),
        };
        Self { methods, replace_dots: config.replace_dots_in_grpc_service_name, counters: Mutex::default() }
    }

    /// Remembers what the request counts for, and counts its messages as they pass.
    pub(super) fn request_head(&self, exchange: &mut Exchange) {
        if !exchange.flow.info(|i| i.is_grpc) {
            return;
        }
        if let Some(cluster) = exchange.cluster_name() {
            exchange.scratch.later().at_end.extend(self.counters(cluster, &exchange.head.path).map(
                |counters| {
                    Box::new(move |info: &StreamInfo| counters.count(info)) as Box<dyn FnOnce(&StreamInfo)>
                },
            ));
        }
        count_messages(exchange);
    }

    fn counters(&self, cluster: Arc<str>, path: &[u8]) -> Option<Arc<MethodCounters>> {
        let path = std::str::from_utf8(path).ok().map(|p| p.split('?').next().unwrap_or_default());
        let names = path.and_then(|p| p.strip_prefix('/')).and_then(|p| p.split_once('/'));
        let names = names.filter(|(s, m)| !s.is_empty() && !m.is_empty() && !m.contains('/'));
        let stem = match (&self.methods, names) {
            (Methods::All, None) => return None,
            (Methods::All, Some((service, method))) => self.stem(service, method),
            (Methods::Listed(list), Some((service, method)))
                if !list.is_empty() && list.contains(&(service.to_owned(), method.to_owned())) =>
            {
                self.stem(service, method)
            }
            (Methods::Listed(_), _) => "grpc.".to_owned(),
        };
        let mut all = self.counters.lock();
        let full = all.len() >= MOST_METHODS;
        match all.entry((cluster, stem)) {
            std::collections::hash_map::Entry::Occupied(known) => Some(known.get().clone()),
            std::collections::hash_map::Entry::Vacant(_) if full => None,
            std::collections::hash_map::Entry::Vacant(new) => {
                let counters = Arc::new(MethodCounters::new(&new.key().0, new.key().1.clone()));
                Some(new.insert(counters).clone())
            }
        }
    }

    fn stem(&self, service: &str, method: &str) -> String {
        let service = if self.replace_dots { service.replace('.', "_") } else { service.to_owned() };
        format!("grpc.{service}.{method}.")
    }
}

/// Counts the messages of a request of gRPC as they pass, and has those of its answer counted: once, whichever filter wants it.
pub(super) fn count_messages(exchange: &mut Exchange) {
    if !exchange.flow.info(|i| i.is_grpc)
        || std::mem::replace(&mut exchange.scratch.later().counts_messages, true)
    {
        return;
    }
    let body = std::mem::take(&mut exchange.body);
    exchange.body = Messages::wrap(body, &exchange.flow, true);
}

impl MethodCounters {
    fn new(cluster: &str, stem: String) -> Self {
        let group = Group::new(format!("cluster.{cluster}"), Vec::new());
        let counter = |name: &str| group.counter(format!("{stem}{name}"));
        Self {
            total: counter("total"),
            success: counter("success"),
            failure: counter("failure"),
            requests: counter("request_message_count"),
            responses: counter("response_message_count"),
            by_status: Mutex::default(),
            stem,
            group,
        }
    }

    fn count(&self, info: &StreamInfo) {
        self.requests.add(info.grpc_messages.0);
        self.responses.add(info.grpc_messages.1);
        let Some(status) = info.grpc_status else { return };
        self.total.inc();
        if status == 0 {
            self.success.inc()
        } else {
            self.failure.inc()
        }
        let mut statuses = self.by_status.lock();
        if statuses.len() < 64 || statuses.contains_key(&status) {
            statuses
                .entry(status)
                .or_insert_with(|| self.group.counter(format!("{}{status}", self.stem)))
                .inc();
        }
    }
}

/// A body whose gRPC messages are counted: five bytes of a head, the last four of which say how long the rest is.
pub(super) struct Messages {
    inner: Body,
    flow: Rc<Flow>,
    request: bool,
    head: Head,
}

#[derive(Default)]
struct Head {
    /// Bytes of the head that were seen, and its length field so far.
    seen: usize,
    length: u64,
    /// Bytes of the message that are still to come.
    rest: u64,
}

impl Messages {
    /// Counts what passes; a body that is not there stays so.
    pub(super) fn wrap(body: Body, flow: &Rc<Flow>, request: bool) -> Body {
        if body.is_empty() {
            return body;
        }
        Body::stream(Self { inner: body, flow: flow.clone(), request, head: Head::default() })
    }
}

impl Head {
    /// The messages that begin in these bytes.
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut begun = 0;
        while !bytes.is_empty() {
            if self.rest > 0 {
                let skip = bytes.len().min(usize::try_from(self.rest).unwrap_or(usize::MAX));
                self.rest -= skip as u64;
                bytes = &bytes[skip..];
                continue;
            }
            match self.seen {
                0 => begun += 1,
                _ => self.length = self.length << 8 | u64::from(bytes[0]),
            }
            self.seen += 1;
            bytes = &bytes[1..];
            if self.seen == 5 {
                (self.rest, self.seen, self.length) = (self.length, 0, 0);
            }
        }
        begun
    }
}

impl BodyStream for Messages {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.inner.poll_frame(cx);
        if let Poll::Ready(Some(Ok(Frame::Data(data)))) = &polled {
            let begun = self.head.count(data);
            let request = self.request;
            self.flow.info(|i| {
                let (of_request, of_response) = &mut i.grpc_messages;
                *(if request { of_request } else { of_response }) += begun;
            });
        }
        polled
    }

    fn remaining(&self) -> Option<u64> {
        self.inner.remaining()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_they_are_cut() {
        let bytes = [&[0, 0, 0, 0, 3][..], b"abc", &[1, 0, 0, 0, 0], &[0, 0, 0, 1, 0], &[7; 256]].concat();
        for size in [1, 2, 5, 7, 300] {
            let mut head = Head::default();
            assert_eq!(bytes.chunks(size).map(|c| head.count(c)).sum::<u64>(), 3, "{size}");
            assert_eq!((head.rest, head.seen), (0, 0));
        }
    }
}
