//! The truth tables of authorization and of tokens, through Envoy with the configuration that our control plane renders.

use std::net::Ipv4Addr;
use std::process::Command;

use crate::programs::{Process, get, peer};
use crate::tables::Place;

fn hold(ip: Ipv4Addr, tables: &str) {
    let place = Place::new(ip, 13000, tables);
    let mut envoy = Command::new(peer("WEFT_ENVOY"));
    envoy.arg("-c").arg(place.bootstrap()).args(["--concurrency", "1", "--disable-hot-restart"]);
    envoy.args(["-l", "warning", "--file-flush-interval-msec", "20"]);
    let mut envoy = Process::start("envoy", &mut envoy, place.directory());
    envoy.wait("ready", || get(place.admin(), "/ready").is_ok_and(|(status, _)| status == 200));
    let (wrong, observed) = place.observe();
    let cases = observed.count();
    assert!(wrong.is_empty(), "{} of {cases} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn envoy_decides_every_case_of_the_tables_as_it_says() {
    hold(Ipv4Addr::new(127, 61, 2, 1), "tables");
}

#[test]
fn envoy_decides_every_case_of_the_tables_of_tokens_as_it_says() {
    hold(Ipv4Addr::new(127, 61, 2, 2), "tokens");
}

#[test]
fn envoy_decides_every_case_of_the_tables_of_questions_as_it_says() {
    hold(Ipv4Addr::new(127, 61, 2, 3), "custom");
}
