//! Runs rows: all contenders up, rounds interleaved, medians taken.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::backend::Backend;
use crate::collector::Collector;
use crate::contender::{Contender, Kind, LOAD_CPU, Site};
use crate::exchange::Exchange;
use crate::generator::{self, Done, Load};
use crate::poll;
use crate::process::{Cpu, Process};
use crate::report::{Idle, Line, Part, Spread};
use crate::rows::{ROWS, Row, Work};

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// The length of one measurement.
    pub seconds: Duration,
    /// Load before each.
    pub warmup: Duration,
    /// Rounds.
    pub rounds: usize,
}

/// One measurement.
struct Sample {
    cpu: f64,
    user: f64,
    system: f64,
    rate: f64,
    p50: f64,
    p99: f64,
}

fn backend(row: &Row) -> anyhow::Result<Backend> {
    let address = SocketAddr::from((Ipv4Addr::new(127, 40, 0, 1), 0));
    Ok(Backend::start(row.backend(), address, LOAD_CPU)?)
}

fn site(number: usize, backend: &Backend, collector: &Collector) -> Site {
    Site {
        ip: Ipv4Addr::new(127, 40, 1 + number as u8, 1).into(),
        backend: backend.address,
        collector: collector.address,
    }
}

/// One that expects spans of these, if any.
fn collector<'a>(of: impl Iterator<Item = &'a Contender>) -> anyhow::Result<Collector> {
    let names = of.flat_map(|c| ["outer", "inner"].map(|hop| format!("{}-{hop}", c.name))).collect();
    Ok(Collector::start(SocketAddr::from((Ipv4Addr::new(127, 40, 0, 2), 0)), LOAD_CPU, names)?)
}

/// Measures a row. Those who cannot do it are left out.
pub fn row(row: &Row, contenders: &[Contender], effort: Effort, directory: &Path) -> anyhow::Result<Part> {
    // Who is measured twice, with and without what the row is about, stands beside itself.
    let twice = |c: &Contender| row.bare.is_some() && matches!(c.kind, Kind::Weft | Kind::Envoy);
    let contenders = contenders.iter().flat_map(|c| [Some(c.clone()), twice(c).then(|| c.twin())]);
    let contenders: Vec<Contender> = contenders.flatten().collect();
    let tracing = contenders.iter().filter(|c| twice(c) && !c.bare);
    let (backend, collector) = (backend(row)?, collector(tracing)?);
    let mut running: Vec<(&Contender, Site, Process, Vec<Sample>)> = Vec::new();
    for (number, contender) in contenders.iter().enumerate() {
        let site = site(number, &backend, &collector);
        if let Some(process) = contender.start(row, &site, 1, directory)? {
            running.push((contender, site, process, Vec::new()));
        }
    }
    let load =
        Load { connections: row.connections, warmup: effort.warmup, seconds: effort.seconds, rate: row.rate };
    for _ in 0..effort.rounds {
        for (contender, site, process, samples) in &mut running {
            let before = backend.accepted.load(Relaxed);
            let sample = sample(row, site, process, load)
                .with_context(|| format!("{} on {}\n{}", contender.name, row.name, process.words()))?;
            samples.push(sample);
            let opened = backend.accepted.load(Relaxed) - before;
            if opened > 3 * row.connections as u64 {
                bail!("{} on {}: {opened} upstream connections: they are not kept", contender.name, row.name);
            }
        }
    }
    collector.wait(Duration::from_secs(20)).context(row.name)?;
    let mut lines = Vec::new();
    for (contender, _, process, samples) in &running {
        let of = |f: fn(&Sample) -> f64| Spread::of(samples.iter().map(f).collect());
        lines.push(Line {
            proxy: contender.name.clone(),
            cpu: of(|s| s.cpu),
            user: of(|s| s.user).median,
            system: of(|s| s.system).median,
            rate: of(|s| s.rate).median,
            p50_ms: of(|s| s.p50).median,
            p99_ms: of(|s| s.p99).median,
            resident_kb: process.resident()?,
        });
    }
    Ok(Part { row: row.name.to_owned(), what: row.what.to_owned(), unit: row.unit().to_owned(), lines })
}

fn sample(row: &Row, site: &Site, process: &Process, load: Load) -> anyhow::Result<Sample> {
    let mut marks: Vec<Cpu> = Vec::new();
    let mark = || {
        marks.push(process.cpu()?);
        Ok(())
    };
    let (work, address) = (row.work, site.outer());
    let done: Done = on_load_cpu(|| match work {
        Work::Exchanges(exchange) => generator::exchanges(exchange, address, load, mark),
        Work::Bulk => generator::bulk(address, load, mark),
    })?;
    let units = match row.work {
        Work::Exchanges(_) => done.count as f64,
        Work::Bulk => done.count as f64 / f64::from(1 << 20),
    };
    let [before, after] = marks[..] else { bail!("the measurement did not end") };
    if units < 1.0 {
        bail!("nothing was served");
    }
    let used = after - before;
    Ok(Sample {
        cpu: used.total / units,
        user: used.user / units,
        system: used.system / units,
        rate: units / done.time.as_secs_f64(),
        p50: done.latency.value_at_quantile(0.5) as f64 / 1e6,
        p99: done.latency.value_at_quantile(0.99) as f64 / 1e6,
    })
}

/// Runs the generator on a thread of its own, bound to the load's processor.
fn on_load_cpu<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            poll::pin(LOAD_CPU)?;
            work()
        });
        thread.join().unwrap_or_else(|_| bail!("the generator panicked"))
    })
}

/// Resident memory with two workers: without any connection, and for each idle plaintext HTTP connection.
pub fn idle(contenders: &[Contender], connections: usize, directory: &Path) -> anyhow::Result<Vec<Idle>> {
    let row = &ROWS[0];
    let (backend, collector) = (backend(row)?, collector([].into_iter())?);
    let mut lines = Vec::new();
    for (number, contender) in contenders.iter().enumerate() {
        let site = site(number, &backend, &collector);
        let Some(process) = contender.start(row, &site, 2, directory)? else { continue };
        std::thread::sleep(Duration::from_secs(1));
        let empty = process.resident()?;
        // The first requests make what every worker has once.
        drop(generator::idlers(Exchange::Http, site.outer(), 64)?);
        std::thread::sleep(Duration::from_millis(500));
        let warm = process.resident()?;
        let held = generator::idlers(Exchange::Http, site.outer(), connections)?;
        std::thread::sleep(Duration::from_secs(1));
        let full = process.resident()?;
        drop(held);
        lines.push(Idle {
            proxy: contender.name.clone(),
            resident_kb: empty,
            per_connection_bytes: full.saturating_sub(warm) as f64 * 1024.0 / connections as f64,
        });
    }
    Ok(lines)
}
