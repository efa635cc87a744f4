//! Which encoding a client's `accept-encoding` chooses of those that are there (RFC 9110, section 12.5.3), as Envoy's compressors
//! agree on it.

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This encoding, by its name.
    Named(&'static str),
    /// This one, because any will do.
    Any(&'static str),
    /// None is wanted.
    Identity,
    /// Nothing that is there is wanted.
    NotValid,
}

/// Chooses among `offered`, each with whether it is to be taken where clients like several equally; the first is taken for `*`.
pub fn choose(accept: &str, offered: &[(&'static str, bool)]) -> Choice {
    let mut offered: Vec<_> = offered.to_vec();
    let preferred = offered.iter().rev().find(|(_, first)| *first).map(|(name, _)| *name);
    let mut wanted = Vec::new();
    for token in accept.split(',').filter(|token| !token.is_empty()) {
        let Some((name, weight)) = weighted(token) else { continue };
        wanted.push((name, weight));
        if weight == 0.0 {
            offered.retain(|(known, _)| *known != name);
        }
    }
    let Some((any, _)) = offered.first().copied().filter(|_| !wanted.is_empty()) else {
        return Choice::NotValid;
    };
    let known = |name: &str| offered.iter().find(|(known, _)| *known == name).map(|(known, _)| *known);
    let (mut choice, mut best) = (Choice::NotValid, 0.0);
    for (name, weight) in wanted {
        let found = match name {
            "identity" => Choice::Identity,
            "*" => Choice::Any(any),
            name => match known(name) {
                Some(name) => Choice::Named(name),
                None => continue,
            },
        };
        if weight > best || (weight == best && weight > 0.0 && preferred == Some(name)) {
            (choice, best) = (found, weight);
        }
    }
    choice
}

/// An element's name and weight; none if the weight is no number.
fn weighted(token: &str) -> Option<(&str, f32)> {
    let (name, parameters) = match token.split_once(';') {
        Some((name, parameters)) => (name.trim(), Some(parameters)),
        None => (token.trim(), None),
    };
    let weight = match parameters.and_then(|p| p.split_once('=')) {
        Some((key, value)) if key.trim().eq_ignore_ascii_case("q") => value.trim().parse().ok()?,
        _ => 1.0,
    };
    Some((name, weight))
}

#[cfg(test)]
mod tests {
    use super::Choice::{Any, Identity, Named, NotValid};
    use super::*;

    #[test]
    fn the_client_likes_one_best() {
        let both = [("gzip", false), ("br", false)];
        for (accept, expected) in [
            ("gzip, deflate, br", Named("gzip")),
            ("br, gzip", Named("br")),
            ("gzip;q=0.5, br;q=0.8", Named("br")),
            ("gzip;q=0, br", Named("br")),
            ("deflate", NotValid),
            ("*", Any("gzip")),
            ("gzip;q=0, *;q=1", Any("br")),
            ("*;q=0, gzip;q=1", Named("gzip")),
            ("identity", Identity),
            ("identity;q=0.9, gzip;q=0.1", Identity),
            ("gzip;q=x", NotValid),
            ("gzip ; q = 1", Named("gzip")),
            ("", NotValid),
            ("gzip;q=0, br;q=0", NotValid),
        ] {
            assert_eq!(choose(accept, &both), expected, "{accept}");
        }
        assert_eq!(choose("gzip, br", &[("gzip", false), ("br", true)]), Named("br"));
        assert_eq!(choose("gzip, br;q=0.9", &[("gzip", false), ("br", true)]), Named("gzip"));
        assert_eq!(choose("gzip", &[]), NotValid);
    }
}
