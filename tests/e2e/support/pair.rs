//! A small mesh: two workloads, the first of which calls the second.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use weft::up::{Mesh, Options};
use weft_certs::authority::KeyKind;
use weft_control::ca::State;
use weft_control::ca::store::Shape;

use super::WEFT;

const SHARED: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    proxyHttpPort: 15080
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
    accessLogFile: /dev/stdout
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: pair}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: pair}
spec:
  ingress:
    - port: {number: 8080, protocol: HTTP, name: http}
      captureMode: NONE
      defaultEndpoint: 0.0.0.0:18080
  egress:
    - captureMode: NONE
      hosts: ['pair/*']
";

/// Service and workload of one name, at 127.0.X.1.
pub fn workload(name: &str, x: u8, command: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: pair}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 8080, targetPort: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: {name}-1
  namespace: pair
  annotations:
    weft.dev/command: {command}
spec:
  address: 127.0.{x}.1
  ports: {{http: 8080}}
  labels: {{app: {name}, version: v1}}
  serviceAccount: {name}
"
    )
}

/// A mesh's directory, and a certificate authority whose keys are quick to make.
pub struct Pair {
    temporary: tempfile::TempDir,
    loopback: u8,
}

impl Pair {
    /// On 127.N.X.Y, which is this one's for good: another test there would only fail when both run at the same time.
    pub fn new(loopback: u8) -> Self {
        static GIVEN: Mutex<BTreeSet<u8>> = Mutex::new(BTreeSet::new());
        let first = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(loopback);
        assert!(first, "127.{loopback}.0.0 is already another test's: take another number");
        let pair = Self { temporary: tempfile::tempdir().unwrap(), loopback };
        std::fs::create_dir(pair.dir()).unwrap();
        pair.write("mesh.yaml", SHARED);
        pair.write("front.yaml", &workload("front", 10, "weft app --calls back"));
        pair.write("back.yaml", &workload("back", 11, "weft app"));
        let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Default::default() };
        State::open(&pair.state_dir(), shape, std::time::SystemTime::now().into()).unwrap();
        pair
    }

    pub fn dir(&self) -> PathBuf {
        self.temporary.path().join("mesh")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.temporary.path().join("state")
    }

    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir().join(name), text).unwrap();
    }

    pub fn options(&self) -> Options {
        Options {
            exe: WEFT.into(),
            state_dir: Some(self.state_dir()),
            loopback: Some(self.loopback),
            drain: Duration::from_secs(2),
            concurrency: 1,
            ..Options::new(self.dir()).unwrap()
        }
    }

    /// The mesh, ready.
    pub async fn start(&self) -> Mesh {
        let mesh = Mesh::start(self.options()).await.unwrap();
        mesh.wait_ready(Duration::from_secs(60)).await.unwrap();
        mesh
    }
}
