//! Keys live in memory: that must not end up in a file when a process crashes.

use rustix::process::{Resource, Rlimit, setrlimit};

/// From now on this process, and whatever it starts, leaves no core dump. To be called first of all by whoever holds keys.
pub fn leave_no_core_dumps() {
    // Where even that is forbidden nothing can be done about it; it is no reason not to start.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

#[cfg(test)]
mod tests {
    use rustix::process::getrlimit;

    use super::*;

    #[test]
    fn a_process_with_keys_dumps_nothing_and_cannot_be_told_otherwise() {
        leave_no_core_dumps();
        let limit = getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    }
}
