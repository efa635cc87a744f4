//! Whether texts of OpenMetrics can stand in one answer: each is well-formed as far as that matters, and no family is in two of
//! them, which the format forbids and Prometheus' own text does not.

use std::collections::BTreeSet;

/// What may stand behind a family's name in the names of its samples.
const SUFFIXES: [&str; 8] = ["_total", "_created", "_bucket", "_count", "_sum", "_gcount", "_gsum", "_info"];

/// Whether these may follow each other, with one end behind them all.
pub(super) fn can_be_one<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut all = BTreeSet::new();
    texts.into_iter().all(|text| {
        let own = std::str::from_utf8(text).ok().and_then(families);
        own.is_some_and(|own| own.into_iter().all(|family| all.insert(family)))
    })
}

/// The families of a text, which has no end of its own; none if something may not stand in the middle of an answer.
fn families(text: &str) -> Option<BTreeSet<&str>> {
    let mut all = BTreeSet::new();
    let mut current: Option<&str> = None;
    for line in text.lines() {
        let name = match line.strip_prefix("# ") {
            Some(said) => {
                let (what, rest) = said.split_once(' ')?;
                if !["TYPE", "HELP", "UNIT"].contains(&what) {
                    return None;
                }
                rest.split(' ').next()?
            }
            None if line.starts_with('#') => return None,
            None => &line[..line.find(['{', ' '])?],
        };
        let of_current = |family: &str| {
            name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || SUFFIXES.contains(&rest))
        };
        if name.is_empty() || current.is_some_and(of_current) {
            continue;
        }
        // Lines of one family stand together.
        if !all.insert(name) {
            return None;
        }
        current = Some(name);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "# HELP a Some.\n# TYPE a counter\na_total{x=\"# EOF\"} 1 # {id=\"2\"} 1\na_created 2\n\
                       # TYPE b histogram\nb_bucket{le=\"+Inf\"} 1\nb_count 1\nb_sum 1\nc 1\n";

    #[test]
    fn texts_whose_families_differ_can_be_one_and_no_others() {
        let one = |more: &str| can_be_one([ONE.as_bytes(), more.as_bytes()]);
        assert!(one(""));
        assert!(one("# TYPE d gauge\nd 1\n"));
        // The same family; one whose lines are apart; an end, a comment and an empty line in the middle; no text.
        for bad in [
            "# TYPE a counter\na_total 1\n",
            "c 2\n",
            "d 1\ne 1\nd 2\n",
            "d 1\n# EOF\n",
            "# said\n",
            "d 1\n\ne 1\n",
            "d\n",
        ] {
            assert!(!one(bad), "{bad}");
        }
        assert!(!can_be_one([&b"\xff 1\n"[..]]));
    }
}
