//! A token for one use brings one workload into the mesh, which goes on by its certificate; whoever has copied it comes too late.
//! And one whose certificate nobody renews says so.

use std::time::{Duration, Instant};

use weft::demo::check::observe::credentials;

use crate::support::control::Control;
use crate::support::http::get;
use crate::support::logged::Logged;
use crate::support::{eventually, stderr, stdout, weft};

const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop, namespace: shop}
spec:
  hosts: [shop.example]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1}]
";

#[test]
fn a_token_for_one_use_brings_one_workload_in_which_stays_and_a_copy_of_it_nobody() {
    let mut control = Control::start("127.68.1.1", MESH);
    let state = control.state();
    let output = weft(&[
        "token",
        "create",
        "--once",
        "--state-dir",
        state.to_str().unwrap(),
        "--namespace",
        "shop",
        "--service-account",
        "cart",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let token = stdout(&output).trim().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let (file, own) = (directory.path().join("token"), directory.path().join("state"));
    std::fs::write(&file, &token).unwrap();
    let (secure, root) = (format!("{}:15012", control.ip), control.root());
    let proxy = Logged::weft(&[
        "proxy",
        "--xds-address",
        &secure,
        "--root-cert",
        root.to_str().unwrap(),
        "--token-file",
        file.to_str().unwrap(),
        "--namespace",
        "shop",
        "--service-account",
        "cart",
        "--ip",
        "127.68.1.2",
        "--admin-address",
        "127.68.1.2:15000",
        "--concurrency",
        "1",
        "--cert-ttl",
        "16s",
        "--state-dir",
        own.to_str().unwrap(),
    ]);
    let admin = "127.68.1.2:15000".parse().unwrap();
    let page = |path: &str| get(admin, path).map(|a| a.1).unwrap_or_default();
    let rotations = || {
        let page: serde_json::Value = serde_json::from_str(&page("/certs")).unwrap_or_default();
        page["renewal"]["rotations"].as_u64().unwrap_or_default()
    };
    eventually("it is configured", || page("/config_dump").contains("shop.example"));
    // At half of its life; the token would be of no use for that.
    let renewed = |what: &str, more: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !more() {
            assert!(Instant::now() < deadline, "{what}:\n{}", proxy.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    renewed("its certificate is renewed by the one before", &|| rotations() >= 1);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let copied = || {
        let asked = credentials::from_mesh(secure.parse().unwrap(), &root, &token);
        runtime.block_on(asked).map(|_| ()).map_err(|e| format!("{e:#}"))
    };
    let refused = copied().unwrap_err();
    assert!(refused.contains("for one use, and was used"), "{refused}");
    // The control plane does not forget it, and the workload needs no token any more.
    control.restart();
    assert_eq!(copied(), Err(refused));
    let before = rotations();
    renewed("it goes on", &|| rotations() > before);
    assert!(!proxy.log().contains("was used"), "{}", proxy.log());
}

#[test]
fn rotation_that_is_switched_off_is_said_loudly() {
    let control = Control::start("127.68.2.1", MESH);
    let state = control.state();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let token = weft_control::ca::token::create(&state, "shop", "cart", Duration::from_secs(600));
    std::fs::write(&file, token.unwrap()).unwrap();
    let secure = format!("{}:15012", control.ip);
    let arguments = [
        "proxy",
        "--xds-address",
        &secure,
        "--root-cert",
        control.root().to_str().unwrap(),
        "--token-file",
        file.to_str().unwrap(),
        "--namespace",
        "shop",
        "--service-account",
        "cart",
        "--ip",
        "127.68.2.2",
        "--admin-address",
        "127.68.2.2:15000",
        "--concurrency",
        "1",
    ]
    .map(str::to_owned);
    let proxy = Logged::weft_with(&arguments, &[("AUTOMATIC_ROTATION", "false")]);
    proxy.says(&["WARN", "automatic rotation is switched off", "AUTOMATIC_ROTATION"]);
    let admin = "127.68.2.2:15000".parse().unwrap();
    let page = |path: &str| get(admin, path).map(|a| a.1).unwrap_or_default();
    eventually("it has a certificate", || page("/certs").contains("/sa/cart"));
    let certs: serde_json::Value = serde_json::from_str(&page("/certs")).unwrap();
    assert_eq!(certs["renewal"]["automatic"], false);
    assert!(page("/weft/events").contains("rotation_off"));
    let numbers = page("/stats/prometheus");
    assert!(numbers.contains("certificate_rotation_automatic{secret=\"default\"} 0"), "{numbers}");
}
