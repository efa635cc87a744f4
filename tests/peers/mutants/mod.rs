//! The test of the differential suite itself: faults that are built into our proxy on purpose, and that the suite must see.
//!
//! The faults are data (`mutants.yaml`). Sources stay clean: a copy of them gets a switch in each mutant's place, is built
//! once, and runs the suite with one mutant after the other switched on.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

/// How long the whole suite may take with one mutant; one that makes it hang is caught as well.
const PATIENCE: Duration = Duration::from_secs(900);
/// What a build of the proxy is made of.
const SOURCES: &[&str] =
    &["Cargo.toml", "Cargo.lock", "src", "proxy", "control", "xds-protos", "certs", "benches", "tests"];
/// The switch, which the copy's proxy gets.
const SWITCH: &str = r#"
fn mutated(name: &str) -> bool {
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("WEFT_MUTANT").ok()).as_deref() == Some(name)
}
"#;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    /// Below the proxy's `src`.
    file: PathBuf,
    /// What stands there: an expression, or a statement with its semicolon.
    source: String,
    /// What takes its place.
    mutant: String,
    /// The tests that are asked first.
    shown_by: String,
}

fn mutants() -> Vec<Mutant> {
    serde_saphyr::from_str(include_str!("mutants.yaml")).unwrap_or_else(|e| panic!("mutants.yaml: {e}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file's text with its mutants' switches.
fn with_switches(path: &Path, mutants: &[Mutant]) -> String {
    let mut text =
        std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    for Mutant { name, source, mutant, .. } in
        mutants.iter().filter(|m| Path::new("proxy/src").join(&m.file) == *path)
    {
        let switch = format!("if crate::mutated({name:?}) {{ {mutant} }} else {{ {source} }}");
        let switch = if source.ends_with(';') { switch } else { format!("({switch})") };
        text = text.replacen(source.as_str(), &switch, 1);
    }
    if path == Path::new("proxy/src/lib.rs") {
        text += SWITCH;
    }
    text
}

#[test]
fn every_mutant_has_one_place_and_one_name() {
    let mutants = mutants();
    let mut wrong = String::new();
    for (at, mutant) in mutants.iter().enumerate() {
        let text = std::fs::read_to_string(root().join("proxy/src").join(&mutant.file)).unwrap_or_default();
        let times = text.matches(&mutant.source).count();
        if times != 1 {
            let _ = writeln!(
                wrong,
                "{}: {:?} is {times} times in {}",
                mutant.name,
                mutant.source,
                mutant.file.display()
            );
        }
        if mutants[..at].iter().any(|m| m.name == mutant.name) {
            let _ = writeln!(wrong, "two mutants are called {}", mutant.name);
        }
    }
    assert!(
        wrong.is_empty(),
        "give these a place that is there once (tests/peers/mutants/mutants.yaml):\n{wrong}"
    );
}

/// Makes the copy like the sources; only what changed is written, so that a second build builds only that.
fn copy(path: &Path, to: &Path, mutants: &[Mutant]) {
    let from = root().join(path);
    if from.is_dir() {
        let to_directory = to.join(path);
        std::fs::create_dir_all(&to_directory).unwrap();
        // What has gone from the sources must go from the copy: a module may have become a directory.
        for entry in std::fs::read_dir(&to_directory).unwrap().map(Result::unwrap) {
            if !from.join(entry.file_name()).exists() {
                match entry.path().is_dir() {
                    true => std::fs::remove_dir_all(entry.path()).unwrap(),
                    false => std::fs::remove_file(entry.path()).unwrap(),
                }
            }
        }
        for entry in std::fs::read_dir(&from).unwrap() {
            let name = entry.unwrap().file_name();
            if name != "target" {
                copy(&path.join(name), to, mutants);
            }
        }
        return;
    }
    let text = match path.starts_with("proxy/src") && path.extension().is_some_and(|e| e == "rs") {
        true => with_switches(path, mutants).into_bytes(),
        false => std::fs::read(&from).unwrap(),
    };
    let to = to.join(path);
    if std::fs::read(&to).ok().as_ref() != Some(&text) {
        std::fs::write(&to, text).unwrap();
    }
}

/// Builds the proxy with all switches in it.
fn build(mutants: &[Mutant]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
    let tree = directory.join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    SOURCES.iter().for_each(|path| copy(Path::new(path), &tree, mutants));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--locked", "--package", "weft-proxy", "--bin", "weft-proxy"]).current_dir(&tree);
    let status = build.env("CARGO_TARGET_DIR", directory.join("target")).status().unwrap();
    assert!(status.success(), "the proxy with mutants does not build (in {})", tree.display());
    directory.join("target/debug/weft-proxy")
}

/// What a run of tests said.
enum Verdict {
    Passed,
    /// These tests failed.
    Failed(Vec<String>),
    /// It did not end in time.
    Stuck,
}

/// Runs the tests whose names have this in them against the proxy with this mutant.
fn run(filter: &str, proxy: &Path, mutant: &str) -> Verdict {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("tests.log");
    let out = std::fs::File::create(&log).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([filter, "--test-threads", "8"])
        .env("WEFT_PROXY_UNDER_TEST", proxy)
        .env("WEFT_MUTANT", mutant)
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .process_group(0)
        .spawn()
        .unwrap();
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            // Its own proxies are in its group.
            let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status();
            let _ = child.wait();
            return Verdict::Stuck;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    let failed: Vec<_> = text
        .lines()
        .filter_map(|l| Some(l.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned()))
        .collect();
    match (status.success(), failed.is_empty()) {
        (true, _) => Verdict::Passed,
        (false, false) => Verdict::Failed(failed),
        (false, true) => panic!("the suite itself broke ({status}):\n{text}"),
    }
}

/// The same, but what failed must fail again: on a busy machine a case of time limits may fail by itself.
fn twice(filter: &str, proxy: &Path, mutant: &str) -> Verdict {
    match run(filter, proxy, mutant) {
        Verdict::Failed(failed) => run(&failed[0], proxy, mutant),
        other => other,
    }
}

#[test]
#[ignore = "builds a proxy of its own and runs the suite many times; .ci/long does it"]
fn the_suite_catches_every_mutant() {
    let only = std::env::var("WEFT_MUTANTS").unwrap_or_default();
    let mutants = mutants();
    let proxy = build(&mutants);
    if only.is_empty()
        && let Verdict::Failed(failed) = twice("differential::", &proxy, "none")
    {
        panic!("without a mutant these fail already: {failed:?}");
    }
    let mut survivors = Vec::new();
    for mutant in mutants.iter().filter(|m| m.name.contains(&only)) {
        let began = Instant::now();
        let caught = [mutant.shown_by.as_str(), "differential::"].iter().find_map(|filter| {
            match twice(filter, &proxy, &mutant.name) {
                Verdict::Passed => None,
                Verdict::Failed(by) => Some(by.join(", ")),
                Verdict::Stuck => Some(format!("{filter} did not end in {PATIENCE:?}")),
            }
        });
        let seconds = began.elapsed().as_secs();
        println!("{}: {} ({seconds} s)", mutant.name, caught.as_deref().unwrap_or("SURVIVED"));
        if caught.is_none() {
            survivors.push(mutant.name.as_str());
        }
    }
    assert!(survivors.is_empty(), "the suite does not see these faults: {survivors:?}");
}
