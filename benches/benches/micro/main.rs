//! Micro-benchmarks of what a request, a handshake and a change of configuration cost inside the proxy. One program, for each
//! would be linked by itself.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up should stop")]

mod balance;
mod compile;
mod handshake;
mod rbac;
mod record;
mod route;
mod series;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

fn quick() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1))
}

criterion_group! {
    name = path;
    config = quick();
    targets = route::benches, rbac::benches, record::benches, balance::benches, handshake::benches
}
criterion_group! {
    name = configuration;
    config = quick().sample_size(10);
    targets = compile::benches
}
criterion_group! {
    name = numbers;
    config = quick().sample_size(10);
    targets = series::benches
}
// What looks at the memory of the process goes first.
criterion_main!(numbers, path, configuration);
