//! The engine over real sockets, with the workers' ends of the channels held by the test.

use serde_json::{Value, json};
use tokio::sync::mpsc;
use xds_protos::ResourceType::{Cluster, Endpoint, Route};

use super::*;
use crate::listen::WorkerCommand;

struct World {
    engine: Engine,
    wanted: Subscriptions,
    worker: mpsc::UnboundedReceiver<WorkerCommand>,
}

impl World {
    fn new() -> Self {
        let (sender, worker) = mpsc::unbounded_channel();
        let wanted = Subscriptions::new();
        let node = Arc::new(NodeInfo::default());
        let engine = Engine::new(Tables::default(), node, SocketTable::new(vec![sender]), wanted.clone());
        Self { engine, wanted, worker }
    }

    /// A push of one kind; gives what was refused, as `name: reason`.
    fn push(&mut self, kind: ResourceType, version: &str, resources: &[Value]) -> Vec<String> {
        let one = |value: &Value| {
            let kind = kind.type_url().rsplit('/').next().unwrap();
            let name = value.get("name").or(value.get("cluster_name")).and_then(Value::as_str).unwrap();
            (name.to_owned(), version.to_owned(), xds_protos::json::encode(kind, value).unwrap())
        };
        let refused = self.engine.apply(kind, resources.iter().map(one).collect(), Vec::new(), false);
        refused.into_iter().map(|r| format!("{}: {}", r.name, r.reason)).collect()
    }

    fn cluster(&self, name: &str) -> Option<Arc<crate::cluster::Cluster>> {
        self.engine.tables().clusters.get(name)
    }

    fn wants(&self, kind: ResourceType) -> Vec<String> {
        self.wanted.names(kind).iter().cloned().collect()
    }

    /// What the worker was told since the last look: sockets to take, and sockets to close.
    fn told(&mut self) -> (usize, usize) {
        let (mut listen, mut close) = (0, 0);
        while let Ok(command) = self.worker.try_recv() {
            match command {
                WorkerCommand::Listen { .. } => listen += 1,
                WorkerCommand::Close(_) => close += 1,
            }
        }
        (listen, close)
    }
}

fn by_eds(name: &str, timeout: &str) -> Value {
    json!({"name": name, "type": "EDS", "connect_timeout": timeout, "eds_cluster_config": {"eds_config": {"ads": {}}}})
}

fn assignment(name: &str) -> Value {
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
        {"socket_address": {"address": "127.0.0.1", "port_value": 9}}}}]}]})
}

