//! The decision: policies by name, each a set of permissions and a set of principals, over what is known of a connection
//! and of its request.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::addresses::{self, Addresses};
use super::index::Index;
use crate::cluster::endpoint::Metadata;
use crate::codec::RequestHead;
use crate::io::{ConnectionInfo, DynamicMetadata, FilterState};
use crate::route::matching::{HeaderMatch, split_query};
use crate::route::template::Template;
use crate::route::text::StringMatch;
use crate::route::values::MetadataMatch;

/// What becomes of requests that a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They pass, and only they.
    Allow,
    /// They do not pass.
    Deny,
    /// They pass as others do, and logs are told of them.
    Log,
}

/// Policies and what they are for.
#[derive(Debug)]
pub struct Engine {
    /// What becomes of requests that a policy matches.
    pub action: Action,
    /// In the order of their names; the first that matches counts.
    pub policies: Box<[Policy]>,
    /// Which of them may match.
    index: Option<Index>,
}

/// Rules of which one is enough.
#[derive(Debug)]
pub struct OneOf {
    rules: Box<[Rule]>,
    /// Which of them may match.
    index: Option<Box<Index>>,
}

impl OneOf {
    /// One of these rules.
    pub fn new(rules: Vec<Rule>) -> Self {
        let rules = addresses::fold(rules);
        Self { index: Index::of_rules(&rules).map(Box::new), rules: rules.into() }
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        match &self.index {
            None => self.rules.iter().any(|r| r.matches(subject)),
            Some(index) => {
                index.find(subject, |items| items.iter().any(|i| self.rules[*i as usize].matches(subject)))
            }
        }
    }
}

/// One policy.
#[derive(Debug)]
pub struct Policy {
    /// Its name.
    pub name: Arc<str>,
    /// The response code details of a denial by it.
    pub details: Arc<str>,
    /// What is asked for: one of these.
    pub permissions: OneOf,
    /// Who asks: one of these.
    pub principals: OneOf,
}

/// What an engine found.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The request passes.
    pub allowed: bool,
    /// The policy that matched, by its place.
    pub policy: Option<(usize, &'a Policy)>,
}

/// The same, to be kept: what an engine found, and what it does with what it finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What becomes of what a policy matches.
    pub action: Action,
    /// The policy that matched.
    pub policy: Option<Arc<str>>,
    /// The request passes.
    pub allowed: bool,
}

/// A permission or a principal.
#[derive(Debug)]
pub enum Rule {
    /// Everything.
    Any,
    /// All of these.
    All(Box<[Rule]>),
    /// One of these.
    Either(OneOf),
    /// What this is not.
    Not(Box<Rule>),
    /// A header field.
    Header(HeaderMatch),
    /// The path without its query.
    Path(StringMatch),
    /// The path without its query, by a template.
    Template(Template),
    /// The address that the client dialled.
    DestinationIp(IpNet),
    /// Its port: from the first, below the second.
    DestinationPort(u32, u32),
    /// The name that the client asked for in TLS.
    ServerName(StringMatch),
    /// What filters said of the request.
    Metadata(MetadataMatch),
    /// What the route's configuration says.
    RouteMetadata(MetadataMatch),
    /// A certificate's URI, DNS name or subject; any connection by TLS where there is no matcher.
    Authenticated(Option<StringMatch>),
    /// The connection's peer, as the PROXY protocol or the socket says.
    SourceIp(IpNet),
    /// The socket's peer.
    DirectRemoteIp(IpNet),
    /// The client, as far as proxies in between are trusted.
    RemoteIp(IpNet),
    /// The connection's peer is one of many.
    SourceAmong(Addresses),
    /// The socket's peer is one of many.
    DirectRemoteAmong(Addresses),
    /// The client is one of many.
    RemoteAmong(Addresses),
    /// A named object of the connection or the request.
    FilterState(Box<str>, StringMatch),
    /// The same, as an address.
    FilterStateAddress(Box<str>, Vec<IpNet>, bool),
}

/// What rules look at.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The connection.
    pub connection: &'a ConnectionInfo,
    /// The request's head; none for a connection's bytes.
    pub head: Option<&'a RequestHead>,
    /// The client's address.
    pub client: IpAddr,
    /// What filters said.
    pub metadata: &'a DynamicMetadata,
    /// What the route's configuration says.
    pub route: Option<&'a Metadata>,
    /// Objects of the request; none for a connection's bytes.
    pub state: Option<&'a FilterState>,
}

impl Engine {
    /// Policies, in the order of their names.
    pub fn new(action: Action, policies: Vec<Policy>) -> Self {
        let index =
            Index::of_policies(policies.iter().map(|p| (p.permissions.rules(), p.principals.rules())));
        Self { action, policies: policies.into(), index }
    }

