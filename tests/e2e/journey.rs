//! The acceptance journey, as `weft demo --check` makes it: each of its parts is a test, and one run serves them all.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::support::mesh::{alone, authority, options};
use crate::support::{stderr, stdout, weft};

/// A check, as the report has it.
#[derive(Debug, Deserialize)]
pub struct Check {
    pub name: String,
    expected: String,
    seen: String,
    ok: bool,
}

#[derive(Debug, Deserialize)]
pub struct Report {
    pub checks: Vec<Check>,
    total: usize,
    failed: usize,
    seconds: f64,
}

/// The run that all tests of this file look at.
pub static REPORT: LazyLock<Report> = LazyLock::new(|| {
    let _alone = alone();
    let run = tempfile::tempdir().unwrap();
    let state = run.path().join("state");
    std::fs::create_dir(&state).unwrap();
    for file in std::fs::read_dir(authority()).unwrap() {
        let file = file.unwrap();
        // A control plane that was killed leaves its socket beside them.
        if !file.file_type().unwrap().is_file() {
            continue;
        }
        std::fs::copy(file.path(), state.join(file.file_name())).unwrap();
    }
    let loopback = options().loopback.unwrap().to_string();
    let directory = run.path().to_str().unwrap();
    let output =
        weft(&["demo", "--check", "--output", "json", "--loopback", &loopback, "--run-dir", directory]);
    let report: Report =
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|e| panic!("{e}: {}", stderr(&output)));
    println!("{} checks, {} failed, in {} s", report.total, report.failed, report.seconds);
    for check in &report.checks {
        println!("{check:?}");
    }
    // The command says by its end what it says by its lines.
    assert_eq!(output.status.success(), report.failed == 0, "{}", stderr(&output));
    assert_eq!(report.total, report.checks.len());
    assert_eq!(report.failed, report.checks.iter().filter(|c| !c.ok).count());
    report
});

/// All checks of a part hold, and there are as many as there should be.
fn holds(part: &str, count: usize) {
    let checks: Vec<_> = REPORT.checks.iter().filter(|c| c.name.starts_with(&format!("{part}:"))).collect();
    let failed: Vec<_> = checks
        .iter()
        .filter(|c| !c.ok)
        .map(|c| format!("\n{}: expected {}; seen {}", c.name, c.expected, c.seen))
        .collect();
    assert!(failed.is_empty(), "{}", failed.concat());
    assert_eq!(checks.len(), count, "{checks:#?}");
}

macro_rules! parts {
    ($($test:ident: $part:literal, $count:literal;)*) => {
        $(#[test]
        fn $test() {
            holds($part, $count);
        })*
    };
}

parts! {
    every_workload_has_its_certificate_and_no_other_name: "certificates", 3;
    every_hop_is_mutual_tls_and_each_side_knows_the_other: "hops", 6;
    a_strict_port_takes_the_mesh_and_nobody_else: "STRICT", 5;
    the_gateway_answers_for_its_host_and_paths: "ingress", 5;
    the_canary_gets_what_asks_for_it_and_nothing_else: "canary", 5;
    ten_thousand_requests_split_ninety_to_ten: "split", 1;
    a_slow_instance_gets_less_with_least_conn: "balance", 2;
    a_client_sees_no_error_while_instances_die: "retries", 4;
    failures_in_a_row_eject_for_longer_each_time: "ejection", 2;
    certificates_rotate_unnoticed: "rotation", 4;
    an_edit_changes_the_live_split_unnoticed: "live edit", 2;
    an_invalid_edit_is_refused_and_changes_nothing: "invalid edit", 2;
    the_mesh_goes_on_without_its_control_plane: "outage", 4;
}
