//! `weft quarantine`: everything that comes to a workload is denied, until it is undone.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use weft_control::model::World;
use weft_control::serve::quarantine::{Done, Store, lift_unread};

use super::token::Output;
use crate::client::{Answer, Connection};
use crate::configuration::{self, ClusterArgs};
use crate::inspect::debug_ports;

/// Denies all traffic to a workload at once, also on connections that live; --undo lets it through again
#[derive(Args, Debug)]
pub struct QuarantineArgs {
    /// The workload: the name of a WorkloadEntry or pod, or NAMESPACE/NAME
    #[arg(value_name = "WORKLOAD", required_unless_present = "list")]
    workload: Option<String>,
    /// Lift the quarantine
    #[arg(long, conflicts_with = "list")]
    undo: bool,
    /// Show the workloads that are under quarantine
    #[arg(long, conflicts_with = "workload")]
    list: bool,
    /// Why, for those who find it
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Write it into this directory of YAML, which a control plane follows
    #[arg(long, value_name = "DIR", default_value = ".", conflicts_with_all = ["cluster", "kubeconfig"])]
    dir: PathBuf,
    /// Or into a cluster
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Or ask this control plane to write it, and wait until it holds: its debug port, IP:PORT; IP alone is port 8080. `cluster`, or
    /// `cluster/NAMESPACE`: the first that answers of the control planes in the cluster that $KUBECONFIG or ~/.kube/config names, through its
    /// API server
    #[arg(long, value_name = "ADDRESS", requires = "token_file", conflicts_with_all = ["dir", "cluster", "kubeconfig"])]
    control: Option<String>,
    /// The token that the control plane's --quarantine-token-file has
    #[arg(long, value_name = "FILE", requires = "control")]
    token_file: Option<PathBuf>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How long a control plane may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Does it, and says what was done.
pub(super) fn main(args: &QuarantineArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    if let (Some(control), Some(token)) = (&args.control, &args.token_file) {
        let places = debug_ports(control)?;
        let answer = runtime.block_on(ask(args, control, &places, token))?;
        return print(args, &answer);
    }
    let (world, store) = match args.cluster.is_meant() {
        true => {
            let world = args.cluster.snapshot()?.world.clone();
            (world, Store::Cluster(runtime.block_on(args.cluster.client())?))
        }
        false => {
            if args.dir.join(".weft-signature").exists() && !args.list {
                bail!(
                    "{} is signed, and a file more would have it refused: write the quarantine and sign it again (weft bundle sign)",
                    args.dir.display()
                );
            }
            match (configuration::read(&args.dir), &args.workload) {
                (Ok(world), _) => (world, Store::Directory(args.dir.clone())),
                // What is wrong elsewhere does not keep anybody under quarantine.
                (Err(why), Some(workload)) if args.undo => {
                    return print(args, &told(lift_unread(&args.dir, workload, &format!("{why:#}"))?, true));
                }
                (Err(why), _) => return Err(why),
            }
        }
    };
    print(args, &runtime.block_on(act(args, &world, &store))?)
}

async fn act(args: &QuarantineArgs, world: &World, store: &Store) -> anyhow::Result<Value> {
    let Some(workload) = args.workload.as_deref().filter(|_| !args.list) else {
        let one = |q: &weft_control::model::quarantine::Quarantine| json!({"workload": format!("{}/{}", q.namespace, q.name), "reason": q.reason, "by": q.actor, "source": q.source});
        return Ok(json!({"quarantines": world.quarantines().iter().map(one).collect::<Vec<_>>()}));
    };
    let done = match args.undo {
        true => store.lift(world, workload).await?,
        false => store.put(world, workload, &args.reason, &actor()).await?,
    };
    Ok(told(done, args.undo))
}

fn told(done: Done, undo: bool) -> Value {
    let Done { target, changed, place, note } = done;
    let state = if undo { "released" } else { "quarantined" };
    json!({"workload": target, "state": state, "changed": changed, "source": place, "note": note})
}

/// Who wants it.
fn actor() -> String {
    std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "weft quarantine".to_owned())
}

