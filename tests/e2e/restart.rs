//! A proxy starts again: from what it kept, while its control plane is away, within a second, and its clients see clean errors at
//! most.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use weft::client::Connection;
use weft::up::{Mesh, Part, Signal};

use crate::support::http::get;
use crate::support::logged::Logged;
use crate::support::mesh::{alone, runtime};
use crate::support::pair::Pair;
use crate::support::world::World;
use crate::support::{eventually, free_address};

const EXTRA: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: extra, namespace: pair}
spec:
  hosts: [extra.example]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1}]
";

/// How a request of the first workload's application to the second ended, and when.
#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    took: Duration,
    /// A status, or the error of a connection.
    outcome: Result<u16, String>,
}

async fn ask(proxy: std::net::SocketAddr) -> Seen {
    let began = Instant::now();
    let asking = async {
        let request =
            Request::get("http://back:8080/").header("host", "back:8080").body(Full::<Bytes>::default())?;
        Ok::<_, anyhow::Error>(Connection::open(proxy).await?.send(request).await?.status.as_u16())
    };
    let outcome = match tokio::time::timeout(Duration::from_secs(5), asking).await {
        Ok(answered) => answered.map_err(|e| format!("{e:#}")),
        Err(_) => panic!("a request hangs"),
    };
    Seen { at: Instant::now(), took: began.elapsed(), outcome }
}

/// Requests without pause from several clients, until told to stop; what they saw.
fn load(proxy: std::net::SocketAddr, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<Vec<Seen>> {
    let stop = stop.clone();
    tokio::spawn(async move {
        let client = |_| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    seen.push(ask(proxy).await);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                seen
            })
        };
        let mut all = Vec::new();
        for client in (0..4).map(client).collect::<Vec<_>>() {
            all.extend(client.await.expect("a client"));
        }
        all.sort_by_key(|s: &Seen| s.at);
        all
    })
}

/// Kills a proxy under load; gives how long nobody was served, and what clients saw.
async fn kill(mesh: &Mesh, part: &Part) -> (Duration, Vec<Seen>) {
    let proxy = mesh.workload("front-1").unwrap().http_proxy.unwrap();
    // The first one may take long on a busy machine, and it is what serves before the end that counts.
    assert_eq!(ask(proxy).await.outcome, Ok(200));
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(proxy, &stop);
    let starts = mesh.state(part).unwrap().starts;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let killed = Instant::now();
    mesh.signal(part, Signal::KILL).unwrap();
    while mesh.state(part).unwrap().starts == starts || mesh.pid(part).is_none() {
        assert!(killed.elapsed() < Duration::from_secs(10), "it is not started again");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stop.store(true, Ordering::Relaxed);
    let seen = load.await.unwrap();
    let before = seen.iter().filter(|s| s.at < killed);
    assert!(before.clone().count() > 0 && before.clone().all(|s| s.outcome == Ok(200)), "{seen:?}");
    let failed = seen.iter().filter(|s| s.outcome != Ok(200)).map(|s| s.at).max();
    (failed.map_or(Duration::ZERO, |at| at - killed), seen)
}

#[test]
fn sidecars_that_are_killed_without_a_control_plane_serve_within_a_second_and_hear_later_what_changed() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(79);
        pair.write("extra.yaml", EXTRA);
        let mesh = pair.start().await;
        let (front, back) = (Part::Proxy("front-1".to_owned()), Part::Proxy("back-1".to_owned()));
        let log = |part: &Part| std::fs::read_to_string(mesh.log(part)).unwrap();
        for id in ["front-1", "back-1"] {
            let file = mesh.run_dir().join("proxies").join(id).join("configuration");
            eventually("the configuration is kept", || file.exists());
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let clusters = |id: &str| get(mesh.workload(id).unwrap().admin(), "/clusters").unwrap().1;
        assert!(clusters("front-1").contains("extra.example"));
        for id in ["front-1", "back-1"] {
            still(&mesh.run_dir().join("proxies").join(id).join("configuration"));
        }
        mesh.stop(&Part::Control, Signal::KILL).await.unwrap();

        for part in [&back, &front] {
            let (away, seen) = kill(&mesh, part).await;
            let log = log(part);
            for words in ["starting with the stored configuration", "starting with the stored certificate"] {
                assert!(log.contains(words), "{part}: {words}: {log}");
            }
            eprintln!("{part} was killed: {} requests, not served for {away:?}", seen.len());
            assert!(away < Duration::from_secs(1), "{part}: not served for {away:?}: {seen:?}");
            for one in &seen {
                // What the sidecar says of the other one's absence, or what the kernel says of the sidecar's own.
                let clean = matches!(&one.outcome, Ok(200 | 503)) || (part == &front && one.outcome.is_err());
                assert!(clean && one.took < Duration::from_secs(2), "{part}: {one:?}");
            }
        }
        // Ready, though the control plane is away.
        for id in ["front-1", "back-1"] {
            let status = mesh.workload(id).unwrap().status();
            assert_eq!(get(status, "/healthz/ready").unwrap(), (200, "LIVE\n".to_owned()));
        }
        assert!(clusters("front-1").contains("extra.example"));

        // What went while both were away goes when the control plane is back; what stayed is not sent again.
        std::fs::remove_file(mesh.config_dir().join("extra.yaml")).unwrap();
        mesh.restart(&Part::Control).unwrap();
        eventually("what is no more goes", || !clusters("front-1").contains("extra.example"));
        assert_eq!(ask(mesh.workload("front-1").unwrap().http_proxy.unwrap()).await.outcome, Ok(200));
        mesh.shutdown().await.unwrap();
    });
}

