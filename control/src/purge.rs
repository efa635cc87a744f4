//! Memory that only a change needed: given back to the system soon after. The allocator keeps what is freed until the same thread allocates
//! again, and what 100 proxies at a time are told of is more than what stays.

use std::time::Duration;

/// How often.
const EVERY: Duration = Duration::from_secs(10);

/// Gives it back, for as long as the control plane runs.
pub async fn run() {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        give_back();
    }
}

#[allow(unsafe_code, reason = "the allocator's crate wraps no more of it than allocating")]
fn give_back() {
    // SAFETY: it takes no pointer, and any thread may call it at any time; it frees nothing that anybody has.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
