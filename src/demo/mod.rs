//! `weft demo`: the example mesh, shown and checked.

pub mod check;
