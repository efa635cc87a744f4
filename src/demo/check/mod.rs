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

/// How long the mesh may take to be ready.
const START: Duration = Duration::from_secs(60);

/// Starts the example mesh and what the checks add to it. `staging` becomes the directory that it is copied from.
pub async fn start(example: &Path, staging: &Path, mut options: Options) -> anyhow::Result<Scene> {
    scene::stage(example, staging)?;
    options.dir = staging.to_owned();
    options.copy = true;
    let mesh = Mesh::start(options).await?;
    mesh.wait_ready(START).await?;
    Scene::new(mesh).await.context("the observer's own certificate")
}

/// The whole journey. Parts that have services of their own run side by side; those that change what others look at come
/// after them, one by one.
pub async fn journey(scene: &Scene, began: Instant) -> anyhow::Result<Report> {
    let strangers = refusals::Strangers::new()?;
    let looking = async {
        let mut checks = part("certificates", certificates::checks(scene).await);
        checks.extend(part("hops", hops::checks(scene).await));
        checks.extend(part("STRICT", refusals::checks(scene, &strangers).await));
        checks.extend(part("ingress", ingress::checks(scene).await));
        checks.extend(part("canary", canary::checks(scene).await));
        let live = part("live edit", live::checks(scene, &live::Edits::default()).await);
        (checks, live)
    };
    let ((mut checks, live), balance, retries, ejection, rotation) = tokio::join!(
        looking,
        balance::checks(scene),
        retries::checks(scene),
        ejection::checks(scene),
        rotation::checks(scene),
    );
    checks.extend(part("balance", balance));
    checks.extend(part("retries", retries));
    checks.extend(part("ejection", ejection));
    checks.extend(part("rotation", rotation));
    checks.extend(live);
    checks.extend(part("outage", outage::checks(scene).await));
    Ok(Report::new(checks, began.elapsed()))
}

/// The checks of a part, or that it could not be carried out.
pub fn part(name: &str, outcome: anyhow::Result<Vec<Check>>) -> Vec<Check> {
    outcome.unwrap_or_else(|error| vec![Check::impossible(format!("{name}: all of it"), &error)])
}
