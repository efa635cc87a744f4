//! From a request's authority to its virtual host: exact names, then the longest `*.suffix`, then the longest `prefix.*`,
//! then `*`.

use std::collections::HashMap;

/// Why a domain cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainError {
    /// Another virtual host has it.
    Duplicate,
    /// Empty, or `*` somewhere in the middle.
    Malformed,
}

type Names = HashMap<Box<[u8]>, u32>;

/// Domains by kind. Names are lower-case.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    exact: Names,
    /// By length of the part after `*`, longest first.
    suffixes: Vec<(usize, Names)>,
    /// By length of the part before `*`, longest first.
    prefixes: Vec<(usize, Names)>,
    any: Option<u32>,
}

impl Hosts {
    /// Adds a virtual host's domain.
    pub fn add(&mut self, domain: &str, host: u32) -> Result<(), DomainError> {
        let domain = domain.to_ascii_lowercase().into_bytes();
        let before = match domain.as_slice() {
            [] => return Err(DomainError::Malformed),
            b"*" => self.any.replace(host),
            [b'*', rest @ ..] if !rest.contains(&b'*') => by_length(&mut self.suffixes, rest, host),
            [rest @ .., b'*'] if !rest.contains(&b'*') => by_length(&mut self.prefixes, rest, host),
            name if name.contains(&b'*') => return Err(DomainError::Malformed),
            name => self.exact.insert(name.into(), host),
        };
        if before.is_some() { Err(DomainError::Duplicate) } else { Ok(()) }
    }

    /// The virtual host of this authority.
    pub fn find(&self, authority: &[u8], ignore_port: bool) -> Option<u32> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        let name = if ignore_port { without_port(authority) } else { authority };
        let mut short = [0u8; 256];
        let long;
        let name = match short.get_mut(..name.len()) {
            Some(lower) => {
                lower.copy_from_slice(name);
                lower.make_ascii_lowercase();
                &*lower
            }
            None => {
                long = name.to_ascii_lowercase();
                &long
            }
        };
        if let Some(host) = self.exact.get(name) {
            return Some(*host);
        }
        // A wildcard stands for at least one character.
        let suffix = self.suffixes.iter().filter(|(n, _)| name.len() > *n);
        let prefix = self.prefixes.iter().filter(|(n, _)| name.len() > *n);
        suffix
            .filter_map(|(n, names)| names.get(&name[name.len() - n..]))
            .chain(prefix.filter_map(|(n, names)| names.get(&name[..*n])))
            .next()
            .copied()
            .or(self.any)
    }
}

fn by_length(table: &mut Vec<(usize, Names)>, part: &[u8], host: u32) -> Option<u32> {
    let at = match table.binary_search_by(|(n, _)| part.len().cmp(n)) {
        Ok(at) => at,
        Err(at) => {
            table.insert(at, (part.len(), Names::new()));
            at
        }
    };
    table[at].1.insert(part.into(), host)
}

/// An authority without its port; brackets of IPv6 addresses stay.
pub fn without_port(authority: &[u8]) -> &[u8] {
    match port_at(authority) {
        Some(at) => &authority[..at],
        None => authority,
    }
}

/// Where the colon before the port stands.
pub fn port_at(authority: &[u8]) -> Option<usize> {
    let colon = authority.iter().rposition(|b| *b == b':')?;
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    let in_brackets = authority.first() == Some(&b'[') && host.last() != Some(&b']');
    (!in_brackets && !port.is_empty() && port.iter().all(u8::is_ascii_digit)).then_some(colon)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_domain_wins_whatever_the_case_and_the_port() {
        let mut hosts = Hosts::default();
        let domains = ["a.example.com", "*.example.com", "*.com", "a.*", "a.example.*", "*", "[::1]"];
        for (i, domain) in domains.iter().enumerate() {
            assert_eq!(hosts.add(domain, i as u32), Ok(()));
        }
        assert_eq!(hosts.add("A.example.com", 9), Err(DomainError::Duplicate));
        assert_eq!(hosts.add("a*b", 9), Err(DomainError::Malformed));
        let mut hosts = Hosts::default();
        domains.iter().enumerate().for_each(|(i, d)| hosts.add(d, i as u32).unwrap());
        let cases = [
            ("A.Example.Com", 0),
            ("a.example.com:8080", 0),
            ("x.example.com", 1),
            (".example.com", 2),
            ("b.com", 2),
            ("a.example.org", 4),
            ("a.org", 3),
            ("other", 5),
            ("[::1]:80", 6),
            ("[::1]", 6),
        ];
        for (authority, host) in cases {
            assert_eq!(hosts.find(authority.as_bytes(), true), Some(host), "{authority}");
        }
        assert_eq!(hosts.find(b"a.example.com:8080", false), Some(4));
        assert_eq!(Hosts::default().find(b"a", true), None);
    }
}
