//! A running mesh: what `weft up` is, as a value that a program can hold.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::sync::mpsc;

use super::plan::{self, Workload};
use super::process::{Death, Part, State};
use super::supervisor::Supervisor;
use super::{commands, files, ports, rewrite, tokens};
use crate::client;

pub use rustix::process::Signal;

/// How a mesh is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of YAML.
    pub dir: PathBuf,
    /// The `weft` binary that control plane and proxies are run with.
    pub exe: PathBuf,
    /// Logs, tokens and other files of the run; a new directory that is removed at a clean end without it.
    pub run_dir: Option<PathBuf>,
    /// The certificate authority's state; `state` in the run directory without it.
    pub state_dir: Option<PathBuf>,
    /// Run from a private copy of `dir` (always so with `loopback`).
    pub copy: bool,
    /// Move 127.0.X.Y of the configuration to 127.N.X.Y.
    pub loopback: Option<u8>,
    /// The control plane's address; 127.0.1.1 (127.N.1.1) without it.
    pub control_address: Option<IpAddr>,
    /// More flags for the control plane.
    pub control_flags: Vec<String>,
    /// More flags for each proxy.
    pub proxy_flags: Vec<String>,
    /// Worker threads of each proxy whose configuration does not say.
    pub concurrency: u32,
    /// How long draining may take, where the configuration does not say.
    pub drain: Duration,
}

impl Options {
    /// The directory as it is, run with this very binary.
    ///
    /// # Errors
    /// The binary's path is not known.
    pub fn new(dir: impl Into<PathBuf>) -> anyhow::Result<Self> {
        Ok(Self {
            dir: dir.into(),
            exe: std::env::current_exe().context("the path of this program")?,
            run_dir: None,
            state_dir: None,
            copy: false,
            loopback: None,
            control_address: None,
            control_flags: Vec::new(),
            proxy_flags: Vec::new(),
            concurrency: 2,
            drain: Duration::from_secs(5),
        })
    }
}

/// Where the control plane listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlAddresses {
    /// xDS without TLS.
    pub plain: SocketAddr,
    /// xDS and certificates, with TLS.
    pub secure: SocketAddr,
    /// Its metrics.
    pub metrics: SocketAddr,
    /// Readiness and debugging.
    pub debug: SocketAddr,
}

impl ControlAddresses {
    fn at(ip: IpAddr) -> Self {
        let [plain, secure, metrics, debug] = [15010, 15012, 15014, 8080].map(|p| SocketAddr::new(ip, p));
        Self { plain, secure, metrics, debug }
    }
}

/// A running mesh. Dropping it kills every process of it; [`Mesh::shutdown`] ends them in order.
pub struct Mesh {
    supervisor: Supervisor,
    deaths: Option<mpsc::UnboundedReceiver<Death>>,
    options: Options,
    config_dir: PathBuf,
    files: files::RunDir,
    state_dir: PathBuf,
    control: ControlAddresses,
    workloads: Vec<Workload>,
    elsewhere: Vec<Workload>,
    _tokens: tokens::Renewal,
}

