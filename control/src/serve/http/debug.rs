//! The pages of the debug port.

use http::StatusCode;
use serde_json::{Value, json};
use xds_protos::ResourceType;

use super::{Answer, Pages, TEXT};
use crate::serve::proxies::Proxy;
use crate::serve::session::Variant;

pub(super) const INDEX: &str = "\
/ready                          200 once configuration has been read
/version                        the version of this program
/metrics                        numbers for Prometheus
/root-cert.pem                  the root certificate that workloads trust
/debug/syncz                    connected proxies and how far they follow
/debug/adsz                     the same with what each was sent
/debug/configz                  objects that were read: whether each is valid, on how many proxies it is in effect, and what there is to say
/debug/registryz                services
/debug/trafficz                 versions on trial: their shares, what was counted, what was decided; circuits
/debug/events                   what happened lately (?since=NUMBER)
/debug/endpointz                services with their endpoints
/debug/networkz                 networks and the gateways by which others reach them
/proxies                        proxies whose admin pages can be read here, with a token (docs/inspection.md)
/proxies/PROXY/admin/PAGE       such a page
/debug/config_dump?proxyID=ID   everything that a connected proxy gets, secrets by name only
";

pub(super) fn page(pages: &Pages, path: &str, query: &str) -> Option<Answer> {
    Some(match path {
        "/" | "/debug" | "/debug/" => (StatusCode::OK, TEXT, INDEX.to_owned()),
        "/root-cert.pem" => {
            (StatusCode::OK, "application/x-pem-file", pages.trust.borrow().roots.to_string())
        }
        "/debug/syncz" => super::json(&pages.proxies.list().iter().map(syncz).collect()),
        "/debug/adsz" => super::json(&adsz(pages)),
        "/debug/configz" => super::json(&pages.objects()),
        "/debug/trafficz" => super::json(&pages.trials.borrow().clone()),
        "/debug/events" => events(query),
        "/debug/registryz" => super::json(&registry(pages, false)),
        "/debug/endpointz" => super::json(&registry(pages, true)),
        "/debug/networkz" => super::json(&networks(pages)),
        "/debug/config_dump" => config_dump(pages, query),
        _ => return None,
    })
}

fn events(query: &str) -> Answer {
    let since = query.split('&').find_map(|pair| pair.strip_prefix("since=")).unwrap_or("0");
    match since.parse() {
        Ok(since) => {
            let (events, next) = weft_events::since(since);
            super::json(&json!({"events": events, "next": next}))
        }
        Err(_) => (StatusCode::BAD_REQUEST, TEXT, "since is the number of an event\n".to_owned()),
    }
}

fn syncz(proxy: &Proxy) -> Value {
    let mut status = json!({
        "proxy": proxy.node.id,
        "proxy_type": if proxy.node.id.starts_with("router~") { "router" } else { "sidecar" },
        "agent": proxy.agent,
        "identity": proxy.identity,
        "revision": proxy.revision,
    });
    for kind in &proxy.types {
        let name = match kind.kind {
            ResourceType::Cluster => "cluster",
            ResourceType::Endpoint => "endpoint",
            ResourceType::Listener => "listener",
            ResourceType::Route => "route",
            ResourceType::Secret => "secret",
            ResourceType::Extension => "extensionconfig",
            ResourceType::Names => "nametable",
        };
        status[format!("{name}_sent")] = json!(kind.sent.as_deref());
        status[format!("{name}_acked")] = json!(kind.acknowledged.as_deref());
        status[format!("{name}_status")] = match (&kind.refused, kind.synced) {
            (Some(_), _) => "ERROR",
            (None, true) => "SYNCED",
            (None, false) => "STALE",
        }
        .into();
        if let Some(reason) = &kind.refused {
            status[format!("{name}_error")] = reason.as_str().into();
        }
    }
    status
}

