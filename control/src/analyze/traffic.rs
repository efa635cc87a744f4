//! Routes, retries, gateways and subsets that do not do what they look like.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::scene::{Scene, few, written};
use super::{Code, Message};
use crate::model::gateway::Gateway;
use crate::model::host;
use crate::model::service::ServiceOrigin;
use crate::model::sidecar::OutboundMode;
use crate::model::values::selects;
use crate::model::virtual_service::{HttpRoute, RETRY_ANY_ANNOTATION};
use crate::model::{Kind, Object, Service, ServiceLocation, StringMatch, VirtualService};

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    for rules in scene.world.virtual_services() {
        for (index, route) in rules.spec.http.iter().enumerate() {
            retries(rules, route, index, found);
        }
    }
    not_at_gateway(scene, found);
    gateways(scene, found);
    subsets(scene, found);
    services(scene, found);
}

fn retries(rules: &Object<VirtualService>, route: &HttpRoute, index: usize, found: &mut Vec<Message>) {
    let Some(retries) = route.retries.as_ref().filter(|retries| retries.attempts > 0) else { return };
    let path = format!("spec.http[{index}].retries");
    let timeout = route.timeout.map(|t| t.get()).filter(|t| !t.is_zero());
    let each = retries.per_try_timeout.map(|t| t.get()).filter(|t| !t.is_zero());
    if let (Some(timeout), Some(each)) = (timeout, each) {
        let tries = retries.attempts.saturating_add(1);
        let all = each.saturating_mul(tries);
        if all > timeout {
            let whole = u32::try_from(timeout.as_nanos() / each.as_nanos().max(1)).unwrap_or(u32::MAX);
            let why = format!(
                "{tries} tries ({} after the first) of {} would take {}, and the timeout is {}: {} of them have their time",
                retries.attempts,
                seconds(each),
                seconds(all),
                seconds(timeout),
                whole.min(tries)
            );
            let help = format!(
                "set timeout to {} or more, or have fewer attempts or a shorter perTryTimeout",
                seconds(all)
            );
            found.push(Message::of(Code::RetriesCutShort, &rules.meta, path.as_str(), why, help));
        }
    }
    let any = rules.meta.annotations.get(RETRY_ANY_ANNOTATION).is_some_and(|value| value == "true");
    let named: Vec<_> = retries.after_processing().filter(|_| any).collect();
    let harmless = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];
    let only_harmless = !route.matches.is_empty()
        && route.matches.iter().all(|one| {
            matches!(&one.method, Some(StringMatch::Exact(method)) if harmless.contains(&method.as_str()))
        });
    if !named.is_empty() && !only_harmless {
        let why = format!(
            "{RETRY_ANY_ANNOTATION} and retryOn {} try again what may have been processed, a POST included: a payment may be made twice",
            named.join(",")
        );
        let help = "leave the annotation out: then methods that change something are tried again only where nothing was processed, or where the request has an idempotency-key";
        found.push(Message::of(Code::RetriesRepeatChanges, &rules.meta, path, why, help));
    }
}

fn seconds(duration: Duration) -> String {
    crate::model::Timespan(duration).to_string()
}

/// Rules for a host that are bound to the mesh alone, while a gateway routes there by rules of its own.
fn not_at_gateway(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    for at_gateway in world.virtual_services() {
        if !at_gateway.spec.gateways.iter().any(|gateway| gateway != "mesh") {
            continue;
        }
        for (index, route) in at_gateway.spec.http.iter().enumerate() {
            for destination in
                route.route.iter().map(|route| &route.destination).filter(|d| d.subset.is_empty())
            {
                let own = world.virtual_services().iter().find(|own| {
                    own.meta.key() != at_gateway.meta.key()
                        && own.spec.hosts.iter().any(|h| host::covers(h, &destination.host))
                        && own.spec.gateways.iter().all(|gateway| gateway == "mesh")
                        && own.spec.http.iter().any(|route| {
                            route.timeout.is_some()
                                || route.retries.is_some()
                                || route.fault.is_some()
                                || route.route.iter().any(|r| !r.destination.subset.is_empty())
                        })
                });
                let Some(own) = own else { continue };
                let why = format!(
                    "what comes by the gateway goes to {} without the rules of {} ({}), which hold in the mesh alone: their subsets, timeouts and retries do not apply",
                    destination.host,
                    own.meta.key(),
                    own.meta.source
                );
                let help =
                    "write subset, timeout and retries here as well, or have both use the same delegate";
                let path = format!("spec.http[{index}]");
                found.push(Message::of(Code::RulesNotAtGateway, &at_gateway.meta, path, why, help));
            }
        }
    }
}

