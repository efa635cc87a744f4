//! `weft demo --check`: the acceptance journey. Every check is made from outside, by what sockets, handshakes and applications
//! show; nothing under test is asked what it believes.
//!
//! [`scene`] is the mesh with what a check may do to it; [`observe`] holds the observers; each other module is a part of the
//! journey and gives its [`Check`]s. The parts are functions over a scene: a test that edits the scene first must see them
//! fail.

pub mod apps;
pub mod balance;
pub mod canary;
pub mod certificates;
pub mod ejection;
pub mod hops;
pub mod ingress;
pub mod live;
pub mod observe;
pub mod outage;
pub mod refusals;
pub mod report;
pub mod retries;
pub mod rotation;
pub mod scene;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

pub use report::{Check, Report};
pub use scene::Scene;

use crate::up::{Mesh, Options};

/// Rotations of short-lived certificates to see.
const ROTATIONS: usize = 3;
/// How long the mesh may take to be ready.
const START: Duration = Duration::from_secs(60);

/// Starts the mesh of a directory that [`scene::stage`] has filled.
pub async fn start(staging: &Path, mut options: Options) -> anyhow::Result<Scene> {
    options.dir = staging.to_owned();
    options.copy = true;
    let mesh = Mesh::start(options).await?;
    mesh.wait_ready(START).await?;
    Scene::new(mesh).await.context("the observer's own certificate")
}

/// The whole journey; each check is told as soon as its part ends. Parts that have services of their own run side by side;
/// those that change what others look at come after them, one by one.
pub async fn journey(scene: &Scene, began: Instant, tell: impl Fn(&Check)) -> anyhow::Result<Report> {
    let strangers = refusals::Strangers::new()?;
    let told = |name: &str, outcome| {
        let checks = part(name, outcome);
        checks.iter().for_each(&tell);
        checks
    };
    let looking = async {
        let mut checks = told("certificates", certificates::checks(scene).await);
        checks.extend(told("hops", hops::checks(scene).await));
        checks.extend(told("STRICT", refusals::checks(scene, &strangers).await));
        checks.extend(told("ingress", ingress::checks(scene).await));
        checks.extend(told("canary", canary::checks(scene).await));
        checks.extend(told("live edit", live::checks(scene, &live::Edits::default()).await));
        checks
    };
    let (mut checks, balance, retries, ejection, rotation) = tokio::join!(
        looking,
        async { told("balance", balance::checks(scene).await) },
        async { told("retries", retries::checks(scene).await) },
        async { told("ejection", ejection::checks(scene).await) },
        async { told("rotation", rotation::checks(scene, ROTATIONS).await) },
    );
    for part in [balance, retries, ejection, rotation] {
        checks.extend(part);
    }
    checks.extend(told("outage", outage::checks(scene).await));
    Ok(Report::new(checks, began.elapsed()))
}

/// The checks of a part, or that it could not be carried out.
pub fn part(name: &str, outcome: anyhow::Result<Vec<Check>>) -> Vec<Check> {
    outcome.unwrap_or_else(|error| vec![Check::impossible(format!("{name}: all of it"), &error)])
}
