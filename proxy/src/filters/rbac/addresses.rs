//! Many addresses at once: a list of networks, such as a threat feed's, as ranges in order. A rule and an entry of an index for
//! each would be ten times the size, for every chain that has the list.

use std::net::IpAddr;

use ipnet::IpNet;

use super::engine::Rule;

/// From so many networks of one kind on, rules are made one.
const FROM: usize = 1024;

/// Addresses, as ranges in order of which no two touch.
#[derive(Debug, Default)]
pub struct Addresses {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Addresses {
    /// The addresses of these networks.
    pub fn new(nets: &[IpNet]) -> Self {
        let v4 = nets.iter().filter_map(|net| match net {
            IpNet::V4(net) => Some((net.network().to_bits(), net.broadcast().to_bits())),
            IpNet::V6(_) => None,
        });
        let v6 = nets.iter().filter_map(|net| match net {
            IpNet::V6(net) => Some((net.network().to_bits(), net.broadcast().to_bits())),
            IpNet::V4(_) => None,
        });
        Self {
            v4: in_order(v4.collect(), |end| end.saturating_add(1)),
            v6: in_order(v6.collect(), |end| end.saturating_add(1)),
        }
    }

    /// Whether this address, in its canonical form, is among them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => among(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => among(&self.v6, ip.to_bits()),
        }
    }
}

fn in_order<N: Ord + Copy>(mut ranges: Vec<(N, N)>, next: impl Fn(N) -> N) -> Box<[(N, N)]> {
    ranges.sort_unstable();
    let mut joined: Vec<(N, N)> = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        match joined.last_mut() {
            Some((_, end)) if from <= next(*end) => *end = to.max(*end),
            _ => joined.push((from, to)),
        }
    }
    joined.into()
}

fn among<N: Ord + Copy>(ranges: &[(N, N)], n: N) -> bool {
    let after = ranges.partition_point(|(from, _)| *from <= n);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, to)| n <= *to)
}

/// The same rules, with the networks of a kind in one where they are many. One of the rules must match, so their order is
/// nothing.
pub fn fold(mut rules: Vec<Rule>) -> Vec<Rule> {
    if rules.len() < FROM {
        return rules;
    }
    type Kind = (fn(&Rule) -> Option<IpNet>, fn(Addresses) -> Rule);
    let kinds: [Kind; 3] = [
        (|r| if let Rule::SourceIp(net) = r { Some(*net) } else { None }, Rule::SourceAmong),
        (|r| if let Rule::DirectRemoteIp(net) = r { Some(*net) } else { None }, Rule::DirectRemoteAmong),
        (|r| if let Rule::RemoteIp(net) = r { Some(*net) } else { None }, Rule::RemoteAmong),
    ];
    for (net_of, among) in kinds {
        let nets: Vec<_> = rules.iter().filter_map(net_of).collect();
        if nets.len() >= FROM {
            rules.retain(|rule| net_of(rule).is_none());
            rules.push(among(Addresses::new(&nets)));
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_their_networks_hold() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut nets: Vec<IpNet> = (0..2000)
            .map(|_| {
                // A small part of the world, so that networks meet and touch.
                let ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 | random.u32(0..0x1_0000));
                IpNet::new(ip.into(), random.u8(20..=32)).unwrap().trunc()
            })
            .collect();
        nets.truncate(300);
        for edge in ["0.0.0.0/8", "255.255.255.0/24", "2001:db8::/32", "ffff::/16", "::1/128"] {
            nets.push(edge.parse().unwrap());
        }
        let set = Addresses::new(&nets);
        let asked = (0..0x1_0000).map(|n| std::net::Ipv4Addr::from_bits(0x0a00_0000 | n).into());
        let edges = ["0.0.0.0", "0.255.255.255", "1.0.0.0", "255.255.255.255", "255.255.254.255"];
        let more = ["2001:db8::", "2001:db9::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1", "::2"];
        let more = edges.into_iter().chain(more).map(|a| a.parse().unwrap());
        for ip in asked.chain(more) {
            let ip: IpAddr = ip;
            assert_eq!(set.contains(ip), nets.iter().any(|net| net.contains(&ip)), "{ip}");
        }
        assert!(!Addresses::default().contains("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn only_many_networks_of_one_kind_become_one_rule() {
        let net = |n: u32| IpNet::from(IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 | n)));
        let few = fold((0..100).map(|n| Rule::RemoteIp(net(n))).collect());
        assert_eq!(few.len(), 100);
        let mut rules: Vec<_> = (0..2000).map(|n| Rule::RemoteIp(net(n))).collect();
        rules.push(Rule::SourceIp(net(5000)));
        let folded = fold(rules);
        let [Rule::SourceIp(_), Rule::RemoteAmong(set)] = folded.as_slice() else {
            panic!("{}", folded.len())
        };
        assert!(set.contains("10.0.7.207".parse().unwrap()) && !set.contains("10.0.7.208".parse().unwrap()));
    }
}
