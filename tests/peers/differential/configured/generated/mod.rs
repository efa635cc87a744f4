//! Random configurations and random requests through both proxies: what nobody thought of writing down as a case. From a seed,
//! so that a difference can be had again; it is printed as a case that can be put into `differential/data`.

mod configuration;
mod random;
mod requests;

use std::fmt::Write as _;

use serde_json::{Value, json};

use self::random::Random;
use super::pair::Pair;
use super::run;
use super::spec::{self, Case};

/// Requests of a configuration.
const REQUESTS: usize = 50;
/// Configurations of one pair of proxies.
const CONFIGURATIONS: usize = 50;
/// Ports of their own: the pair of the written cases runs beside.
const FIRST_PORT: u16 = 20000;
/// Differences that are looked at closely; there is no end of what one fault can cause.
const SHOWN: usize = 4;
/// After so many configurations that differ it is enough.
const MOST: usize = 12;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |v| v.parse().unwrap_or_else(|e| panic!("{variable}={v}: {e}")))
}

/// `WEFT_DIFFERENTIAL_REQUESTS` says how many, `WEFT_DIFFERENTIAL_SEED` where chance begins.
#[test]
fn generated_requests() {
    let seed = number("WEFT_DIFFERENTIAL_SEED", 1);
    let requests = number("WEFT_DIFFERENTIAL_REQUESTS", 10_000) as usize;
    println!("seed {seed}, {requests} requests");
    let (mut made, mut round, mut different) = (0, 0, 0);
    while made < requests && different < MOST {
        let mut documents = Vec::new();
        while documents.len() < CONFIGURATIONS && made < requests {
            let name = format!("generated_{seed}_{}", round * CONFIGURATIONS + documents.len());
            documents.push(document(name, seed.wrapping_mul(1_000_003) + (made / REQUESTS) as u64));
            made += REQUESTS;
        }
        round += 1;
        let differing = differing(&documents);
        if !differing.is_empty() {
            different += differing.len();
            println!(
                "after {made} requests: {} configurations differ.\n{}",
                differing.len(),
                closely(&differing)
            );
        }
    }
    assert_eq!(different, 0, "seed {seed}: configurations that differ, of {made} requests");
}

fn document(name: String, seed: u64) -> Value {
    let mut random = Random::new(seed);
    let mut document = configuration::configuration(&mut random);
    document["name"] = json!(name);
    document["send"] = Value::Array((0..REQUESTS).map(|_| requests::request(&mut random)).collect());
    document
}

/// Those of the cases in which the two sides differ, and how.
fn differing(documents: &[Value]) -> Vec<(Value, String)> {
    let cases: Vec<Case> = documents.iter().map(|d| spec::case("generated", d.clone())).collect();
    let pair = Pair::start(&cases, FIRST_PORT);
    let numbered: Vec<_> = cases.iter().enumerate().collect();
    let all = run::all(&numbered, &pair).into_iter().filter(|(_, text)| !is_a_matter_of_time(text));
    all.map(|(index, text)| (documents[index].clone(), text)).collect()
}

/// How much of a request's body was read when its upstream broke off hangs on who was first.
fn is_a_matter_of_time(text: &str) -> bool {
    let side = |mark: &str| -> Vec<String> {
        let word = |w: &str| if w.starts_with("received=") { "received".to_owned() } else { w.to_owned() };
        let line = |l: &str| l.split(' ').map(word).collect::<Vec<_>>().join(" ");
        let mut lines: Vec<_> = text.lines().filter_map(|l| l.strip_prefix(mark)).map(line).collect();
        lines.sort_unstable();
        lines
    };
    let (mut theirs, mut ours) = (side("  - "), side("  + "));
    // A connection on which a body is still to come is closed, and the client makes another one.
    ours.retain(|l| l != "connection: close");
    theirs.retain(|l| !l.contains("downstream_cx_total"));
    ours.retain(|l| !l.contains("downstream_cx_total"));
    !theirs.is_empty() && theirs == ours && theirs.iter().all(|l| l.contains("UPE") && l.contains("received"))
}

/// The differences again, request by request: each with a configuration of its own, so that one can be shown alone.
fn closely(differing: &[(Value, String)]) -> String {
    let mut out = String::new();
    for (document, whole) in differing.iter().take(SHOWN) {
        let one = |(number, send): (usize, &Value)| {
            let mut one = document.clone();
            one["name"] = json!(format!("{}_{number}", document["name"].as_str().unwrap_or_default()));
            one["send"] = json!([send]);
            one
        };
        let alone: Vec<_> = document["send"].as_array().into_iter().flatten().enumerate().map(one).collect();
        match self::differing(&alone).first() {
            Some((document, text)) => {
                let _ = writeln!(out, "- {document}\n{text}");
            }
            // It takes more than one request.
            None => {
                let _ = writeln!(out, "- {document}\n{whole}");
            }
        }
    }
    out
}
