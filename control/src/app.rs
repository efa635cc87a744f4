//! A control plane from start to end.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use metrics_exporter_prometheus::PrometheusHandle;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tracing_subscriber::EnvFilter;
use xds_protos::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;

use crate::analyze::analyze;
use crate::ca::store::{Lock, Shape};
use crate::ca::{
    Audit, CertificateAuthority, CertificateService, Limits, RateLimit, SignerArgs, State, TokenArgs,
    serving, token,
};
use crate::ingest::bundle::Memory;
use crate::ingest::{DebounceArgs, Snapshot, Source, Watcher, cluster};
use crate::kubernetes::KubernetesArgs;
use crate::model::Severity;
use crate::model::place::Place;
use crate::queue::Queue;
use crate::serve::acme::{self, AcmeKeeper};
use crate::serve::admission::tls::{Certificate, Files};
use crate::serve::admission::{WebhookArgs, Webhooks};
use crate::serve::authority::{Keeper, federation, listen as listen_to_operator};
use crate::serve::canary::{self, CanaryKeeper};
use crate::serve::credentials::CredentialArgs;
use crate::serve::deny_lists::ListReader;
use crate::serve::dispatch::Dispatch;
use crate::serve::gateway_names::GatewayNames;
use crate::serve::gateways::{self, GatewayArgs, GatewayMaker};
use crate::serve::http::{Pages, Port, PushArgs};
use crate::serve::inspect::access::Access;
use crate::serve::inspect::http::Operators;
use crate::serve::inspect::{InspectArgs, Inspection, Links, Plaintext};
use crate::serve::keys::KeyFetcher;
use crate::serve::publish::PublishArgs;
use crate::serve::quarantine::{self, QuarantineArgs, Store};
use crate::serve::reading::Reads;
use crate::serve::registration::{self, Registrar, RegistrationArgs};
use crate::serve::spread::{Crowd, SpreadArgs};
use crate::serve::status::StatusWriter;
use crate::serve::transport;
use crate::serve::{AdsService, Proxies, RenderCache};

