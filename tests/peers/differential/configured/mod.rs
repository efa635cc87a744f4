//! The part of the suite that is about configuration: cases in YAML (`differential/data/*.yaml`), each a configuration, what its
//! upstreams answer, and requests. Compared are answers, what the upstreams got, access log lines and counters.

mod certificates;
mod checks;
mod client;
mod explained;
mod generated;
mod observed;
mod pair;
mod run;
mod spans;
pub mod spec;
mod tokens;
mod upstream;

/// A test for each file of cases.
macro_rules! files {
    ($($name:ident)*) => {
        /// All cases, in the order of the files.
        pub fn all() -> Vec<spec::Case> {
            [$(spec::file(stringify!($name))),*].concat()
        }

        $(
            #[test]
            fn $name() {
                run::file(stringify!($name));
            }
        )*
    };
}

files! {
    matchers rewriting connections retries filters clusters balancing health outlier tcp tls rbac rbac_networks limits ratelimit compressor decompressor jwt ext_authz
    listeners certificates credentials logs formats requests upstreams tracing
}
