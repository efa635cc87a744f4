//! RateLimits: rules that never decide, services and Gateways that are not there, and claims of tokens that nobody checks.

use super::scene::Scene;
use super::{Code, Message};
use crate::model::rate_limit::{LocalLimit, RateLimit, RateLimitRule};
use crate::model::{Object, World};

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    for object in world.rate_limits() {
        let meta = &object.meta;
        if !object.spec.gateway.is_empty() && world.gateway_of(object).is_none() {
            let why = format!(
                "there is no Gateway {}/{}: it holds for nobody",
                meta.namespace, object.spec.gateway
            );
            let help = "name a Gateway of this namespace, or give a selector";
            found.push(Message::of(Code::SelectsNothing, meta, "spec.gateway", why, help));
        }
        service(world, object, found);
        for (index, rule) in object.spec.rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            if let Some(stricter) = object.spec.rules.iter().find(|other| decides_before(other, rule)) {
                let why =
                    format!("{:?} counts the same requests, and lets no more of them pass", stricter.name);
                let help = "take it out, or make it stricter in requests, per or burst";
                found.push(Message::of(Code::RateLimitNeverDecides, meta, &path, why, help));
            }
        }
    }
}

fn service(world: &World, object: &Object<RateLimit>, found: &mut Vec<Message>) {
    let Some(service) = &object.spec.service else { return };
    let path = "spec.service.host";
    let known = world.services_with_host(&service.host).next();
    let Some(port) = known.map(|known| known.port(service.port)) else {
        let why = format!("{} is no service of the mesh, so nobody counts", service.host);
        let help = "write a Service or a ServiceEntry for it, or correct the name";
        found.push(Message::of(Code::RateLimitWithoutService, &object.meta, path, why, help));
        return;
    };
    match port {
        None => {
            let why = format!("{} has no port {}, so nobody counts", service.host, service.port);
            let help = "give one of its ports";
            found.push(Message::of(
                Code::RateLimitWithoutService,
                &object.meta,
                "spec.service.port",
                why,
                help,
            ));
        }
        Some(port) if !port.protocol.is_http2() => {
            let why = format!(
                "port {} of {} is of {}: gRPC does not pass there",
                port.number, service.host, port.protocol
            );
            let help = "name the port grpc, or give it the protocol GRPC";
            found.push(Message::of(
                Code::RateLimitWithoutService,
                &object.meta,
                "spec.service.port",
                why,
                help,
            ));
        }
        Some(_) => {}
    }
}

/// Whether whatever `rule` would refuse, `other` has refused: it counts at least the same requests in the same buckets, and its
/// buckets are in no way wider.
fn decides_before(other: &RateLimitRule, rule: &RateLimitRule) -> bool {
    let (Some(theirs), Some(ours)) = (&other.local, &rule.local) else { return false };
    let ports = |rule: &RateLimitRule| rule.connections.as_ref().map(|given| given.ports.clone());
    let covers = ports(other) == ports(rule) && (other.matches.is_none() || other.matches == rule.matches);
    let stricter = theirs.most() <= ours.most() && rate(theirs) <= rate(ours);
    let equal = theirs.most() == ours.most() && rate(theirs) == rate(ours) && other.matches == rule.matches;
    // Of two that are equal the later is too much.
    other.name != rule.name && other.by == rule.by && covers && stricter && (!equal || other.name < rule.name)
}

fn rate(limit: &LocalLimit) -> f64 {
    f64::from(limit.requests) / limit.per.unwrap_or_default().get().as_secs_f64().max(1e-9)
}
