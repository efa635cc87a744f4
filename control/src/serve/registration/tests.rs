//! Who may enter a workload, and how long its entry stays.

use std::time::Duration;

use serde_json::json;
use tonic::Code;
use weft_certs::spiffe::SpiffeId;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::prost_types::value::Kind;
use xds_protos::value::from_json;

use super::*;
use crate::ingest::load_str;

const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vm, namespace: shop}
spec:
  metadata: {labels: {tier: old}}
  template: {serviceAccount: cart, ports: {http: 8080}, labels: {app: cart}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: other, namespace: shop}
spec: {address: 10.0.0.9, labels: {app: other}, serviceAccount: other}
";
const GRACE: Duration = Duration::from_secs(10);

fn world() -> World {
    load_str("x.yaml", MESH).into_result().unwrap()
}

fn message(ip: &str, group: &str, probe: bool) -> Node {
    let mut metadata =
        json!({"NAMESPACE": "shop", "AUTO_REGISTER_GROUP": group, "LABELS": {"version": "v1"}});
    if probe {
        metadata["PROXY_CONFIG"] = json!({"readinessProbe": {"tcpSocket": {"port": 8080}}});
    }
    let Some(Kind::StructValue(metadata)) = from_json(metadata).kind else { unreachable!("it is an object") };
    let id = format!("sidecar~{ip}~vm-1.shop~shop.svc.cluster.local");
    Node { id, metadata: Some(metadata), ..Node::default() }
}

fn enter(registrar: &Registrar, message: &Node, identity: Option<&str>) -> Result<Registration, Status> {
    let asked = Asked::read(message).expect("it asks");
    let node = ProxyNode::parse(message).unwrap();
    let identity: Option<SpiffeId> = identity.map(|id| id.parse().unwrap());
    registrar.enter(&world(), &asked, &node, identity.as_ref())
}

const CART: Option<&str> = Some("spiffe://cluster.local/ns/shop/sa/cart");

#[test]
fn only_the_groups_own_identity_may_and_not_at_anothers_address() {
    let entry = |ip: &str, group: &str, identity: Option<&str>| {
        let message = message(ip, group, false);
        let asked = Asked::read(&message).unwrap();
        let identity: Option<SpiffeId> = identity.map(|id| id.parse().unwrap());
        entry(&world(), &asked, &ProxyNode::parse(&message).unwrap(), identity.as_ref())
    };
    let made = entry("10.0.0.1", "vm", CART).unwrap();
    assert_eq!((made.meta.name.as_str(), made.spec.service_account.as_str()), ("vm-10.0.0.1", "cart"));
    assert_eq!(
        made.spec.labels,
        [("app", "cart"), ("version", "v1")].map(|(k, v)| (k.into(), v.into())).into()
    );
    assert_eq!(made.meta.labels["tier"], "old");
    for (ip, group, identity, code, words) in [
        ("10.0.0.1", "vms", CART, Code::FailedPrecondition, "there is no WorkloadGroup shop/vms"),
        ("10.0.0.1", "vm", None, Code::FailedPrecondition, "verified identity"),
        (
            "10.0.0.1",
            "vm",
            Some("spiffe://cluster.local/ns/shop/sa/other"),
            Code::PermissionDenied,
            "shop/other may not",
        ),
        (
            "10.0.0.1",
            "vm",
            Some("spiffe://cluster.local/ns/edge/sa/cart"),
            Code::PermissionDenied,
            "edge/cart may not",
        ),
        ("10.0.0.9", "vm", CART, Code::PermissionDenied, "WorkloadEntry shop/other"),
        ("0.0.0.0", "vm", CART, Code::FailedPrecondition, "no address of a workload"),
    ] {
        let refused = entry(ip, group, identity).unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(words), "{refused}");
    }
    assert_eq!(entry("2001:db8::", "vm", CART).unwrap().meta.name, "vm-2001-db8--0");
    let asked =
        Asked { network: "my_net".to_owned(), ..Asked::read(&message("10.0.0.1", "vm", false)).unwrap() };
    let node = ProxyNode::parse(&message("10.0.0.1", "vm", false)).unwrap();
    let identity: SpiffeId = CART.unwrap().parse().unwrap();
    let refused = super::entry(&world(), &asked, &node, Some(&identity)).unwrap_err();
    assert!(refused.message().contains("\"my_net\""), "{refused}");
    for (key, value) in
        [("app", "*"), ("*", "x"), ("", "x"), ("app", &*"x".repeat(64)), ("app", "a\u{7f}"), ("app", "a b")]
    {
        let (message, mut node) = (message("10.0.0.1", "vm", false), node.clone());
        node.labels = [(key.to_owned(), value.to_owned())].into();
        let refused =
            super::entry(&world(), &Asked::read(&message).unwrap(), &node, Some(&identity)).unwrap_err();
        assert!(refused.message().contains("(LABELS)"), "{refused}");
    }
    let mut message = message("10.0.0.1", "", false);
    assert_eq!(Asked::read(&message), None);
    message.metadata = None;
    assert_eq!(Asked::read(&message), None);
}

