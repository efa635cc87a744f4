//! What only shows when all objects are there: subsets that no rule defines, workloads at one address.

use std::collections::HashMap;

use super::super::diagnostic::{Diagnostic, Severity};
use crate::model::expand::expand;
use crate::model::extension_provider::ExtensionProvider;
use crate::model::gateway::{Server, ServerTls};
use crate::model::host::{covers, most_specific};
use crate::model::meta::Meta;
use crate::model::telemetry::BUILT_IN_LOG;
use crate::model::world::Objects;

pub(in super::super) fn across(objects: &Objects, diagnostics: &mut Vec<Diagnostic>) {
    expansions(objects, diagnostics);
    subsets(objects, diagnostics);
    providers(objects, diagnostics);
    addresses(objects, diagnostics);
    credentials(objects, diagnostics);
    secrets(objects, diagnostics);
}

/// What ServiceMeshConfigs stand for, beside what is written explicitly.
fn expansions(objects: &Objects, diagnostics: &mut Vec<Diagnostic>) {
    if objects.service_mesh_configs.is_empty() {
        return;
    }
    for note in expand(objects).1 {
        diagnostics.push(Diagnostic {
            path: Some(note.path),
            help: (!note.help.is_empty()).then(|| note.help.to_owned()),
            ..finding(&note.of, note.severity, note.reason, "")
        });
    }
}

/// A destination whose subset is nowhere defined answers 503; Istio accepts it, so this is a warning.
fn subsets(objects: &Objects, diagnostics: &mut Vec<Diagnostic>) {
    for rules in &objects.virtual_services {
        for destination in rules.spec.destinations().filter(|destination| !destination.subset.is_empty()) {
            let covering = objects.destination_rules.iter().map(|rule| (rule.spec.host.as_str(), ()));
            let host = most_specific(&destination.host, covering).map(|(host, ())| host);
            let defined = objects
                .destination_rules
                .iter()
                .filter(|rule| Some(rule.spec.host.as_str()) == host)
                .any(|rule| rule.spec.subsets.iter().any(|subset| subset.name == destination.subset));
            if !defined {
                let reason = format!(
                    "no DestinationRule defines the subset {:?} of {}",
                    destination.subset, destination.host
                );
                let help = "requests to it will fail with 503; define it under spec.subsets";
                diagnostics.push(finding(&rules.meta, Severity::Warning, reason, help));
            }
        }
    }
}

/// Who cannot be asked allows nothing; Istio accepts it, so this is a warning.
fn providers(objects: &Objects, diagnostics: &mut Vec<Diagnostic>) {
    let known =
        objects.mesh.as_ref().map(|mesh| mesh.spec.extension_providers.as_slice()).unwrap_or_default();
    for policy in &objects.authorization_policies {
        let Some(provider) = &policy.spec.provider else { continue };
        if !provider.name.is_empty() && known.iter().all(|one| one.name != provider.name) {
            let reason = format!("no extension provider is called {:?}", provider.name);
            let help = "what its rules match is denied; define it in MeshConfig's extensionProviders";
            diagnostics.push(finding(&policy.meta, Severity::Warning, reason, help));
        }
    }
    for telemetry in &objects.telemetries {
        for provider in telemetry.spec.access_logging.iter().flat_map(|logging| &logging.providers) {
            let is = |one: &&ExtensionProvider| one.name == provider.name;
            let reason = match known.iter().find(is) {
                _ if provider.name == BUILT_IN_LOG || provider.name.is_empty() => continue,
                Some(one) if one.envoy_file_access_log.is_some() || one.logs_to().is_some() => continue,
                Some(_) => format!("the extension provider {:?} takes no logs", provider.name),
                None => format!("no extension provider is called {:?}", provider.name),
            };
            let help = "nothing is logged to it; define it in MeshConfig's extensionProviders (envoyFileAccessLog, envoyOtelAls, envoyHttpAls, envoyTcpAls), or write envoy";
            diagnostics.push(finding(&telemetry.meta, Severity::Warning, reason, help));
        }
    }
}

