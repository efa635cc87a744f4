//! What only shows of the state that all objects make together: checks that nobody can make. All of it is warnings.

use std::sync::Arc;

use super::super::diagnostic::{Diagnostic, Severity};
use crate::model::host::resolve_short;
use crate::model::meta::Meta;
use crate::model::service::Resolution;
use crate::model::tracing::{JAEGER_PORT, OTLP_GRPC_PORT, OTLP_HTTP_PORT};
use crate::model::traffic_management::serves;
use crate::model::{Endpoint, World};

pub(in super::super) fn whole(world: &World) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    health_checks(world, &mut found);
    replicas(world, &mut found);
    trials(world, &mut found);
    tracing(world, &mut found);
    logs(world, &mut found);
    found
}

/// Certificates of gateways that are in another namespace than where they are read: for the Gateway's status. (Whoever has a
/// directory or a cluster looked through hears of it from there.)
pub(in super::super) fn secrets_of_gateways(world: &World) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for gateway in world.gateways() {
        for (place, server) in gateway.spec.servers.iter().enumerate() {
            for missing in world.missing_secrets(&gateway.spec, server) {
                let (name, namespace) = (missing.name, missing.namespace);
                let Some(first) = missing.elsewhere.first() else { continue };
                let path = format!("spec.servers[{place}].tls.credentialName");
                let reason = format!(
                    "the Secret {name} is in the namespace {first}, and is read in {namespace}, the namespace of the gateway's \
                     workloads: the port refuses every handshake"
                );
                let help = format!("put it into {namespace}");
                found.push(warning(&gateway.meta, &path, reason, &help));
            }
        }
    }
    found
}

fn health_checks(world: &World, found: &mut Vec<Diagnostic>) {
    for check in world.health_checks() {
        let spec = &check.spec;
        let mut warn = |path: &str, reason: String, help: &str| {
            found.push(warning(&check.meta, path, reason, help));
        };
        let Some(service) = world.services_with_host(&spec.host).next() else {
            warn(
                "spec.host",
                format!("no service is called {}: nothing is checked", spec.host),
                "correct the name, or add the service",
            );
            continue;
        };
        if service.resolution == Resolution::None {
            let reason =
                format!("{} has no endpoints that proxies choose from: nothing is checked", spec.host);
            warn("spec.host", reason, "give the service another resolution, or take the HealthCheck out");
        }
        for (index, number) in spec.ports.iter().enumerate() {
            if service.port(*number).is_none() {
                let reason = format!("{} has no port {number}", spec.host);
                warn(
                    &format!("spec.ports[{index}]"),
                    reason,
                    "name a port of the service, not of its endpoints",
                );
            }
        }
        for port in service.ports.iter().filter(|port| spec.is_for(port.number)) {
            if spec.grpc.is_some() && !port.protocol.is_http2() {
                let reason = format!(
                    "port {} of {} is not said to speak HTTP/2, which gRPC needs: it is checked only where a \
                     DestinationRule upgrades it",
                    port.number, spec.host
                );
                let help =
                    "name the port grpc-..., give it appProtocol: grpc, or list other ports in spec.ports";
                warn("spec.grpc", reason, help);
            }
            let first = world.health_check(&check.meta.namespace, service, port.number);
            if let Some(first) = first.filter(|first| first.meta.key() != check.meta.key()) {
                let reason = format!(
                    "port {} of {} is checked as {} says ({})",
                    port.number,
                    spec.host,
                    first.meta.key(),
                    first.meta.source
                );
                warn("spec", reason, "a port is checked in one way: take one of the two out");
            }
        }
    }
}

/// What a ServiceMeshConfig says of versions and replicas is looked at, not set.
fn replicas(world: &World, found: &mut Vec<Diagnostic>) {
    for config in world.service_mesh_configs() {
        for (index, wanted) in config.spec.services.iter().enumerate() {
            let host = resolve_short(&wanted.name, &config.meta.namespace, world.domain());
            let Some(service) = world.services_with_host(&host).next() else { continue };
            let of_version = |endpoint: &&Arc<Endpoint>| {
                wanted.version.is_empty() || endpoint.labels.get("version") == Some(&wanted.version)
            };
            let count = service.endpoints.iter().filter(of_version).count();
            let which = match wanted.version.as_str() {
                "" => String::new(),
                version => format!(" with the label version={version}"),
            };
            let mut warn = |field: &str, reason: String| {
                let path = format!("spec.services[{index}].{field}");
                let help =
                    "this is looked at, and set by whoever deploys the service: change it there, or here";
                found.push(warning(&config.meta, &path, reason, help));
            };
            match wanted.replicas {
                Some(replicas) if replicas as usize != count => {
                    warn("replicas", format!("drift: {replicas} are wanted, and {host} has {count}{which}"));
                }
                None if count == 0 && !wanted.version.is_empty() => {
                    warn("version", format!("drift: {host} has no endpoint{which}"));
                }
                _ => {}
            }
        }
    }
}

