//! A real OpenBao, set up by what deploy/integrations/openbao ships: it signs workloads and keeps credentials, and nobody loses
//! anything while it is away.

mod kept;
mod logins;
#[allow(dead_code, reason = "the other tree of tests uses more of it")]
#[path = "../../e2e/support/pair.rs"]
mod pair;
mod rights;
mod server;
mod service_accounts;
mod signing;

use std::path::PathBuf;

use server::Bao;

/// Our own binary, for a pair of workloads.
const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// Flags of a control plane's that have to do with OpenBao: `of` is `ca` or `credentials`.
fn flags(of: &str, bao: &Bao) -> Vec<String> {
    vec![
        format!("--{of}=openbao"),
        format!("--{of}-addr={}", bao.url()),
        format!("--{of}-root-cert={}", bao.root().display()),
    ]
}

/// The same with the way in by AppRole.
fn flags_with_app_role(of: &str, bao: &Bao, [role, secret]: &[PathBuf; 2]) -> Vec<String> {
    let mut flags = flags(of, bao);
    flags.push(format!("--{of}-auth=approle"));
    flags.push(format!("--{of}-role-id-file={}", role.display()));
    flags.push(format!("--{of}-secret-id-file={}", secret.display()));
    flags
}
