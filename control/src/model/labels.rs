//! What Kubernetes takes for the names and values of labels, and for names that have the form of a label of DNS ("Labels and
//! Selectors"; RFC 1123): what a workload cannot have, nothing can select.

/// The longest value of a label, name without its prefix, and label of DNS, in characters.
pub const LONGEST: usize = 63;

/// Whether a text is a label of DNS: a port's name, a subset's, a namespace.
pub fn is_dns_label(text: &str) -> bool {
    is_name(text, |byte| byte == b'-')
}

/// Whether a label may be called so: `NAME` or `DOMAIN/NAME`.
pub fn is_label_name(key: &str) -> bool {
    match key.split_once('/') {
        Some((domain, name)) => domain.split('.').all(is_dns_label) && is_part(name),
        None => is_part(key),
    }
}

/// Whether a label may have this value.
pub fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_part(value)
}

/// Whether a label may be one.
pub fn is_label(key: &str, value: &str) -> bool {
    is_label_name(key) && is_label_value(value)
}

fn is_part(text: &str) -> bool {
    is_name(text, |byte| matches!(byte, b'-' | b'_' | b'.'))
}

/// Begins and ends with a letter or a digit, and has only such, and `also`, between.
fn is_name(text: &str, also: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && bytes.len() <= LONGEST
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || also(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_those_that_kubernetes_takes() {
        let long = "a".repeat(LONGEST + 1);
        for (key, value) in [("app", ""), ("a.b/c_d", "v1.2_x"), ("app", &long[1..])] {
            assert!(is_label(key, value), "{key} {value}");
        }
        for (key, value) in
            [("", "a"), ("a", "-b"), ("a", "*"), ("/a", "b"), ("a..b/c", "d"), ("a", &long), ("a b", "c")]
        {
            assert!(!is_label(key, value), "{key} {value}");
        }
        assert!(is_dns_label("v1-x") && !is_dns_label("v1.2") && !is_dns_label("") && !is_dns_label("x-"));
    }
}
