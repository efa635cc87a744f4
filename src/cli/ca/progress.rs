//! Watching a replacement of the root. The control plane does it by itself; ending this command, or the control plane, at any
//! moment only delays it.

use std::time::Duration;

use anyhow::bail;
use serde_json::json;

use super::super::token::Output;
use super::client::Plane;
use super::step;

const TICK: Duration = Duration::from_millis(200);
/// How long a control plane may be away, for a restart, before the command gives up.
const AWAY: u32 = 300;

/// Prints each change until it is done. `before`: how many replacements had been done when this one was asked for.
pub(super) fn watch(
    plane: &Plane,
    before: u64,
    began: bool,
    no_wait: bool,
    output: Output,
) -> anyhow::Result<()> {
    if let Output::Text = output {
        println!(
            "{}",
            if began { "replacing the root" } else { "the root is being replaced already; going on" }
        );
    }
    let (mut last, mut away) = (String::new(), 0);
    loop {
        let status = match plane.status() {
            Ok(status) => status,
            Err(error) if away >= AWAY => {
                bail!("{error:#}; run the command again once the control plane is back")
            }
            Err(_) => {
                away += 1;
                std::thread::sleep(TICK);
                continue;
            }
        };
        away = 0;
        let (value, words, done) = match &status.rotation {
            Some(r) => {
                let value = json!({
                    "step": step(r.phase), "of": 3, "phase": r.phase, "waiting": r.waiting,
                    "proxies": status.proxies,
                });
                let waiting = r.waiting.as_ref().map_or(String::new(), |w| format!(" ({w})"));
                (value, format!("step {} of 3: {}{waiting}", step(r.phase), r.phase.words()), false)
            }
            None if status.root_rotations > before => {
                let root = status.roots.first().map(|r| r.sha256.clone());
                (json!({"phase": "done", "root": root}), "the root is replaced".to_owned(), true)
            }
            None => bail!("the replacement was given up by another command; the old root stays"),
        };
        let now = match output {
            Output::Text => words,
            Output::Json => value.to_string(),
        };
        if now != last {
            println!("{now}");
            last = now;
        }
        if done || no_wait {
            return Ok(());
        }
        std::thread::sleep(TICK);
    }
}
