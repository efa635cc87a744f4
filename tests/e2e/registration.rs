//! A workload that nobody wrote down enters itself by a WorkloadGroup: it is there while its proxy is connected and its application
//! is well.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::Value;

use super::support::control::Control;
use super::support::eventually;
use super::support::http::get;
use super::support::logged::Logged;

const CONTROL: &str = "127.0.84.1";
const VM: &str = "127.0.84.2";
const CLIENT: &str = "127.0.84.3";
/// Where the application says that it is well; its other port is the proxy's.
const HEALTH: u16 = 18081;
const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vm, namespace: shop}
spec:
  template: {serviceAccount: cart, ports: {http: 18080}, labels: {app: cart}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  selector: {app: cart}
  ports: [{name: http, port: 80, targetPort: 18080}]
";

/// A proxy that enters its workload.
fn vm(control: &Control, account: &str, environment: &[(&str, &str)]) -> Logged {
    let token = control.state().join(format!("{account}.token"));
    let text =
        weft_control::ca::token::create(&control.state(), "shop", account, Duration::from_secs(600)).unwrap();
    std::fs::write(&token, text).unwrap();
    let (root, address, admin) = (control.root(), format!("{CONTROL}:15012"), format!("{VM}:15000"));
    let arguments = [
        "proxy",
        "--xds-address",
        &address,
        "--namespace",
        "shop",
        "--service-account",
        account,
        "--ip",
        VM,
        "--admin-address",
        &admin,
        "--interception-mode",
        "NONE",
        "--concurrency",
        "1",
        "--label",
        "version=v7",
        "--auto-register-group",
        "vm",
        "--root-cert",
        root.to_str().unwrap(),
        "--token-file",
        token.to_str().unwrap(),
    ];
    Logged::weft_with(&arguments, environment)
}

/// Where the service is, as the control plane knows it.
fn endpoints(control: &Control) -> Vec<(String, String)> {
    let services: Value = serde_json::from_str(&control.page("/debug/endpointz")).unwrap();
    let cart = services.as_array().unwrap().iter().find(|s| s["namespace"] == "shop").unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = cart["endpoints"].as_array().unwrap().iter();
    all.map(|e| (text(&e["address"]), text(&e["labels"]["version"]))).collect()
}

#[test]
fn a_workload_enters_itself_gets_requests_while_it_is_well_and_goes_with_its_proxy() {
    let mut control = Control::start_with(CONTROL, MESH, &["--workload-entry-grace", "1s"]);
    let here = || vec![(VM.to_owned(), "v7".to_owned())];
    let client = Logged::proxy(CONTROL, CLIENT, "shop", &["--interception-mode", "NONE"]);
    let knows = || {
        let admin = format!("{CLIENT}:15000").parse().unwrap();
        get(admin, "/clusters").is_ok_and(|(_, text)| text.contains(&format!("{VM}:18080")))
    };

    // Not by whom it is not for.
    let mut other = vm(&control, "other", &[]);
    other.says(&["shop/other may not", "WorkloadGroup shop/vm"]);
    other.kill();
    assert_eq!(endpoints(&control), []);

    let probe = format!(
        "{{readinessProbe: {{tcpSocket: {{port: {HEALTH}, host: {VM}}}, periodSeconds: 1, failureThreshold: 1}}}}"
    );
    let mut proxy = vm(&control, "cart", &[("PROXY_CONFIG", &probe)]);
    proxy.says(&["the application fails its probe"]);
    assert_eq!(endpoints(&control), []);
    let application = TcpListener::bind((VM, HEALTH)).unwrap();
    eventually("the workload is entered, and well", || endpoints(&control) == here() && knows());
    drop(application);
    eventually("it is not well", || endpoints(&control).is_empty() && !knows());
    let _application = TcpListener::bind((VM, HEALTH)).unwrap();
    eventually("it is well again", || endpoints(&control) == here() && knows());

    // It is there after a restart of the control plane, as it was, before its proxy is back.
    let kept = control.state().join("workload-entries.json");
    let written = || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("\"unhealthy\": false"));
    eventually("it is written down", written);
    control.process.kill();
    proxy.kill();
    control.restart();
    assert_eq!(endpoints(&control), here());
    let mut proxy = vm(&control, "cart", &[("PROXY_CONFIG", &probe)]);
    proxy.says(&["the application passes its probe"]);
    assert_eq!(endpoints(&control), here());
    // One that never came back has a minute.
    eventually("its proxy is back", || control.page("/debug/syncz").contains(VM));

    proxy.kill();
    eventually("it goes with its proxy", || endpoints(&control).is_empty() && !knows());
    drop(client);
}
