//! One run: the mesh is there, the proxies connect, changes are made and timed.

use std::collections::{HashSet, VecDeque};
use std::fmt::{self, Display, Formatter};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::mpsc;

use super::api::Api;
use super::fleet::Fleet;
use super::mesh::Size;
use super::proxy::Seen;
use crate::process::{Cpu, Process};

/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The control plane's program.
    pub program: PathBuf,
    /// The mesh.
    pub size: Size,
    /// Proxies.
    pub proxies: usize,
    /// Lone changes of each sort.
    pub changes: usize,
    /// Between two of them.
    pub gap: Duration,
    /// Changes a second, where they come without a pause.
    pub rate: u32,
    /// For how long.
    pub sustained: Duration,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Proxies see everything, or their own namespace and one more.
    pub scoped: bool,
    /// Services, endpoints of each, proxies.
    pub services: usize,
    /// Of each service.
    pub endpoints: usize,
    /// Connected.
    pub proxies: usize,
    /// Until all proxies had everything.
    pub connected_s: f64,
    /// The control plane's processor time for that.
    pub connected_cpu_s: f64,
    /// Its resident memory with all of them connected, and at the end.
    pub resident_mib: f64,
    /// The same at the end.
    pub resident_after_mib: f64,
    /// Sorts of lone changes.
    pub lone: Vec<Lone>,
    /// Changes without a pause.
    pub sustained: Option<Sustained>,
}

/// One endpoint changes, and then nothing for a while.
#[derive(Clone, Debug, Serialize)]
pub struct Lone {
    /// Who sees it.
    pub what: String,
    /// How many proxies see it.
    pub concerned: usize,
    /// From the change to the last acknowledgement, over all changes.
    pub last_ack_p50_ms: f64,
    /// The same.
    pub last_ack_p99_ms: f64,
    /// Of each change.
    pub last_acks_ms: Vec<f64>,
    /// From the change to one proxy's acknowledgement, over all proxies and changes.
    pub ack_p50_ms: f64,
    /// The control plane's processor time for one change.
    pub cpu_ms: f64,
    /// Bytes on the wire for one change, from the control plane to all proxies, and back.
    pub bytes: u64,
    /// Back.
    pub bytes_back: u64,
}

/// Changes without a pause.
#[derive(Clone, Debug, Serialize)]
pub struct Sustained {
    /// A second.
    pub rate: u32,
    /// Age of the newest change that a proxy has just acknowledged, in the first quarter.
    pub lag_first_p50_ms: f64,
    /// The same.
    pub lag_first_p99_ms: f64,
    /// In the last quarter.
    pub lag_last_p50_ms: f64,
    /// The same.
    pub lag_last_p99_ms: f64,
    /// From the last change to its last acknowledgement.
    pub drained_ms: f64,
    /// Pushes that the last proxy to have it acknowledged, a second: how many changes went together.
    pub pushes_per_proxy_and_s: f64,
    /// Share of one processor that the control plane used.
    pub cpu: f64,
}