/// Logs that go nowhere.
fn logs(world: &World, found: &mut Vec<Diagnostic>) {
    let providers = &world.mesh().extension_providers;
    for object in world.telemetries() {
        for (index, logging) in object.spec.access_logging.iter().enumerate() {
            for (at, named) in logging.providers.iter().enumerate() {
                let provider = providers.iter().find(|p| p.name == named.name);
                let Some((service, port)) = provider.and_then(|p| p.logs_to()) else { continue };
                let (namespace, host) = match service.split_once('/') {
                    Some((namespace, host)) => (Some(namespace), host),
                    None => (None, service),
                };
                let mut known = world.services_with_host(host);
                let known = known.find(|s| namespace.is_none_or(|n| s.namespace() == n));
                let path = format!("spec.accessLogging[{index}].providers[{at}].name");
                match known.and_then(|s| s.port(port)) {
                    None => {
                        let reason = format!(
                            "no service {service} with port {port} is known: nothing is logged to it"
                        );
                        let help = "add the service of the collector, or a ServiceEntry for it, or correct the provider";
                        found.push(warning(&object.meta, &path, reason, help));
                    }
                    Some(known) if !known.protocol.is_http2() => {
                        let reason = format!(
                            "logs go to {service} by gRPC, and its port {port} is of another protocol"
                        );
                        let help = "call the port grpc-NAME, or set its appProtocol to grpc";
                        found.push(warning(&object.meta, &path, reason, help));
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

/// Spans that go nowhere.
fn tracing(world: &World, found: &mut Vec<Diagnostic>) {
    let providers = &world.mesh().extension_providers;
    for object in world.telemetries() {
        for (index, tracing) in object.spec.tracing.iter().enumerate() {
            let Some(name) = tracing.providers.first().map(|p| p.name.as_str()) else { continue };
            let path = format!("spec.tracing[{index}].providers[0].name");
            let provider = providers.iter().find(|p| p.name == name);
            let place = provider.and_then(|p| {
                let otlp = p.opentelemetry.as_ref().map(|o| (o.service.as_str(), o.port, o.http.is_none()));
                otlp.or(p.zipkin.as_ref().map(|z| (z.service.as_str(), z.port, z.port == JAEGER_PORT)))
            });
            let Some((service, port, grpc)) = place else {
                let reason = match provider {
                    None => format!("no extension provider is called {name}: nothing is traced"),
                    Some(_) => format!("the extension provider {name} takes no spans: nothing is traced"),
                };
                let help =
                    "give MeshConfig's extensionProviders one of that name, with opentelemetry or zipkin";
                found.push(warning(&object.meta, &path, reason, help));
                continue;
            };
            let port = match (port, grpc) {
                (JAEGER_PORT, true) => OTLP_GRPC_PORT,
                (JAEGER_PORT, false) => OTLP_HTTP_PORT,
                (port, _) => port,
            };
            let (namespace, host) = match service.split_once('/') {
                Some((namespace, host)) => (Some(namespace), host),
                None => (None, service),
            };
            let mut known = world.services_with_host(host);
            let known = known.find(|s| namespace.is_none_or(|n| s.namespace() == n));
            let Some(port_of) = known.and_then(|s| s.port(port)) else {
                let reason = format!("no service {service} with port {port} is known: nothing is traced");
                let help =
                    "add the service of the collector, or a ServiceEntry for it, or correct the provider";
                found.push(warning(&object.meta, &path, reason, help));
                continue;
            };
            if grpc && !port_of.protocol.is_http2() {
                let reason = format!(
                    "port {port} of {service} is not said to speak HTTP/2, which OTLP over gRPC needs: spans may be lost"
                );
                let help = "name the port grpc-otlp, or give it appProtocol: grpc";
                found.push(warning(&object.meta, &path, reason, help));
            }
        }
    }
}

/// Trials that split nothing.
fn trials(world: &World, found: &mut Vec<Diagnostic>) {
    for object in world.traffic_managements() {
        let circuit = object.spec.circuit_breaker_status.iter();
        for circuit in circuit.filter(|c| world.services_with_host(&c.service).next().is_none()) {
            let reason = format!("no service is called {}: nothing is told", circuit.service);
            let help = "correct the name, or add the service";
            found.push(warning(&object.meta, "spec.circuitBreakerStatus.service", reason, help));
        }
        let Some(trial) = &object.spec.canary_deployment else { continue };
        let path = "spec.canaryDeployment";
        let mut warn = |field: &str, reason: String, help: &str| {
            found.push(warning(&object.meta, &format!("{path}{field}"), reason, help));
        };
        let mut named = world.services_with_host(&trial.service);
        let Some(service) = named.find(|service| service.namespace() == object.meta.namespace) else {
            let reason = format!("namespace {} has no service {}", object.meta.namespace, trial.service);
            warn(".service", reason, "correct the name, or add the service");
            continue;
        };
        if let Some((first, _)) = world.trial_of(service)
            && first.meta.key() != object.meta.key()
        {
            let reason = format!(
                "{} ({}) is about {} already, and is older: this splits nothing",
                first.meta.key(),
                first.meta.source,
                trial.service
            );
            warn(".service", reason, "a service has one trial at a time: take one of the two out");
        }
        if !service.ports.iter().any(|port| port.protocol.is_http() || port.protocol.is_auto()) {
            let reason = format!("no port of {} speaks HTTP: nothing is split", trial.service);
            warn(".service", reason, "name the port http-..., or give it an appProtocol");
        }
        for (field, version) in
            [(".stableVersion", &trial.stable_version), (".canaryVersion", &trial.canary_version)]
        {
            if !serves(service, version) {
                let reason = format!(
                    "no endpoint of {} has the label version={version}: it gets nothing",
                    trial.service
                );
                let mut note = warning(
                    &object.meta,
                    &format!("{path}{field}"),
                    reason,
                    "it gets its share once one is there",
                );
                note.severity = Severity::Info;
                found.push(note);
            }
        }
    }
}

fn warning(meta: &Meta, path: &str, reason: String, help: &str) -> Diagnostic {
    Diagnostic {
        file: meta.source.file.to_string(),
        line: meta.source.line,
        severity: Severity::Warning,
        object: Some(meta.key().to_string()),
        path: Some(path.to_owned()),
        reason,
        help: Some(help.to_owned()),
    }
}
