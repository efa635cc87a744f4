//! A mesh whose certificates a server of EST signs: the control plane asks it by its RFC, and proxies live on while it is away.

#[allow(dead_code)]
#[path = "../../control/src/ca/est/played.rs"]
mod played;

use std::time::{Duration, Instant};

use serde_json::Value;
use weft::demo::check::observe::http::{Request, fetch};
use weft::up::{Mesh, Options};
use weft_control::ca::store::ROOT_CERTIFICATE;

use crate::support::http::get;
use crate::support::mesh::{alone, runtime};
use crate::support::pair::Pair;
use played::{Manner, Played, USER};

#[test]
fn workloads_have_certificates_of_an_est_server_and_lose_nothing_while_it_is_away() {
    let _alone = alone();
    runtime().block_on(async {
        let (pair, played) = (Pair::new(71), Played::new(Some("mesh")));
        // Renewed at half of that.
        *played.manner.lock().unwrap() = Manner { life: time::Duration::seconds(30), ..Manner::default() };
        let (address, server) = played.serve().await;
        let (roots, password) = (played.web_roots(pair.path()), pair.path().join("password"));
        std::fs::write(&password, USER.1).unwrap();
        let control_flags = vec![
            "--ca=est".to_owned(),
            format!("--ca-addr={address}"),
            "--ca-est-label=mesh".to_owned(),
            format!("--ca-est-user={}", USER.0),
            format!("--ca-est-password-file={}", password.display()),
            format!("--ca-root-cert={}", roots.display()),
        ];
        let state_dir = pair.path().join("state-of-est");
        let options = Options { control_flags, state_dir: Some(state_dir.clone()), ..pair.options() };
        let mesh = Mesh::start(options).await.unwrap();
        mesh.wait_ready(Duration::from_secs(60)).await.unwrap();
        let (front, back) = (mesh.workload("front-1").unwrap(), mesh.workload("back-1").unwrap());
        let request = Request::get("back:8080", "http://back:8080/open");
        let ask = async || fetch(front.http_proxy.unwrap(), &request).await.unwrap().status();
        assert_eq!(ask().await, 200);
        let kept = std::fs::read_to_string(state_dir.join(ROOT_CERTIFICATE)).unwrap();
        assert_eq!(kept, weft_certs::pem::encode(played.root.der()));
        let enrolled = || {
            let asked = played.asked.lock().unwrap();
            asked.iter().filter(|a| *a == "POST /.well-known/est/mesh/simpleenroll by password").count()
        };
        // Two workloads, and the control plane itself.
        assert!(enrolled() >= 3, "{:?}", played.asked.lock().unwrap());

        // Away until somebody is told that it is missed, and then back; requests go on all the time.
        server.abort();
        let events = |at, path: &str| -> Vec<Value> {
            let page: Value = serde_json::from_str(&get(at, path).unwrap().1).unwrap();
            page["events"].as_array().unwrap().clone()
        };
        let until = async |what: &str, holds: &dyn Fn() -> bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !holds() {
                assert!(
                    Instant::now() < deadline,
                    "{what}: {:#?}",
                    events(mesh.control().debug, "/debug/events")
                );
                assert_eq!(ask().await, 200);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        until("the control plane tells that it is missed", &|| {
            let told = events(mesh.control().debug, "/debug/events");
            told.iter().any(|event| {
                event["event"] == "certificate"
                    && event["outcome"] == "denied"
                    && event["message"].as_str().unwrap().contains("the EST server is not to be had")
            })
        })
        .await;
        let renewals = || {
            let told = events(back.admin(), "/weft/events?kind=certificate");
            told.iter().filter(|event| event["outcome"] == "ok").count()
        };
        let (before, had) = (enrolled(), renewals());
        let (_, server) = played.serve_at(address.strip_prefix("https://").unwrap().parse().unwrap()).await;
        until("both are renewed", &|| enrolled() >= before + 2 && renewals() > had).await;
        assert_eq!(ask().await, 200);
        mesh.shutdown().await.unwrap();
        server.abort();
    });
}