fn listener(name: &str, routes: &str) -> Value {
    json!({"name": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}, "filter_chains":
        [{"filters": [{"name": "hcm", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "x", "rds": {"route_config_name": routes, "config_source": {"ads": {}}},
            "http_filters": [{"name": "router", "typed_config":
                {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]})
}

#[test]
fn a_cluster_serves_when_its_endpoints_are_there_and_a_new_version_keeps_them() {
    let mut world = World::new();
    assert_eq!(world.push(Cluster, "1", &[by_eds("a", "1s")]), [""; 0]);
    assert!(world.cluster("a").is_none(), "it is warming");
    assert_eq!(world.wants(Endpoint), ["a"]);
    assert_eq!(world.push(Endpoint, "1", &[assignment("a")]), [""; 0]);
    let first = world.cluster("a").expect("it is warm");
    let host = first.hosts().hosts().next().unwrap().id();

    assert_eq!(world.push(Cluster, "2", &[by_eds("a", "2s")]), [""; 0]);
    let second = world.cluster("a").unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(second.hosts().hosts().next().unwrap().id(), host, "the host is who it was");

    // The same again, as after a restart of the control plane.
    assert_eq!(world.push(Cluster, "3", &[by_eds("a", "2s")]), [""; 0]);
    assert!(Arc::ptr_eq(&second, &world.cluster("a").unwrap()), "nothing is made anew");
}

#[test]
fn a_dns_cluster_whose_names_are_addresses_serves_at_once() {
    let mut world = World::new();
    let mut cluster = by_eds("a", "1s");
    cluster["type"] = json!("STRICT_DNS");
    cluster.as_object_mut().unwrap().remove("eds_cluster_config");
    cluster["load_assignment"] = assignment("a");
    assert_eq!(world.push(Cluster, "1", &[cluster]), [""; 0]);
    let hosts = world.cluster("a").expect("nobody is asked first").hosts();
    assert_eq!(hosts.hosts().map(|h| h.address().to_string()).collect::<Vec<_>>(), ["127.0.0.1:9"]);
}

#[test]
fn a_cluster_of_no_names_is_there_and_has_no_endpoints() {
    let mut world = World::new();
    let mut cluster = by_eds("a", "1s");
    cluster["type"] = json!("STRICT_DNS");
    cluster.as_object_mut().unwrap().remove("eds_cluster_config");
    assert_eq!(world.push(Cluster, "1", &[cluster]), [""; 0]);
    assert_eq!(world.cluster("a").expect("nobody is asked first").hosts().hosts().count(), 0);
}

#[test]
fn names_that_nobody_resolves_keep_no_listener_waiting() {
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        for kind in ["STRICT_DNS", "LOGICAL_DNS"] {
            let mut world = World::new();
            let mut cluster = by_eds("a", "1s");
            cluster["type"] = json!(kind);
            cluster.as_object_mut().unwrap().remove("eds_cluster_config");
            cluster["load_assignment"] = assignment("a");
            let endpoint = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
            endpoint["address"]["socket_address"]["address"] = json!("never.invalid");
            assert_eq!(world.push(Cluster, "1", &[cluster]), [""; 0]);
            world.push(ResourceType::Listener, "1", &[listener("l", "r")]);
            let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "a"}});
            let host = json!({"name": "all", "domains": ["*"], "routes": [route]});
            world.push(Route, "1", &[json!({"name": "r", "virtual_hosts": [host]})]);
            // Nobody was asked yet: the task that asks has not run.
            assert!(world.cluster("a").is_none(), "{kind}");
            assert!(!world.engine.is_warming(), "{kind}");
            assert_eq!(world.told(), (1, 0), "{kind}");
        }
    });
}

