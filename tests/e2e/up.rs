//! The supervisor: it starts a mesh, holds it, says what is wrong, and leaves nothing behind.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;
use weft::client::Connection;
use weft::up::{Mesh, Part, Signal};

use crate::support::mesh::{alone, runtime};
use crate::support::pair::{Pair, workload};
use crate::support::{Running, WEFT, eventually, stderr, weft, weft_tidy};

/// Processes of this user whose command line or environment mentions `marker`.
fn processes(marker: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mentions = |pid: &u32| {
        ["cmdline", "environ"].iter().any(|file| {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(marker)
        })
    };
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(mentions).collect()
}

/// Asks `back` on behalf of `front`, through front's sidecar.
async fn ask(mesh: &Mesh) -> anyhow::Result<(u16, Value)> {
    let proxy = mesh.workload("front-1")?.http_proxy.unwrap();
    let request =
        Request::get("http://back:8080/").header("host", "back:8080").body(Full::<Bytes>::default())?;
    let answer = Connection::open(proxy).await?.send(request).await?;
    Ok((answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap_or_default()))
}

async fn asked(mesh: &Mesh, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let seen = ask(mesh).await;
        if matches!(seen, Ok((200, _))) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {seen:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_mesh_starts_survives_deaths_and_leaves_nothing_behind() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(72);
        let mut mesh = pair.start().await;
        let mut deaths = mesh.deaths().unwrap();
        let (status, says) = ask(&mesh).await.unwrap();
        assert_eq!(status, 200);
        assert_eq!(says["caller"]["spiffe"], "spiffe://cluster.local/ns/pair/sa/front");
        assert_eq!(says["workload"], "back-1");

        // A proxy that crashes is named, and started again.
        let proxy = Part::Proxy("back-1".to_owned());
        let before = mesh.pid(&proxy).unwrap();
        mesh.signal(&proxy, Signal::KILL).unwrap();
        let death = deaths.recv().await.unwrap();
        assert_eq!((death.part.clone(), death.status.as_str()), (proxy.clone(), "signal 9"));
        assert!(death.to_string().contains("the proxy of back-1"), "{death}");
        asked(&mesh, "the proxy is back").await;
        assert_ne!(mesh.pid(&proxy), Some(before));

        // Without the control plane traffic goes on; it can be started again.
        mesh.stop(&Part::Control, Signal::KILL).await.unwrap();
        assert_eq!(mesh.pid(&Part::Control), None);
        assert_eq!(ask(&mesh).await.unwrap().0, 200);
        assert!(mesh.unready().await.iter().any(|u| u.contains("the control plane: does not run")));
        mesh.restart(&Part::Control).unwrap();
        mesh.wait_ready(Duration::from_secs(30)).await.unwrap();

        // An application that is stopped stays down.
        mesh.stop(&Part::App("back-1".to_owned()), Signal::TERM).await.unwrap();
        assert_eq!(ask(&mesh).await.unwrap().0, 503);
        mesh.restart(&Part::App("back-1".to_owned())).unwrap();
        asked(&mesh, "the application is back").await;

        let running = mesh.running();
        assert_eq!(running.len(), 5, "{running:?}");
        let run_dir = mesh.run_dir().to_owned();
        mesh.shutdown().await.unwrap();
        for (part, pid) in running {
            assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{part} is still there");
        }
        // Somebody died, so the logs stay for who wants to look.
        assert!(run_dir.join("logs/back-1.proxy.log").exists());
        std::fs::remove_dir_all(run_dir).unwrap();
    });
}

/// `weft up` in a process of its own.
fn up(pair: &Pair, loopback: &str) -> Child {
    let out = std::fs::File::create(pair.path().join("out")).unwrap();
    Command::new(WEFT)
        .args(["up", "--loopback", loopback, "--drain-time", "1s", "--concurrency", "1", "--state-dir"])
        .args([pair.state_dir(), "--run-dir".into(), pair.path().join("run"), pair.dir()])
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap()
}