/// The address is as its proxy says: it is nothing to others, and no proof.
#[test]
fn who_entered_itself_speaks_for_nobody_else_at_its_address() {
    let made = |account: &str, labels: &str| {
        let message = message("10.0.0.7", "vm", false);
        let (asked, mut node) = (Asked::read(&message).unwrap(), ProxyNode::parse(&message).unwrap());
        node.labels = [("app".to_owned(), labels.to_owned())].into();
        let identity: SpiffeId = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
        Arc::new(entry(&world(), &asked, &node, Some(&identity)).unwrap())
    };
    let entered = made("cart", "ingress");
    assert_eq!(entered.spec.labels["app"], "cart", "the group's word goes first");
    let with = world().with_entries(std::slice::from_ref(&entered), None);
    // A proxy of another namespace at that address is what it says itself.
    let id = "sidecar~10.0.0.7~x.edge~edge.svc.cluster.local".to_owned();
    let mut other = ProxyNode::parse(&Node { id, ..Node::default() }).unwrap();
    other.labels = [("app".to_owned(), "gateway".to_owned())].into();
    assert_eq!(other.selected_by(&with)["app"], "gateway");
    // What is written for the address goes before.
    let written = format!(
        "{MESH}---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: z, namespace: shop}}\nspec: {{address: 10.0.0.7, serviceAccount: own}}\n"
    );
    let world = load_str("x.yaml", &written).into_result().unwrap();
    let with = world.with_entries(std::slice::from_ref(&entered), None);
    assert_eq!(with.workload_at("10.0.0.7").unwrap().service_account(), "own");
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_there_while_its_proxy_is_and_for_the_grace_period() {
    let (registrar, entered) = Registrar::in_memory(GRACE, None);
    let count = || entered.borrow().len();
    let message = message("10.0.0.1", "vm", false);
    let first = enter(&registrar, &message, CART).unwrap();
    assert_eq!(count(), 1);
    let there = entered.borrow()[0].clone();
    drop(first);
    tokio::time::sleep(GRACE - Duration::from_secs(1)).await;
    // Back in time: it stays what it was, also when the first stream's time is over.
    let second = enter(&registrar, &message, CART).unwrap();
    tokio::time::sleep(GRACE * 2).await;
    assert!(Arc::ptr_eq(&entered.borrow()[0], &there));
    drop(second);
    tokio::time::sleep(GRACE - Duration::from_secs(1)).await;
    assert_eq!(count(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(count(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_reports_gets_requests_only_while_it_is_well() {
    let (registrar, mut entered) = Registrar::in_memory(GRACE, None);
    let of = |entered: &watch::Receiver<Arc<Entered>>| {
        let world = world().with_entries(&entered.borrow(), None);
        let service = world.services()[0].clone();
        (service.endpoints.len(), service.waiting.len(), world.served_at("10.0.0.1").count())
    };
    let message = message("10.0.0.1", "vm", true);
    let held = enter(&registrar, &message, CART).unwrap();
    // Its own proxy serves it all the same.
    entered.borrow_and_update();
    assert_eq!(of(&entered), (0, 1, 1));
    held.report(None);
    entered.changed().await.unwrap();
    assert_eq!(of(&entered), (1, 0, 1));
    entered.borrow_and_update();
    held.report(Some("connection refused".to_owned()));
    entered.changed().await.unwrap();
    assert_eq!(of(&entered), (0, 1, 1));
    // A stream that is opened anew says it again; until then it is what it was.
    held.report(None);
    entered.borrow_and_update();
    entered.changed().await.unwrap();
    drop(held);
    let _again = enter(&registrar, &message, CART).unwrap();
    assert_eq!(of(&entered), (1, 0, 1));
}

#[test]
fn what_is_entered_is_in_no_other_state_than_one_with_its_group_and_gives_way_to_what_is_written() {
    let message = message("10.0.0.1", "vm", false);
    let (asked, node) = (Asked::read(&message).unwrap(), ProxyNode::parse(&message).unwrap());
    let identity: SpiffeId = CART.unwrap().parse().unwrap();
    let made = Arc::new(entry(&world(), &asked, &node, Some(&identity)).unwrap());
    let count = |text: &str| {
        let world = load_str("x.yaml", text).into_result().unwrap();
        let with = world.with_entries(std::slice::from_ref(&made), None);
        (with.workloads().len(), with.workload_at("10.0.0.1").map(|w| w.service_account().to_owned()))
    };
    assert_eq!(count(MESH), (2, Some("cart".to_owned())));
    assert_eq!(count(&MESH.replace("name: vm,", "name: vm2,")), (1, None));
    let written = format!(
        "{MESH}---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm-10.0.0.1, namespace: shop}}\nspec: {{address: 10.0.0.1, serviceAccount: own}}\n"
    );
    assert_eq!(count(&written), (2, Some("own".to_owned())));
}

#[tokio::test]
async fn one_identity_has_so_many_entries_and_no_more() {
    let (registrar, entered) = Registrar::in_memory(GRACE, None);
    let registrar = registrar.with_most(2);
    let come = |ip: &str| {
        // As states are made: with what is entered.
        let world = world().with_entries(&entered.borrow(), None);
        let message = message(ip, "vm", false);
        let asked = Asked::read(&message).unwrap();
        let identity: SpiffeId = CART.unwrap().parse().unwrap();
        registrar.enter(&world, &asked, &ProxyNode::parse(&message).unwrap(), Some(&identity))
    };
    let _held = [come("10.0.0.1").unwrap(), come("10.0.0.2").unwrap()];
    let refused = come("10.0.0.3").unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("shop/cart has 2 workloads entered"), "{refused}");
    // One that comes back is none more.
    come("10.0.0.2").unwrap();
}

#[tokio::test]
async fn who_comes_back_is_let_in_by_a_smaller_bound_and_who_is_new_is_counted_before_the_state_has_the_others()
 {
    let (registrar, entered) = Registrar::in_memory(GRACE, None);
    let message = |ip: &str| message(ip, "vm", false);
    let held = ["10.0.0.1", "10.0.0.2"].map(|ip| enter(&registrar, &message(ip), CART).unwrap());
    let with = world().with_entries(&entered.borrow(), None);
    // As after an upgrade: the entries are there, and nobody is connected.
    let (after, _entered) = Registrar::in_memory(GRACE, None);
    let after = after.with_most(1);
    let come = |world: &World, ip: &str| {
        let asked = Asked::read(&message(ip)).unwrap();
        let identity: SpiffeId = CART.unwrap().parse().unwrap();
        after.enter(world, &asked, &ProxyNode::parse(&message(ip)).unwrap(), Some(&identity))
    };
    let back = ["10.0.0.1", "10.0.0.2"].map(|ip| come(&with, ip).unwrap());
    assert!(come(&with, "10.0.0.3").is_err());
    // A state without them: those that are connected count all the same, and only as long as they are.
    assert!(come(&world(), "10.0.0.3").is_err());
    drop(back);
    come(&world(), "10.0.0.3").unwrap();
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn what_is_entered_is_there_after_a_restart_for_as_long_as_its_proxy_may_take() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("workload-entries.json");
    let written = |count: usize| {
        let all = std::fs::read(&file)
            .ok()
            .and_then(|text| serde_json::from_slice::<Vec<serde_json::Value>>(&text).ok());
        all.is_some_and(|all| all.len() == count)
    };
    let (registrar, entered) = Registrar::in_memory(GRACE, Some(state.path()));
    let held = ["10.0.0.1", "10.0.0.2"].map(|ip| enter(&registrar, &message(ip, "vm", false), CART).unwrap());
    let unwell = enter(&registrar, &message("10.0.0.3", "vm", true), CART).unwrap();
    let before = entered.borrow().clone();
    until(|| written(3)).await;

    // Another control plane of the same state: as after a crash.
    let (registrar, after) = Registrar::in_memory(GRACE, Some(state.path()));
    let (was, is) = (before, after.borrow().clone());
    assert_eq!(was.len(), is.len());
    for (was, is) in was.iter().zip(is.iter()) {
        assert_eq!((&was.spec, was.meta.key(), was.meta.version), (&is.spec, is.meta.key(), is.meta.version));
    }
    assert!(is[2].spec.unhealthy);
    let world = world().with_entries(&is, None);
    assert_eq!(world.services()[0].endpoints.len(), 2);
    // One comes back and stays; the others are gone in the end, and no sooner than the grace period of those that are known.
    let _back = enter(&registrar, &message("10.0.0.1", "vm", false), CART).unwrap();
    assert!(Arc::ptr_eq(&after.borrow()[0], &is[0]), "it is nobody's news");
    tokio::time::sleep(RETURN - Duration::from_secs(1)).await;
    assert_eq!(after.borrow().len(), 3);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(after.borrow().len(), 1);
    drop((held, unwell));
}

/// Waits for what another thread does, while time stands still here.
async fn until(condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(5))).await.unwrap();
    }
    panic!("it does not come true");
}

#[tokio::test]
async fn a_damaged_file_of_entries_is_put_aside_and_the_control_plane_goes_on() {
    for text in
        ["[{", r#"[{"namespace": "shop", "name": "x", "annotations": {}, "spec": {}, "unhealthy": false}]"#]
    {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("workload-entries.json"), text).unwrap();
        let (registrar, entered) = Registrar::in_memory(GRACE, Some(state.path()));
        assert_eq!(entered.borrow().len(), 0);
        assert_eq!(std::fs::read_to_string(state.path().join("workload-entries.damaged")).unwrap(), text);
        let _held = enter(&registrar, &message("10.0.0.1", "vm", false), CART).unwrap();
        until(|| state.path().join("workload-entries.json").exists()).await;
    }
}

/// Its name has its address in it: under another address it is another entry, and the same workload.
#[tokio::test]
async fn a_quarantine_goes_with_a_workload_that_enters_itself_anew_under_another_address() {
    use crate::model::authorization_policy::AuthorizationAction::Deny;
    use crate::serve::quarantine::{Store, given};

    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("mesh.yaml"), MESH).unwrap();
    let store = Store::Directory(directory.path().to_owned());
    let (registrar, entered) = Registrar::in_memory(GRACE, None);
    let named = |ip: &str, name: &str| {
        let id = format!("sidecar~{ip}~{name}.shop~shop.svc.cluster.local");
        Node { id, ..message(ip, "vm", false) }
    };
    let world = || {
        let world = crate::ingest::load_dir(directory.path()).into_result().unwrap();
        world.with_entries(&entered.borrow(), None)
    };
    let denied = |world: &World, ip: &str, name: &str| {
        let node = ProxyNode::parse(&named(ip, name)).unwrap();
        let labels = node.selected_by(world);
        world.authorization_policies("shop", labels, node.name(world), Deny).len()
    };
    let first = enter(&registrar, &named("10.0.0.1", "a"), CART).unwrap();
    let _other = enter(&registrar, &named("10.0.0.2", "b"), CART).unwrap();
    let done = store.put(&world(), "vm-10.0.0.1", "odd", "me").await.unwrap();
    assert_eq!(done.note, "");
    assert_eq!((denied(&world(), "10.0.0.1", "a"), denied(&world(), "10.0.0.2", "b")), (1, 0));
    drop(first);
    let _again = enter(&registrar, &named("10.0.0.3", "a"), CART).unwrap();
    assert_eq!((denied(&world(), "10.0.0.3", "a"), denied(&world(), "10.0.0.2", "b")), (1, 0));
    // By either name it is found and lifted.
    assert_eq!(given(&world(), "shop/vm-10.0.0.3").unwrap().unwrap().name, "vm-10.0.0.1");
    assert!(!store.put(&world(), "vm-10.0.0.3", "", "me").await.unwrap().changed);
    assert!(store.lift(&world(), "vm-10.0.0.3").await.unwrap().changed);
    assert_eq!(denied(&world(), "10.0.0.3", "a"), 0);
    // Of two that call themselves the same nobody can tell which one comes back.
    let _twin = enter(&registrar, &named("10.0.0.4", "b"), CART).unwrap();
    let done = store.put(&world(), "vm-10.0.0.2", "odd", "me").await.unwrap();
    assert!(done.note.contains("vm-10.0.0.4") && done.note.contains("--name"), "{}", done.note);
    assert_eq!((denied(&world(), "10.0.0.2", "b"), denied(&world(), "10.0.0.4", "b")), (1, 0));
}
