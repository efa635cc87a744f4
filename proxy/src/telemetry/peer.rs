//! What two proxies of ours remember of each other on an HTTP/1 connection, so that each describes its workload there once, and
//! not with every request.
//!
//! The caller's first description on a connection has a key that asks to be remembered, with a number that only the two ends of
//! this very TLS session can know. The callee's answer says the same number if it remembers. Whoever stands in between, and
//! hands fields from one connection to another, has other numbers on both of them: then nobody remembers anything, and each
//! request brings its description, as it does with every peer that is not ours.

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::istio::Workload;
use crate::codec::Headers;
use crate::io::{ConnectionInfo, TlsInfo};

/// The key of a description that asks to be remembered.
pub const ASKS: &str = "WEFT_REMEMBER";
/// The field by which the callee's proxy says that it remembers.
pub const REMEMBERED: HeaderName = HeaderName::from_static("x-weft-peer-remembered");

/// The number of a TLS session, as it is told.
pub fn text(number: u128) -> String {
    format!("{number:032x}")
}

/// What is remembered of the callee on a connection to it.
#[derive(Debug)]
pub struct Callee {
    number: u128,
    stage: Cell<Stage>,
    workload: OnceCell<Arc<Workload>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was asked yet.
    New,
    /// The question is on its way.
    Asked,
    /// The callee remembers us.
    Remembers,
    /// It does not.
    Not,
}

impl Callee {
    /// For a new connection; none where the two ends have not proven to each other who they are.
    pub fn new(tls: Option<&TlsInfo>) -> Option<Self> {
        let number = tls?.number?;
        Some(Self { number, stage: Cell::new(Stage::New), workload: OnceCell::new() })
    }

    /// The number to ask with, once.
    pub fn ask(&self) -> Option<u128> {
        (self.stage.get() == Stage::New).then(|| {
            self.stage.set(Stage::Asked);
            self.number
        })
    }

    /// An answer came: takes out what it says of the question.
    pub fn answered(&self, headers: &mut Headers) {
        if self.stage.get() != Stage::Asked {
            return;
        }
        let same = headers.get(&REMEMBERED).is_some_and(|said| *said == *text(self.number));
        headers.remove(&REMEMBERED);
        self.stage.set(if same { Stage::Remembers } else { Stage::Not });
    }

    /// The callee described itself.
    pub fn learn(&self, workload: &Arc<Workload>) {
        if self.stage.get() == Stage::Remembers {
            // Whoever came first stays.
            let _ = self.workload.set(workload.clone());
        }
    }

    /// Who it is, once both ends remember each other: then no request needs to bring anything.
    pub fn workload(&self) -> Option<&Arc<Workload>> {
        self.workload.get()
    }
}

/// What is remembered of the caller on a connection from it.
#[derive(Debug, Default)]
pub struct Caller(RefCell<Option<Arc<Workload>>>);

impl Caller {
    /// The caller described itself, and asks to be remembered by a number; gives what the answer says, if it is this connection's.
    pub fn remember(
        &self,
        connection: &ConnectionInfo,
        number: u128,
        workload: &Arc<Workload>,
    ) -> Option<HeaderValue> {
        let own = connection.tls.as_ref()?.number?;
        if own != number {
            return None;
        }
        *self.0.borrow_mut() = Some(workload.clone());
        HeaderValue::try_from(text(own)).ok()
    }

    /// Who it is.
    pub fn workload(&self) -> Option<Arc<Workload>> {
        self.0.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(number: Option<u128>) -> TlsInfo {
        TlsInfo { number, ..TlsInfo::default() }
    }

    fn connection(number: Option<u128>) -> ConnectionInfo {
        let address = "127.0.0.1:80".parse().unwrap();
        ConnectionInfo { tls: Some(Arc::new(tls(number))), ..ConnectionInfo::between(address, address) }
    }

    fn workload(name: &str) -> Arc<Workload> {
        Arc::new(Workload { name: name.to_owned(), ..Workload::default() })
    }

    #[test]
    fn two_ends_of_one_session_remember_each_other_and_nobody_else() {
        for (theirs, remembered) in [(Some(7), true), (Some(8), false), (None, false)] {
            let (callee, caller) = (Callee::new(Some(&tls(Some(7)))).unwrap(), Caller::default());
            let number = callee.ask().unwrap();
            assert_eq!(callee.ask(), None, "it asks once");
            let said = caller.remember(&connection(theirs), number, &workload("front"));
            assert_eq!(said.is_some(), remembered);
            assert_eq!(caller.workload().is_some(), remembered);
            let mut answer: Headers = said.into_iter().map(|value| (REMEMBERED, value)).collect();
            callee.answered(&mut answer);
            assert!(answer.is_empty(), "nobody else sees it");
            callee.learn(&workload("back"));
            assert_eq!(callee.workload().is_some(), remembered, "{theirs:?}");
        }
        assert!(Callee::new(Some(&tls(None))).is_none() && Callee::new(None).is_none());
    }

    #[test]
    fn another_number_or_one_that_comes_unasked_is_not_believed() {
        let callee = Callee::new(Some(&tls(Some(7)))).unwrap();
        let says = |number: u128| -> Headers {
            [(REMEMBERED, HeaderValue::try_from(text(number)).unwrap())].into_iter().collect()
        };
        callee.answered(&mut says(7));
        callee.learn(&workload("back"));
        assert!(callee.workload().is_none(), "nobody asked");
        callee.ask();
        callee.answered(&mut says(8));
        callee.answered(&mut says(7));
        callee.learn(&workload("back"));
        assert!(callee.workload().is_none(), "it was another's");
    }
}
