//! What is written, and when, against an API server that stores what it is told.

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::ingest::gateway_api::{Because, Hindered, Spare};

/// What an API server has, by path, how often it was written to, and whether it refuses that. And the Gateway.
#[derive(Default)]
struct There {
    objects: BTreeMap<String, Value>,
    writes: usize,
    refuses: Option<StatusCode>,
    /// What it says with it.
    says: String,
    /// What may not be deleted.
    keeps: String,
    lists: usize,
    gateway: Value,
}

/// Lists of what stands in all namespaces.
const LISTS: [&str; 3] = ["/apis/apps/v1/deployments", "/api/v1/services", "/api/v1/serviceaccounts"];

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/edge-weft";
const SERVICE: &str = "/api/v1/namespaces/shop/services/edge-weft";

fn no(code: StatusCode) -> (StatusCode, Value) {
    let code_number = code.as_u16();
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": "no", "code": code_number}),
    )
}

fn server(there: &Arc<Mutex<There>>) -> Client {
    let there = there.clone();
    let answer = move |request: Request<Body>| {
        let there = there.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let path = parts.uri.path().to_owned();
            let mut there = there.lock();
            let query = parts.uri.query().unwrap_or_default().to_owned();
            let list = |items: Vec<Value>| (StatusCode::OK, json!({"metadata": {}, "items": items}));
            let (status, object) = match (parts.method, there.refuses) {
                (Method::PATCH, Some(code)) => {
                    let (code, mut status) = no(code);
                    status["message"] = there.says.as_str().into();
                    (code, status)
                }
                (Method::DELETE, _) if path == there.keeps => no(StatusCode::FORBIDDEN),
                (Method::PATCH, None) => {
                    let mut object: Value = serde_json::from_slice(&body).unwrap();
                    assert!(query.contains(&format!("fieldManager={MANAGER}")), "{query}");
                    object["metadata"]["managedFields"] = json!([{"manager": MANAGER, "operation": "Apply"}]);
                    object["metadata"]["uid"] = path.as_str().into();
                    // As soon as there is a Deployment, a pod of it is available.
                    object["status"] = match there.objects.get(&path) {
                        Some(before) => before["status"].clone(),
                        None => json!({"availableReplicas": 1}),
                    };
                    there.writes += 1;
                    there.objects.insert(path, object.clone());
                    (StatusCode::OK, object)
                }
                (Method::GET, _) if LISTS.contains(&path.as_str()) => {
                    assert!(
                        query.contains("labelSelector=gateway.networking.k8s.io%2Fgateway-name"),
                        "{query}"
                    );
                    there.lists += 1;
                    let plural = path.rsplit('/').next().unwrap();
                    let of = |path: &str| path.rsplit('/').nth(1) == Some(plural);
                    list(there.objects.iter().filter(|(path, _)| of(path)).map(|(_, o)| o.clone()).collect())
                }
                (Method::GET, _) if path.ends_with("/namespaces/shop/gateways") => {
                    assert!(query.contains("fieldSelector=metadata.name%3Dedge"), "{query}");
                    list(vec![there.gateway.clone()])
                }
                (Method::DELETE, _) => {
                    let asked: Value = serde_json::from_slice(&body).unwrap();
                    let removed = there.objects.remove(&path).unwrap();
                    assert_eq!(asked["preconditions"]["uid"], removed["metadata"]["uid"]);
                    (StatusCode::OK, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
                }
                (Method::GET, _) => match there.objects.get(&path) {
                    Some(object) => (StatusCode::OK, object.clone()),
                    None => no(StatusCode::NOT_FOUND),
                },
                (other, _) => panic!("{other} {path}"),
            };
            let mut response = Response::new(Body::from(object.to_string().into_bytes()));
            *response.status_mut() = status;
            Ok::<_, std::convert::Infallible>(response)
        }
    };
    Client::new(tower::service_fn(answer), "default")
}

fn wanted() -> Wanted {
    Wanted {
        namespace: "shop".to_owned(),
        gateway: "edge".to_owned(),
        class: "weft".to_owned(),
        owner: "17".to_owned(),
        ports: vec![(80, "http".to_owned(), "HTTP".to_owned())],
        service_type: "LoadBalancer".to_owned(),
        ..Wanted::default()
    }
}

fn plan(wanted: Wanted) -> Plan {
    Plan { wanted: vec![wanted], ..Plan::default() }
}

