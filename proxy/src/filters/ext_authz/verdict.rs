//! What an authorization service said, whichever way it was asked, and what that does to the request.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use xds_protos::prost_types::Struct;

use crate::codec::headers::Of;
use crate::codec::{Headers, RequestHead};
use crate::route::header_ops::AppendAction;
use crate::route::matching::split_query;

/// The answer.
#[derive(Debug)]
pub enum Answer {
    /// The request may go on, with these changes.
    Ok(Box<Changes>),
    /// It may not; this is the answer to it.
    Denied(Box<Denial>),
    /// There is no answer; the status is the service's wish for what the client gets.
    Error(Option<StatusCode>),
}

/// A change of a field.
#[derive(Debug)]
pub struct Change {
    /// The field.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderValue,
    /// What to do where it is there.
    pub action: AppendAction,
}

/// What a service that allows a request wants changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Fields of the request.
    pub request: Vec<Change>,
    /// Fields that are joined to the request's, if it has them.
    pub join: Vec<(HeaderName, HeaderValue)>,
    /// Fields of the request to remove.
    pub remove: Vec<HeaderName>,
    /// Query parameters.
    pub query: Vec<(String, String)>,
    /// Query parameters to remove.
    pub query_remove: Vec<String>,
    /// Fields of the response.
    pub response: Vec<Change>,
    /// For later filters and logs.
    pub metadata: Option<Struct>,
}

/// What a service that denies a request wants answered.
#[derive(Debug)]
pub struct Denial {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
    /// Its fields.
    pub headers: Vec<Change>,
    /// For logs.
    pub metadata: Option<Struct>,
}

impl Changes {
    /// Whether what routes match on may have changed.
    pub fn touch_request(&self) -> bool {
        !(self.request.is_empty()
            && self.join.is_empty()
            && self.remove.is_empty()
            && self.query.is_empty()
            && self.query_remove.is_empty())
    }

    /// Changes the request.
    pub fn apply(&mut self, head: &mut RequestHead) {
        change(&mut head.headers, self.request.drain(..), Of::Request);
        for (name, value) in self.join.drain(..) {
            if let Some(before) = head.headers.get(&name) {
                let joined = [before.as_bytes(), b",", value.as_bytes()].concat();
                if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
                    head.headers.set(name, joined);
                }
            }
        }
        for name in self.remove.drain(..) {
            head.headers.remove(&name);
        }
        if !(self.query.is_empty() && self.query_remove.is_empty()) {
            self.change_query(head);
        }
    }

    /// Parameters that are set replace those of their name, or come last.
    fn change_query(&self, head: &mut RequestHead) {
        let (path, query) = split_query(&head.path);
        let query = String::from_utf8_lossy(query);
        let key = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
        let mut pairs: Vec<String> = query
            .split('&')
            .filter(|pair| !pair.is_empty() && !self.query_remove.contains(&key(pair)))
            .map(str::to_owned)
            .collect();
        for (name, value) in &self.query {
            let new = format!("{name}={value}");
            match pairs.iter().position(|pair| key(pair) == *name) {
                Some(at) => {
                    pairs[at] = new;
                    let mut index = 0;
                    pairs.retain(|pair| {
                        index += 1;
                        index - 1 <= at || key(pair) != *name
                    });
                }
                None => pairs.push(new),
            }
        }
        let mut whole = path.to_vec();
        if !pairs.is_empty() {
            whole.push(b'?');
            whole.extend_from_slice(pairs.join("&").as_bytes());
        }
        head.path = whole.into();
    }
}

/// Makes changes of fields, in order.
pub fn change(headers: &mut Headers, changes: impl IntoIterator<Item = Change>, of: Of) {
    for Change { name, value, action } in changes {
        let there = headers.contains(&name);
        match action {
            AppendAction::AppendOrAdd => headers.append_to(of, name, value),
            AppendAction::AddIfAbsent if there => {}
            AppendAction::OverwriteIfExists if !there => {}
            AppendAction::AddIfAbsent | AppendAction::OverwriteOrAdd | AppendAction::OverwriteIfExists => {
                headers.set(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(path: &'static str) -> RequestHead {
        crate::router::call::head(http::Method::GET, "a".into(), path.into())
    }

    #[test]
    fn parameters_are_set_in_their_place_and_removed() {
        let changes = || Changes {
            query: vec![("b".into(), "2".into()), ("n".into(), "new".into())],
            query_remove: vec!["x".into()],
            ..Changes::default()
        };
        for (before, after) in
            [("/p?a=1&b=1&x=9&b=3", "/p?a=1&b=2&n=new"), ("/p", "/p?b=2&n=new"), ("/p?x", "/p?b=2&n=new")]
        {
            let mut head = head(before);
            changes().apply(&mut head);
            assert_eq!(head.path, after);
        }
        let mut only = head("/p?x=1");
        Changes { query_remove: vec!["x".into()], ..Changes::default() }.apply(&mut only);
        assert_eq!(only.path, "/p");
    }

    #[test]
    fn fields_are_joined_only_where_they_are() {
        let mut head = head("/");
        head.headers.append(HeaderName::from_static("x-a"), HeaderValue::from_static("1"));
        let value = |name: &'static str| (HeaderName::from_static(name), HeaderValue::from_static("2"));
        let mut changes = Changes { join: vec![value("x-a"), value("x-b")], ..Changes::default() };
        changes.apply(&mut head);
        assert_eq!(head.headers.get_str(&HeaderName::from_static("x-a")), Some("1,2"));
        assert!(!head.headers.contains(&HeaderName::from_static("x-b")));
    }
}
