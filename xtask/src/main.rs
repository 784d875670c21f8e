//! `cargo xtask`: the developer commands of this repository.
fn main() {}
