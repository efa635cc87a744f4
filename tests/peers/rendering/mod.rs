//! The rendering cases (tests/rendering) through a real Envoy: it gets what our control plane renders for the workload, real
//! connections and requests come to it, and what comes to the servers behind it is compared with what `weft test` says.
//!
//! Each file is a host of its own on which every address is the loopback's: endpoints are played by servers at their own
//! addresses. The kernel redirects nothing; the PROXY protocol says in its place where a connection was going.

mod client;
mod configuration;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::Value;
use weft::test::{AskedUrl, Case};

use self::client::Seen;
use self::configuration::Pki;
use crate::netns::hosts::Host;
use crate::programs::{Process, get, peer};

/// As many cases as there have to be.
const LEAST: usize = 400;
/// Files at once.
const AT_ONCE: usize = 2;
/// Everything that cases speak of as an address.
const EVERYWHERE: [&str; 4] = ["10.255.255.254/8", "203.0.113.254/24", "192.0.2.254/24", "198.18.0.254/15"];
/// Where an Envoy's admin interface is, at its workload's address.
const ADMIN: u16 = 15900;

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rendering");
    weft_control::ingest::list_files(&directory).unwrap()
}

/// Where an endpoint is played: at its own address, or at one that stands for its name; nowhere if it is a socket's path.
fn played_at(address: &str) -> Option<SocketAddr> {
    if let Ok(address) = address.parse() {
        return Some(address);
    }
    let (host, port) = address.rsplit_once(':').filter(|_| !address.starts_with("unix:"))?;
    let mut hasher = DefaultHasher::new();
    host.hash(&mut hasher);
    let [.., a, b] = hasher.finish().to_be_bytes();
    Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, a, b)), port.parse().ok()?))
}

/// A case and what the simulator finds.
struct Played {
    case: Case,
    found: Value,
    /// The workload whose proxy is asked.
    workload: String,
    /// Its address.
    address: IpAddr,
    /// It is a gateway.
    gateway: bool,
}

impl Played {
    /// The URL that is asked for.
    fn asked(&self) -> Option<AskedUrl<'_>> {
        self.case.from.as_ref()?;
        self.case.asked().unwrap()
    }

    fn destinations(&self) -> impl Iterator<Item = &Value> {
        self.found["destinations"].as_array().into_iter().flatten()
    }

    fn endpoints(&self) -> impl Iterator<Item = &Value> {
        self.destinations().flat_map(|d| d["endpoints"].as_array().into_iter().flatten())
    }

    /// Whether our client and servers can play it: they speak HTTP/1.1, know no sockets by path, and leave chance alone.
    fn is_played(&self) -> bool {
        let http2 = self.destinations().any(|d| d["http"] == "HTTP/2");
        let socket = self.endpoints().any(|e| e["address"].as_str().is_some_and(|a| a.starts_with("unix:")));
        let chance = ["abort", "delay"].into_iter().any(|kind| {
            let share = self.found["fault"][kind]["percent"].as_f64();
            share.is_some_and(|share| share > 0.0 && share < 100.0)
        });
        self.found["dialled"].is_string() && !http2 && !socket && !chance
    }
}

