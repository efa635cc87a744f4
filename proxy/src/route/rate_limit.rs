//! What a request counts as for rate limits (`envoy.config.route.v3.RateLimit`): descriptors, each a list of keys and values.

use std::sync::Arc;

use ipnet::IpNet;
use xds_protos::prost_types::value::Kind;
use xds_protos::prost_types::{Struct, Value};

use super::matching::{Field, HeaderMatch, QueryMatch, query_value, split_query};
use crate::codec::RequestHead;
use crate::io::ConnectionInfo;
use crate::io::metadata::at_path;
use crate::telemetry::StreamInfo;
use crate::telemetry::access_log::{Format, LogContext};

/// One descriptor of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Descriptor {
    /// Keys and values, in order.
    pub entries: Vec<(Arc<str>, String)>,
    /// The limit that a rate limit service is asked to apply in place of its own.
    pub limit: Option<Quota>,
    /// How many requests it counts for, where it is not one.
    pub hits: Option<u64>,
    /// Whether the client is told of it, where it is not as the filter says.
    pub told: Option<bool>,
}

/// So many requests in a unit of time (`envoy.type.v3.RateLimitUnit`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests.
    pub requests: u32,
    /// The unit's number.
    pub unit: i32,
}

/// Where a limit comes from that a descriptor brings along.
#[derive(Clone, Debug)]
pub enum QuotaFrom {
    /// It is always the same.
    Fixed(Quota),
    /// A filter said it.
    Dynamic(MetadataKey),
}

/// How many requests a descriptor counts for.
#[derive(Clone, Debug)]
pub enum Hits {
    /// So many.
    Fixed(u64),
    /// What the text says, if that is a number.
    Format(Arc<Format>),
}

/// A place in metadata.
#[derive(Clone, Debug)]
pub struct MetadataKey {
    /// The namespace: a filter's name.
    pub namespace: Box<str>,
    /// Keys, from the outside in.
    pub path: Vec<Box<str>>,
}

/// How a descriptor is made.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// Only filters of this stage look at it.
    pub stage: u32,
    /// It has a key by which Envoy's runtime could turn it off; local limits leave such ones alone.
    pub disabled: bool,
    /// Its entries.
    pub actions: Vec<Action>,
    /// The limit that it brings along.
    pub limit: Option<QuotaFrom>,
    /// How many requests it counts for.
    pub hits: Option<Hits>,
    /// Whether the client is told of it.
    pub told: Option<bool>,
}

/// How an entry of a descriptor is made.
#[derive(Clone, Debug)]
pub enum Action {
    /// Our own service cluster.
    SourceCluster,
    /// The cluster that the request goes to.
    DestinationCluster,
    /// A header field; true: without it the entry is left out, false: the descriptor is.
    Header(Field, Arc<str>, bool),
    /// A query parameter, likewise.
    Query(Box<[u8]>, Arc<str>, bool),
    /// The client's address.
    RemoteAddress,
    /// The network that the client is in, by the lengths of its prefix in IPv4 and IPv6.
    MaskedRemoteAddress(u8, u8),
    /// Always the same.
    Generic(Arc<str>, Box<str>),
    /// The same for requests whose fields match, or do not match (false).
    HeaderMatch(Vec<HeaderMatch>, bool, Arc<str>, Box<str>),
    /// The same by query parameters.
    QueryMatch(Vec<QueryMatch>, bool, Arc<str>, Box<str>),
    /// A text in metadata; what it is where there is none, and, without that, true: the entry is left out, false: the descriptor is.
    Metadata(MetadataFrom, MetadataKey, Arc<str>, Box<str>, bool),
}

/// Whose metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataFrom {
    /// What filters said of the request.
    Filters,
    /// What the configuration says of the route.
    Route,
}

/// What entries are made of.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The request's head.
    pub head: &'a RequestHead,
    /// The stream's record.
    pub info: &'a StreamInfo,
    /// Its connection.
    pub connection: &'a ConnectionInfo,
    /// Our own service cluster.
    pub service_cluster: &'a str,
    /// The cluster that the request goes to.
    pub cluster: Option<&'a str>,
    /// What the configuration says of the route.
    pub route: Option<&'a super::Metadata>,
}