/// Runs the control plane on a directory of YAML, or on what a Kubernetes API has
#[derive(Args, Debug)]
pub struct ControlArgs {
    /// The directory of YAML that describes the mesh; followed while running
    #[arg(long, value_name = "DIR", required_unless_present_any = ["kubernetes", "kubeconfig", "config_bundle"], conflicts_with_all = ["kubernetes", "kubeconfig"])]
    pub config_dir: Option<PathBuf>,
    /// Or a signed bundle of it (weft bundle create); followed while running
    #[arg(long, value_name = "FILE", requires = "config_key", conflicts_with_all = ["kubernetes", "kubeconfig", "config_dir"])]
    pub config_bundle: Option<PathBuf>,
    /// A public key (Ed25519, PEM) by which the configuration must be signed: the bundle, or the directory by its file
    /// .weft-signature (weft bundle sign). May be given several times: one of them suffices. Without a good signature nothing
    /// is started, and later the last good state stays
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kubernetes", "kubeconfig"])]
    pub config_key: Vec<PathBuf>,
    /// Take signed configuration that is older than what was taken last, which --state-dir remembers: to go back without signing it
    /// anew. Also what was made in the future, and where the memory of the last is damaged
    #[arg(long, requires_all = ["config_key", "state_dir"])]
    pub config_allow_older: bool,
    /// Which Kubernetes to read
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    /// Where the certificate authority keeps its keys, and where proxies find root-cert.pem. Without it the authority lives
    /// in memory: every start has a new root, and nobody can be given a token
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Share the certificate authority with the other replicas of this control plane: it is kept in this Secret of its own
    /// namespace (--namespace), and made if it is not there. Its root stays as it is then
    #[arg(long, value_name = "NAME", conflicts_with_all = ["state_dir", "ca"])]
    pub ca_secret: Option<String>,
    /// The name of the cluster that this control plane is of: meshNetworks (fromRegistry) and labels of WorkloadEntries
    /// (topology.istio.io/cluster) refer to it
    #[arg(long, value_name = "NAME", env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// WorkloadEntries that their label topology.istio.io/cluster says to be of another cluster count as well
    #[arg(
        long,
        value_name = "BOOL",
        env = "PILOT_ENABLE_CROSS_CLUSTER_WORKLOAD_ENTRY",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub enable_cross_cluster_workload_entry: bool,
    /// The address to listen on
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,
    /// xDS in plain text, without identities and secrets; only for loopback
    #[arg(long, value_name = "PORT", default_value_t = 15010)]
    pub xds_port: u16,
    /// xDS and the certificate service over TLS, for workloads with a token or a certificate
    #[arg(long, value_name = "PORT", default_value_t = 15012)]
    pub secure_port: u16,
    /// Numbers for Prometheus
    #[arg(long, value_name = "PORT", default_value_t = 15014)]
    pub metrics_port: u16,
    /// Readiness and debugging pages
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub debug_port: u16,
    /// The lifetime of a workload's certificate when its request names none
    #[arg(long, value_name = "DURATION", env = "DEFAULT_WORKLOAD_CERT_TTL", default_value = "24h", value_parser = lifetime)]
    pub workload_cert_ttl: Duration,
    /// The longest lifetime that a request may ask for
    #[arg(long, value_name = "DURATION", env = "MAX_WORKLOAD_CERT_TTL", default_value = "90d", value_parser = lifetime)]
    pub max_workload_cert_ttl: Duration,
    /// How many certificates one identity may ask for in a minute, all of its replicas together; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 600)]
    pub max_csrs_per_minute: u32,
    /// A line of JSON for each certificate that is issued or refused goes to the end of this file; to standard error without
    #[arg(long, value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Events
    #[command(flatten)]
    pub events: weft_events::EventArgs,
    /// Who is told what is counted
    #[command(flatten)]
    pub push: PushArgs,
    /// Whose tokens are taken
    #[command(flatten)]
    pub tokens: TokenArgs,
    /// Who signs
    #[command(flatten)]
    pub signer: SignerArgs,
    /// What a Kubernetes API server is answered
    #[command(flatten)]
    pub webhooks: WebhookArgs,
    /// What is written into the cluster
    #[command(flatten)]
    pub publish: PublishArgs,
    /// What is made for Gateways
    #[command(flatten)]
    pub gateways: GatewayArgs,
    /// Another DNS name by which proxies and API servers reach the control plane, for its own certificate; may be given several
    /// times. istiod.istio-system.svc and Istio's other names are in it anyway
    #[arg(long, value_name = "NAME")]
    pub server_name: Vec<String>,
    /// Who enters itself
    #[command(flatten)]
    pub registration: RegistrationArgs,
    /// Where credentials are kept
    #[command(flatten)]
    pub credentials: CredentialArgs,
    /// How often the keys of token issuers (RequestAuthentication, jwksUri) are read again
    #[arg(long, value_name = "DURATION", env = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", default_value = "20m", value_parser = lifetime)]
    pub jwks_refresh_interval: Duration,
    /// Roots by which the TLS of token issuers is checked; the system's by default
    #[arg(long, value_name = "FILE")]
    pub jwks_root_cert: Option<PathBuf>,
    /// Roots by which the TLS of lists of addresses (IPDenyList, url) is checked; the system's by default
    #[arg(long, value_name = "FILE")]
    pub deny_list_root_cert: Option<PathBuf>,
    /// Who may put workloads under quarantine
    #[command(flatten)]
    pub quarantine: QuarantineArgs,
    /// Who may read proxies' admin pages
    #[command(flatten)]
    pub inspect: InspectArgs,
    /// How many proxies are brought to a new state at the same time
    #[arg(
        long,
        visible_alias = "max-concurrent-pushes",
        value_name = "N",
        env = "PILOT_PUSH_THROTTLE",
        default_value_t = 100
    )]
    pub push_throttle: usize,
    /// How changes are gathered
    #[command(flatten)]
    pub debounce: DebounceArgs,
    /// How proxies are spread over several control planes
    #[command(flatten)]
    pub spread: SpreadArgs,
    /// What is logged: error, warn, info, debug, trace, or rules such as info,weft_control::serve=debug
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log_level: String,
    /// The form of it: lines for people, or an object in JSON on each (timestamp, level, message, target, and what else was said of it)
    #[arg(long, value_enum, env = "WEFT_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// The form of what is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Lifetimes are whole seconds, on the wire too.