#[test]
fn envoy_does_with_what_is_rendered_what_the_cases_say() {
    let (next, files) = (AtomicUsize::new(0), files());
    let outcomes: Vec<(usize, Vec<String>)> = std::thread::scope(|scope| {
        let work = || {
            let (mut played, mut wrong) = (0, Vec::new());
            while let Some(file) = files.get(next.fetch_add(1, Relaxed)) {
                // A configuration that Envoy does not take is one file's failure, and the others are still played.
                match std::panic::catch_unwind(|| play(file)) {
                    Ok((count, more)) => {
                        played += count;
                        wrong.extend(more);
                    }
                    Err(_) => wrong.push(format!("{}: it cannot be played, see above", file.display())),
                }
            }
            (played, wrong)
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let played: usize = outcomes.iter().map(|(played, _)| played).sum();
    let wrong: Vec<_> = outcomes.into_iter().flat_map(|(_, wrong)| wrong).collect();
    println!("{played} cases");
    assert!(wrong.is_empty(), "{} of {played} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(played >= LEAST, "only {played} cases");
}

/// Plays a file's cases: how many, and what was otherwise.
fn play(file: &Path) -> (usize, Vec<String>) {
    let mut wrong = Vec::new();
    let shown = file.file_stem().unwrap().to_string_lossy().into_owned();
    let world = weft::configuration::read(file).unwrap();
    let cases = weft::test::read(file).unwrap().into_iter().flat_map(|(_, cases)| cases);
    let outcomes = weft::test::run(&world, &[file.to_owned()]).unwrap();
    let played: Vec<Played> = cases
        .zip(outcomes)
        .filter_map(|(case, outcome)| {
            let workload = case.from.clone().or(case.to.clone())?;
            let known = weft::authz::workload(&world, &workload).unwrap();
            let (address, gateway) = (known.address().parse().unwrap(), known.is_gateway());
            Some(Played { case, found: outcome.found, workload, address, gateway })
        })
        .filter(Played::is_played)
        .collect();

    let host = Host::new("cases");
    for range in EVERYWHERE {
        host.ip(&format!("addr add {range} dev lo"));
    }
    let pki = Pki::new();
    // What servers at an address must be called so that clients believe them.
    let mut names: BTreeMap<SocketAddr, BTreeSet<String>> = BTreeMap::new();
    for destination in played.iter().flat_map(Played::destinations) {
        let demanded = destination["tls"]["subjectAltNames"].as_array().into_iter().flatten();
        let demanded: Vec<_> = demanded.filter_map(|n| n.as_str().map(str::to_owned)).collect();
        for endpoint in destination["endpoints"].as_array().into_iter().flatten() {
            if let Some(at) = endpoint["address"].as_str().and_then(played_at) {
                names.entry(at).or_default().extend(demanded.iter().filter(|n| !n.contains(' ')).cloned());
            }
        }
    }
    let servers: Vec<_> = names
        .into_iter()
        .map(|(at, names)| {
            let pki = pki.clone();
            host.serve(at.ip(), at.port(), move |stream, _| upstream::answer(stream, &pki, &names))
        })
        .collect();

    let workloads: BTreeSet<&str> = played.iter().map(|p| p.workload.as_str()).collect();
    let mut proxies = Vec::new();
    for name in workloads {
        let workload = weft::authz::workload(&world, name).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bootstrap.json");
        let address: IpAddr = workload.address().parse().unwrap();
        let admin = SocketAddr::new(address, ADMIN);
        let bootstrap = configuration::bootstrap(&world, &workload, &pki, admin);
        std::fs::write(&path, serde_json::to_vec(&bootstrap).unwrap()).unwrap();
        let mut envoy = Command::new(peer("WEFT_ENVOY"));
        envoy.arg("-c").arg(&path).args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"]);
        let process = Process::start(
            &format!("envoy-{shown}-{}", name.replace('/', "-")),
            &mut host.command(&envoy),
            directory.path(),
        );
        proxies.push((name, process, directory, admin));
    }
    for (_, process, _, admin) in &mut proxies {
        let admin = *admin;
        process.wait("ready", || host.inside(|| get(admin, "/ready")).is_ok_and(|(status, _)| status == 200));
    }
    for one in &played {
        let seen = client::play(&host, &pki, one);
        if let Err(why) = check(one, &seen) {
            let log = proxies.iter().find(|(name, ..)| *name == one.workload).map(|(_, p, ..)| p.log());
            wrong.push(format!(
                "{shown}: {}: {why}\n    seen {seen:?}\n    found {}\n    {}",
                one.case.name,
                one.found,
                log.unwrap_or_default()
            ));
        }
    }
    drop(proxies);
    drop(servers);
    (played.len(), wrong)
}

/// Whether what was seen is what the simulator finds.
fn check(one: &Played, seen: &Seen) -> Result<(), String> {
    let found = &one.found;
    let closed = || match seen {
        Seen::Closed(_) => Ok(()),
        _ => Err("it should have been closed".to_owned()),
    };
    if found["refused"].is_string() {
        return closed();
    }
    if let (Some(names), Some(certificate)) =
        (found["downstreamTls"]["certificates"].as_array(), seen.certificate())
    {
        let carried = |name: &Value| configuration::carries(certificate, name.as_str().unwrap_or_default());
        if !names.iter().any(carried) {
            return Err(format!("another certificate was shown than one of {names:?}"));
        }
    }
    let http = found["as"] == "http";
    if http && one.case.request.is_none() {
        return match seen {
            Seen::Closed(why) => Err(format!("it was closed: {why}")),
            _ => Ok(()),
        };
    }
    if let Some(status) = found["status"].as_u64() {
        return seen.is_answer(status, found["location"].as_str(), found["body"].as_str());
    }
    if let (Some(status), Some(100)) =
        (found["fault"]["abort"]["status"].as_u64(), found["fault"]["abort"]["percent"].as_u64())
    {
        return seen.is_answer(status, None, None);
    }
    let places: BTreeMap<SocketAddr, (&Value, &Value)> = one
        .destinations()
        .filter(|d| d["weight"].as_u64() != Some(0))
        .flat_map(|d| d["endpoints"].as_array().into_iter().flatten().map(move |e| (d, e)))
        .filter_map(|(d, e)| Some((played_at(e["address"].as_str()?)?, (d, e))))
        .collect();
    if places.is_empty() {
        return if http { seen.is_answer(503, None, None) } else { closed() };
    }
    let told = seen.told()?;
    let at: SocketAddr = told["at"].as_str().and_then(|at| at.parse().ok()).ok_or("no server answered")?;
    let (destination, endpoint) = places.get(&at).ok_or_else(|| format!("it came to {at}"))?;
    secured(one, destination, endpoint, &told["tls"])?;
    if !http {
        return Ok(());
    }
    for part in ["path", "host"] {
        if told[part] != found[part] {
            return Err(format!("{part} is {} at the server", told[part]));
        }
    }
    let sent = |name: &str| told["headers"][name].as_str();
    for (name, value) in found["headers"].as_object().into_iter().flatten() {
        if sent(name) != value.as_str() {
            return Err(format!("{name} is {:?} at the server", sent(name)));
        }
    }
    for name in one.case.headers.keys().map(|name| name.to_ascii_lowercase()).filter(|name| name != "host") {
        if found["headers"][&name].is_null() && sent(&name).is_some() {
            return Err(format!("{name} is still there at the server"));
        }
    }
    for (name, value) in found["responseHeaders"].as_object().into_iter().flatten() {
        if seen.header(name).as_deref() != value.as_str() {
            return Err(format!("{name} is {:?} in the answer", seen.header(name)));
        }
    }
    Ok(())
}

/// Whether the layers of TLS that the server saw are the endpoint's, and the client's own where it goes through.
fn secured(one: &Played, destination: &Value, endpoint: &Value, layers: &Value) -> Result<(), String> {
    let mut layers = layers.as_array().cloned().unwrap_or_default().into_iter();
    let mode = endpoint["tls"].as_str().unwrap_or("none");
    if mode != "none" {
        let outer = layers.next().ok_or("plain text came to the server")?;
        if outer["mode"] != mode {
            return Err(format!("TLS of the mode {} came to the server", outer["mode"]));
        }
        let host = one.found["host"].as_str().unwrap_or_default();
        let wanted = match destination["tls"]["sni"].as_str() {
            Some("the request's host") => Some(host.rsplit_once(':').map_or(host, |(host, _)| host)),
            given => given,
        };
        if outer["sni"].as_str() != wanted {
            return Err(format!("the server was asked for {}", outer["sni"]));
        }
    }
    let through = one.found["downstreamTls"]["mode"] == "passthrough";
    match (layers.next(), through) {
        (None, false) | (Some(_), true) => Ok(()),
        (Some(inner), false) => Err(format!("TLS came to the server: {inner}")),
        (None, true) => Err("the client's TLS did not come through".to_owned()),
    }
}
