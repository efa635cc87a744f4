//! What holds for a service.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::bail;
use serde::Serialize;
use weft_control::analyze::Message;
use weft_control::model::values::selects;
use weft_control::model::{Labels, Service, World};

use super::{Entry, Named, entries, findings};

/// A service and what holds for it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Its host name.
    pub host: String,
    /// What declares it.
    pub declared: Named,
    /// Its addresses, those included that a mesh gave it.
    pub addresses: Vec<String>,
    /// Its ports, as `number/protocol name`.
    pub ports: Vec<String>,
    /// Endpoints that take requests.
    pub endpoints: usize,
    /// Endpoints that are not ready.
    pub waiting: usize,
    /// Subsets, of all rules for it.
    pub subsets: Vec<SubsetView>,
    /// The VirtualService that speaks for it in the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<Named>,
    /// What that says, route by route.
    pub routing: Vec<String>,
    /// The DestinationRule that callers in its own namespace follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Named>,
    /// Its workloads, as `namespace/name`.
    pub workloads: Vec<String>,
    /// How it is reached from outside the mesh.
    pub entries: Vec<Entry>,
    /// What is probably not meant so.
    pub findings: Vec<Message>,
}

/// A subset.
#[derive(Clone, Debug, Serialize)]
pub struct SubsetView {
    /// Its name.
    pub name: String,
    /// Labels of its endpoints.
    pub labels: Labels,
    /// How many endpoints have them.
    pub endpoints: usize,
}

/// The service that somebody means: its host name, or the beginning of it (`NAME`, `NAME.NAMESPACE`), or `NAMESPACE/NAME`.
///
/// # Errors
/// There is none, or there are several.
fn named<'w>(world: &'w World, name: &str) -> anyhow::Result<&'w Arc<Service>> {
    let wanted = match name.split_once('/') {
        Some((namespace, name)) => format!("{name}.{namespace}"),
        None => name.to_owned(),
    };
    let is = |service: &&Arc<Service>| {
        let rest = service.hostname.strip_prefix(wanted.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let found: Vec<_> = world.services().iter().filter(is).collect();
    let hosts = |services: &[&Arc<Service>]| {
        let hosts: BTreeSet<String> = services.iter().take(12).map(|s| s.hostname.to_string()).collect();
        hosts.into_iter().collect::<Vec<_>>().join(", ")
    };
    match found.as_slice() {
        [only] => Ok(only),
        [] => {
            let all: Vec<_> = world.services().iter().collect();
            bail!("no service is called {name:?}; there are {}", hosts(&all))
        }
        several => match several.iter().find(|service| *service.hostname == *wanted) {
            Some(exact) => Ok(exact),
            None => bail!("several services are called {name:?}: say which, {}", hosts(several)),
        },
    }
}

/// Says what holds for a service.
///
/// # Errors
/// There is none of that name, or there are several.
pub fn service(world: &World, name: &str) -> anyhow::Result<ServiceView> {
    let service = named(world, name)?;
    let namespace = service.namespace();
    let mut objects = vec![service.meta.key().to_string()];
    let routes = world.virtual_service_for_host(namespace, "mesh", &service.hostname);
    let rule = world.destination_rule(namespace, &Labels::new(), service);
    objects.extend(routes.map(|object| object.meta.key().to_string()));
    let mut subsets = Vec::new();
    for each in world.destination_rules() {
        if !weft_control::model::host::covers(&each.spec.host, &service.hostname) {
            continue;
        }
        objects.push(each.meta.key().to_string());
        subsets.extend(each.spec.subsets.iter().map(|subset| SubsetView {
            name: subset.name.clone(),
            labels: subset.labels.clone(),
            endpoints: service.endpoints.iter().filter(|e| selects(&subset.labels, &e.labels)).count(),
        }));
    }
    let workloads: BTreeSet<String> = service
        .endpoints
        .iter()
        .filter_map(|endpoint| world.workload_at(&endpoint.address))
        .map(|workload| format!("{}/{}", workload.meta.namespace, workload.meta.name))
        .collect();
    let entries = entries(world, &service.hostname);
    objects.extend(entries.iter().map(|entry| entry.rules.object.clone()));
    let addresses: BTreeSet<&String> = service.addresses.iter().chain(&service.allocated).collect();
    Ok(ServiceView {
        host: service.hostname.to_string(),
        declared: Named::of(&service.meta),
        addresses: addresses.into_iter().cloned().collect(),
        ports: service.ports.iter().map(|p| format!("{}/{} {}", p.number, p.protocol, p.name)).collect(),
        endpoints: service.endpoints.len(),
        waiting: service.waiting.len(),
        subsets,
        routes: routes.map(|object| Named::of(&object.meta)),
        routing: routes.map(|object| routing(&object.spec)).unwrap_or_default(),
        rule: rule.map(|rule| Named::of(&rule.meta)),
        workloads: workloads.into_iter().collect(),
        entries,
        findings: findings(world, &objects),
    })
}

/// Each route in a line: what it matches in short, and where it leads.
fn routing(rules: &weft_control::model::VirtualService) -> Vec<String> {
    let place = |to: &weft_control::model::virtual_service::Destination| {
        let subset = if to.subset.is_empty() { String::new() } else { format!(" subset {}", to.subset) };
        let port = to.port.map(|port| format!(":{}", port.number)).unwrap_or_default();
        format!("{}{port}{subset}", to.host)
    };
    let mut lines = Vec::new();
    for (index, route) in rules.http.iter().enumerate() {
        let name = match route.name.as_str() {
            "" => format!("http[{index}]"),
            name => format!("http[{index}] {name}"),
        };
        let asked = match route.matches.len() {
            0 => "everything".to_owned(),
            1 => "1 match".to_owned(),
            many => format!("any of {many} matches"),
        };
        let weighted = route.route.len() > 1;
        let leads: Vec<_> = route
            .route
            .iter()
            .map(|to| match weighted {
                true => format!("{} ({})", place(&to.destination), to.weight),
                false => place(&to.destination),
            })
            .collect();
        let leads = match (&route.redirect, &route.direct_response) {
            (Some(_), _) => "a redirect".to_owned(),
            (None, Some(answer)) => format!("the answer {}", answer.status),
            (None, None) => leads.join(", "),
        };
        let timeout = route.timeout.map(|t| format!(", timeout {t}")).unwrap_or_default();
        let retries = route.retries.as_ref().map(|r| format!(", {} retries", r.attempts)).unwrap_or_default();
        lines.push(format!("{name}: {asked} -> {leads}{timeout}{retries}"));
    }
    let of = |kind: &str, index: usize, route: &[weft_control::model::virtual_service::RouteDestination]| {
        let leads: Vec<_> = route.iter().map(|to| place(&to.destination)).collect();
        format!("{kind}[{index}] -> {}", leads.join(", "))
    };
    lines.extend(rules.tls.iter().enumerate().map(|(index, rule)| of("tls", index, &rule.route)));
    lines.extend(rules.tcp.iter().enumerate().map(|(index, rule)| of("tcp", index, &rule.route)));
    lines
}
