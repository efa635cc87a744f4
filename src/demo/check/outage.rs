//! The control plane is killed and started again, under traffic.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::apps;
use super::live::{FILE, STABLE_ONLY, reaches, split};
use super::observe::http::Request;
use super::observe::load::{Load, Plan};
use super::observe::stream::Watcher;
use super::report::Check;
use super::scene::{Scene, until};
use crate::up::{Part, Signal};

/// How long it is away.
const AWAY: Duration = Duration::from_millis(2500);
/// In that time a proxy that waits longer after each failure (0.5 s, 1 s, 2 s at most, anything less by chance) tries about
/// five times; one that does not wait tries hundreds of times.
const ATTEMPTS: usize = 12;

/// All of it.
pub async fn checks(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    let proxies = scene.mesh.workloads().len();
    let secure = scene.mesh.control().secure;
    let inside = Plan {
        to: scene.out_of("observer")?,
        request: Request::get("user-service:8080", apps::QUIET),
        connections: 2,
        requests: None,
        rate: Some(60.0),
    };
    let outside = Plan {
        to: scene.gateway()?,
        // Each request on a connection of its own: new connections, too, must go on.
        request: Request::get("api.ecotrack.platform.dev", "/api/orders").with("connection", "close"),
        rate: Some(20.0),
        ..inside.clone()
    };
    let loads = [inside, outside].map(|plan| Load::start(plan, Arc::new(apps::version)));
    let stream = Watcher::start(scene.out_of("observer")?, &apps::long(), Duration::from_secs(10))
        .await
        .map_err(|e| anyhow::anyhow!("the long stream: {e}"))?;

    scene.mesh.stop(&Part::Control, Signal::KILL).await?;
    let begun: u64 = loads.iter().map(Load::begun).sum();
    let attempts = knocks(secure, AWAY).await?;
    let meanwhile = loads.iter().map(Load::begun).sum::<u64>() - begun;
    scene.mesh.restart(&Part::Control)?;
    let mut reconnected = 0;
    let back = until(scene.patience.reconnect, || {
        reconnected = connections(secure);
        std::future::ready((reconnected >= proxies).then_some(()))
    });
    let back = back.await;
    let before = scene.edit(FILE, STABLE_ONLY, &split(50, 50))?;
    let seen = reaches(scene, "canary").await;
    scene.write(FILE, &before)?;
    let mut words = Vec::new();
    let mut good = meanwhile > 50;
    for (name, load) in ["inside", "through the gateway"].into_iter().zip(loads) {
        let tally = load.stop().await;
        good &= tally.good > 20 && tally.failed() == 0 && tally.dropped == 0;
        words.push(format!("{name} {}", tally.words()));
    }
    let watched = stream.stop().await;
    words.push(
        watched
            .broken
            .as_ref()
            .map_or("the stream unbroken".to_owned(), |w| format!("the stream broken ({w})")),
    );
    Ok(vec![
        Check::new(
            "outage: traffic goes on",
            "no failed request, no dropped connection, a long stream unbroken",
            format!("{meanwhile} requests begun without a control plane; {}", words.join("; ")),
            good && watched.broken.is_none(),
        ),
        Check::new(
            "outage: proxies try again with back-off",
            format!("1 to {ATTEMPTS} attempts of each of {proxies} proxies in {:.1} s", AWAY.as_secs_f64()),
            format!("{attempts} attempts, {:.1} of each", attempts as f64 / proxies as f64),
            attempts >= proxies && attempts <= ATTEMPTS * proxies,
        ),
        Check::new(
            "outage: proxies reconnect",
            format!("{proxies} connections to the control plane that was started again"),
            format!("{reconnected}"),
            back.is_some(),
        ),
        Check::new(
            "outage: configuration flows again",
            format!("an edit is seen within {} s", scene.patience.effect.as_secs()),
            seen.map_or("it is not".to_owned(), |t| format!("after {:.2} s", t.as_secs_f64())),
            seen.is_some(),
        ),
    ])
}

/// Stands at the control plane's port for a while and counts who knocks; nobody is let in.
async fn knocks(at: SocketAddr, time: Duration) -> anyhow::Result<usize> {
    let listener = TcpListener::bind(at).await?;
    let mut count = 0;
    let counting = async {
        while let Ok((stream, _)) = listener.accept().await {
            count += 1;
            drop(stream);
        }
    };
    let _ = tokio::time::timeout(time, counting).await;
    Ok(count)
}

/// Established connections to an address, as the kernel lists them from the clients' side.
fn connections(to: SocketAddr) -> usize {
    let IpAddr::V4(ip) = to.ip() else { return 0 };
    // Addresses stand there in the machine's byte order; 01 is ESTABLISHED.
    let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), to.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let established = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next() == Some(wanted.as_str()) && fields.next() == Some("01")
    };
    table.lines().skip(1).filter(established).count()
}
