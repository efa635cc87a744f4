//! Each workload's certificate, as it shows it to whoever dials its port.

use std::collections::BTreeMap;

use super::observe::chain;
use super::observe::http::Request;
use super::observe::tls::{Outcome, dial};
use super::report::Check;
use super::scene::{NAMESPACE, Scene};

/// Certificates begin some minutes before they are issued, for clocks that are behind.
const BACK_DATED: i64 = 600;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// Names, keys, lifetimes and signatures.
pub async fn checks(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    let workloads = scene.workloads();
    let (mut named, mut signed) = (Vec::new(), Vec::new());
    let mut shapes: BTreeMap<String, usize> = BTreeMap::new();
    for workload in &workloads {
        let request = Request::get("observer", super::apps::QUIET);
        let handshake = match dial(scene.port_of(workload)?, Some(&scene.own), &request).await? {
            Outcome::Answered(handshake, _) => handshake,
            Outcome::Refused(why) => {
                anyhow::bail!("{} refuses a certificate of the mesh: {why}", workload.id)
            }
        };
        let chain = chain::complete(&handshake.chain, &scene.root);
        if let Err(error) = chain::verify(&chain) {
            signed.push(format!("{}: {error:#}", workload.id));
        }
        let read = chain.iter().map(chain::read).collect::<anyhow::Result<Vec<_>>>()?;
        let wanted = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{}", workload.service());
        if let Some(leaf) = read.first()
            && (leaf.uris != [wanted] || leaf.other_names > 0 || leaf.authority)
        {
            named.push(format!("{}: {:?} and {} other names", workload.id, leaf.uris, leaf.other_names));
        }
        let shape: Vec<_> = read.iter().rev().map(|c| format!("{} {}", c.key, life(c.life))).collect();
        *shapes.entry(shape.join(" -> ")).or_default() += 1;
    }
    let all = workloads.len();
    let or_all = |wrong: Vec<String>, right: &str| match wrong.as_slice() {
        [] => format!("{right} at {all} of {all} workloads"),
        wrong => wrong.join("; "),
    };
    let shapes = shapes.iter().map(|(shape, n)| format!("{shape} at {n} of {all} workloads"));
    Ok(vec![
        Check::equal(
            "certificates: names",
            format!(
                "one URI, spiffe://cluster.local/ns/{NAMESPACE}/sa/<service>, at {all} of {all} workloads"
            ),
            or_all(named, &format!("one URI, spiffe://cluster.local/ns/{NAMESPACE}/sa/<service>,")),
        ),
        Check::equal(
            "certificates: keys and lifetimes",
            format!("RSA 4096 10 years -> RSA 2048 1 year -> P-256 24 h at {all} of {all} workloads"),
            shapes.collect::<Vec<_>>().join("; "),
        ),
        Check::equal(
            "certificates: signatures",
            format!("a chain to the mesh's root at {all} of {all} workloads"),
            or_all(signed, "a chain to the mesh's root"),
        ),
    ])
}

/// A lifetime, back-dating left out, in words.
fn life(seconds: i64) -> String {
    let lives = [(3650 * DAY, "10 years"), (365 * DAY, "1 year"), (DAY, "24 h")];
    let near = |wanted: i64| (wanted..=wanted + BACK_DATED).contains(&seconds);
    let found = lives.iter().find(|(wanted, _)| near(*wanted)).map(|(_, words)| (*words).to_owned());
    found.unwrap_or_else(|| chain::life(seconds))
}