fn gateways(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    for gateway in world.gateways() {
        let name = gateway.full_name();
        if gateway.spec.servers.iter().all(|server| server.tls.as_ref().is_some_and(|tls| tls.https_redirect))
        {
            continue;
        }
        let hosts: Vec<_> = gateway.spec.servers.iter().flat_map(|server| &server.hosts).collect();
        // Hosts of services outside of the mesh: an egress gateway. Every host is none in particular.
        let outside = world.services().iter().filter(|service| {
            service.origin == ServiceOrigin::ServiceEntry && service.location == ServiceLocation::MeshExternal
        });
        let outside: Vec<_> = outside
            .filter(|service| {
                hosts
                    .iter()
                    .map(|h| h.rsplit_once('/').map_or(h.as_str(), |(_, h)| h))
                    .any(|h| h != "*" && host::covers(h, &service.hostname))
            })
            .collect();
        if !outside.is_empty() {
            undeclared(scene, gateway, &outside, found);
        }
        let bound: Vec<_> = world.virtual_services().iter().filter(|rules| rules.spec.binds(&name)).collect();
        // What goes by the server name of mutual TLS needs no rules.
        let ruled = gateway.spec.servers.iter().any(|server| !server.passes_by_name());
        if bound.is_empty() && ruled {
            let (what, help) = match outside.is_empty() {
                true => ("its ports answer nothing", "bind a VirtualService to it (spec.gateways)"),
                false => (
                    "what the mesh sends outside does not come here",
                    "bind a VirtualService to it and to mesh (spec.gateways), which sends these hosts to the gateway, and from there on",
                ),
            };
            let (why, help) = match gateway.meta.kind {
                Kind::ApiGateway => {
                    let listener = gateway.meta.name.rsplit('~').next().unwrap_or_default();
                    let why = format!("no route has attached to the listener {listener}: {what}");
                    (why, "attach a route to it (spec.parentRefs)")
                }
                _ => (format!("no VirtualService is bound to the Gateway: {what}"), help),
            };
            found.push(Message::of(Code::GatewayWithoutRules, &gateway.meta, "", why, help));
        }
        if !outside.is_empty() && world.mesh().outbound_traffic_policy.mode == OutboundMode::AllowAny {
            let why = format!(
                "the mesh's outboundTrafficPolicy is ALLOW_ANY: whoever does not go by this gateway reaches {} and every other host as well",
                few(outside.iter().map(|service| service.hostname.to_string()))
            );
            let help =
                "set outboundTrafficPolicy.mode to REGISTRY_ONLY, and close other ways out in the network";
            found.push(Message::of(Code::EgressCanBeBypassed, &gateway.meta, "", why, help));
        }
    }
}

/// Hosts that no ServiceEntry has, at an egress gateway's servers for others that one has.
fn undeclared(
    scene: &Scene<'_>,
    gateway: &Object<Gateway>,
    outside: &[&Arc<Service>],
    found: &mut Vec<Message>,
) {
    for (index, server) in gateway.spec.servers.iter().enumerate() {
        let named = |h: &String| {
            let name = h.rsplit_once('/').map_or(h.as_str(), |(_, h)| h);
            name != "*" && outside.iter().any(|s| host::covers(name, &s.hostname))
        };
        if !server.hosts.iter().any(named) {
            continue;
        }
        for (at, entry) in server.hosts.iter().enumerate() {
            let name = entry.rsplit_once('/').map_or(entry.as_str(), |(_, name)| name);
            let known = || {
                scene
                    .world
                    .services()
                    .iter()
                    .any(|s| host::covers(name, &s.hostname) || host::covers(&s.hostname, name))
            };
            if name == "*" || known() {
                continue;
            }
            let why = format!(
                "no ServiceEntry has {name}: the gateway has nowhere to send it, and where outboundTrafficPolicy is \
                 REGISTRY_ONLY the sidecars refuse it"
            );
            let help = format!("add {name} to the hosts of a ServiceEntry, or take it out of here");
            let path = format!("spec.servers[{index}].hosts[{at}]");
            found.push(Message::of(Code::HostNotDeclared, &gateway.meta, path, why, help));
        }
    }
}

fn subsets(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    for rule in world.destination_rules() {
        let services: Vec<_> =
            world.services().iter().filter(|s| host::covers(&rule.spec.host, &s.hostname)).collect();
        let endpoints: Vec<_> = services.iter().flat_map(|service| &service.endpoints).collect();
        if endpoints.is_empty() {
            continue;
        }
        for (index, subset) in rule.spec.subsets.iter().enumerate().filter(|(_, s)| !s.labels.is_empty()) {
            if endpoints.iter().any(|endpoint| selects(&subset.labels, &endpoint.labels)) {
                continue;
            }
            let known: BTreeSet<_> = endpoints
                .iter()
                .flat_map(|e| e.labels.iter().filter(|(key, _)| subset.labels.contains_key(*key)))
                .map(|(k, v)| format!("{k}={v}"))
                .collect();
            let why = format!(
                "no endpoint of {} has {}: requests to the subset {:?} fail with 503",
                rule.spec.host,
                written(&subset.labels),
                subset.name
            );
            let help = match known.is_empty() {
                true => "check the labels of its workloads".to_owned(),
                false => format!("its endpoints have {}", few(known)),
            };
            let path = format!("spec.subsets[{index}].labels");
            found.push(Message::of(Code::SubsetSelectsNothing, &rule.meta, path, why, help));
        }
    }
}

fn services(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    if world.workloads().is_empty() {
        return;
    }
    for service in world.services() {
        if service.origin == ServiceOrigin::Kubernetes && service.endpoints.is_empty() {
            let why = format!("{} has no endpoints: requests to it fail with 503", service.hostname);
            let help = "check its selector against the labels of the workloads in its namespace";
            found.push(Message::of(Code::ServiceWithoutEndpoints, &service.meta, "spec.selector", why, help));
        }
    }
}
