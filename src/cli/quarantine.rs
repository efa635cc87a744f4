//! `weft quarantine`: everything that comes to a workload is denied, until it is undone.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::{Request, StatusCode};
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
    /// `cluster/NAMESPACE`: the first that does it of the control planes in the cluster that $KUBECONFIG or ~/.kube/config names, through its
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
        match tokio::time::timeout(PATIENCE, call(args, *at, token)).await {
            Ok(Ok(answer)) => match judged(&answer) {
                Said::Done(value) => return Ok(value),
                Said::Refused(why) => bail!("{at}: {why}"),
                Said::Elsewhere(why) => failed.push(format!("{at}: {why}")),
            },
            Ok(Err(error)) => failed.push(format!("{at}: {error:#}")),
            Err(_) => failed.push(format!("{at}: no answer within {PATIENCE:?}")),
        }
    }
    bail!("--control {control}: {}", failed.join("; "))
}

/// What an answer is worth.
#[derive(Debug, PartialEq)]
enum Said {
    Done(Value),
    /// Any other would say the same.
    Refused(String),
    /// Another may do it.
    Elsewhere(String),
}

fn judged(answer: &Answer) -> Said {
    let status = answer.status;
    let value: Value = match serde_json::from_slice(&answer.body) {
        Ok(value @ Value::Object(_)) => value,
        _ => {
            return Said::Elsewhere(format!(
                "{status}: is a control plane's debug port there, and has it --quarantine-token-file?"
            ));
        }
    };
    if status.is_success() {
        return Said::Done(value);
    }
    let why = format!("{status}: {}", value["error"].as_str().unwrap_or_default());
    match status.is_server_error() || status == StatusCode::NOT_FOUND {
        true => Said::Elsewhere(why),
        false => Said::Refused(why),
    }
}

/// Asks one; not before it says that it is Weft: nobody else is to see the token.
async fn call(args: &QuarantineArgs, at: SocketAddr, token: &str) -> anyhow::Result<Answer> {
    let version = crate::client::get(at, "/version", PATIENCE).await?;
    if !version.status.is_success() || !version.text().starts_with("weft-") {
        bail!(
            "{}: this is no control plane of Weft's (http://{at}/version), and did not get the token: is its debug port (8080) there?",
            version.status
        );
    }
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
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn another_is_asked_where_one_cannot_do_it() {
        let answer = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            judged(&Answer { status, headers: hyper::HeaderMap::default(), body: body.to_owned().into() })
        };
        let error = r#"{"error": "no"}"#;
        assert_eq!(answer(200, r#"{"state": "released"}"#), Said::Done(json!({"state": "released"})));
        for (status, body) in
            [(404, error), (500, error), (503, error), (405, "these pages"), (200, "hello"), (200, "[]")]
        {
            assert!(matches!(answer(status, body), Said::Elsewhere(_)), "{status} {body}");
        }
        for status in [400, 401, 409] {
            assert!(matches!(answer(status, error), Said::Refused(why) if why.contains("no")), "{status}");
        }
    }

    /// Answers each request with this version, and tells what it was asked.
    fn server(version: &'static str) -> (SocketAddr, std::sync::mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut asked = Vec::new();
                let mut buffer = [0; 4096];
                while !asked.windows(4).any(|four| four == b"\r\n\r\n") {
                    let size = stream.read(&mut buffer).unwrap();
                    asked.extend_from_slice(&buffer[..size]);
                }
                let asked = String::from_utf8(asked).unwrap();
                let body =
                    if asked.starts_with("GET /version ") { version } else { r#"{"quarantines": []}"# };
                let head =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all((head + body).as_bytes()).unwrap();
                if tell.send(asked).is_err() {
                    return;
                }
            }
        });
        (at, told)
    }

    #[test]
    fn the_token_goes_to_weft_alone() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            args: QuarantineArgs,
        }
        let line = ["weft", "--list", "--control", "127.0.0.1", "--token-file", "none"];
        let args = <Command as clap::Parser>::try_parse_from(line).unwrap().args;
        let ((other, asked_other), (weft, asked_weft)) = (server("istiod-1.30"), server("weft-0.1.0\n"));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "secret").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(ask(&args, "cluster", &[other, weft], &file)).unwrap();
        assert_eq!(answer, json!({"quarantines": []}));
        let asked: Vec<_> = asked_other.try_iter().collect();
        assert!(asked.len() == 1 && !asked[0].contains("secret"), "{asked:?}");
        let asked: Vec<_> = asked_weft.try_iter().collect();
        assert!(asked.len() == 2 && asked[1].contains("Bearer secret"), "{asked:?}");
        let why = runtime.block_on(ask(&args, "cluster", &[other], &file)).unwrap_err().to_string();
        assert!(why.contains("no control plane of Weft's"), "{why}");
    }

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