/// The Gateway's status, as to what stands in the way: reason and words.
fn told(maker: &GatewayMaker) -> Vec<(&'static str, String)> {
    let known = maker.hindrances().borrow().clone().expect("it has been tried");
    known.values().map(|one| (one.reason, one.message.clone())).collect()
}

#[tokio::test]
async fn what_belongs_to_somebody_else_is_left_alone_and_so_is_the_rest() {
    let gateway =
        |name: &str, uid: &str| json!([{"apiVersion": "v1", "kind": "Gateway", "name": name, "uid": uid}]);
    for (path, owners, words) in [
        (DEPLOYMENT, json!([]), "there is a Deployment edge-weft that does not belong to it"),
        (SERVICE, Value::Null, "there is a Service edge-weft that does not belong to it"),
        (SERVICE, gateway("other", "16"), "gateway.weft.dev/managed: \"false\""),
        (SERVICE, gateway("edge", "16"), "an earlier Gateway of this name"),
    ] {
        let there = Arc::new(Mutex::new(There::default()));
        let client = server(&there);
        let own =
            json!({"metadata": {"name": "edge-weft", "ownerReferences": owners}, "spec": {"own": true}});
        there.lock().objects.insert(path.to_owned(), own.clone());
        let mut maker = GatewayMaker::new(client);
        let said = maker.write(&wanted()).await.unwrap_err().to_string();
        assert!(said.contains(words), "{said}");
        assert!(!maker.make(&plan(wanted())).await);
        // Its status says so, until it is mended.
        let reason = if words.contains("earlier") { "Pending" } else { "Invalid" };
        assert_eq!(told(&maker), [(reason, said)]);
        assert_eq!(there.lock().objects, BTreeMap::from([(path.to_owned(), own)]));
        // It goes: what is needed is made, and is the Gateway's own from then on.
        there.lock().objects.clear();
        assert!(maker.make(&plan(wanted())).await);
        assert_eq!(told(&maker), []);
        assert_eq!(there.lock().writes, 3);
        let changed = Wanted { service_type: "ClusterIP".to_owned(), ..wanted() };
        assert!(maker.make(&plan(changed)).await);
        assert_eq!(there.lock().objects[SERVICE]["spec"]["type"], "ClusterIP");
    }
}

#[tokio::test]
async fn what_the_api_server_says_no_to_is_told_apart() {
    let there = Arc::new(Mutex::new(There::default()));
    let maker = GatewayMaker::new(server(&there));
    for (code, words, reason, passes) in [
        (StatusCode::FORBIDDEN, "get, create and patch Deployments", "NoResources", false),
        (StatusCode::UNPROCESSABLE_ENTITY, "change what the message names", "Invalid", false),
        (StatusCode::NOT_FOUND, "is the namespace about to go?", "Pending", true),
    ] {
        there.lock().refuses = Some(code);
        let trouble = maker.write(&wanted()).await.unwrap_err();
        assert!(trouble.to_string().contains(words), "{trouble}");
        assert!(trouble.mark().starts_with(code.as_str()), "{}", trouble.mark());
        let hindrance = trouble.hindrance();
        assert_eq!((hindrance.reason, hindrance.passes), (reason, passes), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_somebody_takes_away_comes_back_however_often_the_state_changes() {
    let there = Arc::new(Mutex::new(There::default()));
    let state = || Arc::new(Judged { gateways: plan(wanted()), ..Judged::default() });
    let (judge, judged) = watch::channel(state());
    let (_lead, leads) = watch::channel(true);
    let maker = tokio::spawn(GatewayMaker::new(server(&there)).run(judged, leads));
    let steps = 10;
    for _ in 0..steps {
        tokio::time::sleep(Duration::from_secs(1)).await;
        judge.send_replace(state());
    }
    assert_eq!(there.lock().writes, 3, "once for each object");
    there.lock().objects.clear();
    for _ in steps..=AGAIN.as_secs() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        judge.send_replace(state());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(there.lock().objects.contains_key(DEPLOYMENT));
    assert_eq!(there.lock().writes, 6);
    maker.abort();
}

/// The Gateway as the API server has it.
fn gateway(class: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "edge", "namespace": "shop", "uid": "17", "generation": 2},
        "spec": {"gatewayClassName": class},
    })
}

