//! Paths that are replaced: wholly, or in the place of the prefix that matched.

use crate::model::gateway_api::PathModifier;
use crate::model::virtual_service::RegexRewrite;

/// What becomes of a path.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// It stays.
    None,
    /// It is this.
    Whole(String),
    /// This stands where the prefix stood.
    Prefix(String),
    /// What the expression matches is replaced.
    Regex(RegexRewrite),
}

/// What a modifier makes of paths that `prefix` matched. Segments count: between what is replaced and the rest there is one slash,
/// whether prefix and replacement end in one or not.
pub(super) fn change(modifier: Option<&PathModifier>, prefix: &str) -> Change {
    let Some(modifier) = modifier else { return Change::None };
    if let Some(whole) = &modifier.replace_full_path {
        return Change::Whole(rooted(whole));
    }
    let Some(given) = &modifier.replace_prefix_match else { return Change::None };
    let (prefix, given) = (prefix.trim_end_matches('/'), given.trim_end_matches('/'));
    let given = if given.is_empty() { String::new() } else { rooted(given) };
    let regex = |pattern: String, rewrite: &str| {
        Change::Regex(RegexRewrite { pattern, rewrite: rewrite.replace('\\', "\\\\") })
    };
    match (prefix, given.as_str()) {
        ("", "") => Change::None,
        ("", given) => regex("^/".to_owned(), &format!("{given}/")),
        (prefix, "") => regex(format!("^{}/?", regex::escape(prefix)), "/"),
        _ => Change::Prefix(given),
    }
}

/// The same as a rewriting by an expression, where there is no other way to say it.
pub(super) fn whole(path: &str) -> RegexRewrite {
    RegexRewrite { pattern: "^/.*$".to_owned(), rewrite: path.replace('\\', "\\\\") }
}

fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a path, as a proxy does it.
    fn applied(path: &str, prefix: &str, replacement: &str) -> String {
        let modifier =
            PathModifier { replace_prefix_match: Some(replacement.to_owned()), ..PathModifier::default() };
        match change(Some(&modifier), prefix) {
            Change::None => path.to_owned(),
            Change::Whole(path) => path,
            Change::Prefix(new) => format!("{new}{}", &path[prefix.trim_end_matches('/').len()..]),
            Change::Regex(regex) => {
                regex::Regex::new(&regex.pattern).unwrap().replace(path, regex.rewrite.as_str()).into_owned()
            }
        }
    }

    /// The specification's own table, and the root.
    #[test]
    fn prefixes_are_replaced_by_segments() {
        for (path, prefix, replacement, wanted) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/bar", "/", "/xyz", "/xyz/bar"),
            ("/bar", "/", "/", "/bar"),
            ("/a.b/c", "/a.b", "/", "/c"),
        ] {
            assert_eq!(applied(path, prefix, replacement), wanted, "{path} {prefix} {replacement}");
        }
    }
}
