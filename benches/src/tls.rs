//! Keys and certificates for the rows with mutual TLS: a P-256 chain of root, intermediate and one leaf that both ends use.

use std::path::Path;

use time::{Duration, OffsetDateTime};
use weft_certs::authority::{Authority, KeyKind};
use weft_certs::pem;
use weft_certs::spiffe::TrustDomain;

/// The identity that both ends prove and demand.
pub const ID: &str = "spiffe://cluster.local/ns/ecotrack/sa/bench";
/// Its DNS name, for nginx and haproxy, which verify names and not SPIFFE ids.
pub const NAME: &str = "bench.ecotrack.svc.cluster.local";

/// Writes `chain.pem`, `key.pem`, `root.pem`, and `both.pem` (chain and key, as haproxy wants them).
pub fn write(directory: &Path) -> anyhow::Result<()> {
    let (now, day) = (OffsetDateTime::now_utc(), Duration::days(1));
    let root = Authority::root(KeyKind::P256, now, day)?;
    let intermediate = root.intermediate(KeyKind::P256, now, day)?;
    let id = "cluster.local".parse::<TrustDomain>()?.workload("ecotrack", "bench")?;
    debug_assert_eq!(id.as_str(), ID);
    let (leaf, key) = intermediate.server(&id, &[NAME], &[], now, day)?;
    let chain = pem::encode(&leaf) + intermediate.certificate_pem();
    let key = pem::encode_key(&key);
    std::fs::write(directory.join("both.pem"), format!("{chain}{key}"))?;
    std::fs::write(directory.join("chain.pem"), chain)?;
    std::fs::write(directory.join("key.pem"), key)?;
    std::fs::write(directory.join("root.pem"), root.certificate_pem())?;
    Ok(())
}
