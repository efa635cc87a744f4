//! Tests run side by side in one network, so each has loopback addresses that no other file of its binary speaks of: two
//! servers at one address would fail on some days only, whenever both happen to run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

use crate::ledger::find::files;

/// Files that share addresses on purpose: parts of one test, or tests each in a network namespace of its own.
const TOGETHER: [&str; 2] = ["tests/peers/differential", "tests/peers/netns"];

/// The loopback addresses that a text has, as `127.1.2.3` and as `(127, 1, 2, 3)`. Those of 127.0.0.0/24 are everybody's,
/// with ports that the kernel gives out.
fn addresses(text: &str) -> BTreeSet<Ipv4Addr> {
    let spaced = text.replace("127, ", "127.").replace(", ", ".");
    let mut found = BTreeSet::new();
    for text in [text, spaced.as_str()] {
        for (at, _) in text.match_indices("127.") {
            let of_another = text[..at].ends_with(|c: char| c.is_ascii_digit() || c == '.');
            let rest = &text[at..];
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let Ok(address) = rest[..end].trim_end_matches('.').parse::<Ipv4Addr>() else { continue };
            if !of_another && !address.octets().starts_with(&[127, 0, 0]) {
                found.insert(address);
            }
        }
    }
    found
}

fn shared(tests: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = files(&root.join(tests));
    let mut owners: BTreeMap<Ipv4Addr, BTreeSet<String>> = BTreeMap::new();
    for file in &files {
        let name = file.strip_prefix(root).unwrap().display().to_string();
        let owner = TOGETHER.iter().find(|t| name.starts_with(**t)).map_or(name, |t| (*t).to_owned());
        for address in addresses(&std::fs::read_to_string(file).unwrap()) {
            owners.entry(address).or_default().insert(owner.clone());
        }
    }
    assert!(owners.len() > 50, "{tests}: addresses are found");
    let shared = owners.iter().filter(|(_, files)| files.len() > 1);
    shared.map(|(address, files)| format!("{address}: {files:?}")).collect()
}

#[test]
fn no_two_files_of_tests_use_one_loopback_address() {
    for tests in ["tests/e2e", "tests/peers"] {
        assert_eq!(shared(tests), Vec::<String>::new(), "give one of them an address of its own");
    }
}

#[test]
fn addresses_are_found_in_both_ways_of_writing_them() {
    // In pieces, so that this text is not itself found.
    let text = format!("\"{0}.9.8.7:80\" {0}.0.0.1 ({0}, 4, 5, 6) 1{0}.1.1.1 at {0}.3.2.1.", 127);
    let found: Vec<String> = addresses(&text).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["3.2.1", "4.5.6", "9.8.7"].map(|rest| format!("{}.{rest}", 127)));
}
