//! Which of many rules, or policies, may match at all.
//!
//! Each rule that can is filed under something that a subject must have for it to match: a name, a path, a host, an address,
//! a port, exactly or by how it begins or ends. A subject is looked up under all that it has, and only what is found there
//! is evaluated. Of several things that a rule could be filed under, the one is taken that it shares with the fewest others.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::engine::{Rule, Subject, names_of, path_of};
use super::trie::Trie;
use crate::route::matching::{Field, HeaderMatch, HeaderRule};
use crate::route::text::{Pattern, StringMatch};

/// From so many rules on an index finds those that may match faster than trying each.
const FROM: usize = 5;

/// A thing that a subject has or has not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Text(Of, How, Box<[u8]>),
    /// Contains `/ns/NAME/`.
    Namespace(Box<[u8]>),
    Net(Which, IpNet),
    Port(u16),
}

/// Whose text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Of {
    Name,
    Path,
    /// In lower case.
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum How {
    Exact,
    Prefix,
    Suffix,
}

/// Whose address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Which {
    Source,
    Direct,
    Remote,
    Destination,
}

/// Rules by what a subject must have.
#[derive(Debug, Default)]
pub struct Index {
    /// Those that are filed under nothing.
    always: Vec<u32>,
    names: Texts,
    namespaces: HashMap<Box<[u8]>, Vec<u32>>,
    paths: Texts,
    hosts: Texts,
    nets: [Nets; 4],
    ports: HashMap<u16, Vec<u32>>,
}

#[derive(Debug, Default)]
struct Texts {
    exact: HashMap<Box<[u8]>, Vec<u32>>,
    prefixes: Trie,
    /// Of texts that are turned around.
    suffixes: Trie,
}

impl Texts {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty() && self.suffixes.is_empty()
    }

    fn find(&self, text: &[u8], f: &mut impl FnMut(&[u32]) -> bool) -> bool {
        self.exact.get(text).is_some_and(|items| f(items))
            || self.prefixes.find(text.iter().copied(), f)
            || self.suffixes.find(text.iter().rev().copied(), f)
    }
}

/// Networks by their length, and those of a length by hash.
#[derive(Debug, Default)]
struct Nets(Vec<(u8, HashMap<IpNet, Vec<u32>>)>);

impl Nets {
    fn insert(&mut self, net: IpNet, item: u32) {
        let length = net.prefix_len();
        let at = match self.0.iter().position(|(l, _)| *l == length) {
            Some(at) => at,
            None => {
                self.0.push((length, HashMap::new()));
                self.0.len() - 1
            }
        };
        self.0[at].1.entry(net).or_default().push(item);
    }

    fn find(&self, ip: IpAddr, f: &mut impl FnMut(&[u32]) -> bool) -> bool {
        self.0.iter().any(|(length, nets)| {
            let net = IpNet::new(ip, *length).ok().map(|n| n.trunc());
            net.and_then(|n| nets.get(&n)).is_some_and(|items| f(items))
        })
    }
}

impl Index {
    /// An index of things, each with the ways in which it can be filed; none if there are too few to be worth it.
    fn new(things: Vec<Vec<Vec<Key>>>) -> Option<Self> {
        if things.len() < FROM {
            return None;
        }
        let mut shared = HashMap::<&Key, usize>::new();
        for key in things.iter().flatten().flatten() {
            *shared.entry(key).or_default() += 1;
        }
        let cost = |way: &Vec<Key>| -> usize { way.iter().map(|key| shared[key]).sum() };
        let mut index = Self::default();
        for (item, ways) in (0u32..).zip(&things) {
            match ways.iter().min_by_key(|way| cost(way)) {
                None => index.always.push(item),
                Some(way) => way.iter().for_each(|key| index.file(key, item)),
            }
        }
        // Where nothing can be left out, looking for it costs more than it brings.
        (index.always.len() < things.len()).then_some(index)
    }