fn lifetime(text: &str) -> Result<Duration, String> {
    let duration = xds_protos::duration::parse(text)?;
    if duration.is_zero() || duration.subsec_nanos() != 0 {
        return Err(format!("{text:?} is not a whole number of seconds"));
    }
    Ok(duration)
}

/// Runs a control plane until it is told to end.
pub fn main(args: ControlArgs) -> anyhow::Result<()> {
    weft_certs::memory::leave_no_core_dumps();
    let filter =
        EnvFilter::try_new(&args.log_level).with_context(|| format!("--log-level {}", args.log_level))?;
    // A second control plane in one process (tests) keeps the first one's log and numbers.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let _ = match args.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    let command = ControlArgs::augment_args(clap::Command::new("control"));
    let known =
        command.get_arguments().filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned));
    let variables =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    for doubt in crate::environment::look(variables, &known.collect())? {
        tracing::warn!("{doubt}");
    }
    let metrics = crate::serve::http::record()?;
    let origin = weft_events::Origin {
        component: "control-plane",
        namespace: args.kubernetes.namespace.clone(),
        workload: std::env::var("POD_NAME").unwrap_or_else(|_| "weft-control".to_owned()),
    };
    weft_events::start(&args.events, origin).with_context(|| {
        format!("--security-log {}", args.events.security_log.clone().unwrap_or_default().display())
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(args, metrics))
}

