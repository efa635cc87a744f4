//! `weft drift`: where a cluster has not what a directory says.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::token::Output;
use crate::configuration::ClusterArgs;
use crate::drift::{Drift, What, drift};

/// Says where a cluster has not what a directory says: objects changed by hand, missing, or there without a file. Exit code 1: there are some
#[derive(Args, Debug)]
pub struct DriftArgs {
    /// The directory of YAML that the cluster should have
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The cluster; $KUBECONFIG or ~/.kube/config where nothing is said
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Prints it.
pub(super) fn main(args: &DriftArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(async { drift(&args.dir, &args.cluster.client().await?).await })?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&found)?),
        Output::Text => print!("{}", text(&found)),
    }
    Ok(if found.drifted.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(found: &Drift) -> String {
    let mut out = String::new();
    for one in &found.drifted {
        let by = one.by.as_ref().map(|by| format!(", last changed by {by}")).unwrap_or_default();
        let file = one.file.as_ref().map(|file| format!(" ({file})")).unwrap_or_default();
        let what = match one.what {
            What::Changed => "changed",
            What::Missing => "missing in the cluster",
            What::Extra => "in no file",
        };
        out.push_str(&format!("{}{file}: {what}{by}\n", one.object));
        for each in &one.differences {
            let shown = |value: &Option<serde_json::Value>| {
                value.as_ref().map_or("nothing".to_owned(), |v| v.to_string())
            };
            out.push_str(&format!(
                "  {}: {} in the file, {} in the cluster\n",
                each.path,
                shown(&each.before),
                shown(&each.after)
            ));
        }
    }
    if !found.left_out.is_empty() {
        let kinds: Vec<_> = found.left_out.iter().cloned().collect();
        out.push_str(&format!("not compared: {}\n", kinds.join(", ")));
    }
    out.push_str(&format!(
        "{} objects compared, {} not as they should be\n",
        found.compared,
        found.drifted.len()
    ));
    out
}