fn adsz(pages: &Pages) -> Value {
    let clients: Vec<_> = pages
        .proxies
        .list()
        .iter()
        .map(|proxy| {
            let watches: serde_json::Map<_, _> = proxy
                .types
                .iter()
                .map(|t| {
                    (t.kind.type_url().to_owned(), json!({"resources": t.resources, "synced": t.synced}))
                })
                .collect();
            let variant = if proxy.variant == Variant::Delta { "delta" } else { "state of the world" };
            let connected = proxy.connected.format(&time::format_description::well_known::Rfc3339).ok();
            json!({
                "id": proxy.node.id, "address": proxy.address, "connected": connected, "variant": variant,
                "watches": watches,
            })
        })
        .collect();
    let memo = pages.cache.memo();
    let encoded = memo.encoded();
    let rendered: serde_json::Map<_, _> =
        ResourceType::ALL.iter().map(|k| (k.short().to_owned(), memo.rendered(*k).into())).collect();
    json!({"clients": clients, "rendered": rendered, "encoded_bytes": encoded})
}

fn registry(pages: &Pages, endpoints: bool) -> Value {
    let snapshot = pages.snapshots.borrow().clone();
    let service = |service: &std::sync::Arc<crate::model::Service>| {
        let ports: Vec<_> = service
            .ports
            .iter()
            .map(|p| json!({"number": p.number, "name": p.name, "protocol": p.protocol.to_string()}))
            .collect();
        let mut shown = json!({
            "hostname": &*service.hostname, "namespace": service.namespace(), "ports": ports,
            "addresses": service.addresses, "allocated": service.allocated,
            "endpoints": service.endpoints.len(),
        });
        if endpoints {
            let listed = service.endpoints.iter().map(|e| {
                json!({
                    "address": e.address, "labels": e.labels, "serviceAccount": e.service_account,
                    "mutualTLS": e.mutual_tls, "weight": e.weight,
                    "network": snapshot.world.networks().of(e),
                })
            });
            shown["endpoints"] = listed.collect();
        }
        shown
    };
    snapshot.world.services().iter().map(service).collect()
}

fn networks(pages: &Pages) -> Value {
    let snapshot = pages.snapshots.borrow().clone();
    let networks = snapshot.world.networks();
    let one = |(network, written): (&String, &Vec<crate::model::NetworkGateway>)| {
        let shown = |all: &[crate::model::NetworkGateway]| -> Vec<Value> {
            all.iter().map(|g| json!({"address": g.address, "port": g.port})).collect()
        };
        json!({"network": network, "written": shown(written), "gateways": shown(networks.gateways(network))})
    };
    networks.with_gateways().map(one).collect()
}

fn config_dump(pages: &Pages, query: &str) -> Answer {
    let wanted = query.split('&').find_map(|pair| pair.strip_prefix("proxyID=")).unwrap_or_default();
    let proxies = pages.proxies.list();
    // As istioctl writes it: the whole id, or NAME.NAMESPACE.
    let found = proxies.iter().find(|p| p.node.id == wanted || p.node.id.split('~').nth(2) == Some(wanted));
    let Some(proxy) = found else {
        let text = format!("no connected proxy {wanted:?}; /debug/syncz lists them\n");
        return (StatusCode::NOT_FOUND, TEXT, text);
    };
    let revision = pages.queue.clone().latest();
    let place = pages.cache.place(&proxy.node, proxy.identity.is_some());
    let (_, all) = pages.cache.resources(&revision, &place);
    let mut dump = serde_json::Map::new();
    for (kind, resources) in all.iter() {
        let message = xds_protos::type_url::name(kind.type_url());
        let shown: Vec<Value> = resources
            .iter()
            .map(|(name, resource)| match kind {
                // A private key stays where it is.
                ResourceType::Secret => json!({"name": &**name, "version": &*resource.version}),
                _ => xds_protos::json::bytes_to_value(message, &resource.bytes),
            })
            .collect();
        dump.insert(kind.type_url().to_owned(), shown.into());
    }
    super::json(&dump.into())
}