impl Mesh {
    /// Starts everything: reads the directory, looks whether all ports are free, starts the control plane, and when that
    /// serves, proxies and applications. They need not be ready when this returns: see [`Mesh::wait_ready`].
    ///
    /// # Errors
    /// The configuration is refused, an address cannot be had, or the control plane does not start.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        if let Some(n) = options.loopback {
            rewrite::check(n)?;
        }
        let mut files = files::RunDir::make(options.run_dir.as_deref())?;
        // What is wrong with it is said of the files that the user wrote, not of a copy.
        crate::configuration::read(&options.dir)?;
        let config_dir = if options.copy || options.loopback.is_some() {
            let copy = files.path().join("config");
            rewrite::copy(&options.dir, &copy, options.loopback)?;
            copy
        } else {
            options.dir.clone()
        };
        let world = crate::configuration::read(&config_dir)?;
        let (workloads, elsewhere) =
            plan::workloads(&world)?.into_iter().partition::<Vec<_>, _>(|w| ports::is_local(w.address));
        if workloads.is_empty() {
            bail!(
                "{} has no WorkloadEntry with a serviceAccount and an address of this machine, so there is nothing to run; \
                 `weft control` alone serves a configuration to proxies that run elsewhere",
                options.dir.display()
            );
        }
        let n = options.loopback.unwrap_or(0);
        let control = options.control_address.unwrap_or(IpAddr::V4(Ipv4Addr::new(127, n, 1, 1)));
        let control = ControlAddresses::at(control);
        ports::check(needed(&control, &workloads))?;
        let state_dir = options.state_dir.clone().unwrap_or_else(|| files.path().join("state"));
        let (mut supervisor, deaths) = Supervisor::new()?;
        files.keep(true);
        supervisor.add(commands::control(&options, &config_dir, &state_dir, &control, &files));
        wait_control(&supervisor, &control, &state_dir, CONTROL_LIMIT).await?;
        let tokens = tokens::Renewal::start(&state_dir, &files, &workloads)?;
        for workload in &workloads {
            supervisor.add(commands::proxy(&options, workload, &world, &state_dir, &control, &files));
            if let Some(app) = commands::application(&options, workload, &files) {
                supervisor.add(app);
            }
        }
        Ok(Self {
            supervisor,
            deaths: Some(deaths),
            options,
            config_dir,
            files,
            state_dir,
            control,
            workloads,
            elsewhere,
            _tokens: tokens,
        })
    }

    /// Waits until the control plane serves, every proxy is ready, and every application listens.
    ///
    /// # Errors
    /// A process dies meanwhile (with its last words), or the deadline passes (with who is not ready).
    pub async fn wait_ready(&self, limit: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        let before: Vec<_> = self.supervisor.states().map(|(p, s)| (p.clone(), s.deaths)).collect();
        loop {
            let unready = self.unready().await;
            if unready.is_empty() {
                return Ok(());
            }
            for (part, deaths) in &before {
                let state = self.state(part)?;
                if let Some(death) = state.last_end.filter(|_| state.deaths > *deaths) {
                    bail!("{death}");
                }
            }
            if began.elapsed() > limit {
                bail!("not ready within {limit:?}: {}; see {}", unready.join(", "), self.logs().display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Who is not ready, and why.
    pub async fn unready(&self) -> Vec<String> {
        let mut unready = Vec::new();
        for (part, state) in self.supervisor.states().map(|(p, s)| (p.clone(), s)).collect::<Vec<_>>() {
            let why = match (&part, state.pid) {
                (_, None) => Some("does not run".to_owned()),
                (Part::Control, _) => client::get(self.control.debug, "/ready", PROBE).await.map_or_else(
                    |e| Some(format!("{e:#}")),
                    |a| (a.status != 200).then(|| a.text().into_owned()),
                ),
                (Part::Proxy(id), _) => match self.workload(id) {
                    Ok(workload) => {
                        client::get(workload.status(), "/healthz/ready", PROBE).await.map_or_else(
                            |e| Some(format!("{e:#}")),
                            |a| (a.status != 200).then(|| a.text().into_owned()),
                        )
                    }
                    Err(error) => Some(error.to_string()),
                },
                (Part::App(id), _) => match self.workload(id).ok().and_then(|w| w.application) {
                    Some(address) => tokio::net::TcpStream::connect(address)
                        .await
                        .err()
                        .map(|e| format!("does not listen on {address}: {e}")),
                    None => None,
                },
            };
            unready.extend(why.map(|why| format!("{part}: {}", why.trim())));
        }
        unready
    }

    /// The configuration that the control plane reads; editing it changes the running mesh.
    pub fn config_dir(&self) -> &Path {
        &self.config_dir
    }

    /// Where this run's files are.
    pub fn run_dir(&self) -> &Path {
        self.files.path()
    }

    /// Where the logs are.
    pub fn logs(&self) -> PathBuf {
        self.files.logs()
    }

    /// Leaves this run's files where they are, however it ends: somebody will want to look.
    pub fn keep_files(&mut self) {
        self.files.stay();
    }

    /// A process's log.
    pub fn log(&self, part: &Part) -> PathBuf {
        self.files.log(part)
    }

    /// The certificate authority's state: root-cert.pem and keys.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Where the control plane listens.
    pub fn control(&self) -> ControlAddresses {
        self.control
    }

    /// How the mesh is run.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The workloads that run here.
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    /// Workloads with an identity whose address is another machine's.
    pub fn elsewhere(&self) -> &[Workload] {
        &self.elsewhere
    }

    /// A workload by id, or by name where that is unique.
    ///
    /// # Errors
    /// There is none.
    pub fn workload(&self, id: &str) -> anyhow::Result<&Workload> {
        let by_id = self.workloads.iter().find(|w| w.id == id);
        by_id.with_context(|| format!("this mesh has no workload {id}"))
    }

    /// What a process does now.
    ///
    /// # Errors
    /// The mesh has no such process.
    pub fn state(&self, part: &Part) -> anyhow::Result<State> {
        Ok(self.supervisor.state(part)?.borrow().clone())
    }

    /// A process's id while it runs.
    pub fn pid(&self, part: &Part) -> Option<u32> {
        self.state(part).ok()?.pid
    }

    /// Every process that runs now.
    pub fn running(&self) -> Vec<(Part, u32)> {
        self.supervisor.states().filter_map(|(part, state)| Some((part.clone(), state.pid?))).collect()
    }

    /// What died without being told to; gives the receiver once.
    pub fn deaths(&mut self) -> Option<mpsc::UnboundedReceiver<Death>> {
        self.deaths.take()
    }

    /// Sends a signal and nothing else: who dies of it is started again.
    ///
    /// # Errors
    /// The mesh has no such process.
    pub fn signal(&self, part: &Part, signal: Signal) -> anyhow::Result<()> {
        self.supervisor.signal(part, signal, false)
    }

    /// Ends a process by a signal, waits until it is gone, and keeps it down until [`Mesh::restart`].
    ///
    /// # Errors
    /// The mesh has no such process, or it does not end within the drain time and a little more.
    pub async fn stop(&self, part: &Part, signal: Signal) -> anyhow::Result<()> {
        self.supervisor.signal(part, signal, true)?;
        self.gone(part, self.patience(part)).await
    }

    /// Starts a process that was stopped (no effect on one that runs); see [`Mesh::wait_ready`].
    ///
    /// # Errors
    /// The mesh has no such process.
    pub fn restart(&self, part: &Part) -> anyhow::Result<()> {
        self.supervisor.start(part)
    }

    /// Ends everything in order, each with its time to drain: gateways, sidecars, applications, the control plane. Who does
    /// not end in time is killed.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        let gateway = |id: &String| self.workload(id).is_ok_and(|w| w.gateway);
        let phases: [&dyn Fn(&Part) -> bool; 4] = [
            &|p| matches!(p, Part::Proxy(id) if gateway(id)),
            &|p| matches!(p, Part::Proxy(id) if !gateway(id)),
            &|p| matches!(p, Part::App(_)),
            &|p| *p == Part::Control,
        ];
        let parts: Vec<Part> = self.supervisor.states().map(|(p, _)| p.clone()).collect();
        for phase in phases {
            let ending: Vec<_> = parts.iter().filter(|p| phase(p)).collect();
            for part in &ending {
                self.supervisor.signal(part, Signal::TERM, true)?;
            }
            for part in ending {
                if self.gone(part, self.patience(part)).await.is_err() {
                    self.supervisor.signal(part, Signal::KILL, true)?;
                    self.gone(part, Duration::from_secs(5)).await?;
                }
            }
        }
        let clean = self.supervisor.states().all(|(_, s)| s.deaths == 0);
        let Self { supervisor, mut files, .. } = self;
        drop(supervisor);
        files.keep(!clean);
        Ok(())
    }

    fn patience(&self, part: &Part) -> Duration {
        let drain = match part {
            Part::Proxy(id) => self.workload(id).ok().and_then(|w| w.proxy.drain),
            _ => None,
        };
        drain.unwrap_or(self.options.drain) + Duration::from_secs(3)
    }

    async fn gone(&self, part: &Part, limit: Duration) -> anyhow::Result<()> {
        let mut state = self.supervisor.state(part)?;
        match tokio::time::timeout(limit, state.wait_for(|s| s.pid.is_none())).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("{part} did not end within {limit:?}"),
        }
    }
}

/// The first start makes an RSA key of 4096 bits, which takes as long as luck wants.
const CONTROL_LIMIT: Duration = Duration::from_secs(60);
const PROBE: Duration = Duration::from_secs(2);

/// Every address that will be bound, with what for.
fn needed(control: &ControlAddresses, workloads: &[Workload]) -> Vec<(SocketAddr, String)> {
    let mut all = vec![
        (control.plain, "the control plane's xDS".to_owned()),
        (control.secure, "the control plane's xDS with TLS".to_owned()),
        (control.metrics, "the control plane's metrics".to_owned()),
        (control.debug, "the control plane's debugging".to_owned()),
    ];
    for workload in workloads {
        let id = &workload.id;
        all.push((workload.admin(), format!("the admin interface of {id}'s proxy")));
        all.push((workload.status(), format!("the readiness of {id}'s proxy")));
        all.push((workload.prometheus(), format!("the metrics of {id}'s proxy")));
        all.push((ports::agent(workload), format!("the probes of {id}'s proxy")));
        all.extend(workload.listeners.iter().map(|a| (*a, format!("a listener of {id}'s proxy"))));
        if !workload.command.is_empty() {
            all.extend(workload.application.map(|a| (a, format!("the application of {id}"))));
        }
    }
    all
}

async fn wait_control(
    supervisor: &Supervisor,
    control: &ControlAddresses,
    state_dir: &Path,
    limit: Duration,
) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let state = supervisor.state(&Part::Control)?.borrow().clone();
        if let Some(death) = state.last_end {
            bail!("{death}");
        }
        let seen = match client::get(control.debug, "/ready", PROBE).await {
            Ok(answer) if answer.status == 200 && state_dir.join("root-cert.pem").exists() => return Ok(()),
            Ok(answer) => format!("/ready answers {}", answer.status),
            Err(error) => format!("{error:#}"),
        };
        if began.elapsed() > limit {
            bail!("the control plane is not ready within {limit:?}: {seen}");
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
