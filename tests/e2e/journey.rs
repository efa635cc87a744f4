//! The acceptance journey: each of its parts is a test, and one mesh serves them all.

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use weft::demo::check::scene::stage;
use weft::demo::check::{Report, journey, start};

use crate::support::mesh::{options, runtime};

/// The run that all tests of this file look at.
pub static REPORT: LazyLock<Report> = LazyLock::new(|| {
    let _alone = crate::support::mesh::alone();
    let staging = tempfile::tempdir().expect("a directory");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
    runtime().block_on(async {
        let began = Instant::now();
        stage(&example, staging.path()).expect("a directory");
        let mut scene = start(staging.path(), options()).await.expect("the mesh starts");
        eprintln!("ready after {:.1} s", began.elapsed().as_secs_f64());
        let report = journey(&scene, began, |check| println!("{check}")).await.expect("the journey");
        println!("{}", report.total());
        if report.failed().count() > 0 {
            scene.mesh.keep_files();
            println!("logs are in {}", scene.mesh.logs().display());
        }
        tokio::time::timeout(Duration::from_secs(60), scene.mesh.shutdown())
            .await
            .expect("an end")
            .expect("a clean end");
        report
    })
});

/// All checks of a part hold, and there are as many as there should be.
fn holds(part: &str, count: usize) {
    let checks: Vec<_> = REPORT.checks.iter().filter(|c| c.name.starts_with(&format!("{part}:"))).collect();
    let failed: Vec<_> = checks.iter().filter(|c| !c.ok).map(|c| format!("\n{c}")).collect();
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