/// What an ACME server issues takes a Secret's place, and nobody else's. That gateways make no use of it, or could not answer the
/// server's questions, may be meant so for a while: a warning.
fn credentials(objects: &Objects, diagnostics: &mut Vec<Diagnostic>) {
    let mut held: HashMap<(&str, &str), &Meta> = HashMap::new();
    for secret in &objects.secrets {
        held.insert((&secret.meta.namespace, &secret.meta.name), &secret.meta);
    }
    let servers = || objects.gateways.iter().flat_map(|gateway| &gateway.spec.servers);
    for object in &objects.acme_certificates {
        let name = object.spec.credential_name.as_str();
        if let Some(first) = held.insert((&object.meta.namespace, name), &object.meta) {
            let reason =
                format!("the credential {name:?} is already that of {} ({})", first.key(), first.source);
            diagnostics.push(finding(
                &object.meta,
                Severity::Error,
                reason,
                "choose another name for one of the two",
            ));
        }
        let named = |(place, its): &(String, String)| *place == object.meta.namespace && its == name;
        let uses = |tls: &ServerTls| {
            tls.credentials().any(|credential| credential == name) || tls.certificates.iter().any(named)
        };
        if !servers().filter_map(|server| server.tls.as_ref()).any(uses) {
            let reason = format!("no Gateway uses the credential {name:?}");
            let help = "it is ordered all the same; write it under tls.credentialName of a server";
            diagnostics.push(finding(&object.meta, Severity::Warning, reason, help));
        }
        for host in &object.spec.hosts {
            let bare = |entry: &str| entry.rsplit_once('/').map_or(entry, |(_, host)| host).to_owned();
            let answers = |server: &Server| {
                server.port.number == 80
                    && server.port.protocol.to_ascii_uppercase().starts_with("HTTP")
                    && !server.port.protocol.eq_ignore_ascii_case("HTTPS")
                    && server.hosts.iter().any(|entry| covers(&bare(entry), host))
            };
            if !servers().any(answers) {
                let reason = format!("no Gateway has a server of HTTP at port 80 for {host}");
                let help =
                    "that is where the ACME server looks, and it issues nothing until it has been answered";
                diagnostics.push(finding(&object.meta, Severity::Warning, reason, help));
            }
        }
    }
}

/// Where secrets go that are for services outside: a copy of a request has what the request has, and a host that no service has
/// gets nothing.
fn secrets(objects: &Objects, diagnostics: &mut Vec<Diagnostic>) {
    for credential in &objects.external_credentials {
        let is_its = |host: &str| credential.spec.hosts.iter().any(|h| h.eq_ignore_ascii_case(host));
        for host in &credential.spec.hosts {
            let known = objects.service_entries.iter().flat_map(|entry| &entry.spec.hosts);
            if !known.clone().any(|known| known.eq_ignore_ascii_case(host)) {
                let reason = format!("no ServiceEntry has the host {host}: requests to it get no secret");
                let help = "add a ServiceEntry, or correct the name";
                diagnostics.push(finding(&credential.meta, Severity::Warning, reason, help));
            }
        }
        for rules in &objects.virtual_services {
            for route in &rules.spec.http {
                let leads = route.route.iter().any(|to| is_its(&to.destination.host));
                let copies = route.mirrors.iter().map(|mirror| &mirror.destination.host);
                for copy in copies.filter(|host| leads && !is_its(host)) {
                    let reason = format!(
                        "{} mirrors requests that carry this secret to {copy}, which is not among its hosts",
                        rules.meta.key()
                    );
                    let help =
                        "take the mirror out, or name its host in spec.hosts if it may have the secret";
                    diagnostics.push(finding(&credential.meta, Severity::Error, reason, help));
                }
            }
        }
    }
}

/// Two workloads at one address cannot be told apart.
fn addresses(objects: &Objects, diagnostics: &mut Vec<Diagnostic>) {
    let mut held: HashMap<&str, &Meta> = HashMap::new();
    // One that is known by its network's gateway alone has no address.
    for entry in objects.workload_entries.iter().filter(|entry| !entry.spec.address.is_empty()) {
        if let Some(first) = held.get(entry.spec.address.as_str()) {
            let reason = format!(
                "{} is already the address of {} ({})",
                entry.spec.address,
                first.key(),
                first.source
            );
            diagnostics.push(finding(
                &entry.meta,
                Severity::Warning,
                reason,
                "give each workload its own address",
            ));
        } else {
            held.insert(&entry.spec.address, &entry.meta);
        }
    }
}

fn finding(meta: &Meta, severity: Severity, reason: String, help: &str) -> Diagnostic {
    Diagnostic {
        file: meta.source.file.to_string(),
        line: meta.source.line,
        severity,
        object: Some(meta.key().to_string()),
        path: None,
        reason,
        help: Some(help.to_owned()),
    }
}
