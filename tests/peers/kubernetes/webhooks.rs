//! What is installed into a real API server, and what that then asks: pods come out with sidecars, wrong configuration is refused.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};
use weft_certs::authority::{Authority, KeyKind};

use super::roles::granted;
use super::{Server, csr_api};
use crate::programs::{Process, get, peer, weft};

const AT: &str = "127.36.7.1";
const CONTROL: &str = "127.36.7.2";
const OTHER: &str = "127.36.7.3";

fn eventually<T>(what: &str, control: &Process, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) => assert!(Instant::now() < end, "{what}: {why}\n{}", control.log()),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What `weft install` prints with these settings, the webhooks reached at the control plane's address: nobody forwards for Services here.
pub fn installation(control: &str, settings: &[&str]) -> Vec<Value> {
    let mut install = weft();
    install.args(["install", "--dry-run", "--output", "json"]);
    for one in settings {
        install.args(["--set", one]);
    }
    let output = install.output().unwrap();
    let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let items = all["items"].as_array_mut().unwrap().iter_mut();
    for hook in items.filter_map(|one| one.get_mut("webhooks")?.as_array_mut()).flatten() {
        let path = hook["clientConfig"]["service"]["path"].as_str().unwrap().to_owned();
        hook["clientConfig"] = json!({"url": format!("https://{control}:15017{path}")});
    }
    all["items"].as_array().unwrap().clone()
}

fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// A control plane at an address.
fn control(server: &Server, kubeconfig: &Path, at: &str, more: &[&str]) -> Process {
    let mut control: Command = weft();
    control.arg("control").arg("--kubeconfig").arg(kubeconfig).args(["--address", at, "--ca-keys", "p256"]);
    control.args([
        "--webhook-port",
        "15017",
        "--publish-roots",
        "--mutating-webhook",
        "istio-sidecar-injector",
    ]);
    control.args(["--validating-webhook", "istio-validator-istio-system"]).args(more);
    Process::start_again(&format!("istiod-{at}"), &mut control, server.directory())
}

fn ready(process: &mut Process, at: &str) {
    process.wait("ready", || {
        get(format!("{at}:8080").parse().unwrap(), "/ready").is_ok_and(|(status, _)| status == 200)
    });
}

fn pod(namespace: &str, name: &str, labels: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}, \
         spec: {{containers: [{{name: app, image: none, readinessProbe: {{httpGet: {{port: 8080}}}}}}]}}}}"
    )
}

