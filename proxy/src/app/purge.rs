//! Memory that only a change of configuration needed, or a page with all statistics: given back to the system once it is quiet. The allocator
//! keeps what is freed until somebody allocates again, and the control thread may not for hours: it was half of what a proxy of a thousand
//! services had.

use std::time::Duration;

use tokio::time::{Instant, interval, timeout_at};

use crate::state::Engine;

/// So long nothing has changed.
const QUIET: Duration = Duration::from_secs(1);
/// And after so long it is done while things go on changing.
const LATEST: Duration = Duration::from_secs(10);
/// It is done this often while nothing changes, for what else has needed memory.
const EVERY: Duration = Duration::from_secs(60);

/// Gives it back, for as long as the proxy runs.
pub(super) async fn run(engine: Engine) {
    let mut changes = engine.changes();
    let mut ticks = interval(EVERY);
    loop {
        tokio::select! {
            changed = changes.changed() => {
                let begun = Instant::now();
                let mut more = changed.is_ok();
                while more && begun.elapsed() < LATEST {
                    more = timeout_at(Instant::now() + QUIET, changes.changed()).await.is_ok_and(|more| more.is_ok());
                }
            }
            _ = ticks.tick() => {}
        }
        give_back();
    }
}

#[allow(unsafe_code, reason = "the allocator's crate wraps no more of it than allocating")]
fn give_back() {
    // SAFETY: it takes no pointer, and any thread may call it at any time; it frees nothing that anybody has.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
