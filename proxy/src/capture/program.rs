//! The programs that the kernel's firewall is told by: which there are, and what it means when they fail.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Where programs for the administrator may be without being in PATH.
const DIRECTORIES: [&str; 5] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Where a program is.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs a program with this input; gives its output.
///
/// # Errors
///
/// It cannot be started, or it fails: then with what it said, and what to do about it.
pub(super) fn run(program: &Path, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let shown = || format!("{} {}", program.display(), arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        // What it says is looked at.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{}` cannot be started", shown()))?;
    // One that reads nothing has failed, and says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(shown)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        bail!("`{}` failed ({}): {said}{}", shown(), output.status, hint(program, said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What to do about a failure.
fn hint(program: &Path, said: &str) -> String {
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let nft = program.file_name().is_some_and(|name| name == "nft");
    if says(&["Operation not permitted", "Permission denied", "you must be root"]) {
        return format!("\n{CAPABILITIES}");
    }
    if says(&["syntax error", "unknown option", "unrecognized option", "Bad argument"]) {
        let oldest = if nft { "nftables 0.9.3" } else { "iptables 1.8" };
        return format!("\nthe program may be too old: {oldest} or later is needed");
    }
    let modules = if nft {
        "nf_tables, nft_chain_nat, nft_redir, nft_ct, and for TPROXY nft_tproxy, nft_socket"
    } else {
        "iptable_nat, ip6table_nat, iptable_raw, ip6table_raw, xt_REDIRECT, xt_owner, xt_multiport, xt_conntrack, xt_CT; \
         over nf_tables: nf_tables, nft_chain_nat, nft_compat"
    };
    if says(&[
        "No such file or directory",
        "not supported",
        "does not exist",
        "modprobe",
        "missing kernel module",
        "No chain/target/match",
        "Protocol not available",
    ]) {
        return format!("\nthe kernel may lack what the rules use; load it on the node: {modules}");
    }
    String::new()
}

/// What is missing if the kernel does not let us.
pub(super) const CAPABILITIES: &str = "changing the network needs the capability CAP_NET_ADMIN (iptables over the old tables CAP_NET_RAW, too) in the \
     namespace's own user namespace: run this as root, or give the init container NET_ADMIN and NET_RAW \
     (securityContext.capabilities.add)";

/// Whether this process has CAP_NET_ADMIN, as the kernel says in /proc; without /proc nobody knows, and it is tried.
pub(super) fn may_change_the_network() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_none_or(|bits| bits >> CAP_NET_ADMIN & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_quoted_with_what_to_do() {
        let shell = find("sh").unwrap();
        let fails = |script: &str| format!("{:#}", run(&shell, &["-c", script], "").unwrap_err());
        let error = fails("echo 'nft: Operation not permitted' >&2; exit 4");
        assert!(error.contains("nft: Operation not permitted") && error.contains("CAP_NET_ADMIN"), "{error}");
        let error = fails("echo 'Table does not exist (do you need to insmod?)' >&2; exit 3");
        assert!(error.contains("do you need to insmod") && error.contains("xt_REDIRECT"), "{error}");
        assert!(!fails("echo 'Device or resource busy' >&2; exit 1").contains('\n'));
        let nft =
            hint(Path::new("/usr/sbin/nft"), "Error: Could not process rule: No such file or directory");
        assert!(nft.contains("nft_redir"), "{nft}");
        assert!(hint(Path::new("nft"), "Error: syntax error, unexpected string").contains("0.9.3"));
    }

    #[test]
    fn input_and_output_are_the_programs() {
        let shell = find("sh").unwrap();
        assert_eq!(run(&shell, &["-c", "cat; echo there"], "here ").unwrap(), "here there\n");
        assert!(find("no-such-program-anywhere").is_none());
    }
}