struct Plane {
    process: Process,
    _home: tempfile::TempDir,
    secure: u16,
    roots: String,
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn start(program: &std::path::Path, api: SocketAddr) -> anyhow::Result<Plane> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("kubeconfig");
    std::fs::write(
        &file,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\nclusters: [{{name: it, cluster: {{server: \"http://{api}\"}}}}]\n\
             users: [{{name: it, user: {{}}}}]\ncontexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n"
        ),
    )?;
    let ports = [free_port()?, free_port()?, free_port()?, free_port()?];
    let mut command = Command::new(program);
    command.arg("--kubeconfig").arg(&file).args(["--log-level", "warn,weft_control::analyze=error"]);
    for (flag, port) in ["--xds-port", "--secure-port", "--metrics-port", "--debug-port"].iter().zip(ports) {
        command.args([*flag, &port.to_string()]);
    }
    let log = home.path().join("log");
    let mut process = Process::start_anywhere(command, &log)?;
    let debug = SocketAddr::from(([127, 0, 0, 1], ports[3]));
    process.ready(debug)?;
    let roots = page(debug, "/root-cert.pem")?;
    Ok(Plane { process, _home: home, secure: ports[1], roots })
}

fn page(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").context("an answer without a body")?.1.to_owned())
}

struct Bench {
    options: Options,
    api: Api,
    plane: Plane,
    seen: Told,
    broken: mpsc::UnboundedReceiver<String>,
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    mark: u16,
    /// The proxies, until they run, and where it is told that one broke.
    fleet: Option<(Fleet, mpsc::UnboundedSender<String>)>,
}

/// What proxies have acknowledged, one by one.
struct Told {
    rounds: mpsc::UnboundedReceiver<Vec<Seen>>,
    waiting: VecDeque<Seen>,
}

impl Told {
    /// The next one; none once all proxies are gone. Nothing is lost if it is not waited for.
    async fn recv(&mut self) -> Option<Seen> {
        while self.waiting.is_empty() {
            self.waiting.extend(self.rounds.recv().await?);
        }
        self.waiting.pop_front()
    }

    /// Nothing that was told so far counts.
    fn forget(&mut self) {
        self.waiting.clear();
        while self.rounds.try_recv().is_ok() {}
    }
}

/// Runs it.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let size = options.size;
    let api = Api::default();
    size.fill(&api);
    let address = api.clone().serve().await?;
    let program = options.program.clone();
    let plane = tokio::task::spawn_blocking(move || start(&program, address)).await??;
    let (sender, seen) = mpsc::unbounded_channel();
    let (received, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (breaks, broken) = mpsc::unbounded_channel();
    let fleet = Fleet {
        port: plane.secure,
        roots: plane.roots.clone(),
        size,
        proxies: options.proxies,
        received: received.clone(),
        sent: sent.clone(),
        seen: sender,
    };
    let seen = Told { rounds: seen, waiting: VecDeque::new() };
    let mut bench =
        Bench { options, api, plane, seen, broken, received, sent, mark: 0, fleet: Some((fleet, breaks)) };
    bench.measure().await.with_context(|| format!("the control plane said:\n{}", bench.plane.process.words()))
}

impl Bench {
    async fn measure(&mut self) -> anyhow::Result<Report> {
        let (size, proxies) = (self.options.size, self.options.proxies);
        let (began, cpu) = (Instant::now(), self.plane.process.cpu()?);
        let (fleet, breaks) = self.fleet.take().context("the proxies run already")?;
        std::thread::Builder::new().name("proxies".to_owned()).spawn(move || {
            if let Err(error) = fleet.run() {
                let _ = breaks.send(format!("{error:#}"));
            }
        })?;
        let mut there = HashSet::new();
        while there.len() < proxies {
            there.insert(self.next().await?.proxy);
        }
        let connected_s = began.elapsed().as_secs_f64();
        let connected_cpu_s = seconds(self.plane.process.cpu()? - cpu);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let resident_mib = self.resident()?;
        let mut lone = vec![self.lone("all proxies see it", 0, proxies).await?];
        if size.scoped {
            let there = |n: &usize| n % size.services % size.namespaces == 1;
            let concerned = (0..proxies).filter(there).count();
            lone.push(self.lone("the proxies of one namespace see it", 1, concerned).await?);
        }
        let sustained = match self.options.rate {
            0 => None,
            rate => Some(self.sustained(rate).await?),
        };
        Ok(Report {
            scoped: size.scoped,
            services: size.services,
            endpoints: size.endpoints,
            proxies,
            connected_s,
            connected_cpu_s,
            resident_mib,
            resident_after_mib: self.resident()?,
            lone,
            sustained,
        })
    }

    fn resident(&self) -> anyhow::Result<f64> {
        Ok(self.plane.process.resident()? as f64 / 1024.0)
    }

    async fn next(&mut self) -> anyhow::Result<Seen> {
        tokio::select! {
            seen = self.seen.recv() => seen.context("all proxies are gone"),
            broken = self.broken.recv() => bail!(broken.unwrap_or_default()),
            () = tokio::time::sleep(PATIENCE) => bail!("nothing was acknowledged for {PATIENCE:?}"),
        }
    }

    fn change(&mut self, service: usize) -> (u16, Instant) {
        self.mark += 1;
        let at = Instant::now();
        self.options.size.slice(&self.api, service, Some(self.mark));
        (self.mark, at)
    }

    async fn lone(&mut self, what: &str, service: usize, concerned: usize) -> anyhow::Result<Lone> {
        let (mut last, mut each) = (histogram()?, histogram()?);
        let mut each_last = Vec::new();
        // The first one warms up.
        self.change(service);
        tokio::time::sleep(self.options.gap.max(Duration::from_secs(2))).await;
        self.seen.forget();
        let cpu = self.plane.process.cpu()?;
        let bytes = || [&self.received, &self.sent].map(|b| b.load(Ordering::Relaxed));
        let before = bytes();
        for _ in 0..self.options.changes {
            let (mark, began) = self.change(service);
            let mut acknowledged = 0;
            let mut slowest = Duration::ZERO;
            while acknowledged < concerned {
                let seen = self.next().await?;
                if seen.mark == Some(mark) {
                    acknowledged += 1;
                    let took = seen.at - began;
                    slowest = slowest.max(took);
                    each.saturating_record(took.as_micros() as u64);
                }
            }
            last.saturating_record(slowest.as_micros() as u64);
            each_last.push(slowest.as_secs_f64() * 1000.0);
            tokio::time::sleep(self.options.gap).await;
        }
        let [received, sent] = [&self.received, &self.sent].map(|b| b.load(Ordering::Relaxed));
        let changes = self.options.changes.max(1);
        let ms = |histogram: &Histogram<u64>, q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
        Ok(Lone {
            what: what.to_owned(),
            concerned,
            last_ack_p50_ms: ms(&last, 0.5),
            last_ack_p99_ms: ms(&last, 0.99),
            last_acks_ms: each_last,
            ack_p50_ms: ms(&each, 0.5),
            cpu_ms: seconds(self.plane.process.cpu()? - cpu) * 1000.0 / changes as f64,
            bytes: (received - before[0]) / changes as u64,
            bytes_back: (sent - before[1]) / changes as u64,
        })
    }

    async fn sustained(&mut self, rate: u32) -> anyhow::Result<Sustained> {
        let (every, duration) = (Duration::from_secs(1) / rate, self.options.sustained);
        let mut lags = [histogram()?, histogram()?];
        self.seen.forget();
        let cpu = self.plane.process.cpu()?;
        let (began, first) = (Instant::now(), self.mark + 1);
        let mut made: Vec<Instant> = Vec::new();
        let mut ticks = tokio::time::interval(every);
        let mut pushes = 0_u64;
        let mut done: HashSet<usize> = HashSet::new();
        let mut busy = 0.0;
        while done.len() < self.options.proxies {
            let running = began.elapsed() < duration;
            if !running && busy == 0.0 {
                busy = seconds(self.plane.process.cpu()? - cpu) / began.elapsed().as_secs_f64();
            }
            let seen = tokio::select! {
                _ = ticks.tick(), if running => {
                    let (_, at) = self.change(0);
                    made.push(at);
                    // Who has acknowledged an earlier one is not done.
                    done.clear();
                    continue;
                }
                seen = self.seen.recv() => seen.context("all proxies are gone")?,
                broken = self.broken.recv() => bail!(broken.unwrap_or_default()),
                () = tokio::time::sleep(PATIENCE) => bail!("nothing was acknowledged for {PATIENCE:?}"),
            };
            let Some(mark) = seen.mark.filter(|mark| *mark >= first) else { continue };
            pushes += 1;
            let lag = (seen.at - made[usize::from(mark - first)]).as_micros() as u64;
            let since = seen.at - began;
            if since < duration / 4 {
                lags[0].saturating_record(lag);
            } else if since > duration * 3 / 4 && since <= duration {
                lags[1].saturating_record(lag);
            }
            if mark == self.mark {
                done.insert(seen.proxy);
            }
        }
        let last = made.last().copied().unwrap_or(began);
        let ms = |histogram: &Histogram<u64>, q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
        Ok(Sustained {
            rate,
            lag_first_p50_ms: ms(&lags[0], 0.5),
            lag_first_p99_ms: ms(&lags[0], 0.99),
            lag_last_p50_ms: ms(&lags[1], 0.5),
            lag_last_p99_ms: ms(&lags[1], 0.99),
            drained_ms: last.elapsed().as_secs_f64() * 1000.0,
            pushes_per_proxy_and_s: pushes as f64 / self.options.proxies as f64 / duration.as_secs_f64(),
            cpu: busy,
        })
    }
}

fn seconds(cpu: Cpu) -> f64 {
    cpu.total / 1e6
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sees =
            if self.scoped { "their own namespace's services and those of one more" } else { "all services" };
        writeln!(
            f,
            "{} services of {} endpoints, {} proxies that see {sees}",
            self.services, self.endpoints, self.proxies
        )?;
        writeln!(
            f,
            "  connected in {:.1} s ({:.1} s of processor time); {:.0} MiB resident, {:.0} MiB at the end",
            self.connected_s, self.connected_cpu_s, self.resident_mib, self.resident_after_mib
        )?;
        for lone in &self.lone {
            writeln!(
                f,
                "  one endpoint, {} ({}): last ACK p50 {:.1} ms, p99 {:.1} ms; a proxy's p50 {:.1} ms; {:.2} ms of processor \
                 time, {} bytes, {} back",
                lone.what,
                lone.concerned,
                lone.last_ack_p50_ms,
                lone.last_ack_p99_ms,
                lone.ack_p50_ms,
                lone.cpu_ms,
                lone.bytes,
                lone.bytes_back
            )?;
        }
        if let Some(s) = &self.sustained {
            writeln!(
                f,
                "  {} changes a second: lag p50 {:.0} ms, p99 {:.0} ms at first; p50 {:.0} ms, p99 {:.0} ms at last; drained \
                 after {:.0} ms; {:.1} pushes a second to each proxy; {:.0}% of a processor",
                s.rate,
                s.lag_first_p50_ms,
                s.lag_first_p99_ms,
                s.lag_last_p50_ms,
                s.lag_last_p99_ms,
                s.drained_ms,
                s.pushes_per_proxy_and_s,
                s.cpu * 100.0
            )?;
        }
        Ok(())
    }
}

/// Of microseconds, up to ten minutes.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 600_000_000, 3)?)
}