    /// An index of rules of which one is enough.
    pub fn of_rules(rules: &[Rule]) -> Option<Self> {
        Self::new(rules.iter().map(ways).collect())
    }

    /// An index of policies, by their permissions and principals.
    pub fn of_policies<'a>(policies: impl Iterator<Item = (&'a [Rule], &'a [Rule])>) -> Option<Self> {
        Self::new(
            policies
                .map(|(permissions, principals)| {
                    ways_of_either(permissions).into_iter().chain(ways_of_either(principals)).collect()
                })
                .collect(),
        )
    }

    fn file(&mut self, key: &Key, item: u32) {
        match key {
            Key::Text(of, how, text) => {
                let texts = match of {
                    Of::Name => &mut self.names,
                    Of::Path => &mut self.paths,
                    Of::Host => &mut self.hosts,
                };
                match how {
                    How::Exact => texts.exact.entry(text.clone()).or_default().push(item),
                    How::Prefix => texts.prefixes.insert(text, item),
                    How::Suffix => {
                        let turned: Vec<_> = text.iter().rev().copied().collect();
                        texts.suffixes.insert(&turned, item);
                    }
                }
            }
            Key::Namespace(name) => self.namespaces.entry(name.clone()).or_default().push(item),
            Key::Net(which, net) => self.nets[*which as usize].insert(*net, item),
            Key::Port(port) => self.ports.entry(*port).or_default().push(item),
        }
    }

    /// Calls `f` with the numbers of those that may match, in no order and some perhaps twice, until it says that it is
    /// enough; says whether it did.
    pub fn find(&self, subject: &Subject<'_>, mut f: impl FnMut(&[u32]) -> bool) -> bool {
        let f = &mut f;
        if !self.always.is_empty() && f(&self.always) {
            return true;
        }
        let connection = subject.connection;
        if !(self.names.is_empty() && self.namespaces.is_empty()) {
            for name in names_of(connection).into_iter().flatten() {
                if self.names.find(name.as_bytes(), f) || self.in_namespaces(name.as_bytes(), f) {
                    return true;
                }
            }
        }
        if let Some(head) = subject.head {
            if !self.paths.is_empty()
                && let Some(path) = path_of(head)
                && self.paths.find(path, f)
            {
                return true;
            }
            if !self.hosts.is_empty() {
                let host = &*head.authority;
                let found = if host.iter().any(u8::is_ascii_uppercase) {
                    self.hosts.find(&host.to_ascii_lowercase(), f)
                } else {
                    self.hosts.find(host, f)
                };
                if found {
                    return true;
                }
            }
        }
        let addresses = [
            (Which::Source, connection.remote.ip()),
            (Which::Direct, connection.direct_remote.ip()),
            (Which::Remote, subject.client),
            (Which::Destination, connection.local.ip()),
        ];
        addresses.into_iter().any(|(which, ip)| self.nets[which as usize].find(ip.to_canonical(), f))
            || self.ports.get(&connection.local.port()).is_some_and(|items| f(items))
    }

    fn in_namespaces(&self, name: &[u8], f: &mut impl FnMut(&[u32]) -> bool) -> bool {
        const NS: &[u8] = b"/ns/";
        if self.namespaces.is_empty() {
            return false;
        }
        memchr::memmem::find_iter(name, NS).any(|at| {
            let rest = &name[at + NS.len()..];
            let segment = memchr::memchr(b'/', rest).map(|end| &rest[..end]);
            segment.and_then(|s| self.namespaces.get(s)).is_some_and(|items| f(items))
        })
    }
}