async fn ask(
    args: &QuarantineArgs,
    control: &str,
    places: &[SocketAddr],
    file: &Path,
) -> anyhow::Result<Value> {
    let token = std::fs::read_to_string(file).with_context(|| format!("--token-file {}", file.display()))?;
    let token = token.trim();
    if token.is_empty() || token.contains(char::is_control) {
        bail!("--token-file {} holds no token", file.display());
    }
    let mut failed = Vec::new();
    for at in places {
        // What one has done is not done twice by another: doing it again changes nothing.
        let answer = match tokio::time::timeout(PATIENCE, call(args, *at, token)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                failed.push(format!("{at}: {error:#}"));
                continue;
            }
            Err(_) => {
                failed.push(format!("{at}: no answer within {PATIENCE:?}"));
                continue;
            }
        };
        let value: Value = serde_json::from_slice(&answer.body).with_context(|| {
            format!(
                "{}: is a control plane's debug port at {control} ({at}), and has it --quarantine-token-file?",
                answer.status
            )
        })?;
        if !answer.status.is_success() {
            bail!("{}: {}", answer.status, value["error"].as_str().unwrap_or_default());
        }
        return Ok(value);
    }
    bail!("--control {control}: {}", failed.join("; "))
}

async fn call(args: &QuarantineArgs, at: SocketAddr, token: &str) -> anyhow::Result<Answer> {
    let (method, path) = match (args.list, args.undo) {
        (true, _) => ("GET", "/quarantine"),
        (_, true) => ("POST", "/quarantine/release"),
        _ => ("POST", "/quarantine"),
    };
    let body = json!({"workload": args.workload, "reason": args.reason, "by": actor()}).to_string();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", at.to_string())
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(Bytes::from(if args.list { String::new() } else { body })))?;
    Connection::open(at).await?.send(request).await
}

fn print(args: &QuarantineArgs, answer: &Value) -> anyhow::Result<()> {
    match args.output {
        Output::Json => println!("{answer:#}"),
        Output::Text => {
            print!("{}", text(answer, args.control.is_some()));
            if let Some(note) = answer["note"].as_str().filter(|note| !note.is_empty()) {
                eprintln!("note: {note}");
            }
        }
    }
    Ok(())
}

fn text(answer: &Value, confirmed: bool) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(all) = answer["quarantines"].as_array() {
        if all.is_empty() {
            return "no workload is under quarantine\n".to_owned();
        }
        let line = |one: &Value| {
            let because = |text: &str| if text.is_empty() { String::new() } else { format!(": {text}") };
            format!(
                "{} ({}){}\n",
                word(&one["workload"]),
                word(&one["source"]),
                because(&word(&one["reason"]))
            )
        };
        return all.iter().map(line).collect();
    }
    let (workload, source) = (word(&answer["workload"]), word(&answer["source"]));
    let released = answer["state"] == "released";
    match (released, answer["changed"] == true) {
        (false, true) => {
            let when = if confirmed { "" } else { " as soon as the control plane has read it" };
            format!(
                "{workload} is under quarantine{when} ({source}); weft quarantine --undo {workload} lifts it\n"
            )
        }
        (false, false) => format!("{workload} is under quarantine already ({source})\n"),
        (true, true) => format!("{workload} is released ({source} is gone)\n"),
        (true, false) => format!("{workload} is not under quarantine\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_said() {
        let done = |state: &str, changed: bool| json!({"workload": "shop/cart-1", "state": state, "changed": changed, "source": "q.yaml"});
        for (answer, words) in [
            (done("quarantined", true), "--undo shop/cart-1 lifts it"),
            (done("quarantined", false), "already (q.yaml)"),
            (done("released", true), "q.yaml is gone"),
            (done("released", false), "is not under quarantine"),
            (json!({"quarantines": []}), "no workload"),
            (
                json!({"quarantines": [{"workload": "a/b", "reason": "odd", "source": "f:1"}]}),
                "a/b (f:1): odd\n",
            ),
        ] {
            assert!(text(&answer, true).contains(words), "{answer}: {}", text(&answer, true));
        }
    }
}
