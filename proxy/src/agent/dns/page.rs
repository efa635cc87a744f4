//! `/dns`: the names of the mesh as the pod gets them, and how the servers are.

use serde_json::{Value, json};

use super::Dns;

pub(super) fn page(dns: &Dns) -> Value {
    let shared = &dns.0;
    let table = shared.table.load_full();
    let names = table.as_ref().map(|table| {
        let mut hosts: Vec<_> = table.source.table.iter().collect();
        hosts.sort_by_key(|(host, _)| *host);
        let shown = hosts.into_iter().map(|(host, info)| {
            let mut entry = json!({"host": host, "ips": info.ips, "registry": info.registry});
            if !info.namespace.is_empty() {
                entry["namespace"] = info.namespace.as_str().into();
                entry["shortname"] = info.shortname.as_str().into();
            }
            entry
        });
        shown.collect::<Vec<_>>()
    });
    let ((answers, bytes), servers) = shared.resolver.status();
    let servers: Vec<_> = servers
        .into_iter()
        .map(|s| json!({"address": s.address.to_string(), "failures": s.failures, "last_error": s.error}))
        .collect();
    let counters: serde_json::Map<_, _> =
        shared.stats.all().into_iter().map(|(name, _, value)| (name.to_owned(), value.into())).collect();
    let settings = &shared.settings;
    json!({
        "listening": settings.listen.iter().map(|(at, _)| at.to_string()).collect::<Vec<_>>(),
        "search": settings.search.as_ref().map(ToString::to_string),
        "names": names,
        "servers": servers,
        "cache": {"answers": answers, "bytes": bytes},
        "counters": counters,
    })
}
