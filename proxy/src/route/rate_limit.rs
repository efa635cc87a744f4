//! What a request counts as for rate limits (`envoy.config.route.v3.RateLimit`): descriptors, each a list of keys and values.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::matching::{Field, HeaderMatch, QueryMatch, query_value, split_query};
use crate::codec::RequestHead;

/// One descriptor of a request.
pub type Descriptor = Vec<(Arc<str>, String)>;

/// How a descriptor is made.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// Only filters of this stage look at it.
    pub stage: u32,
    /// It has a key by which Envoy's runtime could turn it off; local limits leave such ones alone.
    pub disabled: bool,
    /// Its entries.
    pub actions: Vec<Action>,
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
}

/// What entries are made of.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The request's head.
    pub head: &'a RequestHead,
    /// The client's address.
    pub client: IpAddr,
    /// Our own service cluster.
    pub service_cluster: &'a str,
    /// The cluster that the request goes to.
    pub cluster: Option<&'a str>,
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
        (!entries.is_empty()).then_some(entries)
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
            Self::RemoteAddress => {
                Entry::Of("remote_address".into(), facts.client.to_canonical().to_string())
            }
            Self::MaskedRemoteAddress(v4, v6) => {
                let ip = facts.client.to_canonical();
                match IpNet::new(ip, if ip.is_ipv4() { *v4 } else { *v6 }) {
                    Ok(net) => Entry::Of("masked_remote_address".into(), net.trunc().to_string()),
                    Err(_) => Entry::Missing,
                }
            }
            Self::Generic(key, value) => Entry::Of(key.clone(), value.to_string()),
            Self::HeaderMatch(headers, expected, key, value) => {
                matched(headers.iter().all(|h| h.matches(facts.head)) == *expected, key, value)
            }
            Self::QueryMatch(parameters, expected, key, value) => {
                matched(parameters.iter().all(|q| q.matches(query())) == *expected, key, value)
            }
        }
    }
}
