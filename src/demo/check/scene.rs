//! The mesh under observation, and what checks do to it: edit its files, kill and start its processes, ask its applications.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustls::pki_types::CertificateDer;

use super::observe::chain;
use super::observe::credentials::{self, Credentials};
use super::observe::http::{Answer, Request, fetch};
use crate::up::{Mesh, Part, Signal, Workload};

/// The services of the example mesh, in the order of the design's calls.
pub const SERVICES: [&str; 5] =
    ["user-service", "product-service", "order-service", "payment-service", "notification-service"];

/// The namespace of the example mesh.
pub const NAMESPACE: &str = "ecotrack";

/// How long the checks wait for what should happen soon.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until an edit is seen by a request.
    pub effect: Duration,
    /// Until every proxy is back at a control plane that was started again: its next wait, and the stream's start.
    pub reconnect: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { effect: Duration::from_secs(10), reconnect: Duration::from_secs(15) }
    }
}

/// The mesh, as the checks see it.
pub struct Scene {
    /// The mesh.
    pub mesh: Mesh,
    /// A certificate of the mesh for the observer itself (service account observer).
    pub own: Credentials,
    /// The mesh's root.
    pub root: CertificateDer<'static>,
    /// How long checks wait.
    pub patience: Patience,
}

impl Scene {
    /// Looks at a mesh that is ready.
    pub async fn new(mesh: Mesh) -> anyhow::Result<Self> {
        let own = certificate(&mesh, "observer").await?;
        let pem = std::fs::read(mesh.state_dir().join("root-cert.pem"))?;
        let root = chain::from_pem(&pem)?.remove(0);
        Ok(Self { mesh, own, root, patience: Patience::default() })
    }

    /// A certificate for one of the namespace's service accounts, got as a workload gets it.
    pub async fn certificate(&self, account: &str) -> anyhow::Result<Credentials> {
        certificate(&self.mesh, account).await
    }

    /// The instances of a service, by its label `app`.
    pub fn instances(&self, service: &str) -> Vec<&Workload> {
        self.mesh.workloads().iter().filter(|w| !w.gateway && w.service() == service).collect()
    }

    /// One instance of a service.
    pub fn instance(&self, service: &str) -> anyhow::Result<&Workload> {
        self.instances(service).first().copied().with_context(|| format!("no instance of {service} runs"))
    }

    /// All instances of the example mesh's services.
    pub fn workloads(&self) -> Vec<&Workload> {
        SERVICES.iter().flat_map(|s| self.instances(s)).collect()
    }

    /// Where a workload's requests enter the mesh: its sidecar's HTTP proxy.
    pub fn out_of(&self, service: &str) -> anyhow::Result<SocketAddr> {
        let workload = self.instance(service)?;
        workload.http_proxy.with_context(|| format!("the sidecar of {} has no HTTP proxy", workload.id))
    }

    /// Where a workload is reached: its sidecar's port.
    pub fn port_of(&self, workload: &Workload) -> anyhow::Result<SocketAddr> {
        workload.inbound.first().copied().with_context(|| format!("{} listens nowhere", workload.id))
    }

    /// The gateway's port.
    pub fn gateway(&self) -> anyhow::Result<SocketAddr> {
        let gateway = self.mesh.workloads().iter().find(|w| w.gateway).context("no gateway runs")?;
        self.port_of(gateway)
    }

    /// The address 127.0.X.Y of the added configuration, where it is in this mesh.
    pub fn address(&self, x: u8, y: u8, port: u16) -> SocketAddr {
        let n = self.mesh.options().loopback.unwrap_or(0);
        SocketAddr::new(IpAddr::from([127, n, x, y]), port)
    }

    /// A request of the observer through its own sidecar.
    pub async fn ask(&self, request: &Request) -> anyhow::Result<Answer> {
        fetch(self.out_of("observer")?, request)
            .await
            .map_err(|e| anyhow::anyhow!("through the observer's sidecar: {e}"))
    }

    /// Kills a workload's proxy, its application, or both.
    pub async fn kill(&self, parts: &[Part]) -> anyhow::Result<()> {
        for part in parts {
            self.mesh.stop(part, Signal::KILL).await?;
        }
        Ok(())
    }

    /// Starts again what was killed, and waits until all is ready.
    pub async fn revive(&self, parts: &[Part]) -> anyhow::Result<()> {
        for part in parts {
            self.mesh.restart(part)?;
        }
        self.mesh.wait_ready(Duration::from_secs(30)).await
    }

    /// A file of the configuration.
    pub fn file(&self, name: &str) -> PathBuf {
        self.mesh.config_dir().join(name)
    }

    /// Changes one place of a configuration file, as an editor would: a new file takes the old one's place. Gives the old
    /// text back.
    pub fn edit(&self, name: &str, from: &str, to: &str) -> anyhow::Result<String> {
        let text = self.read(name)?;
        if text.matches(from).count() != 1 {
            bail!("{name} has {} places with {from:?}; it should have one", text.matches(from).count());
        }
        self.write(name, &text.replace(from, to))?;
        Ok(text)
    }

    /// A configuration file's text.
    pub fn read(&self, name: &str) -> anyhow::Result<String> {
        std::fs::read_to_string(self.file(name)).with_context(|| format!("configuration file {name}"))
    }

    /// Replaces a configuration file in one step.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let (file, beside) = (self.file(name), self.file(&format!(".{name}.new")));
        std::fs::write(&beside, text)?;
        std::fs::rename(&beside, &file).with_context(|| format!("configuration file {name}"))
    }
}

async fn certificate(mesh: &Mesh, account: &str) -> anyhow::Result<Credentials> {
    let lifetime = Duration::from_secs(600);
    let token = weft_control::ca::token::create(mesh.state_dir(), NAMESPACE, account, lifetime)?;
    credentials::from_mesh(mesh.control().secure, &mesh.state_dir().join("root-cert.pem"), &token).await
}

/// Waits until something is seen; gives up after a while.
pub async fn until<F, T>(limit: Duration, mut look: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return Some(seen);
        }
        if began.elapsed() > limit {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writes the example mesh and what the checks add to it into a directory.
pub fn stage(example: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(example).with_context(|| format!("{}", example.display()))? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    std::fs::write(to.join("check.yaml"), include_str!("check.yaml"))?;
    Ok(())
}
