//! Both protocols as a client sees them.

use bytes::Bytes;
use xds_protos::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use xds_protos::google::rpc::Status;

use super::*;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoint;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::Route;

/// `cds a@1 b@1, eds a@1`.
fn all(text: &str) -> Arc<Served> {
    let mut resources = Served::new();
    for group in text.split(',') {
        let mut words = group.split_whitespace();
        let short = words.next().unwrap();
        let kind = ResourceType::ALL.into_iter().find(|k| k.short() == short).unwrap();
        let named = words.map(|word| {
            let (name, version) = word.split_once('@').unwrap();
            let resource =
                Resource { bytes: Bytes::copy_from_slice(word.as_bytes()), version: version.into() };
            (Arc::from(name), resource)
        });
        resources.insert(kind, Set::from(named.collect::<BTreeMap<_, _>>()));
    }
    Arc::new(resources)
}

struct Client {
    session: Session,
    now: Instant,
    last: BTreeMap<ResourceType, String>,
}

impl Client {
    fn new(variant: Variant, resources: &str) -> Self {
        let now = Instant::now();
        let session = Session::new(variant, 7, all(resources), "v1".into(), now);
        Self { session, now, last: BTreeMap::new() }
    }

    fn set(&mut self, resources: &str) {
        self.session.set(all(resources), "v2".into(), self.now);
    }

    /// What comes next: `cds +a@1 -b`, or nothing.
    fn next(&mut self) -> String {
        let Some(push) = self.session.next(self.now) else { return String::new() };
        let mut text = push.kind.short().to_owned();
        for (name, resource) in &push.upserts {
            text.push_str(&format!(" +{name}@{}", resource.version));
        }
        for name in &push.removed {
            text.push_str(&format!(" -{name}"));
        }
        self.last.insert(push.kind, push.nonce.to_string());
        text
    }

    fn delta(&mut self, kind: ResourceType, subscribe: &[&str], unsubscribe: &[&str]) -> Heard {
        self.session.delta(&DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
            ..Default::default()
        })
    }

    fn answer(&mut self, kind: ResourceType, refusal: Option<&str>) -> Heard {
        self.session.delta(&DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            response_nonce: self.last[&kind].clone(),
            error_detail: refusal.map(|message| Status { message: message.into(), ..Default::default() }),
            ..Default::default()
        })
    }

    fn sotw(&mut self, kind: ResourceType, names: &[&str], with_nonce: bool) -> Heard {
        let response_nonce =
            if with_nonce { self.last.get(&kind).cloned().unwrap_or_default() } else { String::new() };
        self.session.sotw(&DiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            response_nonce,
            ..Default::default()
        })
    }
}

#[test]
fn a_delta_client_gets_everything_once_and_then_only_changes() {
    let mut client = Client::new(Variant::Delta, "cds a@1 b@1, eds a@1 b@1");
    assert_eq!(client.delta(CDS, &[], &[]), Heard::Subscribed(CDS));
    assert_eq!(client.next(), "cds +a@1 +b@1");
    assert_eq!(client.next(), "");
    assert_eq!(client.answer(CDS, None), Heard::Acknowledged(CDS));
    client.delta(EDS, &["a", "b"], &[]);
    assert_eq!(client.next(), "eds +a@1 +b@1");
    client.answer(EDS, None);
    assert!(client.session.settled(client.now));

    client.set("cds a@1 b@1, eds a@1 b@2");
    assert_eq!(client.next(), "eds +b@2");
    assert_eq!(client.next(), "");
}

#[test]
fn a_state_that_comes_before_the_last_was_answered_waits_and_is_merged() {
    let mut client = Client::new(Variant::Delta, "eds a@1");
    client.delta(EDS, &["a"], &[]);
    assert_eq!(client.next(), "eds +a@1");
    client.set("eds a@2");
    client.set("eds a@3");
    assert_eq!(client.next(), "");
    // An answer to something older changes nothing.
    let nonce = std::mem::replace(client.last.get_mut(&EDS).unwrap(), "other".into());
    assert_eq!(client.answer(EDS, None), Heard::Expired(EDS));
    assert_eq!(client.next(), "");
    client.last.insert(EDS, nonce);
    client.answer(EDS, None);
    assert_eq!(client.next(), "eds +a@3");
    // A client that never answers is not waited for for ever.
    client.set("eds a@4");
    assert_eq!(client.next(), "");
    let deadline = client.session.deadline(client.now).unwrap();
    client.now = deadline;
    assert_eq!(client.next(), "eds +a@4");
}

