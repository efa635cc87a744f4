//! Who is compared, where their programs are, and how they are started on a row.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::process::Process;
use crate::rows::Row;
use crate::{tls, token};

/// The processor of the proxies; generator and backend have the other one.
pub const PROXY_CPU: usize = 0;
/// The processor of generator and backend.
pub const LOAD_CPU: usize = 1;

/// How the name of one ends that goes by a path with nothing observed.
pub const BARE: &str = "-bare";

/// The exchange of workloads' metadata and Istio's metrics, as a control plane gives them to a client's side and a server's.
const MESH_OUTER: &str = r#"          - { name: istio.metadata_exchange, typed_config: { "@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/io.istio.http.peer_metadata.Config, value: { upstream_discovery: [{ istio_headers: {} }], upstream_propagation: [{ istio_headers: { skip_external_clusters: true } }] } } }
          - { name: istio.stats, typed_config: { "@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/stats.PluginConfig, value: {} } }"#;
const MESH_INNER: &str = r#"          - { name: istio.metadata_exchange, typed_config: { "@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/io.istio.http.peer_metadata.Config, value: { downstream_discovery: [{ istio_headers: {} }], downstream_propagation: [{ istio_headers: {} }] } } }
          - { name: istio.stats, typed_config: { "@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/stats.PluginConfig, value: { disable_host_header_fallback: true } } }"#;

/// What kind of program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Weft,
    /// Envoy.
    Envoy,
    /// nginx.
    Nginx,
    /// haproxy.
    Haproxy,
    /// The null proxy.
    Null,
}

/// One who is compared.
#[derive(Clone, Debug)]
pub struct Contender {
    /// As the report calls it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its program.
    pub program: PathBuf,
    /// It goes by a row's path with nothing observed.
    pub bare: bool,
}

impl Contender {
    /// A real peer: where `tests/peers/install` put it.
    ///
    /// # Errors
    /// It is not there.
    pub fn peer(kind: Kind) -> anyhow::Result<Self> {
        let (name, variable) = match kind {
            Kind::Envoy => ("envoy", "WEFT_ENVOY"),
            Kind::Nginx => ("nginx", "WEFT_NGINX"),
            Kind::Haproxy => ("haproxy", "WEFT_HAPROXY"),
            Kind::Weft | Kind::Null => bail!("not a peer"),
        };
        let missing = || format!("{name} is missing: run tests/peers/install, or leave it out (--proxies)");
        let program = match std::env::var_os(variable) {
            Some(program) => PathBuf::from(program),
            None => installed(variable).with_context(missing)?,
        };
        if !program.exists() {
            bail!("{} ({} does not exist)", missing(), program.display());
        }
        Ok(Self { name: name.to_owned(), kind, program, bare: false })
    }

    /// The same, once more on the path with nothing observed.
    pub fn twin(&self) -> Self {
        Self { name: format!("{}{BARE}", self.name), bare: true, ..self.clone() }
    }

    /// Starts it on a row with so many workers; none where it cannot do the row.
    pub fn start(
        &self,
        row: &Row,
        site: &Site,
        workers: usize,
        directory: &Path,
    ) -> anyhow::Result<Option<Process>> {
        let Some(command) = self.command(row, site, workers, directory)? else { return Ok(None) };
        let log = directory.join(format!("{}.log", self.name));
        let mut process = Process::start(command, PROXY_CPU, &log)?;
        process.ready(site.outer()).with_context(|| format!("{} on {}", self.name, row.name))?;
        if row.pair {
            process.ready(site.inner()).with_context(|| format!("{} on {}", self.name, row.name))?;
        }
        Ok(Some(process))
    }

    fn command(
        &self,
        row: &Row,
        site: &Site,
        workers: usize,
        directory: &Path,
    ) -> anyhow::Result<Option<Command>> {
        let (template, extension) = match self.kind {
            Kind::Weft | Kind::Envoy if self.bare => (row.bare, "yaml"),
            Kind::Weft | Kind::Envoy => (Some(row.envoy), "yaml"),
            Kind::Nginx => (row.nginx, "conf"),
            Kind::Haproxy => (row.haproxy, "cfg"),
            Kind::Null => return Ok(Some(self.null(row, site))),
        };
        let Some(template) = template else { return Ok(None) };
        let file = directory.join(format!("{}.{extension}", self.name));
        std::fs::write(&file, site.fill(template, self, workers, directory)?)?;
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Weft => command.arg("-c").arg(&file).args(["--concurrency", &workers.to_string()]),
            Kind::Envoy => command.arg("-c").arg(&file).args([
                "--concurrency",
                &workers.to_string(),
                "--disable-hot-restart",
                "-l",
                "error",
            ]),
            Kind::Nginx => command.arg("-c").arg(&file).arg("-p").arg(directory),
            Kind::Haproxy => command.arg("-f").arg(&file),
            Kind::Null => &mut command,
        };
        Ok(Some(command))
    }

    fn null(&self, row: &Row, site: &Site) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("null-proxy").arg(site.outer().to_string());
        if row.pair {
            command.arg(site.inner().to_string());
        }
        command.arg(site.backend.to_string());
        command
    }
}

/// The addresses of one contender.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// The contender's own address.
    pub ip: IpAddr,
    /// The backend.
    pub backend: SocketAddr,
    /// Who takes spans.
    pub collector: SocketAddr,
}

impl Site {
    /// Where the load goes.
    pub fn outer(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 15001)
    }

    /// The second hop of a pair.
    pub fn inner(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 15006)
    }

    /// A template's text with its `@NAMES@` filled in.
    fn fill(
        &self,
        template: &str,
        who: &Contender,
        workers: usize,
        directory: &Path,
    ) -> anyhow::Result<String> {
        let mut text = template.to_owned();
        let mesh = |filters: &str| if who.kind == Kind::Weft { filters } else { "" }.to_owned();
        let issued = token::ISSUED.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
        for (name, value) in [
            ("@IP@", self.ip.to_string()),
            ("@BACKEND_IP@", self.backend.ip().to_string()),
            ("@BACKEND_PORT@", self.backend.port().to_string()),
            ("@DIR@", directory.display().to_string()),
            ("@COLLECTOR_IP@", self.collector.ip().to_string()),
            ("@COLLECTOR_PORT@", self.collector.port().to_string()),
            ("@MESH_OUTER@", mesh(MESH_OUTER)),
            ("@MESH_INNER@", mesh(MESH_INNER)),
            ("@WHO@", who.name.clone()),
            ("@WORKERS@", workers.to_string()),
            ("@ID@", tls::ID.to_owned()),
            ("@NAME@", tls::NAME.to_owned()),
            ("@ISSUER@", token::ISSUER.to_owned()),
            ("@JWKS@", issued.jwks.clone()),
            ("@POLICIES@", token::policies()),
        ] {
            text = text.replace(name, &value);
        }
        let unknown =
            text.split('@').skip(1).find(|t| t.chars().next().is_some_and(|c| c.is_ascii_uppercase()));
        if let Some(unknown) = unknown {
            bail!("the template has an unknown name @{}", unknown.chars().take(20).collect::<String>());
        }
        Ok(text)
    }
}

/// What `tests/peers/install` wrote down for a name.
fn installed(variable: &str) -> Option<PathBuf> {
    let cache = match std::env::var_os("WEFT_PEERS_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => Path::new(&std::env::var_os("HOME")?).join(".cache/weft/peers"),
    };
    let text = std::fs::read_to_string(cache.join("env")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(variable)?.strip_prefix('='))?;
    Some(PathBuf::from(line))
}
