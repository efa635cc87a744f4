//! Every hop of the design's call graph: what its two proxies agreed on, read from the wire between them; whom the server saw,
//! as the upstream application recorded it; and whether a client turns away from a server that is not who it should be.

use super::apps;
use super::observe::credentials::{Authority, Credentials};
use super::observe::http::{Answer, Request, fetch};
use super::observe::tap::Tap;
use super::observe::tls::Server;
use super::observe::{chain, hello::Agreed};
use super::report::Check;
use super::scene::{NAMESPACE, SERVICES, Scene};

const WANTED: Agreed = Agreed { version: 0x0304, group: 0x11ec };
const GATEWAY: &str = "istio-ingressgateway";
const GATEWAY_ID: &str = "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway";

/// Who calls whom.
const HOPS: [(&str, &str); 7] = [
    (GATEWAY, "user-service"),
    (GATEWAY, "product-service"),
    (GATEWAY, "order-service"),
    ("user-service", "product-service"),
    ("product-service", "order-service"),
    ("order-service", "payment-service"),
    ("payment-service", "notification-service"),
];

fn id(who: &str) -> String {
    if who == GATEWAY {
        GATEWAY_ID.to_owned()
    } else {
        format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{who}")
    }
}

/// A request of `client` for one of the tapped hosts.
async fn call(scene: &Scene, client: &str, host: &str, mark: &str) -> anyhow::Result<Answer> {
    let (to, request) = if client == GATEWAY {
        let path = format!("/{host}{}?{mark}", apps::QUIET);
        (scene.gateway()?, Request::get("tap.ecotrack.platform.dev", path))
    } else {
        (scene.out_of(client)?, Request::get(format!("{host}.tap:8080"), format!("{}?{mark}", apps::QUIET)))
    };
    fetch(to, &request).await.map_err(|e| anyhow::anyhow!("{client} -> {host}: {e}"))
}

/// All of it.
pub async fn checks(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    let mut checks = graph(scene).await?;
    checks.push(impostor(scene).await?);
    checks.extend(witness(scene).await?);
    Ok(checks)
}

async fn graph(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    let mut taps = Vec::new();
    for (y, service) in (1..).zip(SERVICES) {
        let to = scene.port_of(scene.instance(service)?)?;
        taps.push((service, Tap::open(scene.address(35, y, 8080), to).await?));
    }
    let (mut agreed, mut met, mut wrong, mut strange) = (0, 0, Vec::new(), Vec::new());
    for (client, server) in HOPS {
        let tap = taps.iter().find(|(service, _)| *service == server).map(|(_, tap)| tap);
        let before = tap.map_or(0, |t| t.wires().len());
        let mark = format!("hop={client}-{server}");
        let answer = call(scene, client, server, &mark).await?;
        let wires = tap.map(Tap::wires).unwrap_or_default();
        let choices: Vec<_> = wires[before..].iter().map(super::observe::tap::Wire::agreed).collect();
        if !choices.is_empty() && choices.iter().all(|c| *c == Some(WANTED)) {
            agreed += 1;
        } else {
            let words = choices.last().copied().flatten().map_or("no TLS".to_owned(), |a| a.to_string());
            wrong.push(format!("{client} -> {server}: {words}"));
        }
        let records = apps::records(scene.instance(server)?, 100).await?;
        let record = records.iter().find(|r| r.path.contains(&mark));
        let caller = record.map(|r| r.caller.as_str()).filter(|c| !c.is_empty());
        if answer.status() == 200 && caller == Some(id(client).as_str()) {
            met += 1;
        } else {
            strange.push(format!(
                "{client} -> {server}: {}, from {}",
                answer.status(),
                caller.unwrap_or("nobody")
            ));
        }
    }
    let all = HOPS.len();
    let words = |n: usize, wrong: &[String]| {
        let rest = if wrong.is_empty() { String::new() } else { format!(" ({})", wrong.join("; ")) };
        format!("{n} of {all} hops{rest}")
    };
    Ok(vec![
        Check::equal(
            "hops: on the wire",
            format!("{WANTED} on {all} of {all} hops"),
            format!("{WANTED} on {}", words(agreed, &wrong)),
        ),
        Check::equal(
            "hops: the caller that the upstream recorded",
            format!("the client's SPIFFE id on {all} of {all} hops"),
            format!("the client's SPIFFE id on {}", words(met, &strange)),
        ),
    ])
}