/// Names of a pod's init containers.
fn inits(server: &Server, namespace: &str, name: &str) -> Vec<String> {
    let text = server.kubectl(&["-n", namespace, "get", "pod", name, "-o", "json"]);
    let pod: Value = serde_json::from_str(&text).unwrap();
    let all = pod["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
    all.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_installation_injects_pods_and_refuses_what_is_wrong() {
    let server = Arc::new(Server::start(AT));
    // Everything that is shipped is taken, definitions first: what they define must be there before the rest is looked at.
    let all = installation(
        CONTROL,
        &[
            "profile=production",
            "values.pilot.certificateSigner.name=mesh.example.com/workloads",
            "values.pilot.certificateSigner.roots=mesh-roots",
        ],
    );
    let (first, rest): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|one| ["Namespace", "CustomResourceDefinition"].contains(&one["kind"].as_str().unwrap()));
    server.try_kubectl(&["apply", "--server-side", "-f", "-"], &list(&first)).unwrap();
    server.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
    server.try_kubectl(&["apply", "--server-side", "--dry-run=server", "-f", "-"], &list(&rest)).unwrap();
    let (hooks, rest): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|one| one["kind"].as_str().unwrap().ends_with("WebhookConfiguration"));
    server.try_kubectl(&["apply", "--server-side", "-f", "-"], &list(&rest)).unwrap();
    server.try_kubectl(&["apply", "--server-side", "-f", "-"], &list(&hooks)).unwrap();
    // As its own account, with the rights that the chart gives it.
    let kubeconfig = server.kubeconfig_of_account("istio-system", "istiod");
    let mut istiod = control(&server, &kubeconfig, CONTROL, &[]);
    ready(&mut istiod, CONTROL);

    server.apply(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio-injection: enabled}}}",
    );
    server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: plain}}");
    for namespace in ["shop", "plain"] {
        server.apply(&format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: default, namespace: {namespace}}}}}"
        ));
    }
    let applies = |yaml: &str| eventually("it is applied", &istiod, || server.try_apply(yaml));
    applies(&pod("shop", "web", "app: web"));
    assert_eq!(inits(&server, "shop", "web"), ["istio-init", "istio-proxy"]);
    let probe = server.kubectl(&[
        "-n",
        "shop",
        "get",
        "pod",
        "web",
        "-o",
        "jsonpath={.spec.containers[0].readinessProbe.httpGet.path}",
    ]);
    assert_eq!(probe, "/app-health/app/readyz");
    // The near misses: who says no, who is not asked, and who asks where nobody is.
    server.apply(&pod("shop", "left", "sidecar.istio.io/inject: 'false'"));
    server.apply(&pod("plain", "web", "app: web"));
    server.apply(&pod("plain", "asks", "sidecar.istio.io/inject: 'true'"));
    assert!(inits(&server, "shop", "left").is_empty() && inits(&server, "plain", "web").is_empty());
    assert_eq!(inits(&server, "plain", "asks"), ["istio-init", "istio-proxy"]);
    let wrong = pod("shop", "bad", "app: web")
        .replace("labels:", "annotations: {sidecar.istio.io/proxyCPU: lots}, labels:");
    let said = server.try_apply(&wrong).unwrap_err();
    assert!(
        said.contains("metadata.annotations[sidecar.istio.io/proxyCPU]: \"lots\" is not a quantity"),
        "{said}"
    );

    let rule = |weight: i64| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: a, namespace: shop}}, spec: {{hosts: [a], http: \
             [{{route: [{{destination: {{host: a}}, weight: {weight}}}]}}]}}}}"
        )
    };
    let said = server.try_apply(&rule(-1)).unwrap_err();
    assert!(said.contains("denied the request: spec.http[0].route[0].weight: "), "{said}");
    server.apply(&rule(100));
    let said = server.try_apply(&rule(-1)).unwrap_err();
    assert!(said.contains("spec.http[0].route[0].weight: "), "an update is looked at, too: {said}");

    // The definitions say what fields are made of, and what they do not know is the webhook's to refuse.
    let explained = server.kubectl(&["explain", "virtualservice.spec.http.retries"]);
    assert!(explained.contains("perTryTimeout") && explained.contains("a duration such as"), "{explained}");
    let said = server.try_apply(&rule(100).replace("hosts: [a]", "hosts: a")).unwrap_err();
    assert!(said.contains("spec.hosts") && said.contains("must be of type array"), "{said}");
    let said = server.try_apply(&rule(100).replace("hosts: [a]", "hots: [a]")).unwrap_err();
    assert!(said.contains("did you mean"), "{said}");

    // Beside what is stored: what may not be meant so is told with the code of `weft analyze`, and what contradicts is refused.
    let said =
        |yaml: &str| server.try_kubectl(&["apply", "--warnings-as-errors", "-f", "-"], yaml).unwrap_err();
    let astray = rule(100)
        .replace("name: a,", "name: astray,")
        .replace("[a]", "[astray]")
        .replace("host: a", "host: crat");
    // A machine that is too busy for it says so instead.
    eventually("it is warned of", &istiod, || {
        server.kubectl(&["-n", "shop", "delete", "virtualservice", "astray", "--ignore-not-found"]);
        match said(&astray) {
            warned if warned.contains("Warning: WEFT0209 DestinationUnknown: spec.http[0]") => Ok(()),
            other => Err(other),
        }
    });
    assert_eq!(
        server.get("virtualservice", "shop", "astray")["spec"]["hosts"][0],
        "astray",
        "it is stored all the same"
    );
    let entry = |host: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {host}, namespace: shop}}, \
         spec: {{hosts: [{host}], resolution: DNS, ports: [{{number: 443, name: https, protocol: HTTPS}}]}}}}"
        )
    };
    let secret = "{apiVersion: weft.dev/v1alpha1, kind: ExternalCredential, metadata: {name: pay, namespace: shop}, \
         spec: {hosts: [pay.example], credentialName: pay, key: token}}";
    let copying = rule(100).replace("name: a,", "name: pay,").replace("[a]", "[pay.example]").replace(
        "route: [{destination: {host: a}",
        "mirror: {host: other.example}, route: [{destination: {host: pay.example}",
    );
    for object in [&entry("pay.example"), &entry("other.example"), secret] {
        server.apply(object);
    }
    let refused = eventually("the secret is known", &istiod, || match server.try_apply(&copying) {
        Err(said) => Ok(said),
        Ok(_) => {
            server.kubectl(&["-n", "shop", "delete", "virtualservice", "pay"]);
            Err("it was taken".to_owned())
        }
    });
    assert!(
        refused.contains("ExternalCredential shop/pay: VirtualService shop/pay mirrors requests"),
        "{refused}"
    );

    // Argo CD reads how it stands from the status that the control plane has written.
    eventually("the rules are healthy", &istiod, || {
        match crate::integrations::health(&server.get("virtualservice", "shop", "a")) {
            (status, _) if status == "Healthy" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    super::shipped::is_taken(&server);

    // Pods find the roots in their namespace, and find them again when somebody has taken them away.
    let roots = |namespace: &str| {
        server.try_kubectl(
            &[
                "-n",
                namespace,
                "get",
                "configmap",
                "istio-ca-root-cert",
                "-o",
                "jsonpath={.data.root-cert\\.pem}",
            ],
            "",
        )
    };
    let first = eventually("the roots are there", &istiod, || roots("plain"));
    assert!(first.contains("BEGIN CERTIFICATE"), "{first}");
    server.kubectl(&["-n", "plain", "delete", "configmap", "istio-ca-root-cert"]);
    eventually("the roots are there again", &istiod, || roots("plain"));

    // Without a control plane no pod starts without its sidecar; the next one has another root, of which the API server learns.
    istiod.end();
    let said = server.try_apply(&pod("shop", "late", "app: web")).unwrap_err();
    assert!(said.contains("failed calling webhook"), "{said}");
    // It shares its authority with another replica: of two that make it at once, one is the first.
    let shared = ["--ca-secret", "weft-certificate-authority"];
    let mut istiod = control(&server, &kubeconfig, CONTROL, &shared);
    let mut other = control(&server, &kubeconfig, OTHER, &shared);
    ready(&mut istiod, CONTROL);
    ready(&mut other, OTHER);
    eventually("the new root is known", &istiod, || server.try_apply(&pod("shop", "late", "app: web")));
    assert_eq!(inits(&server, "shop", "late"), ["istio-init", "istio-proxy"]);
    let second = eventually("the new root is told", &istiod, || {
        roots("shop").and_then(|now| if now == first { Err("the old one".to_owned()) } else { Ok(now) })
    });
    let bundle = [
        "get",
        "mutatingwebhookconfiguration",
        "istio-sidecar-injector",
        "-o",
        "jsonpath={.webhooks[3].clientConfig.caBundle}",
    ];
    let bundle = base64::engine::general_purpose::STANDARD.decode(server.kubectl(&bundle)).unwrap();
    assert_eq!(String::from_utf8(bundle).unwrap(), second);
    let file = server.directory().join("roots.pem");
    std::fs::write(&file, &second).unwrap();
    let trusted = |at: &str| {
        let mut curl = Command::new(peer("WEFT_CURL"));
        curl.args(["--silent", "--show-error", "--max-time", "10", "--cacert"]).arg(&file);
        let output = curl.arg(format!("https://{at}:15017/ready")).output().unwrap();
        assert!(output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stderr));
    };
    trusted(CONTROL);
    trusted(OTHER);
    // And it outlives them both.
    istiod.end();
    other.end();
    let mut istiod = control(&server, &kubeconfig, CONTROL, &shared);
    ready(&mut istiod, CONTROL);
    trusted(CONTROL);
    super::gateway_secret::is_served(&server, CONTROL, &file);
    super::bound_tokens::belong_to_their_pods(&server, CONTROL, &file);

    // A root that somebody else made, as cert-manager keeps it: workloads trust it, and the webhooks are signed under it.
    let root = Authority::root(KeyKind::P256, std::time::SystemTime::now().into(), time::Duration::days(10))
        .unwrap();
    let files = ["tls.crt", "tls.key"].map(|name| server.directory().join(name));
    std::fs::write(&files[0], root.certificate_pem()).unwrap();
    std::fs::write(&files[1], root.key_pem()).unwrap();
    let [chain, key] = files.map(|file| file.display().to_string());
    let made = [
        "-n",
        "istio-system",
        "create",
        "secret",
        "tls",
        "weft-certificate-authority",
        "--cert",
        &chain,
        "--key",
        &key,
    ];
    istiod.end();
    server.kubectl(&["-n", "istio-system", "delete", "secret", "weft-certificate-authority"]);
    server.kubectl(&made);
    let mut istiod = control(&server, &kubeconfig, CONTROL, &shared);
    ready(&mut istiod, CONTROL);
    std::fs::write(&file, root.certificate_pem()).unwrap();
    trusted(CONTROL);
    eventually("the root is told", &istiod, || {
        roots("shop").and_then(|now| if now == root.certificate_pem() { Ok(()) } else { Err(now) })
    });

    // A signer of the cluster's takes its place.
    istiod.end();
    let signer = csr_api::Signer::start(&server);
    let mut istiod = control(&server, &kubeconfig, CONTROL, &csr_api::arguments(&signer.root));
    ready(&mut istiod, CONTROL);
    csr_api::issues(&server, &signer, CONTROL, &mut istiod);
    drop(signer);

    let of = |kind: &str, name: &str| granted(&server.get(kind, "istio-system", name));
    let granted = &of("clusterrole", "istiod-istio-system") | &of("role", "istiod");
    let more = &server.asked("system:serviceaccount:istio-system:istiod") - &granted;
    assert!(more.is_empty(), "asked for and not granted: {more:?}");
}