#[test]
fn a_new_version_waits_for_secrets_only_if_the_old_one_has_its_own() {
    let mut world = World::new();
    let secured = |timeout: &str, secret: &str| {
        let mut cluster = by_eds("a", timeout);
        cluster["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {"validation_context_sds_secret_config": {"name": secret, "sds_config": {"ads": {}}}}}});
        cluster
    };
    world.push(Endpoint, "1", &[assignment("a")]);
    assert_eq!(world.push(Cluster, "1", &[secured("1s", "never")]), [""; 0]);
    let first = world.cluster("a").expect("it serves, and says at each attempt what it lacks");
    // No better and no worse: what else the new version says holds at once.
    world.push(Cluster, "2", &[secured("2s", "never")]);
    let second = world.cluster("a").unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    // One that can do without is not given up for one that cannot connect yet.
    world.push(Cluster, "3", &[by_eds("a", "3s")]);
    let plain = world.cluster("a").unwrap();
    assert!(!Arc::ptr_eq(&second, &plain));
    world.push(Cluster, "4", &[secured("4s", "never")]);
    assert!(Arc::ptr_eq(&plain, &world.cluster("a").unwrap()), "it waits");
}

#[test]
fn what_is_refused_keeps_its_last_good_version_and_its_neighbours_apply() {
    let mut world = World::new();
    world.push(Endpoint, "1", &[assignment("a"), assignment("b")]);
    world.push(Cluster, "1", &[by_eds("a", "1s")]);
    let good = world.cluster("a").unwrap();
    let mut bad = by_eds("a", "1s");
    bad["track_cluster_stats"] = json!({"timeout_budgets": true});
    let refused = world.push(Cluster, "2", &[bad, by_eds("b", "1s")]);
    assert!(
        matches!(refused.as_slice(), [one] if one.starts_with("a: track_cluster_stats: ")),
        "{refused:?}"
    );
    assert!(Arc::ptr_eq(&good, &world.cluster("a").unwrap()));
    assert!(world.cluster("b").is_some());
}

#[test]
fn a_listener_takes_its_address_when_its_routes_are_there_and_an_update_keeps_the_socket() {
    // What drains is watched by a task.
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        assert_eq!(world.push(ResourceType::Listener, "1", &[listener("l", "r")]), [""; 0]);
        assert!(world.engine.is_warming());
        assert_eq!(world.told(), (0, 0), "no socket yet");
        assert_eq!(world.wants(Route), ["r"]);
        let routes = |name: &str| json!({"name": name, "virtual_hosts": []});
        world.push(Route, "1", &[routes("r")]);
        assert!(!world.engine.is_warming());
        assert_eq!(world.told(), (1, 0));

        // The new version waits for routes of another name; the old one listens on.
        world.push(ResourceType::Listener, "2", &[listener("l", "other")]);
        assert!(world.engine.is_warming());
        assert_eq!(world.wants(Route), ["other", "r"]);
        world.push(Route, "2", &[routes("other")]);
        assert!(!world.engine.is_warming());
        assert_eq!(world.told(), (0, 0), "the policy was swapped under the socket");
        assert_eq!(world.wants(Route), ["other"]);

        world.engine.apply(ResourceType::Listener, Vec::new(), vec!["l".to_owned()], false);
        assert_eq!(world.told(), (0, 1));
    });
}

#[test]
fn what_the_bootstrap_says_no_control_plane_changes() {
    let mut world = World::new();
    let own = json!({"name": "own", "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment("own")});
    let bytes = xds_protos::json::encode("envoy.config.cluster.v3.Cluster", &own).unwrap();
    world.engine.add_static(Cluster, "own", &bytes).unwrap();
    let before = world.cluster("own").expect("it serves at once");
    let refused = world.push(Cluster, "1", &[by_eds("own", "1s")]);
    assert_eq!(refused, ["own: name: is the bootstrap's own and cannot be changed"]);
    world.engine.apply(Cluster, Vec::new(), vec!["own".to_owned()], true);
    assert!(Arc::ptr_eq(&before, &world.cluster("own").unwrap()));
}

#[test]
fn a_listener_may_come_back_before_its_old_sockets_are_closed() {
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        let mut at_port = listener("l", "r");
        at_port["address"]["socket_address"]["port_value"] = json!(port);
        world.push(Route, "1", &[json!({"name": "r", "virtual_hosts": []})]);
        let refused = world.push(ResourceType::Listener, "1", &[at_port.clone()]);
        assert!(refused[0].contains("another program uses it"), "{refused:?}");
        drop(free);
        let refused = world.push(ResourceType::Listener, "2", &[at_port.clone()]);
        assert_eq!(refused, [""; 0]);

        // The worker has not read yet that it is to close its socket.
        world.engine.apply(ResourceType::Listener, Vec::new(), vec!["l".to_owned()], false);
        assert_eq!(world.push(ResourceType::Listener, "3", &[at_port.clone()]), [""; 0]);
        world.push(Route, "2", &[json!({"name": "r", "virtual_hosts": []})]);
        assert_eq!(world.told(), (2, 1));

        // Once it has, others are seen again.
        world.engine.apply(ResourceType::Listener, Vec::new(), vec!["l".to_owned()], false);
        assert_eq!(world.told(), (0, 1));
        let _other = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        let refused = world.push(ResourceType::Listener, "4", &[at_port]);
        assert!(refused[0].contains("another program uses it"), "{refused:?}");
    });
}
