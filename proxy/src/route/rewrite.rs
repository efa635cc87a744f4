//! Changes of path and authority on the way upstream.

use bytes::Bytes;

use super::action::PathRewrite;
use super::matching::{PathMatch, split_query};

/// The rewritten path and query; none where nothing changes. `matched` is what the route matched the path by: a prefix
/// rewrite replaces that part.
pub fn rewrite_path(rewrite: &PathRewrite, matched: &PathMatch, path: &Bytes) -> Option<Bytes> {
    let (bare, _) = split_query(path);
    match rewrite {
        PathRewrite::None => None,
        PathRewrite::Prefix(new) => {
            let replaced = match matched {
                PathMatch::Prefix(p) | PathMatch::SeparatedPrefix(p) => p.len().min(bare.len()),
                PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Template(_) => bare.len(),
                PathMatch::Connect => return None,
            };
            Some([&new[..], &path[replaced..]].concat().into())
        }
        PathRewrite::Template(rewrite) => {
            let new = rewrite.apply(bare)?;
            Some(if bare.len() == path.len() { new } else { [&new[..], &path[bare.len()..]].concat().into() })
        }
        PathRewrite::Regex(substitution) => {
            let new = substitution.apply(bare);
            Some(if bare.len() == path.len() { new } else { [&new[..], &path[bare.len()..]].concat().into() })
        }
    }
}
