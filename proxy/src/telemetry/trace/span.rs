//! A span that has ended, as exporters get it.

use std::borrow::Cow;
use std::time::SystemTime;

use http::HeaderValue;

use super::Ids;

/// Whose side a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who is sent the request.
    Server,
    /// Who sends it.
    Client,
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its ids.
    pub ids: Ids,
    /// The span above is another program's.
    pub remote: bool,
    /// `tracestate`.
    pub state: Option<HeaderValue>,
    /// Its name; none for the kind's own.
    pub name: Option<String>,
    /// The authority of the request.
    pub authority: String,
    /// The request leaves the workload.
    pub egress: bool,
    /// Whose side it is of.
    pub kind: Kind,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What it says.
    pub tags: Vec<(Cow<'static, str>, String)>,
    /// Moments of it.
    pub moments: Vec<(&'static str, SystemTime)>,
    /// HTTP's status; 0 for none.
    pub status: u16,
    /// gRPC's status.
    pub grpc: Option<u32>,
}

/// Longer values are cut: what a span holds in memory has a bound.
pub(super) const LONGEST: usize = 4096;

impl Span {
    /// Says something, in place of what was said before under the name.
    pub fn tag(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        let (name, mut value) = (name.into(), value.into());
        if value.len() > LONGEST {
            let cut = (0..=LONGEST).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
            value.truncate(cut);
        }
        match self.tags.iter_mut().find(|(n, _)| *n == name) {
            Some((_, before)) => *before = value,
            None => self.tags.push((name, value)),
        }
    }
}
