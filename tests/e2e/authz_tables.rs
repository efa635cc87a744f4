//! The truth tables of authorization and of tokens, through our proxy and as `weft authz check` answers them.

use std::net::Ipv4Addr;

use crate::authz::Place;
use crate::authz::recorded::KEEP_ALL;
use crate::support::eventually;
use crate::support::http::get;
use crate::support::logged::Logged;

fn hold(ip: Ipv4Addr, tables: &str, least: usize) {
    let place = Place::new(ip, 13000, tables);
    let bootstrap = place.bootstrap();
    let flags = ["proxy", "-c", bootstrap.to_str().unwrap(), "--concurrency", "1"];
    let _proxy = Logged::weft(&[&flags[..], &KEEP_ALL].concat());
    eventually("the proxy is ready", || get(place.admin(), "/ready").is_ok_and(|answer| answer.0 == 200));
    let (wrong, observed) = place.observe();
    let cases = observed.count();
    assert!(wrong.is_empty(), "{} of {cases} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases >= least, "there are {cases} cases only");
    // What the proxy has kept says of each what was seen.
    let page = |path: &str| get(place.admin(), path).ok().map(|(_, text)| text);
    let (wrong, requests) = observed.explained(page);
    assert!(wrong.is_empty(), "{} of {requests} explanations:\n{}", wrong.len(), wrong.join("\n"));
    assert!(requests >= least / 2, "{requests} requests only were explained");
}

#[test]
fn every_case_of_the_tables_is_decided_as_it_says() {
    hold(Ipv4Addr::new(127, 61, 1, 1), "tables", 500);
}

#[test]
fn every_case_of_the_tables_of_tokens_is_decided_as_it_says() {
    hold(Ipv4Addr::new(127, 61, 1, 2), "tokens", 150);
}

#[test]
fn every_case_of_the_tables_of_questions_is_decided_as_it_says() {
    hold(Ipv4Addr::new(127, 61, 1, 3), "custom", 80);
}

fn hold_when_asked(ip: Ipv4Addr, tables: &str, least: usize) {
    let (wrong, cases) = Place::new(ip, 13000, tables).judge();
    assert!(wrong.is_empty(), "{} of {cases} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases >= least, "there are {cases} cases only");
}

#[test]
fn every_case_of_the_tables_is_answered_as_it_says_by_who_is_asked() {
    hold_when_asked(Ipv4Addr::new(127, 61, 1, 4), "tables", 500);
}

#[test]
fn every_case_of_the_tables_of_tokens_is_answered_as_it_says_by_who_is_asked() {
    hold_when_asked(Ipv4Addr::new(127, 61, 1, 5), "tokens", 150);
}

#[test]
fn who_is_asked_about_the_tables_of_questions_says_who_else_is_asked() {
    let (wrong, asked) = Place::new(Ipv4Addr::new(127, 61, 1, 6), 13000, "custom").judge_asked();
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(asked >= 40, "{asked} cases only are somebody else's to decide");
}
