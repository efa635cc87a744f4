//! What is written, and when, against an API server that stores what it is told.

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;

/// What an API server has, by path, how often it was written to, and whether it refuses that.
#[derive(Default)]
struct There {
    objects: BTreeMap<String, Value>,
    writes: usize,
    refuses: Option<StatusCode>,
}

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
            let (status, object) = match (parts.method, there.refuses) {
                (Method::PATCH, Some(code)) => no(code),
                (Method::PATCH, None) => {
                    let object: Value = serde_json::from_slice(&body).unwrap();
                    there.writes += 1;
                    there.objects.insert(path, object.clone());
                    (StatusCode::OK, object)
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
        assert!(!maker.make(&[wanted()]).await);
        assert_eq!(there.lock().objects, BTreeMap::from([(path.to_owned(), own)]));
        // It goes: what is needed is made, and is the Gateway's own from then on.
        there.lock().objects.clear();
        assert!(maker.make(&[wanted()]).await);
        assert_eq!(there.lock().writes, 3);
        let changed = Wanted { service_type: "ClusterIP".to_owned(), ..wanted() };
        assert!(maker.make(&[changed]).await);
        assert_eq!(there.lock().objects[SERVICE]["spec"]["type"], "ClusterIP");
    }
}

#[tokio::test]
async fn what_the_api_server_says_no_to_is_told_apart() {
    let there = Arc::new(Mutex::new(There::default()));
    let maker = GatewayMaker::new(server(&there));
    for (code, words) in [
        (StatusCode::FORBIDDEN, "get, create and patch Deployments"),
        (StatusCode::UNPROCESSABLE_ENTITY, "change what the message names"),
        (StatusCode::NOT_FOUND, "is the namespace about to go?"),
    ] {
        there.lock().refuses = Some(code);
        let trouble = maker.write(&wanted()).await.unwrap_err();
        assert!(trouble.to_string().contains(words), "{trouble}");
        assert_eq!(trouble.mark(), code.as_u16().to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn what_somebody_takes_away_comes_back_however_often_the_state_changes() {
    let there = Arc::new(Mutex::new(There::default()));
    let state = || Arc::new(Judged { wanted: vec![wanted()], ..Judged::default() });
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