/// The ways in which a rule can be filed: each is a set of things of which a subject must have one.
fn ways(rule: &Rule) -> Vec<Vec<Key>> {
    let net = |which, net: &IpNet| vec![vec![Key::Net(which, *net)]];
    match rule {
        Rule::All(rules) => rules.iter().flat_map(ways).collect(),
        Rule::Either(rules) => ways_of_either(rules.rules()),
        Rule::Path(text) if !text.ignore_case => of_text(Of::Path, text),
        Rule::Authenticated(Some(text)) if !text.ignore_case => of_text(Of::Name, text),
        Rule::Header(HeaderMatch {
            field: Field::Authority,
            rule: HeaderRule::Text(text),
            invert: false,
            missing_as_empty: false,
        }) => of_text(Of::Host, text),
        Rule::SourceIp(range) => net(Which::Source, range),
        Rule::DirectRemoteIp(range) => net(Which::Direct, range),
        Rule::RemoteIp(range) => net(Which::Remote, range),
        Rule::DestinationIp(range) => net(Which::Destination, range),
        Rule::DestinationPort(from, below) if *below == from + 1 => {
            u16::try_from(*from).map(|port| vec![vec![Key::Port(port)]]).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// One of these rules must match: a subject must have what one of them needs. If one needs nothing, there is no way.
fn ways_of_either(rules: &[Rule]) -> Vec<Vec<Key>> {
    let mut all = Vec::new();
    for rule in rules {
        let Some(way) = ways(rule).into_iter().min_by_key(|way| way.iter().map(vague).max().unwrap_or(0))
        else {
            return Vec::new();
        };
        all.extend(way);
    }
    vec![all]
}

/// How little a thing tells.
fn vague(key: &Key) -> u8 {
    match key {
        Key::Text(Of::Name, How::Exact, _) => 0,
        Key::Text(_, How::Exact, _) => 1,
        Key::Namespace(_) => 2,
        Key::Text(..) => 3,
        Key::Net(..) => 4,
        Key::Port(_) => 5,
    }
}

fn of_text(of: Of, text: &StringMatch) -> Vec<Vec<Key>> {
    let (how, bytes) = match &text.pattern {
        Pattern::Exact(text) => (How::Exact, text),
        Pattern::Prefix(text) => (How::Prefix, text),
        Pattern::Suffix(text) => (How::Suffix, text),
        Pattern::Regex(regex) if of == Of::Name => {
            return namespace_of(regex.as_str()).map(|n| vec![vec![Key::Namespace(n)]]).unwrap_or_default();
        }
        Pattern::Regex(_) | Pattern::Contains(_) => return Vec::new(),
    };
    let bytes = if of == Of::Host { bytes.to_ascii_lowercase().into() } else { bytes.clone() };
    vec![vec![Key::Text(of, how, bytes)]]
}

/// The namespace that names must contain for an expression to match them, as control planes write it: `.*/ns/NAME/...` or
/// `spiffe://.+/ns/NAME/...`.
fn namespace_of(regex: &str) -> Option<Box<[u8]>> {
    // The form that whole texts are matched with.
    let source = regex.strip_prefix(r"\A(?:")?.strip_suffix(r")\z")?;
    let rest = source.strip_prefix(".*/ns/").or_else(|| source.strip_prefix("spiffe://.+/ns/"))?;
    let (name, rest) = rest.split_once('/')?;
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    // An alternative at the top would let other names match.
    let mut depth = 0i32;
    let alternative = rest.bytes().any(|b| {
        depth += i32::from(b == b'(') - i32::from(b == b')');
        b == b'|' && depth <= 0
    });
    (plain && !alternative && !rest.contains(['\\', '['])).then(|| name.as_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_read_only_where_names_must_contain_it() {
        let of = |source: &str| namespace_of(&format!(r"\A(?:{source})\z"));
        assert_eq!(of(".*/ns/foo/.*").as_deref(), Some(&b"foo"[..]));
        assert_eq!(of("spiffe://.+/ns/a-b/(.+/|)sa/c(/.+)?").as_deref(), Some(&b"a-b"[..]));
        for source in [".*/ns/foo.*", ".*/ns/f.o/.*", ".*/ns/foo/x|y", "x/ns/foo/.*", ".*/ns/foo/[|]", ".*"] {
            assert_eq!(of(source), None, "{source}");
        }
    }
}