async fn run(args: ControlArgs, metrics: PrometheusHandle) -> anyhow::Result<()> {
    Place { cluster: args.cluster_id.clone(), takes_others: args.enable_cross_cluster_workload_entry }.set();
    let client = args.kubernetes.client().await?;
    let (mut judged, mut beside) = (None, None);
    let memory = args.memory();
    let watcher = match (&client, args.files(memory.clone())) {
        (Some(client), _) => {
            let settings =
                cluster::Settings { namespace: args.kubernetes.namespace.clone(), debounce: args.debounce };
            let following = cluster::start(client.clone(), &settings).await;
            (judged, beside) = (Some(following.verdicts), Some(following.beside));
            following.watcher
        }
        (None, Some(source)) => follow(source).await?,
        (None, None) => {
            bail!(
                "there is nothing to read: give --config-dir, --config-bundle, --kubernetes or --kubeconfig"
            )
        }
    };
    for skipped in watcher.snapshot().skipped.iter() {
        tracing::info!("{skipped}");
    }
    let domain: weft_certs::spiffe::TrustDomain =
        watcher.snapshot().world.mesh().trust_domain.parse().context("trustDomain of the mesh's settings")?;
    tokio::spawn(doubts(watcher.subscribe()));
    tokio::spawn(quarantine::tell(watcher.subscribe()));
    if !args.address.is_loopback() {
        tracing::warn!(
            port = args.xds_port,
            "the plaintext xDS port can be reached from outside this machine"
        );
    }

    // The ports first: another control plane that has them is found out before anything is written.
    let plaintext = listen(&args, args.xds_port, "--xds-port").await?;
    let secure = listen(&args, args.secure_port, "--secure-port").await?;
    let numbers = listen(&args, args.metrics_port, "--metrics-port").await?;
    let debug = listen(&args, args.debug_port, "--debug-port").await?;
    let webhooks = match args.webhooks.webhook_port {
        Some(port) => {
            let webhooks = Webhooks::new(&args.webhooks, watcher.subscribe(), beside)?;
            Some((webhooks, listen(&args, port, "--webhook-port").await?))
        }
        None => None,
    };

    // Held until the end: commands that change the state ask us instead.
    let _lock = args.state_dir.as_deref().map(lock).transpose()?;
    let seconds = |d: Duration| time::Duration::seconds(i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    let limits =
        Limits { default: seconds(args.workload_cert_ttl), maximum: seconds(args.max_workload_cert_ttl) };
    if limits.default > limits.maximum {
        bail!("--workload-cert-ttl is longer than --max-workload-cert-ttl; no certificate could be issued");
    }
    let audit = Audit::open(args.audit_log.as_deref())
        .with_context(|| format!("--audit-log {}", args.audit_log.clone().unwrap_or_default().display()))?;
    let audit = Arc::new(audit);
    let (authority, token_key) = match args.signer.elsewhere(client.as_ref(), limits.maximum)? {
        Some(signer) => {
            crate::ca::elsewhere::open(signer, args.state_dir.as_deref(), limits, domain.clone()).await?
        }
        None => {
            let state = match (&args.ca_secret, &client) {
                (Some(name), Some(client)) => {
                    let (namespace, shape) = (&args.kubernetes.namespace, args.signer.shape());
                    crate::ca::shared::open(client.clone(), namespace, name, shape).await?
                }
                (Some(_), None) => bail!(
                    "--ca-secret is for a control plane that reads Kubernetes (--kubernetes, --kubeconfig)"
                ),
                (None, _) => open_authority(args.state_dir.clone(), args.signer.shape()).await?,
            };
            let token_key = state.token_key.clone();
            (CertificateAuthority::new(state, limits, domain.clone(), args.state_dir.clone())?, token_key)
        }
    };
    if let Some(memory) = memory {
        memory.begin();
    }
    let (_, checker) = token::from_key(&token_key)?;
    args.publish.start(client.as_ref(), &authority.trust(), watcher.subscribe())?;
    let authenticators =
        args.tokens.authenticators(checker, domain, client.clone(), args.state_dir.as_deref())?;
    let world = watcher.snapshot().world.clone();
    let aliases = world.mesh().trust_domain_aliases.iter().map(|a| a.parse());
    let aliases = aliases.collect::<Result<_, _>>().context("trustDomainAliases of the mesh's settings")?;
    let serving =
        serving::Serving::new(authority.clone(), args.server_name.clone(), vec![args.address], aliases)
            .await?;
    tokio::spawn(serving.clone().rotate());
    let (proxies, links) = (Proxies::default(), Links::default());
    let access = Access::new(args.inspect.inspect_token_file.clone(), client.clone());
    let operators = Operators::new(proxies.clone(), links.clone(), access);
    if let Some((webhooks, listener)) = webhooks {
        let certificate: Arc<dyn Certificate> =
            match (&args.webhooks.webhook_cert, &args.webhooks.webhook_key) {
                (Some(chain), Some(key)) => Arc::new(
                    Files::open(chain.clone(), key.clone()).context("--webhook-cert, --webhook-key")?,
                ),
                _ => Arc::new(serving.for_webhooks()?),
            };
        tokio::spawn(webhooks.serve(listener, certificate, operators.clone()));
    }

    // What workloads enter is part of every state in a directory; in a cluster it comes back as objects.
    let grace = args.registration.workload_entry_grace;
    let (registrar, states) = match &client {
        Some(client) => {
            let cluster = registration::Cluster::new(client.clone(), &args.kubernetes.name());
            (Registrar::in_cluster(cluster, grace), watcher.subscribe())
        }
        None => {
            let (registrar, entered) = {
                // Where nobody may enter, nothing that was entered comes back.
                let state = args.state_dir.as_deref().filter(|_| args.registration.auto_registration);
                Registrar::in_memory(grace, state)
            };
            (registrar, registration::follow(watcher.subscribe(), entered))
        }
    };
    // Workloads that entered themselves can be put under quarantine, too.
    let responders = args.quarantine.quarantine_token_file.clone().map(|token| {
        quarantine::http::Responders { token, store: args.store(client.as_ref()), snapshots: states.clone() }
    });
    let registrar = registrar.with_most(args.registration.max_entries_per_identity);
    let registrar = args.registration.auto_registration.then_some(registrar);
    let trust = federation::follow(authority.trust(), watcher.subscribe()).await;
    let snapshots = match args.credentials.reader(args.state_dir.as_deref())? {
        Some(reader) => reader.follow(states.clone()).await,
        None => states.clone(),
    };
    let known = snapshots.clone();
    let lists = ListReader::new(args.deny_list_root_cert.clone(), args.state_dir.as_deref());
    let snapshots = lists.follow(snapshots).await;
    let keys = KeyFetcher::new(args.jwks_root_cert.clone(), args.jwks_refresh_interval);
    let snapshots = keys.follow(snapshots).await;
    let snapshots = GatewayNames::new(args.state_dir.as_deref()).follow(snapshots).await;
    let certificates = AcmeKeeper::open(args.state_dir.as_deref(), &world)?;
    let snapshots = acme::follow(snapshots, certificates.acme());
    let cache = RenderCache::new();
    let election = client.as_ref().map(|client| args.kubernetes.stand(client.clone()));
    let crowd = Crowd::default();
    let reached = args.server_name.first().map_or("", String::as_str);
    let board = client.as_ref().map(|client| args.kubernetes.board(client.clone(), reached));
    let keep = match (&client, &election, &judged) {
        (Some(client), Some(election), Some(judged)) => canary::Keep::Cluster(Box::new(canary::Cluster {
            client: client.clone(),
            judged: judged.clone(),
            leads: election.leads(),
            circuits: Default::default(),
        })),
        _ => canary::Keep::file(args.state_dir.clone()),
    };
    let trials = CanaryKeeper::new(keep, proxies.clone(), &world);
    let (snapshots, trial_reports) = (canary::follow(snapshots, trials.shares()), trials.reports());
    tokio::spawn(trials.run(known));
    tokio::spawn(crate::purge::run());
    let queue = Queue::follow(snapshots, trust.clone(), args.push_throttle);
    let dispatch = Dispatch::start(queue.clone(), cache.clone());
    tokio::spawn(certificates.run(watcher.subscribe(), queue.clone(), proxies.clone()));
    let keeper = Keeper::new(authority.clone(), trust.clone(), proxies.clone(), audit.clone());
    tokio::spawn(keeper.clone().run());
    if let Some(directory) = &args.state_dir {
        tokio::spawn(listen_to_operator(keeper, directory)?);
    }
    if let (Some(client), Some(election), Some(judged)) = (client, &election, judged) {
        let sweeper = client.clone();
        let hindrances = match args.gateways.gateway_deployments {
            true => {
                let maker = GatewayMaker::new(client.clone());
                let hindrances = maker.hindrances();
                tokio::spawn(maker.run(judged.clone(), election.leads()));
                hindrances
            }
            false => gateways::none(),
        };
        let writer = StatusWriter::new(client, proxies.clone(), queue.clone(), hindrances);
        tokio::spawn(writer.run(judged, election.leads()));
        if registrar.is_some() {
            let cluster = registration::Cluster::new(sweeper, &args.kubernetes.name());
            tokio::spawn(cluster.sweep(election.leads(), grace));
        }
    }
    let ads = |authenticators| {
        AdsService::new(queue.clone(), cache.clone(), proxies.clone(), dispatch.clone(), authenticators)
            .with_registrar(registrar.clone())
            .with_crowd(crowd.clone())
    };
    let limit = RateLimit::new(args.max_csrs_per_minute);
    let certificates = CertificateService::new(authority, authenticators.clone(), limit, audit);
    tokio::spawn(upkeep(metrics.clone()));
    let pages = Pages {
        snapshots: states,
        proxies: proxies.clone(),
        cache: cache.clone(),
        metrics,
        queue: queue.clone(),
        trust,
        trials: trial_reports,
        responders,
        operators,
        conflicts: Default::default(),
        began: std::time::Instant::now(),
    };
    let (over, end) = tokio::sync::oneshot::channel();
    let pushing = args.push.push(&pages, &args.kubernetes.namespace)?;
    let pushing = pushing.map(|push| tokio::spawn(push.run(end)));
    tokio::spawn(pages.clone().serve(numbers, Port::Metrics));
    tokio::spawn(pages.serve(debug, Port::Debug));

    tracing::info!(
        config = %args.source(), address = %args.address,
        xds = args.xds_port, secure = args.secure_port, metrics = args.metrics_port, debug = args.debug_port,
        "control plane serves"
    );
    // Not before: others send their proxies to whom they see on the board.
    args.spread.start(&crowd, board);
    let taken = if args.inspect.inspect_plaintext { Plaintext::All } else { Plaintext::Local };
    let inspection =
        |authenticators| Inspection::server(proxies.clone(), links.clone(), authenticators, taken);
    let plain = Routes::new(ads(None)).add_service(inspection(None));
    let plain = transport::plain(plaintext, plain.prepare());
    let tls = Routes::new(ads(Some(authenticators.clone())))
        .add_service(inspection(Some(authenticators)))
        .add_service(IstioCertificateServiceServer::new(certificates));
    let tls = transport::secure(serving.accept(secure), tls.prepare());
    // Streams last as long as their proxies: they are not waited for. Proxies keep what they have and come back.
    tokio::select! {
        () = plain => bail!("the plaintext port ended"),
        () = tls => bail!("the secure port ended"),
        told = told_to_end() => told?,
    }
    if let Some(election) = election {
        election.resign().await;
    }
    drop(over);
    if let Some(pushing) = pushing {
        let _ = tokio::time::timeout(Duration::from_secs(1), pushing).await;
    }
    weft_events::flush(Duration::from_secs(1));
    tracing::info!("control plane ends");
    Ok(())
}

impl ControlArgs {
    /// The files that describe the mesh, if files do.
    fn files(&self, memory: Option<Memory>) -> Option<Source> {
        let directory = self.config_dir.as_ref().map(|path| Source::directory(path, &self.config_key));
        let source = directory
            .or_else(|| self.config_bundle.as_ref().map(|path| Source::bundle(path, &self.config_key)))?;
        Some(match memory {
            Some(memory) => source.remembering(memory),
            None => source,
        })
    }

    /// Where quarantines are written.
    fn store(&self, client: Option<&kube::Client>) -> Store {
        match (client, &self.config_dir) {
            (Some(client), _) => Store::Cluster(client.clone()),
            (None, Some(directory)) if self.config_key.is_empty() => Store::Directory(directory.clone()),
            _ => Store::Closed(
                "the configuration must be signed, and the control plane cannot sign: add the quarantine (weft quarantine) to what is signed",
            ),
        }
    }

    /// Which signed configuration was taken last.
    fn memory(&self) -> Option<Memory> {
        self.state_dir.as_ref().map(|state| Memory::new(state, self.config_allow_older))
    }

    /// Where the mesh is described.
    fn source(&self) -> String {
        match (self.config_dir.as_ref().or(self.config_bundle.as_ref()), &self.kubernetes.kubeconfig) {
            (Some(directory), _) => directory.display().to_string(),
            (None, Some(file)) => format!("Kubernetes ({})", file.display()),
            (None, None) => "Kubernetes".to_owned(),
        }
    }
}

/// Follows files whose first state is good.
async fn follow(source: Source) -> anyhow::Result<Watcher> {
    let place = source.path().display().to_string();
    Watcher::follow(source).await.map_err(|outcome| {
        for diagnostic in &outcome.diagnostics {
            eprintln!("{diagnostic}");
        }
        let errors = match outcome.errors().count() {
            1 => "an error".to_owned(),
            n => format!("{n} errors"),
        };
        anyhow!("{place}: the configuration has {errors}; nothing was started")
    })
}

/// How often the state is looked through for what is probably not meant so, where it changes all the time.
const DOUBT: Duration = Duration::from_secs(5);
/// How long it waits before that, so that proxies come first.
const FIRST: Duration = Duration::from_millis(500);

/// Says of each new state what is probably not meant so, and was not said of the one before. It looks at whole states and takes
/// its time: those that follow each other closely are looked at once, beside everything else.
async fn doubts(mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut seen = 0;
    let mut said = HashSet::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if snapshot.generation != seen {
            seen = snapshot.generation;
            let looked = tokio::task::spawn_blocking(move || analyze(&snapshot.world)).await;
            let messages = looked.unwrap_or_default();
            for message in messages.iter().filter(|message| !said.contains(&message.to_string())) {
                match message.severity {
                    Severity::Info => tracing::info!("{message}"),
                    Severity::Error | Severity::Warning => tracing::warn!("{message}"),
                }
            }
            said = messages.iter().map(ToString::to_string).collect();
            tokio::time::sleep(DOUBT).await;
        }
        if snapshots.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(FIRST).await;
    }
}

