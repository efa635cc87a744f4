//! One of three instances is ten times slower: how many requests does each balancer send it?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::apps::{self, Behaviour};
use super::observe::http::Request;
use super::observe::load::{Load, Plan, Tally};
use super::report::Check;
use super::scene::Scene;

/// Requests by each balancer.
const REQUESTS: u64 = 600;
/// Requests at a time.
const AT_A_TIME: usize = 12;
const FAST: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_millis(100);

/// The shares of both, and that the slow one's is smaller with LEAST_CONN.
pub async fn checks(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    let instances = scene.instances("balance");
    for (at, instance) in instances.iter().enumerate() {
        let delay = if at == 0 { SLOW } else { FAST };
        apps::behave(instance, &Behaviour { delay, ..Behaviour::default() }).await?;
    }
    let slow = instances.first().map(|w| w.id.clone()).unwrap_or_default();
    let (least, robin) = (run(scene, "least").await?, run(scene, "robin").await?);
    let share = |t: &Tally| t.of(&slow) as f64 / t.good.max(1) as f64;
    // Five standard deviations of a fair third.
    let fair = 1.0 / 3.0;
    let deviation = (fair * (1.0 - fair) / REQUESTS as f64).sqrt() * 5.0;
    let (few, many) = (share(&least), share(&robin));
    let failed = least.failed() + robin.failed();
    Ok(vec![
        Check::new(
            "balance: ROUND_ROBIN",
            format!("a third of the requests at the slow instance, within {:.1} %", deviation * 100.0),
            format!("{:.1} % at {slow} ({})", many * 100.0, shares(&robin.by_key)),
            failed == 0 && (many - fair).abs() <= deviation,
        ),
        Check::new(
            "balance: LEAST_CONN",
            format!(
                "fewer at the slow instance than with ROUND_ROBIN: under {:.1} %",
                (fair - deviation) * 100.0
            ),
            format!("{:.1} % at {slow} ({})", few * 100.0, shares(&least.by_key)),
            failed == 0 && few < many && few < fair - deviation,
        ),
    ])
}

fn shares(by_instance: &BTreeMap<String, u64>) -> String {
    by_instance.iter().map(|(instance, n)| format!("{instance} {n}")).collect::<Vec<_>>().join(", ")
}

async fn run(scene: &Scene, balancer: &str) -> anyhow::Result<Tally> {
    let plan = Plan {
        to: scene.out_of("observer")?,
        request: Request::get("balance:8080", apps::QUIET).with("balancer", balancer),
        connections: AT_A_TIME,
        requests: Some(REQUESTS),
        rate: None,
    };
    Ok(Load::start(plan, Arc::new(apps::instance)).finish().await)
}
