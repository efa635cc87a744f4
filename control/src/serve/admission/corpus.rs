//! The corpus of good and bad configuration, `tests/corpus`: each document with what is said of it, at the line that it is said of
//! (`#! error: PATH: REASON; HELP`). Whoever reads says the same: a directory, and an API server's question about each object.
//!
//! `WEFT_UPDATE_CORPUS=1` writes what is said now into the files, for somebody to read what differs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::Value;

use super::objects;
use super::tests::question;
use crate::ingest::{Diagnostic, load_dir, load_str};
use crate::model::Severity;

/// Begins what is said of a line.
const MARK: &str = "#! ";
/// So many documents there are at least.
const LEAST: usize = 150;

/// What is said, as it is written in a file.
fn said(one: &Diagnostic) -> String {
    let severity = match one.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "note",
    };
    let path = one.path.as_ref().map(|path| format!("{path}: ")).unwrap_or_default();
    let help = one.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
    format!("{severity}: {path}{}{help}", one.reason).replace('\n', "\\n")
}

/// A line without what is said of it, and that.
fn split(line: &str) -> (&str, Vec<&str>) {
    match line.split_once(MARK) {
        None => (line, Vec::new()),
        Some((line, said)) => (line.trim_end(), said.split(&format!(" {MARK}")).map(str::trim_end).collect()),
    }
}

/// A file's text without what is said of it, and that by lines.
fn read(text: &str) -> (String, BTreeMap<u32, Vec<String>>) {
    let (mut bare, mut all) = (String::new(), BTreeMap::new());
    for (number, line) in (1..).zip(text.lines()) {
        let (line, said) = split(line);
        bare += line;
        bare.push('\n');
        if !said.is_empty() {
            all.insert(number, said.into_iter().map(str::to_owned).collect());
        }
    }
    (bare, all)
}

fn by_line(found: &[Diagnostic]) -> BTreeMap<u32, Vec<String>> {
    let mut all: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for one in found {
        all.entry(one.line).or_default().push(said(one));
    }
    all
}

fn files() -> Vec<PathBuf> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// The documents of a text, each with the line that it begins at and the one after its last.
fn documents(text: &str) -> Vec<(u32, u32, String)> {
    let mut all = Vec::new();
    let (mut begin, mut document) = (1, String::new());
    let mut number = 0;
    for line in text.lines() {
        number += 1;
        if line == "---" {
            all.push((begin, number, std::mem::take(&mut document)));
            begin = number + 1;
        } else {
            document += line;
            document.push('\n');
        }
    }
    all.push((begin, number + 1, document));
    all
}

/// What an API server is told of a document: what refuses it, and doubts; none where it is not asked.
fn asked(document: &str) -> Option<(Option<String>, Vec<String>)> {
    let object: Value = serde_saphyr::from_str(document).unwrap();
    let text = |key: &str| object[key].as_str().unwrap().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/')?;
    let answer = objects::validate(&question(group, version, &kind, &object), None);
    Some((answer.refused, answer.warnings))
}

#[test]
fn a_directory_and_a_webhook_say_of_each_document_what_is_written_beside_it() {
    let update = std::env::var_os("WEFT_UPDATE_CORPUS").is_some();
    let (mut count, mut good, mut wrong) = (0, 0, String::new());
    for path in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        let (bare, expected) = read(&text);
        let name = path.file_name().unwrap().to_str().unwrap();
        let outcome = load_str(name, &bare);
        let found = by_line(&outcome.diagnostics);
        if update {
            let mut new = String::new();
            for (number, line) in (1..).zip(bare.lines()) {
                new += line;
                for one in found.get(&number).into_iter().flatten() {
                    write!(new, "  {MARK}{one}").unwrap();
                }
                new.push('\n');
            }
            std::fs::write(&path, new.replace(&format!("  {MARK}"), &format!(" {MARK}"))).unwrap();
            continue;
        }
        let lines: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
        for line in lines {
            let (is, should) = (found.get(line), expected.get(line));
            if is != should {
                writeln!(wrong, "{name}:{line}\n  is {is:#?}\n  should be {should:#?}").unwrap();
            }
        }
        // The comments change nothing.
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(name), &text).unwrap();
        let read = load_dir(directory.path());
        assert_eq!(by_line(&read.diagnostics), found, "{name}");
        let mut alone = String::new();
        for (begin, end, document) in documents(&bare) {
            count += 1;
            let here = || expected.range(begin..end).flat_map(|(_, said)| said);
            let errors: Vec<_> = here().filter_map(|one| one.strip_prefix("error: ")).collect();
            if errors.is_empty() {
                good += 1;
                alone += &format!("---\n{document}");
            }
            let Some((refused, warnings)) = asked(&document) else { continue };
            let refused = refused.unwrap_or_default();
            let mut written: Vec<_> = errors.iter().map(|one| one.replace("\\n", "\n")).collect();
            // A webhook says it in the order of lines of its own, all on one.
            let rest = written.iter().fold(refused.clone(), |rest, one| rest.replacen(one.as_str(), "", 1));
            written.retain(|one| !refused.contains(one.as_str()));
            if !written.is_empty() || !rest.trim().is_empty() {
                writeln!(wrong, "{name}:{begin}: a webhook says {refused:#?} and not {errors:#?}").unwrap();
            }
            let doubts: Vec<_> = here().filter_map(|one| one.strip_prefix("warning: ")).collect();
            if !warnings.iter().all(|one| doubts.contains(&one.replace('\n', "\\n").as_str())) {
                writeln!(wrong, "{name}:{begin}: a webhook doubts {warnings:#?} and not {doubts:#?}")
                    .unwrap();
            }
        }
        // What is good is taken, all of it together.
        let taken = load_str(name, &alone);
        let errors: Vec<_> = taken.errors().map(ToString::to_string).collect();
        if !errors.is_empty() {
            writeln!(wrong, "{name}: what is good by itself is refused together: {errors:#?}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(update || (count >= LEAST && good > 30), "{count} documents, {good} of them good");
}