fn wait_for_ready(pair: &Pair) -> String {
    let out = pair.path().join("out");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let text = std::fs::read_to_string(&out).unwrap_or_default();
        if text.contains("Ctrl-C ends it") {
            return text;
        }
        assert!(Instant::now() < deadline, "not ready: {text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_command_prints_lines_that_work_and_ends_cleanly_when_told_to() {
    let _alone = alone();
    let pair = Pair::new(73);
    let mut process = Running(up(&pair, "73"));
    let text = wait_for_ready(&pair);
    let curl = text.lines().find(|l| l.contains("curl -x")).unwrap().trim();
    let words: Vec<_> = curl.split(' ').collect();
    let ["curl", "-x", proxy, url] = words[..] else { panic!("{curl}") };
    let proxy: SocketAddr = proxy.strip_prefix("http://").unwrap().parse().unwrap();
    let host = url.strip_prefix("http://").unwrap().trim_end_matches('/');
    let request = Request::get(url).header("host", host).body(Full::default()).unwrap();
    let answer = runtime().block_on(async { Connection::open(proxy).await?.send(request).await }).unwrap();
    assert_eq!(answer.status, 200, "{curl}: {}", answer.text());

    // Edits are answered where the command was given.
    let seen = |what: &str| std::fs::read_to_string(pair.path().join("out")).unwrap().contains(what);
    let file = pair.path().join("run/config/back.yaml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace("serviceAccount", "serviceAcount")).unwrap();
    eventually("a refusal", || seen("back.yaml:") && seen("spec.serviceAcount") && seen("last good state"));
    std::fs::write(&file, good.replace("version: v1", "version: v2")).unwrap();
    eventually("a change", || seen("the edit is taken"));

    assert_eq!(processes("127.73.").len(), 5);
    let pid = rustix::process::Pid::from_raw(process.0.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(process.0.wait().unwrap().success());
    assert_eq!(processes("127.73."), Vec::<u32>::new());
}

#[test]
fn nothing_survives_a_supervisor_that_is_killed() {
    let _alone = alone();
    let pair = Pair::new(74);
    let mut process = Running(up(&pair, "74"));
    wait_for_ready(&pair);
    assert_eq!(processes("127.74.").len(), 5);
    process.0.kill().unwrap();
    eventually("all processes are gone", || processes("127.74.").is_empty());
}

/// Runs `weft up` on a mesh that cannot start; gives its errors.
fn refused(pair: &Pair, loopback: &str) -> String {
    let (dir, state, run) = (pair.dir(), pair.state_dir(), pair.path().join("run"));
    let [dir, state, run] = [&dir, &state, &run].map(|p| p.to_str().unwrap());
    let output = weft(&["up", dir, "--loopback", loopback, "--state-dir", state, "--run-dir", run]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let error = stderr(&output);
    assert!(error.lines().any(|l| l.starts_with("weft: ")), "{error}");
    error
}

#[test]
fn a_directory_that_is_not_there_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let error = stderr(&weft_tidy(temporary.path(), &["up", "/nowhere/at/all"]));
    assert!(error.contains("/nowhere/at/all") && error.contains("cannot be read"), "{error}");
}

#[test]
fn wrong_configuration_is_refused_with_file_line_and_field() {
    let pair = Pair::new(75);
    let back = workload("back", 11, "weft app").replace("serviceAccount", "serviceAcount");
    pair.write("back.yaml", &back);
    let error = refused(&pair, "75");
    // The file is the user's own, though a copy with other addresses would have run.
    let file = format!("{}/back.yaml:", pair.dir().display());
    for part in [file.as_str(), "WorkloadEntry pair/back-1", "spec.serviceAcount", "serviceAccount"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    pair.write("back.yaml", "a: [");
    let error = refused(&pair, "75");
    assert!(error.contains("back.yaml:") && error.contains("not valid YAML"), "{error}");
}

#[test]
fn annotations_that_cannot_be_followed_are_refused() {
    let pair = Pair::new(105);
    pair.write("back.yaml", &workload("back", 11, "\"weft 'app\""));
    let error = refused(&pair, "105");
    assert!(error.contains("weft.dev/command") && error.contains("not closed"), "{error}");
    let config = "weft app\n    proxy.istio.io/config: 'tracing: {}'";
    pair.write("back.yaml", &workload("back", 11, config));
    let error = refused(&pair, "105");
    assert!(error.contains("proxy.istio.io/config") && error.contains("tracing"), "{error}");
}

#[test]
fn a_port_in_use_is_refused_with_who_has_it() {
    let pair = Pair::new(76);
    let _taken = TcpListener::bind("127.76.11.1:8080").unwrap();
    let error = refused(&pair, "76");
    let holder = format!("(pid {})", std::process::id());
    for part in ["127.76.11.1:8080", "back-1", &holder, "--loopback"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(processes("127.76."), Vec::<u32>::new());
}

#[test]
fn an_application_that_cannot_run_is_named_with_its_last_words() {
    let _alone = alone();
    let pair = Pair::new(77);
    pair.write("back.yaml", &workload("back", 11, "sh -c 'echo my disk is gone; exit 7'"));
    let error = refused(&pair, "77");
    for part in ["the application of back-1", "exit status 7", "my disk is gone", "back-1.app.log"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(processes("127.77."), Vec::<u32>::new());
}

#[test]
fn a_workloads_own_settings_reach_its_proxy() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(78);
        let config = "weft app\n    proxy.istio.io/config: |\n      concurrency: 3\n      proxyMetadata: {SECRET_TTL: 40s}";
        pair.write("back.yaml", &workload("back", 11, config));
        // A ProxyConfig of the namespace stands behind what the workload says itself, one that selects it before.
        pair.write(
            "proxies.yaml",
            "
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {name: all, namespace: pair}
spec: {concurrency: 1, environmentVariables: {SECRET_TTL: 90s}}
---
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {name: back, namespace: pair}
spec: {selector: {matchLabels: {app: back}}, concurrency: 4}
",
        );
        let mesh = pair.start().await;
        let admin = mesh.workload("back-1").unwrap().admin();
        for (id, expected) in [("back-1", 4), ("front-1", 1)] {
            let admin = mesh.workload(id).unwrap().admin();
            let info = weft::client::get(admin, "/server_info", Duration::from_secs(5)).await.unwrap();
            let info: Value = serde_json::from_slice(&info.body).unwrap();
            assert_eq!(info["command_line_options"]["concurrency"], expected, "{id}");
        }
        let certs = weft::client::get(admin, "/certs", Duration::from_secs(5)).await.unwrap();
        let certs: Value = serde_json::from_slice(&certs.body).unwrap();
        let leaf = &certs["certificates"][0]["cert_chain"][0];
        let time = |key: &str| {
            let text = leaf[key].as_str().unwrap();
            time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap()
        };
        let life = time("expiration_time") - time("valid_from");
        assert!((38..=41).contains(&life.whole_seconds()), "{life}");
        mesh.shutdown().await.unwrap();
    });
}