/// The same, as another controller's that says of this generation that it serves it.
fn served(generation: u64) -> Value {
    let mut gateway = gateway("theirs");
    gateway["metadata"]["managedFields"] = json!([{
        "manager": "theirs", "operation": "Update", "subresource": "status",
        "fieldsV1": {"f:status": {"f:conditions": {r#"k:{"type":"Programmed"}"#: {"f:status": {}}}}},
    }]);
    gateway["status"] =
        json!({"conditions": [{"type": "Programmed", "status": "True", "observedGeneration": generation}]});
    gateway
}

/// An object of the Gateway, with this status.
fn owned(status: Value) -> Value {
    let owners = json!([{"apiVersion": "v1", "kind": "Gateway", "name": "edge", "uid": "17"}]);
    json!({"metadata": {"name": "edge-inner", "ownerReferences": owners}, "status": status})
}

fn paths(there: &Arc<Mutex<There>>) -> Vec<String> {
    there.lock().objects.keys().cloned().collect()
}

fn theirs() -> Plan {
    let spare = Spare {
        namespace: "shop".to_owned(),
        gateway: "edge".to_owned(),
        owner: "17".to_owned(),
        because: Because::Class("theirs".to_owned()),
    };
    Plan { spare: vec![spare], ..Plan::default() }
}

/// Longer than any pause.
const LONG: Duration = Duration::from_secs(301);

#[tokio::test(start_paused = true)]
async fn what_is_needed_no_more_is_taken_away_and_nothing_else() {
    let there = Arc::new(Mutex::new(There { gateway: gateway("weft"), ..There::default() }));
    let mut maker = GatewayMaker::new(server(&there));
    assert!(maker.make(&plan(wanted())).await);
    // Others belong to the Gateway and were made by somebody else, or were made here for another Gateway.
    let (apart, others) = (SERVICE.replace("weft", "own"), DEPLOYMENT.replace("edge", "other"));
    let mut own = there.lock().objects[SERVICE].clone();
    own["metadata"]["managedFields"] = json!([{"manager": "kubectl", "operation": "Apply"}]);
    let mut other = there.lock().objects[DEPLOYMENT].clone();
    other["metadata"]["ownerReferences"][0]["uid"] = "18".into();
    there.lock().objects.extend([(apart.clone(), own), (others.clone(), other)]);

    // What it asks for cannot be made any more: what was made stays.
    let hindered = Hindered {
        namespace: "shop".to_owned(),
        gateway: "edge".to_owned(),
        why: "spec.listeners[0].port: taken; take another".to_owned(),
    };
    assert!(maker.make(&Plan { hindered: vec![hindered], ..Plan::default() }).await);
    assert_eq!(there.lock().objects.len(), 5);
    let said = told(&maker);
    assert_eq!(said[0].0, "Invalid");
    assert!(said[0].1.ends_with("spec.listeners[0].port: taken; take another"), "{said:?}");

    // What is known of the Gateway is not what it says; nobody serves it yet; somebody served it as it was before; it is served by
    // hand: nothing goes, and it is looked at again.
    let mut by_hand = served(2);
    by_hand["metadata"]["annotations"] = json!({"gateway.weft.dev/managed": "false"});
    for gateway in [gateway("weft"), gateway("theirs"), served(1), by_hand] {
        there.lock().gateway = gateway;
        assert!(!maker.make(&theirs()).await);
        assert_eq!(there.lock().objects.len(), 5);
        tokio::time::advance(LONG).await;
    }
    there.lock().gateway = served(2);
    assert!(maker.make(&theirs()).await);
    assert_eq!(paths(&there), [apart, others]);
    assert_eq!(told(&maker), []);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_has_written_to_stays() {
    let there = Arc::new(Mutex::new(There { gateway: gateway("weft"), ..There::default() }));
    let mut maker = GatewayMaker::new(server(&there));
    assert!(maker.make(&plan(wanted())).await);
    there.lock().gateway = served(2);
    let wrote = |path: &str, manager: &str, subresource: Value| {
        let mut there = there.lock();
        let fields = &mut there.objects.get_mut(path).unwrap()["metadata"]["managedFields"];
        let entry = json!({"manager": manager, "operation": "Update", "subresource": subresource});
        fields.as_array_mut().unwrap().push(entry);
    };
    // Who writes statuses, and Kubernetes' own controllers, take nothing over.
    wrote(DEPLOYMENT, "anybody", "status".into());
    wrote(DEPLOYMENT, "kube-controller-manager", Value::Null);
    wrote(SERVICE, "kubectl-edit", Value::Null);
    assert!(maker.make(&theirs()).await);
    assert_eq!(paths(&there), [SERVICE]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_taken_away_keeps_nothing_else_and_is_tried_less_and_less_often() {
    let keeps = SERVICE.to_owned();
    let there = Arc::new(Mutex::new(There { gateway: gateway("weft"), keeps, ..There::default() }));
    let mut maker = GatewayMaker::new(server(&there));
    assert!(maker.make(&plan(wanted())).await);
    there.lock().gateway = served(2);
    there.lock().lists = 0;
    let mut passes = Vec::new();
    let begin = Instant::now();
    for _ in 0..1000 {
        assert!(!maker.make(&theirs()).await);
        assert_eq!(paths(&there), [SERVICE]);
        if std::mem::take(&mut there.lock().lists) > 0 {
            passes.push(begin.elapsed().as_secs());
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(passes, [0, 3, 9, 21, 45, 93, 189, 381, 681, 981]);
    there.lock().keeps.clear();
    tokio::time::advance(LONG).await;
    assert!(maker.make(&theirs()).await);
    assert_eq!(paths(&there), [] as [String; 0]);
}

#[tokio::test(start_paused = true)]
async fn words_that_vary_are_told_once_a_minute() {
    let there = Arc::new(Mutex::new(There { refuses: Some(StatusCode::FORBIDDEN), ..There::default() }));
    let mut maker = GatewayMaker::new(server(&there));
    let mut hindrances = maker.hindrances();
    let mut changes = 0;
    for attempt in 0..130 {
        there.lock().says = format!("attempt {attempt}");
        assert!(!maker.make(&plan(wanted())).await);
        if hindrances.has_changed().unwrap() {
            hindrances.mark_unchanged();
            changes += 1;
            assert!(told(&maker)[0].1.contains(&format!("attempt {attempt}")), "{:?}", told(&maker));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(changes, 3);
    // Another trouble is told at once.
    there.lock().refuses = Some(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(!maker.make(&plan(wanted())).await);
    assert_eq!(told(&maker)[0].0, "Invalid");
}

#[tokio::test(start_paused = true)]
async fn what_bears_the_name_of_an_earlier_class_goes_when_the_new_is_there() {
    let there = Arc::new(Mutex::new(There { gateway: gateway("weft"), ..There::default() }));
    let mut maker = GatewayMaker::new(server(&there));
    assert!(maker.make(&plan(wanted())).await);
    let inner = || plan(Wanted { class: "inner".to_owned(), ..wanted() });
    there.lock().gateway = gateway("inner");
    there.lock().refuses = Some(StatusCode::FORBIDDEN);
    assert!(!maker.make(&inner()).await);
    assert_eq!(there.lock().objects.len(), 3);
    there.lock().refuses = None;
    // The new is there: first no replica of it is available, then its Service has no address as the old one has.
    let new = |path: &str| path.replace("edge-weft", "edge-inner");
    there.lock().objects.insert(new(DEPLOYMENT), owned(json!({"availableReplicas": 0})));
    there.lock().objects.insert(new(SERVICE), owned(Value::Null));
    let address = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    there.lock().objects.get_mut(SERVICE).unwrap()["status"] = address.clone();
    assert!(!maker.make(&inner()).await);
    assert_eq!(there.lock().objects.len(), 6);
    there.lock().objects.get_mut(&new(DEPLOYMENT)).unwrap()["status"] = json!({"availableReplicas": 1});
    tokio::time::advance(LONG).await;
    assert!(!maker.make(&inner()).await);
    assert_eq!(there.lock().objects.len(), 6);
    there.lock().objects.get_mut(&new(SERVICE)).unwrap()["status"] = address;
    tokio::time::advance(LONG).await;
    assert!(maker.make(&inner()).await);
    let left = paths(&there);
    assert!(left.iter().all(|path| path.ends_with("/edge-inner")) && left.len() == 3, "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_by_who_does_not_lead() {
    let there = Arc::new(Mutex::new(There::default()));
    let (_judge, judged) = watch::channel(Arc::new(Judged { gateways: plan(wanted()), ..Judged::default() }));
    let (lead, leads) = watch::channel(false);
    let maker = GatewayMaker::new(server(&there));
    let mut hindrances = maker.hindrances();
    let maker = tokio::spawn(maker.run(judged, leads));
    assert!(hindrances.borrow().is_none());
    lead.send_replace(true);
    hindrances.wait_for(Option::is_some).await.unwrap();
    lead.send_replace(false);
    hindrances.wait_for(Option::is_none).await.unwrap();
    maker.abort();
}
