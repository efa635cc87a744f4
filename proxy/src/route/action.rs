//! What a route does with its requests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, StatusCode};

use super::Asked;
use super::hash::{self, HashPolicy};
use super::header_ops::HeaderOps;
use super::matching::Chance;
use super::redirect::Redirect;
use super::retry::RetryPolicy;
use super::template::TemplateRewrite;
use super::text::Substitution;
use crate::cluster::Cluster;
use crate::cluster::balance::xxh64;
use crate::codec::RequestHead;
use crate::filters::config::PerRoute;
use crate::state::{ClusterTable, Slot};
use crate::telemetry::access_log::config::BodyFormat;

/// The action.
#[derive(Clone, Debug)]
pub enum Action {
    /// To a cluster.
    Forward(Box<Forward>),
    /// Elsewhere, by a 3xx.
    Redirect(Box<Redirect>),
    /// An answer from here.
    Direct(DirectResponse),
}

/// `envoy.config.route.v3.DirectResponseAction`.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    /// The status.
    pub status: StatusCode,
    /// The body; may be empty.
    pub body: Bytes,
    /// What makes a text of it for each request.
    pub format: Option<Arc<BodyFormat>>,
}

/// A cluster of a weighted choice.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its share of the total.
    pub weight: u32,
    /// Applied before the route's own.
    pub request_headers: HeaderOps,
    /// Applied before the route's own.
    pub response_headers: HeaderOps,
    /// In place of the route's.
    pub host_rewrite: Option<Bytes>,
    /// Filter settings more specific than the route's.
    pub per_filter: PerRoute,
}

/// A cluster, or the field of the request that names it.
#[derive(Clone, Debug)]
pub enum ClusterName {
    /// This one.
    Slot(Arc<Slot<Cluster>>),
    /// The one that the field names.
    Header(HeaderName, Arc<ClusterTable>),
}

impl ClusterName {
    /// The cluster's slot for a request.
    pub fn slot(&self, head: &RequestHead) -> Option<Arc<Slot<Cluster>>> {
        match self {
            Self::Slot(slot) => Some(slot.clone()),
            Self::Header(name, clusters) => clusters.find(head.headers.get_str(name)?),
        }
    }

    /// The cluster's slot, where the request does not matter.
    pub fn fixed(&self) -> Option<&Arc<Slot<Cluster>>> {
        match self {
            Self::Slot(slot) => Some(slot),
            Self::Header(..) => None,
        }
    }
}

/// What a choice by weight goes by.
#[derive(Clone, Debug, Default)]
pub enum ChosenBy {
    /// Chance.
    #[default]
    Chance,
    /// The number in a field of the request, where it has one.
    Header(HeaderName),
    /// The hash of the request by the route's policies, where they find something: who is alike gets the same.
    Hash,
}

impl ChosenBy {
    /// The number that decides, where it is not chance. `policies` are the route's.
    pub fn number(&self, asked: &Asked<'_>, policies: &[HashPolicy]) -> Option<u64> {
        match self {
            Self::Chance => None,
            Self::Header(name) => asked.head.headers.get_str(name)?.parse().ok(),
            Self::Hash => hash::known(policies, asked.head, asked.client, |bytes| xxh64(bytes, 0)),
        }
    }
}

/// How the cluster is chosen.
#[derive(Clone, Debug)]
pub enum Target {
    /// Always this.
    Cluster(Arc<Slot<Cluster>>),
    /// By weight.
    Weighted {
        /// The candidates.
        clusters: Vec<WeightedCluster>,
        /// The sum of their weights.
        total: u64,
        /// What the choice goes by.
        by: ChosenBy,
    },
    /// Named by a request header.
    Header(HeaderName, Arc<ClusterTable>),
}

/// What becomes of the path.
#[derive(Clone, Debug, Default)]
pub enum PathRewrite {
    /// Nothing.
    #[default]
    None,
    /// What the route matched is replaced by this.
    Prefix(Bytes),
    /// Every hit is replaced.
    Regex(Substitution),
    /// What a template's variables stood for, in a new place.
    Template(TemplateRewrite),
}

/// What becomes of the authority.
#[derive(Clone, Debug, Default)]
pub enum HostRewrite {
    /// Nothing.
    #[default]
    None,
    /// This text.
    Literal(Bytes),
    /// The chosen endpoint's host name.
    Auto,
    /// A request header's value, where it is there.
    Header(HeaderName),
    /// The path (without query), its hits replaced.
    Path(Substitution),
}

/// gRPC and stream durations; `None` where not configured, zero for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamDurations {
    /// `max_stream_duration.max_stream_duration`.
    pub max: Option<Duration>,
    /// `grpc_timeout_header_max`.
    pub grpc_max: Option<Duration>,
    /// `grpc_timeout_header_offset`.
    pub grpc_offset: Option<Duration>,
}

/// A copy of requests sent elsewhere, whose answers nobody reads.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Where to.
    pub cluster: ClusterName,
    /// Which share.
    pub chance: Chance,
    /// Mark the copy's authority with `-shadow`.
    pub suffix: bool,
    /// The copy's authority, in place of the request's.
    pub host: Option<Bytes>,
    /// Changes of the copy's fields.
    pub changes: HeaderOps,
    /// The copy is traced if the request is.
    pub trace_sampled: bool,
}

/// The circuit breaker thresholds that count for a request (`RoutingPriority`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// DEFAULT.
    #[default]
    Default,
    /// HIGH.
    High,
}

/// `envoy.config.route.v3.RouteAction`.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Which cluster.
    pub target: Target,
    /// The answer when the cluster is not there.
    pub cluster_not_found: StatusCode,
    /// The path.
    pub path_rewrite: PathRewrite,
    /// The authority.
    pub host_rewrite: HostRewrite,
    /// Keep the authority that is replaced in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// For the whole answer, from the end of the request; zero for none. Envoy's default is 15 s.
    pub timeout: Duration,
    /// In place of the connection manager's stream idle timeout; zero for none.
    pub idle_timeout: Option<Duration>,
    /// `max_grpc_timeout`: the gRPC timeout header is honoured up to this (zero: without limit).
    pub max_grpc_timeout: Option<Duration>,
    /// `grpc_timeout_offset`.
    pub grpc_timeout_offset: Option<Duration>,
    /// `max_stream_duration`; where it is there, `timeout` is not used.
    pub durations: Option<StreamDurations>,
    /// Retries; the virtual host's where the route has none.
    pub retry: Option<Arc<RetryPolicy>>,
    /// What consistent hashing hashes.
    pub hash: Vec<HashPolicy>,
    /// Which circuit breaker thresholds count.
    pub priority: Priority,
    /// Upgrades switched on or off for this route, by lower-case token.
    pub upgrades: Vec<(Box<[u8]>, bool)>,
    /// CONNECT ends here, and its bytes go to the cluster.
    pub connect: Option<ConnectConfig>,
    /// Copies.
    pub mirrors: Vec<Mirror>,
}

/// `RouteAction.UpgradeConfig.ConnectConfig`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectConfig {
    /// POST is taken for CONNECT.
    pub allow_post: bool,
}
