//! Which requests of a stream deserve an answer: istiod's rules for state-of-the-world SDS.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use xds_protos::envoy::service::discovery::v3::DiscoveryRequest;

/// What one stream asked for and was told.
#[derive(Debug, Default)]
pub(super) struct Watch {
    names: Option<BTreeSet<String>>,
    nonce: Option<String>,
    /// The secrets as they were last sent, encoded.
    sent: BTreeMap<String, Bytes>,
}

/// What a request means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// These names are to be answered, also where nothing changed.
    Answer(BTreeSet<String>),
    /// The last answer was taken, or names were given up.
    Ack,
    /// The last answer was refused, for this reason.
    Nack(String),
    /// It is about an answer before the last, and a request about the last will follow.
    Stale,
    /// Nothing is wanted any more.
    Unsubscribed,
}

impl Watch {
    /// Takes a request in.
    pub(super) fn request(&mut self, request: &DiscoveryRequest) -> Meaning {
        if let Some(error) = &request.error_detail {
            return Meaning::Nack(error.message.clone());
        }
        let names: BTreeSet<String> = request.resource_names.iter().cloned().collect();
        if names.is_empty() {
            *self = Self::default();
            return Meaning::Unsubscribed;
        }
        let Some(before) = self.names.as_ref().filter(|_| !request.response_nonce.is_empty()) else {
            // New on this stream, or a client that begins anew.
            self.names = Some(names.clone());
            self.sent.clear();
            return Meaning::Answer(names);
        };
        if self.nonce.as_ref() != Some(&request.response_nonce) {
            return Meaning::Stale;
        }
        let added: BTreeSet<String> = names.difference(before).cloned().collect();
        self.sent.retain(|name, _| names.contains(name));
        self.names = Some(names);
        if added.is_empty() { Meaning::Ack } else { Meaning::Answer(added) }
    }

    /// The names wanted now.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.names.iter().flatten()
    }

    /// Whether a secret is another than was last sent, or none was.
    pub(super) fn is_news(&self, name: &str, secret: &Bytes) -> bool {
        self.sent.get(name) != Some(secret)
    }

    /// Notes an answer.
    pub(super) fn answered(&mut self, nonce: String, secrets: impl IntoIterator<Item = (String, Bytes)>) {
        self.nonce = Some(nonce);
        self.sent.extend(secrets);
    }
}

#[cfg(test)]
mod tests {
    use xds_protos::google::rpc::Status;

    use super::*;

    fn request(nonce: &str, names: &[&str]) -> DiscoveryRequest {
        DiscoveryRequest {
            response_nonce: nonce.to_owned(),
            resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
            ..DiscoveryRequest::default()
        }
    }

    fn answer(names: &[&str]) -> Meaning {
        Meaning::Answer(names.iter().map(|n| (*n).to_owned()).collect())
    }

    #[test]
    fn a_first_request_is_answered_an_ack_is_not() {
        let mut watch = Watch::default();
        assert_eq!(watch.request(&request("", &["default"])), answer(&["default"]));
        watch.answered("1".into(), [("default".into(), Bytes::from_static(b"a"))]);
        assert_eq!(watch.request(&request("1", &["default"])), Meaning::Ack);
        // A nonce of an earlier stream, before anything was sent on this.
        assert_eq!(Watch::default().request(&request("old", &["default"])), answer(&["default"]));
    }

    #[test]
    fn nack_and_stale_change_nothing() {
        let mut watch = Watch::default();
        watch.request(&request("", &["default"]));
        watch.answered("2".into(), []);
        let mut nack = request("2", &["default", "ROOTCA"]);
        nack.error_detail = Some(Status { message: "no".into(), ..Status::default() });
        assert_eq!(watch.request(&nack), Meaning::Nack("no".into()));
        assert_eq!(watch.request(&request("1", &["default", "ROOTCA"])), Meaning::Stale);
        assert_eq!(watch.names().collect::<Vec<_>>(), ["default"]);
    }

    #[test]
    fn only_added_names_are_answered_and_given_up_ones_are_forgotten() {
        let mut watch = Watch::default();
        watch.request(&request("", &["default"]));
        let bytes = Bytes::from_static(b"a");
        watch.answered("1".into(), [("default".into(), bytes.clone())]);
        assert_eq!(watch.request(&request("1", &["default", "ROOTCA"])), answer(&["ROOTCA"]));
        watch.answered("2".into(), []);
        assert_eq!(watch.request(&request("2", &["ROOTCA"])), Meaning::Ack);
        assert!(watch.is_news("default", &bytes));
        assert_eq!(watch.request(&request("2", &[])), Meaning::Unsubscribed);
        assert_eq!(watch.names().count(), 0);
        // After that it is as on a new stream.
        assert_eq!(watch.request(&request("2", &["default"])), answer(&["default"]));
    }
}