/// A host whose endpoint is somebody else: the client must not send its request there.
async fn impostor(scene: &Scene) -> anyhow::Result<Check> {
    let payment = scene.instance("payment-service")?;
    let _tap = Tap::open(scene.address(35, 9, 8080), scene.port_of(payment)?).await?;
    let answer = call(scene, "order-service", "impostor", "hop=impostor").await?;
    let arrived = apps::records(payment, 100).await?.iter().any(|r| r.path.contains("hop=impostor"));
    let seen =
        format!("{}, the request {}", answer.status(), if arrived { "arrived" } else { "never arrived" });
    Ok(Check::equal(
        "hops: payment-service in notification-service's place",
        "503, the request never arrived",
        seen,
    ))
}

/// The observer in a server's place: who comes, and to whom nobody comes.
async fn witness(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    let at = scene.address(36, 1, 8080);
    let right = scene.certificate("witness").await?;
    let clients: Vec<&str> = std::iter::once(GATEWAY).chain(SERVICES).collect();
    let (mut good, mut wrong) = (0, Vec::new());
    for client in &clients {
        let server = Server::open(at, &right).await?;
        let (answer, met) = server.serve(call(scene, client, "witness", "hop=witness")).await;
        let status = answer?.status();
        let shown = match met.first() {
            Some(Ok(handshake)) => {
                let leaf = handshake.chain.first().map(chain::read).transpose()?;
                let signed = chain::verify(&chain::complete(&handshake.chain, &scene.root)).is_ok();
                let uris = leaf.map(|l| l.uris).unwrap_or_default();
                (signed && uris == [id(client)] && handshake.agreed == WANTED.to_string())
                    .then_some(())
                    .ok_or_else(|| format!("{} by {uris:?}", handshake.agreed))
            }
            Some(Err(why)) => Err(why.clone()),
            None => Err("it never came".to_owned()),
        };
        match shown {
            Ok(()) if status == 200 => good += 1,
            Ok(()) => wrong.push(format!("{client}: {status}")),
            Err(why) => wrong.push(format!("{client}: {why}")),
        }
    }
    let rest = if wrong.is_empty() { String::new() } else { format!(" ({})", wrong.join("; ")) };
    let all = clients.len();
    let mut checks = vec![Check::equal(
        "hops: clients, as a server sees them",
        format!("{WANTED} and the client's certificate, {all} of {all} proxies"),
        format!("{WANTED} and the client's certificate, {good} of {all} proxies{rest}"),
    )];
    let stranger = Authority::unknown()?.issue(&id("witness"))?;
    for (what, shown) in
        [("another service's certificate", &scene.own), ("a certificate of an unknown CA", &stranger)]
    {
        checks.push(turned_away(scene, at, what, shown).await?);
    }
    Ok(checks)
}

async fn turned_away(
    scene: &Scene,
    at: std::net::SocketAddr,
    what: &str,
    shown: &Credentials,
) -> anyhow::Result<Check> {
    let server = Server::open(at, shown).await?;
    let (answer, met) = server.serve(call(scene, "order-service", "witness", "hop=stranger")).await;
    let (reached, why) = match met.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(none) if none.is_empty() => ("never came", String::new()),
        Ok(_) => ("sent its request", String::new()),
        Err(why) => ("turned away", format!(" ({why})")),
    };
    let seen = format!("the client {reached}, {}", answer?.status());
    let ok = seen == "the client turned away, 503";
    Ok(Check::new(format!("hops: a server with {what}"), "the client turned away, 503", seen + &why, ok))
}
