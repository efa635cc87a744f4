//! `weft inject`: puts sidecars into the workloads of a file, by hand.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use weft_control::ingest::{list_files, load_texts};
use weft_control::inject::Settings;
use weft_control::inject::text::{inject_text, proxy_configs};
use weft_control::model::World;

/// Puts sidecars into the workloads of a file
#[derive(Args, Debug)]
pub struct InjectArgs {
    /// The file, or - for standard input; Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs, Pods, and Lists
    /// of them get a sidecar, everything else is printed as it is
    #[arg(short = 'f', long, value_name = "FILE")]
    filename: PathBuf,
    /// The namespace of what names none
    #[arg(short = 'n', long)]
    namespace: Option<String>,
    /// The settings of an installation, as its ConfigMap istiod-injector has them (key values); the flags below count before them
    #[arg(long, value_name = "FILE")]
    injection_config: Option<PathBuf>,
    /// The mesh's configuration: ProxyConfigs and the mesh's defaultConfig count as they do in a cluster. ProxyConfigs in the
    /// file itself do as well, and without this one alone
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// The proxy's image
    #[arg(long)]
    image: Option<String>,
    /// The control plane's host and port
    #[arg(long, value_name = "HOST:PORT")]
    discovery_address: Option<String>,
    /// The revision of the control plane
    #[arg(long)]
    revision: Option<String>,
    /// Whether sidecars are native ones (init containers that keep running), where a pod does not say it itself
    #[arg(long, value_name = "BOOL")]
    native_sidecars: Option<bool>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Output::Yaml)]
    output: Output,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// Documents of YAML.
    Yaml,
    /// One object; a List if there are several.
    Json,
}

/// Prints the file with its sidecars, and on standard error what was left. Nothing is printed if one object is refused.
pub(super) fn main(args: &InjectArgs) -> anyhow::Result<ExitCode> {
    let (text, name) = read(&args.filename)?;
    let world = world(args.config_dir.as_deref(), &text, &name)?;
    let settings = match settings(args)? {
        own if args.config_dir.is_some() => own.with_world(&world),
        // The mesh's other settings are those of the flags.
        own => own.with_proxy_configs(&world),
    };
    let injected = inject_text(&text, args.namespace.as_deref(), &settings).with_context(|| name.clone())?;
    for note in &injected.notes {
        eprintln!("weft: {name}: {note}");
    }
    if !injected.errors.is_empty() {
        for error in &injected.errors {
            eprintln!("weft: {name}: {error}");
        }
        return Ok(ExitCode::FAILURE);
    }
    match args.output {
        Output::Yaml => print!("{}", injected.to_yaml()?),
        Output::Json => println!("{:#}", injected.to_json()?),
    }
    Ok(ExitCode::SUCCESS)
}

/// What the mesh says of its proxies: in its directory, and beside the workloads.
fn world(directory: Option<&Path>, text: &str, name: &str) -> anyhow::Result<World> {
    let mut texts = vec![(name.to_owned(), proxy_configs(text)?)];
    if let Some(directory) = directory {
        for path in list_files(directory).with_context(|| format!("--config-dir {}", directory.display()))? {
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            texts.push((path.display().to_string(), text));
        }
    }
    let outcome = load_texts(&texts);
    let Some(world) = outcome.world else {
        for diagnostic in outcome.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()) {
            eprintln!("{diagnostic}");
        }
        bail!("the configuration of the mesh is refused, and nothing is injected");
    };
    Ok(world)
}

fn settings(args: &InjectArgs) -> anyhow::Result<Settings> {
    let mut settings = match &args.injection_config {
        None => Settings::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("--injection-config {}", path.display()))?;
            match Settings::from_yaml(&text) {
                Ok(settings) => settings,
                Err(wrong) => bail!("--injection-config {}: {wrong}", path.display()),
            }
        }
    };
    for (flag, field) in [
        (&args.image, &mut settings.image),
        (&args.discovery_address, &mut settings.discovery_address),
        (&args.revision, &mut settings.revision),
    ] {
        if let Some(value) = flag {
            field.clone_from(value);
        }
    }
    settings.native_sidecars = args.native_sidecars.unwrap_or(settings.native_sidecars);
    Ok(settings)
}

fn read(path: &Path) -> anyhow::Result<(String, String)> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok((text, "standard input".to_owned()));
    }
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
    Ok((text, name))
}
