//! The command lines and environments of a mesh's processes.

use std::path::Path;

use weft_control::model::World;

use super::files::RunDir;
use super::mesh::{ControlAddresses, Options};
use super::plan::Workload;
use super::process::{Part, Spec};

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(super) fn control(
    options: &Options,
    config_dir: &Path,
    state_dir: &Path,
    at: &ControlAddresses,
    files: &RunDir,
) -> Spec {
    let mut arguments: Vec<String> = [
        "control",
        "--config-dir",
        &text(config_dir),
        "--state-dir",
        &text(state_dir),
        "--address",
        &at.plain.ip().to_string(),
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.extend(options.control_flags.iter().cloned());
    Spec {
        part: Part::Control,
        program: options.exe.clone(),
        arguments,
        environment: Vec::new(),
        log: files.log(&Part::Control),
    }
}

pub(super) fn proxy(
    options: &Options,
    workload: &Workload,
    world: &World,
    state_dir: &Path,
    control: &ControlAddresses,
    files: &RunDir,
) -> Spec {
    let part = Part::Proxy(workload.id.clone());
    let concurrency = workload.proxy.concurrency.unwrap_or(options.concurrency).max(1);
    let drain = workload.proxy.drain.unwrap_or(options.drain);
    let pairs = [
        ("--role", if workload.gateway { "gateway" } else { "sidecar" }.to_owned()),
        ("--xds-address", control.secure.to_string()),
        ("--root-cert", text(&state_dir.join(weft_control::ca::store::ROOT_CERTIFICATE))),
        ("--token-file", text(&files.token(&workload.id))),
        ("--state-dir", text(&files.state(&workload.id))),
        ("--trust-domain", world.mesh().trust_domain.clone()),
        ("--name", workload.name.clone()),
        ("--namespace", workload.namespace.clone()),
        ("--service-account", workload.service_account.clone()),
        ("--ip", workload.address.to_string()),
        ("--interception-mode", "NONE".to_owned()),
        ("--admin-address", workload.admin().to_string()),
        ("--status-port", workload.status().port().to_string()),
        ("--prometheus-port", workload.prometheus().port().to_string()),
        ("--agent-port", super::ports::agent(workload).port().to_string()),
        ("--concurrency", concurrency.to_string()),
        ("--drain-time", format!("{}ms", drain.as_millis())),
    ];
    // Nobody outside sends connections here, so nothing is waited for but those that are open.
    let mut arguments = ["proxy", "--exit-on-zero-active-connections", "--minimum-drain-time", "0s"]
        .map(str::to_owned)
        .to_vec();
    if let Some(drain) = workload.proxy.listener_drain {
        arguments.extend(["--listener-drain-time".to_owned(), format!("{}ms", drain.as_millis())]);
    }
    arguments.extend(pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    for (key, value) in &workload.labels {
        arguments.extend(["--label".to_owned(), format!("{key}={value}")]);
    }
    arguments.extend(options.proxy_flags.iter().cloned());
    Spec {
        program: options.exe.clone(),
        arguments,
        environment: workload.proxy.environment.clone().into_iter().collect(),
        log: files.log(&part),
        part,
    }
}

/// The application, if the workload names one. `weft` as its first word is this very binary. The environment is what
/// Kubernetes' downward API usually gives, and where to listen and to call.
pub(super) fn application(options: &Options, workload: &Workload, files: &RunDir) -> Option<Spec> {
    let (program, arguments) = workload.command.split_first()?;
    let part = Part::App(workload.id.clone());
    let mut environment = vec![
        ("POD_NAME".to_owned(), workload.name.clone()),
        ("POD_NAMESPACE".to_owned(), workload.namespace.clone()),
        ("SERVICE_ACCOUNT".to_owned(), workload.service_account.clone()),
        ("INSTANCE_IP".to_owned(), workload.address.to_string()),
        ("WEFT_APP_SERVICE".to_owned(), workload.service().to_owned()),
    ];
    if let Some(version) = workload.labels.get("version") {
        environment.push(("WEFT_APP_VERSION".to_owned(), version.clone()));
    }
    if let Some(address) = workload.application {
        environment.push(("WEFT_APP_LISTEN".to_owned(), address.to_string()));
    }
    if let Some(proxy) = workload.http_proxy {
        // Programs differ in which of the two they read.
        environment.push(("HTTP_PROXY".to_owned(), format!("http://{proxy}")));
        environment.push(("http_proxy".to_owned(), format!("http://{proxy}")));
    }
    Some(Spec {
        program: if program == "weft" { options.exe.clone() } else { program.into() },
        arguments: arguments.to_vec(),
        environment,
        log: files.log(&part),
        part,
    })
}