#[test]
fn routes_follow_clusters_and_what_is_gone_goes_last() {
    let first = "cds a@1, eds a@1, lds l@1, rds r@1";
    let mut client = Client::new(Variant::Delta, first);
    for kind in [CDS, LDS] {
        client.delta(kind, &[], &[]);
    }
    client.delta(EDS, &["a"], &[]);
    client.delta(RDS, &["r"], &[]);
    assert_eq!((client.next(), client.next()), ("cds +a@1".into(), "eds +a@1".into()));
    assert_eq!(client.next(), "", "listeners wait until clusters are taken");
    client.answer(CDS, None);
    client.answer(EDS, None);
    assert_eq!((client.next(), client.next()), ("lds +l@1".into(), "rds +r@1".into()));
    client.answer(LDS, None);
    client.answer(RDS, None);

    client.set("cds b@1, eds b@1, lds l@1, rds r@2");
    assert_eq!(client.next(), "cds +b@1", "a stays while routes lead to it");
    client.answer(CDS, None);
    assert_eq!(client.next(), "", "routes wait until b has endpoints");
    client.delta(EDS, &["b"], &["a"]);
    assert_eq!(client.next(), "eds +b@1");
    client.answer(EDS, None);
    assert_eq!(client.next(), "rds +r@2");
    assert_eq!(client.next(), "");
    client.answer(RDS, None);
    assert_eq!(client.next(), "cds -a");
}

#[test]
fn a_refused_route_keeps_the_clusters_it_led_to() {
    let mut client = Client::new(Variant::Delta, "cds a@1, rds r@1");
    client.delta(CDS, &[], &[]);
    client.delta(RDS, &["r"], &[]);
    client.next();
    client.answer(CDS, None);
    client.next();
    client.answer(RDS, None);
    client.set("cds b@1, rds r@2");
    assert_eq!(client.next(), "cds +b@1");
    client.answer(CDS, None);
    assert_eq!(client.next(), "rds +r@2");
    let refused = client.answer(RDS, Some("no such field"));
    assert_eq!(refused, Heard::Refused(RDS, "no such field".into()));
    assert_eq!(client.next(), "", "a refusal is not answered, and a stays");
    client.set("cds b@1, rds r@3");
    assert_eq!(client.next(), "rds +r@3");
    client.answer(RDS, None);
    assert_eq!(client.next(), "cds -a");
}

#[test]
fn listeners_do_not_wait_for_ever() {
    let mut client = Client::new(Variant::Delta, "cds a@1, eds a@1, lds l@1");
    client.delta(CDS, &[], &[]);
    client.delta(LDS, &[], &[]);
    client.next();
    client.answer(CDS, None);
    assert_eq!(client.next(), "", "its endpoints were not asked for");
    client.now = client.session.deadline(client.now).unwrap();
    assert_eq!(client.next(), "lds +l@1");
}

#[test]
fn a_replaced_cluster_gets_its_endpoints_again() {
    let mut client = Client::new(Variant::Delta, "cds a@1 b@1, eds a@1 b@1");
    client.delta(CDS, &[], &[]);
    client.next();
    client.answer(CDS, None);
    client.delta(EDS, &["a", "b"], &[]);
    client.next();
    client.answer(EDS, None);
    client.set("cds a@2 b@1, eds a@1 b@1");
    assert_eq!((client.next(), client.next()), ("cds +a@2".into(), "eds +a@1".into()));
}