    /// Decides.
    pub fn decide(&self, subject: &Subject<'_>) -> Decision<'_> {
        let policy = self.first(subject).map(|number| (number, &self.policies[number]));
        let allowed = match self.action {
            Action::Allow => policy.is_some(),
            Action::Deny => policy.is_none(),
            Action::Log => true,
        };
        Decision { allowed, policy }
    }
}

impl Engine {
    /// Decides, and says what by.
    pub fn find(&self, subject: &Subject<'_>) -> Finding {
        let Decision { allowed, policy } = self.decide(subject);
        Finding { action: self.action, policy: policy.map(|(_, policy)| policy.name.clone()), allowed }
    }

    /// The first policy that matches.
    fn first(&self, subject: &Subject<'_>) -> Option<usize> {
        let Some(index) = &self.index else { return self.policies.iter().position(|p| p.matches(subject)) };
        let mut found = Vec::new();
        index.find(subject, |items| {
            found.extend_from_slice(items);
            false
        });
        found.sort_unstable();
        found.into_iter().map(|number| number as usize).find(|number| self.policies[*number].matches(subject))
    }
}

impl Policy {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.permissions.matches(subject) && self.principals.matches(subject)
    }
}

impl Rule {
    /// Whether the subject is meant.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        let connection = subject.connection;
        match self {
            Self::Any => true,
            Self::All(rules) => rules.iter().all(|r| r.matches(subject)),
            Self::Either(rules) => rules.matches(subject),
            Self::Not(rule) => !rule.matches(subject),
            Self::Header(header) => subject.head.is_some_and(|head| header.matches(head)),
            Self::Path(path) => subject.head.and_then(path_of).is_some_and(|p| path.matches(p)),
            Self::Template(template) => subject.head.and_then(path_of).is_some_and(|p| template.matches(p)),
            Self::DestinationIp(net) => net.contains(&connection.local.ip().to_canonical()),
            Self::DestinationPort(from, below) => {
                (*from..*below).contains(&u32::from(connection.local.port()))
            }
            Self::ServerName(name) => name.matches(connection.sni.as_deref().unwrap_or_default().as_bytes()),
            Self::Metadata(metadata) => metadata.matches_dynamic(subject.metadata),
            Self::RouteMetadata(metadata) => metadata.matches(|n| subject.route?.namespace(n)),
            Self::Authenticated(None) => connection.tls.is_some(),
            Self::Authenticated(Some(name)) => {
                names_of(connection).is_some_and(|mut names| names.any(|n| name.matches(n.as_bytes())))
            }
            Self::SourceIp(net) => net.contains(&connection.remote.ip().to_canonical()),
            Self::DirectRemoteIp(net) => net.contains(&connection.direct_remote.ip().to_canonical()),
            Self::RemoteIp(net) => net.contains(&subject.client.to_canonical()),
            Self::SourceAmong(set) => set.contains(connection.remote.ip().to_canonical()),
            Self::DirectRemoteAmong(set) => set.contains(connection.direct_remote.ip().to_canonical()),
            Self::RemoteAmong(set) => set.contains(subject.client.to_canonical()),
            Self::FilterState(key, text) => {
                subject.object(key).is_some_and(|object| text.matches(object.as_bytes()))
            }
            Self::FilterStateAddress(key, nets, invert) => subject.object(key).is_some_and(|object| {
                let ip = object.parse().or_else(|_| object.parse().map(|a: std::net::SocketAddr| a.ip()));
                ip.is_ok_and(|ip: IpAddr| nets.iter().any(|n| n.contains(&ip.to_canonical())) != *invert)
            }),
        }
    }
}

impl<'a> Subject<'a> {
    fn object(&self, key: &str) -> Option<&'a str> {
        let own = self.state.and_then(|s| s.get(key));
        own.or_else(|| self.connection.filter_state.get(key))
    }
}

/// The path without its query or fragment; none where a request has no path.
pub(super) fn path_of(head: &RequestHead) -> Option<&[u8]> {
    let (path, _) = split_query(&head.path);
    let end = path.iter().position(|b| *b == b'#').unwrap_or(path.len());
    (!head.path.is_empty()).then_some(&path[..end])
}

/// The names in the peer's certificate, in the order in which Envoy tries them.
pub(super) fn names_of(connection: &ConnectionInfo) -> Option<impl Iterator<Item = &str>> {
    let tls = connection.tls.as_deref()?;
    let sans = tls.peer_uri_sans.iter().chain(&tls.peer_dns_sans).map(String::as_str);
    Some(sans.chain([tls.peer_subject.as_str()]))
}
