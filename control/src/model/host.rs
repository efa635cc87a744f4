//! Host names: short ones made full, wildcards compared.

/// The domain of a mesh's services unless told otherwise.
pub const DEFAULT_DOMAIN: &str = "cluster.local";

/// Makes a short host name full: `a` in namespace `ns` becomes `a.ns.svc.<domain>`. Names with a dot, wildcards and
/// addresses stay as they are (Istio's rule).
pub fn resolve_short(host: &str, namespace: &str, domain: &str) -> String {
    if host.is_empty() || host.contains(['.', '*', ':']) {
        host.to_owned()
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

/// Whether `pattern` (a name, `*.suffix`, or `*`) covers every name that `host` (the same forms) covers.
pub fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern.eq_ignore_ascii_case(host),
        Some("") => true,
        Some(suffix) => {
            let rest = host.strip_prefix('*').unwrap_or(host);
            let wildcard = rest.len() != host.len();
            ends_with_ignoring_case(rest, suffix) && (wildcard || rest.len() > suffix.len())
        }
    }
}

/// Whether two names or wildcards have a name in common.
pub fn overlap(a: &str, b: &str) -> bool {
    covers(a, b) || covers(b, a)
}

/// The most specific of `patterns` that covers `host`: an exact name before wildcards, a longer wildcard before a
/// shorter one, the earlier before the later.
pub fn most_specific<'a, T>(
    host: &str,
    patterns: impl IntoIterator<Item = (&'a str, T)>,
) -> Option<(&'a str, T)> {
    let mut best: Option<(&'a str, T)> = None;
    for (pattern, value) in patterns {
        if !covers(pattern, host) {
            continue;
        }
        let better = best.as_ref().is_none_or(|(held, _)| specificity(pattern) > specificity(held));
        if better {
            best = Some((pattern, value));
        }
    }
    best
}

/// Sort key: exact names above wildcards, then by length.
pub fn specificity(pattern: &str) -> (bool, usize) {
    (!pattern.starts_with('*'), pattern.len())
}

fn ends_with_ignoring_case(text: &str, suffix: &str) -> bool {
    text.len() >= suffix.len()
        && text.as_bytes()[text.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_names_are_made_full() {
        assert_eq!(resolve_short("a", "ns", "cluster.local"), "a.ns.svc.cluster.local");
        for host in ["a.ns", "*", "*.example.com", "::1", ""] {
            assert_eq!(resolve_short(host, "ns", "cluster.local"), host);
        }
    }

    #[test]
    fn a_wildcard_covers_names_below_its_suffix_only() {
        assert!(covers("*.example.com", "a.example.com"));
        assert!(covers("*.example.com", "A.B.Example.COM"));
        assert!(covers("*.example.com", "*.b.example.com"));
        assert!(covers("*.example.com", "*.example.com"));
        assert!(!covers("*.example.com", "example.com"));
        assert!(!covers("*.b.example.com", "*.example.com"));
        assert!(covers("*", "anything"));
        assert!(!covers("a.example.com", "*.example.com"));
        assert!(overlap("a.example.com", "*.example.com"));
    }

    #[test]
    fn the_most_specific_pattern_wins_and_ties_go_to_the_earlier() {
        let patterns = [("*", 0), ("*.com", 1), ("*.a.com", 2), ("x.a.com", 3), ("x.a.com", 4)];
        assert_eq!(most_specific("x.a.com", patterns).map(|found| found.1), Some(3));
        assert_eq!(most_specific("y.a.com", patterns).map(|found| found.1), Some(2));
        assert_eq!(most_specific("org", patterns).map(|found| found.1), Some(0));
    }
}
