//! Where routes lead: services and ports that are not there, and what is done to requests on the way.

use super::scene::{Scene, few};
use super::{Code, Message};
use crate::model::virtual_service::{CorsPolicy, Destination, HttpFault, HttpRoute};
use crate::model::{Object, Service, StringMatch, VirtualService, World, host};

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    for rules in world.virtual_services() {
        // Where no service is written down at all, the directory has a part of the configuration only.
        if !world.services().is_empty() {
            for (path, destination) in places(&rules.spec) {
                leads(world, rules, &path, destination, found);
            }
        }
        for (index, route) in rules.spec.http.iter().enumerate() {
            on_the_way(rules, index, route, found);
        }
    }
}

/// Every destination with its path.
fn places(rules: &VirtualService) -> Vec<(String, &Destination)> {
    let mut found = Vec::new();
    for (index, route) in rules.http.iter().enumerate() {
        let of = |kind: &str, at: usize| format!("spec.http[{index}].{kind}[{at}].destination");
        found.extend(route.route.iter().enumerate().map(|(at, to)| (of("route", at), &to.destination)));
        found.extend(route.mirrors.iter().enumerate().map(|(at, to)| (of("mirrors", at), &to.destination)));
        found.extend(route.mirror.iter().map(|to| (format!("spec.http[{index}].mirror"), to)));
    }
    let of = |kind: &str, index: usize, at: usize| format!("spec.{kind}[{index}].route[{at}].destination");
    for (index, rule) in rules.tls.iter().enumerate() {
        found.extend(rule.route.iter().enumerate().map(|(at, to)| (of("tls", index, at), &to.destination)));
    }
    for (index, rule) in rules.tcp.iter().enumerate() {
        found.extend(rule.route.iter().enumerate().map(|(at, to)| (of("tcp", index, at), &to.destination)));
    }
    found
}

fn leads(
    world: &World,
    rules: &Object<VirtualService>,
    path: &str,
    destination: &Destination,
    found: &mut Vec<Message>,
) {
    let wanted = destination.host.as_str();
    let namespace = &rules.meta.namespace;
    let covering = |service: &&std::sync::Arc<Service>| host::covers(&service.hostname, wanted);
    let seen = world.service(wanted, namespace).or_else(|| {
        let visible = |s: &&std::sync::Arc<Service>| s.export_to.reaches(s.namespace(), namespace);
        world.services().iter().filter(visible).find(covering)
    });
    let Some(service) = seen else {
        let hidden = world.services().iter().find(covering);
        let (why, help) = match hidden {
            Some(service) => (
                format!("{wanted} is not exported to {namespace}: requests to it are answered with 503"),
                format!("add {namespace} to exportTo of {} ({})", service.meta.key(), service.meta.source),
            ),
            None => {
                let first = wanted.split('.').next().unwrap_or(wanted);
                let like = |s: &&std::sync::Arc<Service>| s.hostname.split('.').next() == Some(first);
                let others = few(world.services().iter().filter(like).map(|s| s.hostname.to_string()));
                let help = match others.is_empty() {
                    true => "correct the name, or write a Service or a ServiceEntry for it".to_owned(),
                    false => format!("there is {others}; a short name is of the VirtualService's namespace"),
                };
                (format!("no service is called {wanted}: requests to it are answered with 503"), help)
            }
        };
        found.push(Message::of(Code::DestinationUnknown, &rules.meta, format!("{path}.host"), why, help));
        return;
    };
    let Some(port) = destination.port.map(|port| port.number) else { return };
    if service.port(port).is_none() {
        let ports = few(service.ports.iter().map(|port| port.number.to_string()));
        let why = format!("{} has no port {port}: requests to it are answered with 503", service.hostname);
        let help = format!("write a port of the service, not of its workloads: {ports}");
        let path = format!("{path}.port.number");
        found.push(Message::of(Code::DestinationPortUnknown, &rules.meta, path, why, help));
    }
}

fn on_the_way(rules: &Object<VirtualService>, index: usize, route: &HttpRoute, found: &mut Vec<Message>) {
    if route.cors_policy.as_ref().is_some_and(everybody) {
        let why = "allowOrigins lets every site in, and allowCredentials is true: any web page may act for its visitor and read the answer";
        let help = "name the origins (exact), or leave out allowCredentials";
        let path = format!("spec.http[{index}].corsPolicy");
        found.push(Message::of(Code::CorsOpenToAll, &rules.meta, path, why, help));
    }
    let Some(what) = route.fault.as_ref().and_then(always).filter(|_| route.matches.is_empty()) else {
        return;
    };
    let why = format!("every request of {} {what}: the route has no match", few(rules.spec.hosts.clone()));
    let help = "give the route a match (a header, as for a test), or a percentage below 100";
    let path = format!("spec.http[{index}].fault");
    found.push(Message::of(Code::FaultForEverybody, &rules.meta, path, why, help));
}

fn everybody(cors: &CorsPolicy) -> bool {
    let any = |origin: &StringMatch| match origin {
        StringMatch::Exact(origin) => origin == "*",
        StringMatch::Prefix(start) => ["", "http", "http:", "http://", "https://"].contains(&start.as_str()),
        StringMatch::Regex(pattern) => [".*", ".+", "https?://.*"].contains(&pattern.as_str()),
        StringMatch::Present => true,
    };
    cors.allow_credentials == Some(true)
        && (cors.allow_origins.iter().any(any) || cors.allow_origin.iter().any(|origin| origin == "*"))
}

/// What is done to all requests, if something is.
fn always(fault: &HttpFault) -> Option<&'static str> {
    let all = |percentage: &Option<crate::model::values::Percent>| {
        percentage.as_ref().is_none_or(|percentage| percentage.value >= 100.0)
    };
    let aborts = fault.abort.as_ref().is_some_and(|abort| all(&abort.percentage));
    let waits = fault
        .delay
        .as_ref()
        .is_some_and(|delay| all(&delay.percentage) && delay.percent.is_none_or(|percent| percent >= 100));
    match (aborts, waits) {
        (true, _) => Some("is answered by the injected error"),
        (false, true) => Some("waits for the injected delay"),
        (false, false) => None,
    }
}
