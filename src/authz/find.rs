//! Workloads and identities by what people call them.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::bail;
use weft_certs::spiffe::SpiffeId;
use weft_control::model::{Workload, World};

/// As many names as an error lists.
const LISTED: usize = 12;

/// The workload of this name: `NAME`, `NAMESPACE/NAME`, or its address.
///
/// # Errors
/// There is none, or there are several.
pub fn workload(world: &World, name: &str) -> anyhow::Result<Arc<Workload>> {
    let full = |workload: &Workload| format!("{}/{}", workload.meta.namespace, workload.meta.name);
    let is = |workload: &&Arc<Workload>| {
        workload.meta.name == name || full(workload) == name || workload.address() == name
    };
    let found: Vec<_> = world.workloads().iter().filter(is).collect();
    match found.as_slice() {
        [only] => Ok((*only).clone()),
        [] => {
            let mut known: Vec<String> = world.workloads().iter().map(|w| full(w)).collect();
            // Whoever names a service means one of its workloads.
            let close: Vec<_> = known.iter().filter(|k| k.contains(name)).cloned().collect();
            if !close.is_empty() {
                known = close;
            }
            bail!("no workload is called {name:?}; {}", known_ones("WorkloadEntries", &known))
        }
        several => {
            let several: Vec<_> = several.iter().map(|w| full(w)).collect();
            bail!("several workloads are called {name:?}: say which, {}", several.join(" or "))
        }
    }
}

/// The mesh's identities, with the addresses of their workloads.
pub fn identities(world: &World) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for workload in world.workloads() {
        let id = of_account(world, &workload.meta.namespace, workload.service_account());
        found.entry(id).or_default().push(workload.address().to_owned());
    }
    found
}

fn of_account(world: &World, namespace: &str, account: &str) -> String {
    format!("spiffe://{}/ns/{namespace}/sa/{account}", world.mesh().trust_domain)
}

/// The SPIFFE ID that somebody means: in full, as policies write it (`TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`), or
/// `NAMESPACE/ACCOUNT`. One of the mesh's own trust domains must be some workload's, unless `any`.
///
/// # Errors
/// It is none, or no workload has it.
pub fn identity(world: &World, text: &str, any: bool) -> anyhow::Result<String> {
    let parts: Vec<_> = text.split('/').collect();
    let full = match parts.as_slice() {
        _ if text.starts_with("spiffe://") => text.to_owned(),
        [_, "ns", _, "sa", _] => format!("spiffe://{text}"),
        [namespace, account] => of_account(world, namespace, account),
        _ => bail!(
            "{text:?} is no identity: write spiffe://{}/ns/NAMESPACE/sa/SERVICE-ACCOUNT, or NAMESPACE/SERVICE-ACCOUNT",
            world.mesh().trust_domain
        ),
    };
    let id: SpiffeId = match full.parse() {
        Ok(id) => id,
        Err(error) => bail!("{text:?} is no identity: {error}"),
    };
    let mesh = world.mesh();
    let ours = id.trust_domain() == mesh.trust_domain
        || mesh.trust_domain_aliases.iter().any(|alias| alias == id.trust_domain());
    let known = identities(world);
    let in_mesh = format!("spiffe://{}{}", mesh.trust_domain, id.path());
    if ours && !any && !known.contains_key(&in_mesh) {
        let known: Vec<String> = known.into_keys().collect();
        bail!(
            "no workload has the identity {full}; {}; --any-identity decides for it all the same",
            known_ones("identities", &known)
        );
    }
    Ok(full)
}

fn known_ones(what: &str, known: &[String]) -> String {
    match known.len() {
        0 => format!("the directory has no {what}: check --dir"),
        n if n > LISTED => {
            format!(
                "check the name, and --dir; {what}: {} and {} more",
                known[..LISTED].join(", "),
                n - LISTED
            )
        }
        _ => format!("check the name, and --dir; {what}: {}", known.join(", ")),
    }
}
