//! Resources that cannot be taken, pushed to a real proxy in both variants of the protocol.

use xds_protos::ResourceType;

use crate::support::eventually;
use crate::support::http::get;
use crate::support::world::{TO_BACKEND, World, all, cluster, listener, routes};

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// Each in both variants, in an address range of its own.
fn in_both(ips: [&'static str; 2], test: impl Fn(World)) {
    for (ip, mode) in ips.into_iter().zip(["delta", "sotw"]) {
        test(World::start(ip, mode));
    }
}

#[test]
fn a_filter_that_we_lack_is_refused_by_its_place_and_the_last_good_listener_serves() {
    in_both(["127.51.1.1", "127.51.1.2"], |world| {
        let filters = "      - name: acme.magic
        typed_config: {'@type': type.googleapis.com/acme.filters.Magic, value: CAE=}
";
        let text = world.refused(ResourceType::Listener, &listener("main", world.ip, 8080, filters));
        has(
            &text,
            &["main: ", "filter_chains[0].filters[0].typed_config", "http_filters[0]", "acme.filters.Magic"],
        );
        world.goes_on();
        // A known filter of Envoy's that is not built: the same.
        let filters = "      - name: envoy.filters.http.oauth2
        typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.oauth2.v3.OAuth2, value: ''}
";
        let text = world.refused(ResourceType::Listener, &listener("main", world.ip, 8080, filters));
        has(&text, &["http_filters[0]", "OAuth2"]);
        world.goes_on();
        // The next good version is taken.
        world.taken(
            ResourceType::Route,
            &routes("  - {match: {prefix: /}, direct_response: {status: 201, body: {inline_string: new}}}\n"),
        );
        eventually("the new route", || world.get("/").is_ok_and(|a| a == (201, "new".to_owned())));
    });
}

#[test]
fn of_one_push_the_good_resources_are_taken_and_the_bad_ones_named() {
    in_both(["127.51.2.1", "127.51.2.2"], |world| {
        let bad = "transport_socket: {name: x, typed_config: {'@type': type.googleapis.com/acme.Socket, value: CAE=}}";
        let text = world.refused(
            ResourceType::Cluster,
            &all(&[
                cluster("backend", world.backend, bad),
                cluster("good", world.backend, ""),
                cluster(
                    "worse",
                    world.backend,
                    "max_requests_per_connection: 7\nlb_policy: CLUSTER_PROVIDED",
                ),
                routes(&format!("  - {{match: {{prefix: /good}}, route: {{cluster: good}}}}\n{TO_BACKEND}")),
            ]),
        );
        has(&text, &["backend: transport_socket", "acme.Socket", "worse: "]);
        assert!(!text.contains("good: "), "{text}");
        eventually("the good cluster serves", || world.get("/good").is_ok_and(|a| a.0 == 200));
        world.goes_on();
        world.proxy.says(&["resource refused", "worse"]);
    });
}

#[test]
fn a_route_to_a_cluster_that_is_not_there_answers_503_and_the_others_go_on() {
    in_both(["127.51.3.1", "127.51.3.2"], |world| {
        // As with Envoy: what comes by RDS may name clusters that are still to come.
        world.taken(
            ResourceType::Route,
            &routes(&format!("  - {{match: {{prefix: /lost}}, route: {{cluster: nowhere}}}}\n{TO_BACKEND}")),
        );
        eventually("the new route", || world.get("/lost").is_ok_and(|a| a.0 == 503));
        world.goes_on();
        // Once it is there, the same route serves.
        world.taken(ResourceType::Cluster, &cluster("nowhere", world.backend, ""));
        eventually("the cluster", || world.get("/lost").is_ok_and(|a| a == (200, "backend".to_owned())));
    });
}

#[test]
fn where_clusters_are_to_be_checked_a_missing_one_is_refused_by_name() {
    in_both(["127.51.4.1", "127.51.4.2"], |world| {
        let wrong =
            routes("  - {match: {prefix: /}, route: {cluster: nowhere}}\n") + "validate_clusters: true\n";
        let text = world.refused(ResourceType::Route, &wrong);
        has(
            &text,
            &["routes: ", "virtual_hosts[0].routes[0].route.cluster", "\"nowhere\"", "validate_clusters"],
        );
        world.goes_on();
        let weighted = routes(
            "  - {match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: backend, weight: 1}, {name: nowhere, weight: 1}]}}}\n",
        ) + "validate_clusters: true\n";
        let text = world.refused(ResourceType::Route, &weighted);
        has(&text, &["virtual_hosts[0].routes[0].route.weighted_clusters.clusters[1].name", "\"nowhere\""]);
        world.goes_on();
        // In a listener that is the rule.
        let inline = listener("main", world.ip, 8080, "").replace(
            "rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}",
            "route_config: {virtual_hosts: [{name: a, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: nowhere}}]}]}",
        );
        let text = world.refused(ResourceType::Listener, &inline);
        has(&text, &["main: ", "route_config.virtual_hosts[0].routes[0].route.cluster", "\"nowhere\""]);
        world.goes_on();
        world.taken(ResourceType::Route, &(routes(TO_BACKEND) + "validate_clusters: true\n"));
        world.goes_on();
    });
}

#[test]
fn a_listener_whose_port_another_program_has_is_refused_and_the_others_serve() {
    in_both(["127.51.5.1", "127.51.5.2"], |world| {
        let taken = std::net::TcpListener::bind(world.at(9000)).unwrap();
        let second = listener("second", world.ip, 9000, "");
        let text = world.refused(ResourceType::Listener, &second);
        has(&text, &["second: address: cannot listen on", ":9000", "another program", "ss -ltnp"]);
        world.goes_on();
        // A listener that moves there stays where it is.
        let moved = listener("main", world.ip, 9000, "");
        let text = world.refused(ResourceType::Listener, &moved);
        has(&text, &["main: address: cannot listen on"]);
        world.goes_on();
        // The port becomes free, and the control plane sends the listener again.
        drop(taken);
        world.taken(ResourceType::Listener, &all(&[listener("main", world.ip, 8080, ""), second]));
        eventually("the second listener", || get(world.at(9000), "/").is_ok_and(|a| a.0 == 200));
        world.goes_on();
    });
}

#[test]
fn a_value_that_is_none_is_refused_and_what_is_removed_comes_back() {
    in_both(["127.51.6.1", "127.51.6.2"], |world| {
        let text = world.refused(ResourceType::Cluster, &cluster("broken", world.backend, "lb_policy: 99"));
        has(&text, &["broken: lb_policy", "99"]);
        world.goes_on();
        world.server.remove(ResourceType::Cluster, "broken");
        // Taken away, a cluster's route answers 503, and comes back with it.
        world.server.remove(ResourceType::Cluster, "backend");
        eventually("the cluster is gone", || world.get("/").is_ok_and(|a| a.0 == 503));
        world.taken(ResourceType::Cluster, &cluster("backend", world.backend, ""));
        eventually("the cluster is back", || world.get("/").is_ok_and(|a| a.0 == 200));
        world.goes_on();
    });
}
