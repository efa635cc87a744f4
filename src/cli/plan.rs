//! `weft plan`: what a change of a directory would change in the proxies.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::token::Output;
use crate::configuration::read;
use crate::plan::{Base, Change, Changed, Difference, Plan, What, plan, read_base};

/// Says what a change of a directory would change in the xDS of which proxies
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// The directory of YAML that describes the mesh as it shall be
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// What it is compared with: another directory, or a revision of its git repository
    #[arg(long, value_name = "DIR|REVISION", default_value = "HEAD")]
    against: String,
    /// The proxies are sidecars in pods whose connections the kernel redirects
    #[arg(long)]
    captured: bool,
    /// Print all differences of a resource, however many and long they are
    #[arg(long)]
    full: bool,
    /// End with exit code 1 if any proxy changes
    #[arg(long)]
    exit_code: bool,
    /// How the plan is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Differences of one resource, and characters of a value, that are printed without `--full`.
const FEW: (usize, usize) = (8, 120);

/// Prints the plan.
pub(super) fn main(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let before = read_base(&args.dir, &Base::parse(&args.against))?;
    let after = read(&args.dir)?;
    let plan = plan(&before, &after, args.captured);
    match args.output {
        Output::Json => println!("{}", serde_json::to_string(&plan)?),
        Output::Text => print!("{}", text(&plan, args.full)),
    }
    let changes = !(plan.changes.is_empty() && plan.new.is_empty() && plan.gone.is_empty());
    Ok(if args.exit_code && changes { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(plan: &Plan, full: bool) -> String {
    let mut text = String::new();
    for Change { proxies, resources } in &plan.changes {
        text += &format!("{}\n", list(proxies, full));
        for resource in resources {
            text += &one(resource, full);
        }
        text.push('\n');
    }
    for (proxies, what) in [(&plan.new, "new"), (&plan.gone, "gone")] {
        if !proxies.is_empty() {
            let _ = writeln!(text, "{what}: {}", list(proxies, full));
        }
    }
    for expansion in &plan.expansions {
        let _ = writeln!(text, "{expansion}");
    }
    let changed: usize = plan.changes.iter().map(|change| change.proxies.len()).sum();
    let of = plan.proxies - plan.new.len();
    let _ = writeln!(
        text,
        "{changed} of {of} proxies change, {} are new, {} go",
        plan.new.len(),
        plan.gone.len()
    );
    text
}

fn list(names: &[String], full: bool) -> String {
    match names {
        [first, second, third, rest @ ..] if rest.len() > 1 && !full => {
            format!("{first}, {second}, {third} and {} more", rest.len())
        }
        _ => names.join(", "),
    }
}

fn one(resource: &Changed, full: bool) -> String {
    let sign = match resource.what {
        What::Added => '+',
        What::Removed => '-',
        What::Changed => '~',
    };
    let mut text = format!("  {sign} {} {}", resource.kind, resource.name);
    text.truncate(text.trim_end().len());
    text.push('\n');
    let shown = if full { resource.differences.len() } else { FEW.0 };
    for Difference { path, before, after } in resource.differences.iter().take(shown) {
        let _ = writeln!(
            text,
            "      {path}: {} -> {}",
            value(before.as_ref(), full),
            value(after.as_ref(), full)
        );
    }
    if let Some(more) = resource.differences.len().checked_sub(shown + 1) {
        let _ = writeln!(text, "      and {} more (--full shows all)", more + 1);
    }
    text
}

fn value(value: Option<&Value>, full: bool) -> String {
    let Some(value) = value else { return "(none)".to_owned() };
    let text = value.to_string();
    match text.char_indices().nth(FEW.1) {
        Some((cut, _)) if !full => format!("{}...", &text[..cut]),
        _ => text,
    }
}
