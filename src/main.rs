//! `weft`: the all-in-one binary and the operator's command line.

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}
