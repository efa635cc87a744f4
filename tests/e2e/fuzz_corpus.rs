//! The fuzzer's corpus, replayed: what it once thought of holds for good. tests/fuzz/run looks for more.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

fn replay(name: &str) {
    let (_, check) = targets::TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 10, "{} is the corpus", directory.display());
    for file in files {
        println!("{}", file.display());
        check(&std::fs::read(&file).unwrap());
    }
}

#[test]
fn certificates_and_requests_of_anybody_name_nobody_who_was_not_signed() {
    replay("certificates");
}

#[test]
fn ids_say_the_same_taken_apart_and_put_together() {
    replay("spiffe");
}

#[test]
fn only_tokens_that_were_signed_open_the_door() {
    replay("tokens");
}

#[test]
fn two_spellings_of_a_path_are_decided_alike() {
    replay("paths");
}

#[test]
fn an_upstream_sees_what_was_authorised_and_nothing_else() {
    replay("heads");
}