/// How often what was counted is put into its buckets; until then each number takes memory.
const UPKEEP: Duration = Duration::from_secs(5);

async fn upkeep(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        metrics.run_upkeep();
    }
}

async fn listen(args: &ControlArgs, port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(args.address, port);
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: is another control plane running there? Stop it, or choose another port ({flag}) or address (--address)")
    })
}

/// Takes the state directory for this control plane.
fn lock(directory: &Path) -> anyhow::Result<Lock> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("--state-dir {}", directory.display()))?;
    Lock::take(directory)?.with_context(|| {
        format!(
            "another control plane, or a weft ca command, works on {}; wait for it, stop it, or choose another --state-dir",
            directory.display()
        )
    })
}

/// Making RSA keys takes seconds of a core; it must not stop the runtime.
async fn open_authority(directory: Option<PathBuf>, shape: Shape) -> anyhow::Result<State> {
    let made = tokio::task::spawn_blocking(move || {
        let now = OffsetDateTime::now_utc();
        match directory {
            Some(directory) => State::open(&directory, shape, now),
            None => {
                tracing::warn!(
                    "the certificate authority lives in memory: its root ends with this process (--state-dir)"
                );
                State::create(shape, now)
            }
        }
    });
    Ok(made.await??)
}

async fn told_to_end() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn parse(flags: &[&str]) -> ControlArgs {
        let command = ControlArgs::augment_args(clap::Command::new("control"));
        let words = [&["control", "--config-dir", "mesh"], flags].concat();
        ControlArgs::from_arg_matches(&command.try_get_matches_from(words).expect("flags"))
            .expect("arguments")
    }

    /// They are two names of one setting.
    #[tokio::test]
    async fn as_many_proxies_are_brought_to_a_new_state_at_a_time_as_either_flag_says() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("mesh.yaml"), "").unwrap();
        let watcher = Watcher::start(directory.path()).await.unwrap();
        for (flags, most) in
            [(&["--push-throttle", "2"][..], 2), (&["--max-concurrent-pushes", "3"], 3), (&[], 100)]
        {
            let (_trust, trust) = watch::channel(Arc::default());
            let queue = Queue::follow(watcher.subscribe(), trust, parse(flags).push_throttle);
            let mut held = Vec::new();
            for _ in 0..most {
                held.push(queue.permit().await.unwrap());
            }
            tokio::select! {
                biased;
                _ = queue.permit() => panic!("{flags:?}: more than {most} at a time"),
                () = tokio::task::yield_now() => {}
            }
            held.pop();
            drop(queue.permit().await.unwrap());
        }
    }
}
