//! `weft analyze`: what a directory of YAML or a cluster says that is wrong, or probably not meant so.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use weft_control::analyze::{Code, Message, analyze};
use weft_control::ingest::{Diagnostic, fix_dir, load_dir};
use weft_control::model::Severity;

use super::token::Output;
use crate::configuration::ClusterArgs;

/// Looks for what is wrong in a directory of YAML or in a cluster, or probably not meant so
#[derive(Args, Debug)]
pub struct AnalyzeArgs {
    /// The directory of YAML that describes the mesh
    #[arg(value_name = "DIR", default_value = ".", conflicts_with_all = ["cluster", "kubeconfig"])]
    dir: PathBuf,
    /// Or a cluster
    #[command(flatten)]
    cluster: ClusterArgs,
    /// First move fields that stand in the wrong place to where they belong, in the files themselves
    #[arg(long, conflicts_with_all = ["cluster", "kubeconfig"])]
    fix: bool,
    /// How the findings are printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// End with exit code 1 for warnings, too, and not for errors alone
    #[arg(long)]
    fail_on_warnings: bool,
}

/// Prints what is found. Exit code 1: there are errors, or warnings if those count.
pub(super) fn main(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let moved = if args.fix {
        fix_dir(&args.dir).with_context(|| format!("{} cannot be mended", args.dir.display()))?
    } else {
        Vec::new()
    };
    let (world, diagnostics) = if args.cluster.is_meant() {
        let snapshot = args.cluster.snapshot()?;
        (Some(snapshot.world.clone()), snapshot.diagnostics.to_vec())
    } else {
        let outcome = load_dir(&args.dir);
        (outcome.world, outcome.diagnostics)
    };
    let mut found: Vec<Message> = diagnostics.iter().map(of_reader).collect();
    found.extend(world.iter().flat_map(analyze));
    found.sort();
    let count = |severity| found.iter().filter(|message| message.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    match args.output {
        Output::Json if args.fix => println!("{}", serde_json::json!({"messages": found, "moved": moved})),
        Output::Json => println!("{}", serde_json::json!({"messages": found})),
        Output::Text => {
            for one in &moved {
                println!("{one}");
            }
            for message in &found {
                println!("{message}");
            }
            let of = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
            let notes = of(count(Severity::Info), "note");
            println!("{}, {}, {notes}", of(errors, "error"), of(warnings, "warning"));
            let misplaced = found
                .iter()
                .any(|m| m.help.as_deref().is_some_and(|h| h.starts_with("did you mean trafficPolicy")));
            if misplaced && !args.fix && !args.cluster.is_meant() {
                println!("weft analyze --fix moves fields to where they belong");
            }
        }
    }
    let fails = errors > 0 || (args.fail_on_warnings && warnings > 0);
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What the reader found, as a message.
fn of_reader(diagnostic: &Diagnostic) -> Message {
    let code = if diagnostic.is_error() { Code::Refused } else { Code::Doubted };
    Message {
        file: diagnostic.file.clone(),
        line: diagnostic.line,
        code,
        name: code.name(),
        severity: diagnostic.severity,
        resource: diagnostic.object.clone(),
        path: diagnostic.path.clone(),
        why: diagnostic.reason.clone(),
        help: diagnostic.help.clone(),
    }
}
