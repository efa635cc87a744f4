//! What was probably meant by a name that does not exist.

/// The name among `known` that is closest to `name`, if it is close enough to be meant.
pub(super) fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = fold(name);
    let budget = 1 + plain.chars().count() / 4;
    known
        .into_iter()
        .map(|candidate| (distance(&plain, &fold(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= budget && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Case and separators are what people most often get wrong: `per_try_timeout` is `perTryTimeout`.
fn fold(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// Edits between two texts: insert, delete, replace, or swap neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_name_that_was_meant() {
        let known = ["attempts", "perTryTimeout", "retryOn", "backoff"];
        assert_eq!(closest("atempts", known), Some("attempts"));
        assert_eq!(closest("per_try_timeout", known), Some("perTryTimeout"));
        assert_eq!(closest("retyrOn", known), Some("retryOn"));
        assert_eq!(closest("RETRYON", known), Some("retryOn"));
    }

    #[test]
    fn a_stranger_finds_nothing() {
        assert_eq!(closest("interval", ["attempts", "retryOn"]), None);
        assert_eq!(closest("x", ["on", "a"]), None);
    }
}
