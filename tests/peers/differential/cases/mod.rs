//! The cases, by subject.

/// A table of cases, each a test of its own.
macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident => $case:expr;)*) => {
        /// The cases of this subject.
        pub fn all() -> Vec<$crate::differential::case::Case> {
            vec![$({
                let mut case = $case;
                case.name = stringify!($name);
                case
            }),*]
        }

        $(
            $(#[$doc])*
            #[test]
            fn $name() {
                $crate::differential::run::run(stringify!($name));
            }
        )*
    };
}

mod bodies;
mod connections;
mod http2;
mod informational;
mod manager;
mod request_heads;
mod resets;
mod retries;
mod routes;
mod targets;
mod tunnels;
mod upgrades;

use super::case::Case;

/// All of them.
pub fn all() -> Vec<Case> {
    [
        request_heads::all(),
        targets::all(),
        tunnels::all(),
        bodies::all(),
        informational::all(),
        manager::all(),
        connections::all(),
        resets::all(),
        retries::all(),
        routes::all(),
        upgrades::all(),
        http2::all(),
    ]
    .concat()
}
