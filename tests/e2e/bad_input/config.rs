//! Configuration that cannot be taken: refused at the start; while running, refused while the last good state serves.

use std::net::SocketAddr;

use crate::support::control::Control;
use crate::support::http::{backend, exchange};
use crate::support::logged::Logged;
use crate::support::{eventually, stderr, weft};

/// A bad file, and what is said of it.
struct Bad {
    what: &'static str,
    yaml: &'static str,
    words: &'static [&'static [&'static str]],
}

const BAD: [Bad; 5] = [
    Bad {
        what: "YAML that cannot be parsed",
        yaml: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nspec:\n  hosts: [shop.example\n  http: []\n",
        words: &[&["bad.yaml:5:", "not valid YAML", "mend the text"]],
    },
    Bad {
        what: "a field that there is not",
        yaml: "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: shop}
spec:
  host: shop.example
  trafficPolcy: {}
",
        words: &[&[
            "bad.yaml:6: DestinationRule shop/shop: spec.trafficPolcy",
            "unknown field; did you mean \"trafficPolicy\"?",
        ]],
    },
    Bad {
        what: "outlier detection among the settings of the connection pool",
        yaml: "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: shop}
spec:
  host: shop.example
  trafficPolicy:
    connectionPool:
      http:
        http2MaxRequests: 100
        consecutive5xxErrors: 5
        baseEjectionTime: 30s
        maxEjectionPercent: 50
        minHealthPercent: 30
        splitExternalLocalOriginErrors: true
",
        words: &[
            &[
                "bad.yaml:10: DestinationRule shop/shop: spec.trafficPolicy.connectionPool.http.consecutive5xxErrors",
                "did you mean trafficPolicy.outlierDetection.consecutive5xxErrors?",
            ],
            &["bad.yaml:11:", "did you mean trafficPolicy.outlierDetection.baseEjectionTime?"],
            &["bad.yaml:12:", "did you mean trafficPolicy.outlierDetection.maxEjectionPercent?"],
            &["bad.yaml:13:", "did you mean trafficPolicy.outlierDetection.minHealthPercent?"],
            &["bad.yaml:14:", "did you mean trafficPolicy.outlierDetection.splitExternalLocalOriginErrors?"],
        ],
    },
    Bad {
        what: "two objects of one name",
        yaml: "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop, namespace: shop}
spec:
  hosts: [other.example]
  resolution: NONE
  ports: [{number: 80, name: http, protocol: HTTP}]
",
        // The file that comes second by name is to blame.
        words: &[&[
            "mesh.yaml:",
            "ServiceEntry shop/shop",
            "is already defined at",
            "bad.yaml:1",
            "rename or remove",
        ]],
    },
    Bad {
        what: "a kind of Istio's that is not supported yet",
        yaml: "apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: shop, namespace: shop}
spec: {configPatches: []}
",
        words: &[&["bad.yaml:", "EnvoyFilter", "not yet supported", "take the object out"]],
    },
];

/// One service behind the HTTP proxy port; `edition` is in every answer.
pub(crate) fn mesh(backend: SocketAddr, edition: u32) -> String {
    format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: 'proxyHttpPort: 15080'
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: shop, namespace: shop}}
spec:
  hosts: [shop.example]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop, namespace: shop}}
spec:
  hosts: [shop.example]
  http:
  - route: [{{destination: {{host: shop.example}}}}]
    headers: {{response: {{set: {{x-edition: e{edition}}}}}}}
",
        backend.ip(),
        backend.port()
    )
}

fn finds(text: &str, words: &[&str]) -> bool {
    text.lines().any(|line| words.iter().all(|word| line.contains(word)))
}

#[test]
fn nothing_starts_on_configuration_that_cannot_be_taken() {
    let good = mesh("127.0.0.1:1".parse().unwrap(), 1);
    for bad in &BAD {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("mesh.yaml"), &good).unwrap();
        std::fs::write(directory.path().join("bad.yaml"), bad.yaml).unwrap();
        let path = directory.path().to_str().unwrap();
        for command in [&["control", "--address", "127.52.9.1", "--config-dir", path][..], &["up", path]] {
            let output = weft(command);
            let error = stderr(&output);
            assert!(!output.status.success(), "{} {command:?}: {error}", bad.what);
            for words in bad.words {
                assert!(finds(&error, words), "{} {command:?}: no line with {words:?} in\n{error}", bad.what);
            }
        }
    }
    let output = weft(&["control", "--address", "127.52.9.1", "--config-dir", "/nonexistent"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("/nonexistent: cannot be read"), "{}", stderr(&output));
}

#[test]
fn while_running_the_last_good_state_serves_until_a_good_one_comes() {
    let backend = backend("shop");
    let control = Control::start("127.52.1.1", &mesh(backend, 1));
    let _proxy = Logged::weft(&[
        "proxy",
        "--xds-address",
        "127.52.1.1:15010",
        "--xds-plaintext",
        "--namespace",
        "shop",
        "--ip",
        "127.52.1.2",
        "--interception-mode",
        "NONE",
        "--admin-address",
        "127.52.1.2:15000",
        "--concurrency",
        "1",
    ]);
    let edition = || {
        let request = "GET http://shop.example/ HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n";
        let (head, body) = exchange("127.52.1.2:15080".parse().unwrap(), request).ok()?;
        if !head.starts_with("HTTP/1.1 200") || body != "shop" {
            return None;
        }
        let line = head.lines().find_map(|l| l.strip_prefix("x-edition: e"))?;
        line.parse::<u32>().ok()
    };
    eventually("the first edition", || edition() == Some(1));
    for (number, bad) in (1..).zip(&BAD) {
        let path = control.config("bad.yaml");
        std::fs::write(&path, bad.yaml).unwrap();
        // What the good file says meanwhile waits, for the directory is taken as a whole or not at all.
        std::fs::write(control.config("mesh.yaml"), mesh(backend, number + 1)).unwrap();
        for words in bad.words {
            control.process.says(words);
        }
        assert!(control.page("/debug/configz").contains("bad.yaml"), "{}", control.page("/debug/configz"));
        for _ in 0..5 {
            assert_eq!(edition(), Some(number), "{}", bad.what);
        }
        std::fs::remove_file(&path).unwrap();
        eventually("the next edition", || edition() == Some(number + 1));
    }
}
