//! `weft describe`: what holds for a workload, or for a service.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use weft_control::model::World;

use super::token::Output;
use crate::configuration::{self, ClusterArgs};
use crate::describe;

/// Says what holds for a workload or a service: where it is, who may come, and by which rules
#[derive(Subcommand, Debug)]
pub enum DescribeCommand {
    /// A workload: a WorkloadEntry or a pod, as NAME or NAMESPACE/NAME, or its address
    #[command(alias = "workload")]
    Pod(DescribeArgs),
    /// A service: NAME, NAME.NAMESPACE, NAMESPACE/NAME or its whole host name
    #[command(alias = "svc")]
    Service(DescribeArgs),
}

/// Of what, and where it is read.
#[derive(Args, Debug)]
pub struct DescribeArgs {
    /// Its name
    name: String,
    /// The directory of YAML that describes the mesh
    #[arg(long, value_name = "DIR", default_value = ".", conflicts_with_all = ["cluster", "kubeconfig"])]
    dir: PathBuf,
    /// Or a cluster
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl DescribeArgs {
    fn world(&self) -> anyhow::Result<World> {
        match self.cluster.is_meant() {
            true => Ok(self.cluster.snapshot()?.world.clone()),
            false => configuration::read(&self.dir),
        }
    }
}

/// Prints it.
pub(super) fn main(command: &DescribeCommand) -> anyhow::Result<()> {
    match command {
        DescribeCommand::Pod(args) => {
            let world = args.world()?;
            let view = describe::workload(&world, &*crate::authz::workload(&world, &args.name)?);
            match args.output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&view)?),
                Output::Text => print!("{}", describe::of_workload(&view)),
            }
        }
        DescribeCommand::Service(args) => {
            let view = describe::service(&args.world()?, &args.name)?;
            match args.output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&view)?),
                Output::Text => print!("{}", describe::of_service(&view)),
            }
        }
    }
    Ok(())
}