#[test]
fn a_delta_client_that_comes_back_gets_what_changed() {
    let mut client = Client::new(Variant::Delta, "cds a@1 b@2, eds a@1");
    client.session.delta(&DeltaDiscoveryRequest {
        type_url: CDS.type_url().into(),
        initial_resource_versions: [("a", "1"), ("b", "1"), ("c", "1")]
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .into(),
        ..Default::default()
    });
    assert_eq!(client.next(), "cds +b@2 -c");
    client.session.delta(&DeltaDiscoveryRequest {
        type_url: EDS.type_url().into(),
        resource_names_subscribe: vec!["a".into()],
        initial_resource_versions: [("a".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    });
    assert_eq!(client.next(), "eds", "the first request is answered even where nothing changed");
    // A name subscribed again is sent again.
    client.answer(EDS, None);
    client.delta(EDS, &["a"], &[]);
    assert_eq!(client.next(), "eds +a@1");
}

#[test]
fn a_name_that_is_not_there_is_answered_empty() {
    let mut client = Client::new(Variant::Delta, "cds a@1");
    client.delta(RDS, &["8080"], &[]);
    let push = client.session.next(client.now).unwrap();
    assert_eq!((push.upserts.len(), &*push.upserts[0].0), (1, "8080"));
    let response = push.into_delta();
    let any = response.resources[0].resource.as_ref().unwrap();
    let route: xds_protos::envoy::config::route::v3::RouteConfiguration = any.unpack().unwrap();
    assert_eq!((route.name.as_str(), route.virtual_hosts.len()), ("8080", 0));
}

#[test]
fn state_of_the_world_sends_clusters_whole_and_endpoints_in_part() {
    let mut client = Client::new(Variant::StateOfTheWorld, "cds a@1 b@1, eds a@1 b@1");
    assert_eq!(client.sotw(CDS, &[], false), Heard::Subscribed(CDS));
    assert_eq!(client.next(), "cds +a@1 +b@1");
    assert_eq!(client.sotw(CDS, &[], true), Heard::Acknowledged(CDS));
    client.sotw(EDS, &["a"], false);
    assert_eq!(client.next(), "eds +a@1");
    assert_eq!(client.sotw(EDS, &["a", "b"], true), Heard::Subscribed(EDS));
    assert_eq!(client.next(), "eds +b@1", "only the added name");
    client.sotw(EDS, &["a", "b"], true);
    client.set("cds a@2 b@1, eds a@1 b@2");
    assert_eq!(client.next(), "cds +a@2 +b@1");
    assert_eq!(client.next(), "eds +a@1 +b@2", "a's cluster was replaced, b's endpoints changed");
    client.sotw(CDS, &[], true);
    client.sotw(EDS, &["a", "b"], true);
    client.set("cds a@2, eds a@1");
    assert_eq!(client.next(), "cds +a@2");
    client.sotw(CDS, &[], true);
    assert_eq!(client.next(), "", "it still holds b's endpoints, and will say when it does not");
}

#[test]
fn state_of_the_world_follows_istiods_rules() {
    let mut client = Client::new(Variant::StateOfTheWorld, "eds a@1, lds l@1");
    client.sotw(EDS, &["a"], false);
    client.next();
    // An old nonce says nothing, an empty list ends the subscription.
    client.last.insert(EDS, "old".into());
    assert_eq!(client.sotw(EDS, &["a"], true), Heard::Expired(EDS));
    assert_eq!(client.sotw(EDS, &[], false), Heard::Nothing);
    client.set("eds a@2, lds l@1");
    assert_eq!(client.next(), "");
    // A nonce of a stream before this one subscribes anew.
    client.last.insert(LDS, "of another stream".into());
    assert_eq!(client.sotw(LDS, &[], true), Heard::Subscribed(LDS));
    assert_eq!(client.next(), "lds +l@1");
    let refusal = DiscoveryRequest {
        type_url: LDS.type_url().into(),
        response_nonce: client.last[&LDS].clone(),
        error_detail: Some(Status { message: "bad".into(), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(client.session.sotw(&refusal), Heard::Refused(LDS, "bad".into()));
    assert_eq!(client.next(), "", "a refusal is never answered");
    assert_eq!(client.session.status()[0].refused.as_deref(), Some("bad"));
}
