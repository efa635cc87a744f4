//! Descriptions for people.

use super::{Entry, Named, ServiceView, WorkloadView};

/// Lines under a title, each with its title or below it.
struct Page(String);

impl Page {
    fn line(&mut self, title: &str, text: impl std::fmt::Display) {
        self.0.push_str(&format!("{title:<13} {text}\n"));
    }

    fn list(&mut self, title: &str, none: &str, items: impl IntoIterator<Item = String>) {
        let mut items = items.into_iter().peekable();
        if items.peek().is_none() && !none.is_empty() {
            self.line(title, none);
        }
        for (index, item) in items.enumerate() {
            self.line(if index == 0 { title } else { "" }, item);
        }
    }

    fn end(mut self, entries: &[Entry], findings: &[weft_control::analyze::Message]) -> String {
        let way = |entry: &Entry| {
            format!("Gateway {}, {} by {}", entry.gateway, entry.hosts.join(", "), named(&entry.rules))
        };
        self.list("From outside", "", entries.iter().map(way));
        for message in findings {
            self.0.push_str(&format!("\n{message}\n"));
        }
        self.0
    }
}

fn named(named: &Named) -> String {
    format!("{} ({})", named.object, named.source)
}

/// A workload's description.
pub fn of_workload(view: &WorkloadView) -> String {
    let mut page = Page(String::new());
    let what = if view.gateway { "Gateway" } else { "Workload" };
    page.line(what, format!("{} ({})", view.workload, view.source));
    page.line("Address", &view.address);
    page.line("Identity", view.identity.as_deref().unwrap_or("none: no proxy is known to be beside it"));
    let labels: Vec<_> = view.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    page.line("Labels", labels.join(","));
    let ports = view.ports.iter().map(|port| {
        let by = port.by.as_ref().map_or("the default".to_owned(), named);
        format!(
            "{} {} for {}: mutual TLS {} by {by}",
            port.port, port.protocol, port.service, port.mutual_tls
        )
    });
    page.list("Ports", if view.gateway { "" } else { "none: no Service selects it" }, ports);
    page.line("Reaches", view.sidecar.as_ref().map_or("every service (no Sidecar)".to_owned(), named));
    let policies = view.policies.iter().map(|one| {
        let tried = if one.dry_run { " (only tried)" } else { "" };
        format!("{} by {}{tried}", one.action, named(&one.policy))
    });
    page.list("Who may come", "everybody: no AuthorizationPolicy holds for it", policies);
    page.list("Tokens of", "", view.issuers.iter().cloned());
    page.list("Rules", "", view.rules.iter().map(named));
    page.end(&view.entries, &view.findings)
}

/// A service's description.
pub fn of_service(view: &ServiceView) -> String {
    let mut page = Page(String::new());
    page.line("Service", format!("{} by {}", view.host, named(&view.declared)));
    page.list("Addresses", "", view.addresses.iter().cloned());
    page.list("Ports", "none", view.ports.iter().cloned());
    let waiting = if view.waiting > 0 { format!(", {} not ready", view.waiting) } else { String::new() };
    page.line("Endpoints", format!("{}{waiting}", view.endpoints));
    page.list("Workloads", "", view.workloads.iter().cloned());
    page.line("Routes", view.routes.as_ref().map_or("straight to it (no VirtualService)".to_owned(), named));
    page.list("", "", view.routing.iter().cloned());
    page.line(
        "Rule",
        view.rule.as_ref().map_or("the mesh's defaults (no DestinationRule)".to_owned(), named),
    );
    let subsets = view.subsets.iter().map(|subset| {
        let labels: Vec<_> = subset.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{} ({}): {} endpoints", subset.name, labels.join(","), subset.endpoints)
    });
    page.list("Subsets", "", subsets);
    page.end(&view.entries, &view.findings)
}
