//! The specification's order of precedence: of all matches that hold for a request, which one counts.

use std::cmp::Reverse;

/// How specific a host name is: characters of a name without wildcard, then characters.
pub(super) fn of_host(name: &str) -> (usize, usize) {
    match name {
        "" | "*" => (0, 0),
        wild if wild.starts_with('*') => (0, wild.len()),
        exact => (exact.len(), exact.len()),
    }
}

/// How specific a match is: the greater one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Exact paths before prefixes before regular expressions; all gRPC methods are alike.
    pub(super) path: u8,
    /// Characters of the path, or of the gRPC service.
    pub(super) length: usize,
    /// Characters of the gRPC method.
    pub(super) method_length: usize,
    /// It asks for the method of HTTP.
    pub(super) method: bool,
    /// How many headers it asks for.
    pub(super) headers: usize,
    /// How many query parameters.
    pub(super) parameters: usize,
}

/// Sorts what holds for one host: by the host name of its route, then by what it matches, then as it came (which is by age and
/// name of the routes, and in a route by its order).
pub(super) fn sort<T>(all: &mut [((usize, usize), Rank, T)]) {
    all.sort_by_key(|(host, rank, _)| Reverse((*host, *rank)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_specific_goes_first() {
        let exact = Rank { path: 3, length: 2, ..Rank::default() };
        let prefix = |length| Rank { path: 2, length, ..Rank::default() };
        let method = Rank { method: true, ..prefix(4) };
        let headers = |headers| Rank { headers, ..prefix(4) };
        let host = of_host("a.example");
        let mut all = vec![
            (of_host("*"), exact, "any host"),
            (of_host("*.example"), exact, "wildcard"),
            (host, prefix(4), "first of equals"),
            (host, prefix(4), "second of equals"),
            (host, Rank { parameters: 9, ..prefix(4) }, "parameters"),
            (host, headers(1), "a header"),
            (host, headers(2), "two headers"),
            (host, method, "a method"),
            (host, prefix(5), "a longer prefix"),
            (host, exact, "an exact path"),
        ];
        sort(&mut all);
        let order: Vec<_> = all.into_iter().map(|(_, _, name)| name).collect();
        assert_eq!(
            order,
            [
                "an exact path",
                "a longer prefix",
                "a method",
                "two headers",
                "a header",
                "parameters",
                "first of equals",
                "second of equals",
                "wildcard",
                "any host",
            ]
        );
    }
}