/// Waits until what a proxy keeps stays as it is: a change is written within a second, and all that is on its way with it.
fn still(file: &Path) {
    let read = || std::fs::read(file).unwrap_or_default();
    let (mut last, mut since) = (read(), Instant::now());
    eventually("what is kept stays as it is", || {
        let now = read();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() >= Duration::from_millis(1500)
    });
}

#[test]
fn an_edited_state_is_refused_and_a_control_plane_that_comes_back_tells_only_what_changed() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(108);
        pair.write("extra.yaml", EXTRA);
        let mesh = pair.start().await;
        let front = Part::Proxy("front-1".to_owned());
        let log = |part: &Part| std::fs::read_to_string(mesh.log(part)).unwrap();
        let clusters =
            |id: &str| get(mesh.workload(id).unwrap().admin(), "/clusters").map_or(String::new(), |a| a.1);
        let file = mesh.run_dir().join("proxies/front-1/configuration");
        let is_kept = || std::fs::read(&file).is_ok_and(|now| now.windows(13).any(|w| w == b"extra.example"));
        eventually("the configuration is kept", is_kept);
        still(&file);
        mesh.stop(&Part::Control, Signal::KILL).await.unwrap();

        // What somebody has edited is not used, and the proxy waits for the control plane. As it was, it is good again. Edited while
        // the proxy does not run, which could write it once more.
        mesh.stop(&front, Signal::KILL).await.unwrap();
        let good = std::fs::read(&file).unwrap();
        let at = good.windows(13).position(|w| w == b"extra.example").unwrap();
        let mut edited = good.clone();
        edited[at..at + 5].copy_from_slice(b"other");
        std::fs::write(&file, &edited).unwrap();
        let status = mesh.workload("front-1").unwrap().status();
        let ready = || get(status, "/healthz/ready").map_or(0, |a| a.0);
        mesh.restart(&front).unwrap();
        eventually("the edited state is refused", || {
            ready() == 503 && log(&front).contains("it is not as this proxy wrote it")
        });
        let events = get(mesh.workload("front-1").unwrap().admin(), "/weft/events").unwrap().1;
        assert!(events.contains("\"config-rejected\"") && events.contains("\"stored\""), "{events}");
        assert!(!clusters("front-1").contains("example"), "nothing of it is taken");
        mesh.stop(&front, Signal::KILL).await.unwrap();
        std::fs::write(&file, &good).unwrap();
        mesh.restart(&front).unwrap();
        eventually("the unedited one serves", || {
            ready() == 200 && clusters("front-1").contains("extra.example")
        });

        std::fs::remove_file(mesh.config_dir().join("extra.yaml")).unwrap();
        mesh.restart(&Part::Control).unwrap();
        eventually("what is no more goes", || !clusters("front-1").contains("extra.example"));
        eventually("both are connected again", || {
            ["front-1", "back-1"].iter().all(|id| {
                let stats = get(mesh.workload(id).unwrap().admin(), "/stats").unwrap().1;
                stats.contains("control_plane.connected_state: 1")
            })
        });
        let page = get(mesh.control().metrics, "/metrics").unwrap().1;
        for kind in ["cds", "lds", "eds"] {
            // A counter that is not there yet has not been moved either; that pushes are counted shows the first one.
            let sum = format!("pilot_xds_config_size_bytes_sum{{type=\"{kind}\"}} ");
            let sent: f64 =
                page.lines().find_map(|l| l.strip_prefix(&sum)).map_or(0.0, |n| n.parse().unwrap());
            assert_eq!(sent, 0.0, "{kind} was sent again: {page}");
        }
        let removed = page.lines().find(|l| l.starts_with("pilot_xds_pushes{type=\"cds\"}")).unwrap();
        assert!(!removed.ends_with(" 0"), "the removal was pushed: {removed}");
        mesh.shutdown().await.unwrap();
    });
}