impl Facts<'_> {
    fn client(&self) -> std::net::IpAddr {
        self.info.client.unwrap_or(self.connection.remote).ip().to_canonical()
    }

    fn format(&self, format: &Format) -> String {
        let mut made = Vec::new();
        let context = LogContext { request: Some(self.head), ..LogContext::new(self.info, self.connection) };
        format.write_or_empty(&context, &mut made);
        String::from_utf8_lossy(&made).into_owned()
    }

    fn metadata(&self, from: MetadataFrom, key: &MetadataKey) -> Option<Value> {
        match from {
            MetadataFrom::Filters => {
                self.info.metadata.get(&key.namespace, &key.path).map(std::borrow::Cow::into_owned)
            }
            MetadataFrom::Route => at_path(self.route?.namespace(&key.namespace)?, &key.path).cloned(),
        }
    }

    fn quota(&self, from: &QuotaFrom) -> Option<Quota> {
        let key = match from {
            QuotaFrom::Fixed(quota) => return Some(*quota),
            QuotaFrom::Dynamic(key) => key,
        };
        match self.metadata(MetadataFrom::Filters, key)?.kind? {
            Kind::StructValue(said) => quota_of(&said),
            _ => None,
        }
    }
}

/// A limit as filters say it: `requests_per_unit`, and `unit` by its name.
fn quota_of(said: &Struct) -> Option<Quota> {
    let kind = |name: &str| said.fields.get(name).and_then(|v| v.kind.as_ref());
    let (Some(Kind::NumberValue(requests)), Some(Kind::StringValue(unit))) =
        (kind("requests_per_unit"), kind("unit"))
    else {
        return None;
    };
    let unit = xds_protos::envoy::r#type::v3::RateLimitUnit::from_str_name(unit)?;
    Some(Quota { requests: *requests as u32, unit: unit.into() })
}

impl RateLimit {
    /// The descriptor of a request; none where an action has nothing to say.
    pub fn descriptor(&self, facts: &Facts<'_>) -> Option<Descriptor> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.entry(facts) {
                Entry::Of(key, value) => entries.push((key, value)),
                Entry::Skipped => {}
                Entry::Missing => return None,
            }
        }
        if entries.is_empty() {
            return None;
        }
        let hits = match &self.hits {
            None => None,
            Some(Hits::Fixed(hits)) => Some(*hits),
            // What is no number counts for nothing at all, as in Envoy.
            Some(Hits::Format(format)) => Some(facts.format(format).parse().ok()?),
        };
        let limit = self.limit.as_ref().and_then(|from| facts.quota(from));
        Some(Descriptor { entries, limit, hits, told: self.told })
    }
}

enum Entry {
    Of(Arc<str>, String),
    Skipped,
    Missing,
}

impl Action {
    fn entry(&self, facts: &Facts<'_>) -> Entry {
        let text = |v: &[u8]| String::from_utf8_lossy(v).into_owned();
        let optional = |key: &Arc<str>, value: Option<String>, skip: bool| match value {
            Some(value) => Entry::Of(key.clone(), value),
            None if skip => Entry::Skipped,
            None => Entry::Missing,
        };
        let matched = |holds: bool, key: &Arc<str>, value: &str| {
            if holds { Entry::Of(key.clone(), value.to_owned()) } else { Entry::Missing }
        };
        let query = || split_query(&facts.head.path).1;
        match self {
            Self::SourceCluster => Entry::Of("source_cluster".into(), facts.service_cluster.to_owned()),
            Self::DestinationCluster => {
                optional(&"destination_cluster".into(), facts.cluster.map(str::to_owned), false)
            }
            Self::Header(field, key, skip) => optional(key, field.with(facts.head, |v| v.map(text)), *skip),
            Self::Query(name, key, skip) => optional(key, query_value(query(), name).map(text), *skip),
            Self::RemoteAddress => Entry::Of("remote_address".into(), facts.client().to_string()),
            Self::MaskedRemoteAddress(v4, v6) => {
                let ip = facts.client();
                match IpNet::new(ip, if ip.is_ipv4() { *v4 } else { *v6 }) {
                    Ok(net) => Entry::Of("masked_remote_address".into(), net.trunc().to_string()),
                    Err(_) => Entry::Missing,
                }
            }
            Self::Generic(key, value) => Entry::Of(key.clone(), value.to_string()),
            Self::Metadata(from, at, key, default, skip) => {
                let said = match facts.metadata(*from, at).and_then(|v| v.kind) {
                    Some(Kind::StringValue(text)) if !text.is_empty() => Some(text),
                    _ => (!default.is_empty()).then(|| default.to_string()),
                };
                optional(key, said, *skip)
            }
            Self::HeaderMatch(headers, expected, key, value) => {
                matched(headers.iter().all(|h| h.matches(facts.head)) == *expected, key, value)
            }
            Self::QueryMatch(parameters, expected, key, value) => {
                matched(parameters.iter().all(|q| q.matches(query())) == *expected, key, value)
            }
        }
    }
}
