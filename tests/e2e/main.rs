//! End-to-end tests of the whole mesh, one binary, modules by tier.
// A test that cannot go on panics.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod addresses;
mod admin;
mod agent;
mod analyze;
mod app;
mod authority;
#[path = "../authz/mod.rs"]
mod authz;
mod authz_command;
mod authz_tables;
mod bad_input;
mod bundle;
mod cert_fetch;
#[path = "../chain/mod.rs"]
mod chain;
mod churn;
mod cli;
#[path = "../collectors/mod.rs"]
mod collectors;
mod configuration_tests;
mod credentials;
mod demo;
mod deny_lists;
mod describe;
mod described_once;
mod dns;
mod drain;
mod egress;
mod est;
mod events;
mod expiry;
mod explain;
mod fuzz_corpus;
mod gateway_api;
mod hardening;
mod health;
mod inject;
mod inspect;
mod inspection;
mod install;
mod istiod;
mod journey;
mod layering;
mod ledger;
#[path = "../rate_limits/mod.rs"]
mod limits;
mod logs;
mod messages;
mod metrics;
mod networks;
mod once;
mod plan;
mod quarantine;
mod rate_limits;
mod readiness;
mod recheck;
mod registration;
mod rendering;
mod requests;
mod restart;
mod rotation;
mod sabotage;
mod support;
mod switches;
mod tcp;
mod tokens;
mod tour;
mod traffic_api;
mod tuning;
mod up;
mod webhooks;
mod wire;