/// A proxy without a control plane.
fn alone_with(ip: &str, state: &Path) -> Logged {
    let (nobody, admin) = (free_address().to_string(), format!("{ip}:15000"));
    Logged::weft(&[
        "proxy",
        "--xds-address",
        &nobody,
        "--xds-plaintext",
        "--concurrency",
        "1",
        "--ip",
        ip,
        "--admin-address",
        &admin,
        "--state-dir",
        state.to_str().unwrap(),
    ])
}

#[test]
fn a_start_from_the_state_is_quick() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let mut world = World::start_with("127.42.1.1", &["--state-dir", state.to_str().unwrap()]);
    eventually("the configuration is kept", || state.join("configuration").exists());
    world.proxy.kill();
    let began = Instant::now();
    let proxy = alone_with(world.ip, &state);
    while world.get("/").is_err() {
        assert!(began.elapsed() < Duration::from_secs(5), "{}", proxy.log());
        std::thread::sleep(Duration::from_millis(1));
    }
    eprintln!("a proxy serves {:?} after its start, from its state directory", began.elapsed());
    assert_eq!(world.get("/").unwrap(), (200, "backend".to_owned()));
    assert_eq!(get(world.at(15021), "/healthz/ready").unwrap().0, 200);
    assert_eq!(get(world.at(15020), "/healthz/ready").unwrap().0, 200);
}

#[test]
fn a_state_that_cannot_be_used_is_said_and_is_no_reason_not_to_start() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let file = state.join("configuration");
    let flags = ["--state-dir", state.to_str().unwrap()];
    let mut world = World::start_with("127.42.2.1", &flags);
    eventually("the configuration is kept", || file.exists());
    world.proxy.kill();
    let good = std::fs::read(&file).unwrap();

    let mut cut = good.clone();
    cut.truncate(good.len() / 2);
    for (bytes, words) in [
        (&cut[..], "not as this proxy wrote it"),
        (b"", "no code"),
        (b"nonsense\n{}\n", "not as this proxy wrote it"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let proxy = alone_with(world.ip, &state);
        let line = proxy.says(&["WARN", "the stored configuration is not used", words]);
        assert!(line.contains(file.to_str().unwrap()), "{line}");
        eventually("it runs", || get(world.at(15021), "/healthz/ready").is_ok_and(|a| a.0 == 503));
    }
    // Of another workload; a directory in its place; nothing at all.
    std::fs::write(&file, &good).unwrap();
    let other = alone_with("127.42.3.1", &state);
    other.says(&["the stored configuration is not used", "127.42.2.1", "127.42.3.1"]);
    drop(other);
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let proxy = alone_with(world.ip, &state);
    proxy.says(&["the stored configuration is not used"]);
    drop(proxy);
    std::fs::remove_dir(&file).unwrap();

    // And with a control plane everything is as ever, and kept again.
    std::fs::write(&file, &cut).unwrap();
    let mut world = World::start_with("127.42.2.1", &flags);
    eventually("the configuration is kept again", || {
        std::fs::read(&file).is_ok_and(|now| now.len() > cut.len() && now != good)
    });
    world.proxy.kill();
    let _proxy = alone_with(world.ip, &state);
    eventually("it serves", || world.get("/").is_ok_and(|a| a == (200, "backend".to_owned())));
}
