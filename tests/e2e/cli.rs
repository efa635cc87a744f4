//! The command line: help is complete, errors are one clear line and a non-zero exit.

use clap::CommandFactory;

use crate::support::{stderr, stdout, weft};

/// Every command by its words, `weft` itself first.
fn commands() -> Vec<(Vec<String>, clap::Command)> {
    fn walk(words: &[String], command: &clap::Command, found: &mut Vec<(Vec<String>, clap::Command)>) {
        found.push((words.to_vec(), command.clone()));
        for below in command.get_subcommands() {
            walk(&[words, &[below.get_name().to_owned()]].concat(), below, found);
        }
    }
    let mut found = Vec::new();
    walk(&[], &weft::cli::Cli::command(), &mut found);
    found
}

#[test]
fn every_help_is_complete() {
    for (words, command) in commands() {
        let arguments: Vec<_> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let output = weft(&arguments);
        let help = stdout(&output);
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        assert!(help.contains("Usage: weft"), "{words:?}: {help}");
        let squeezed = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for argument in command.get_arguments() {
            let name = argument.get_id();
            let about = argument.get_help().unwrap_or_else(|| panic!("{words:?}: {name} has no help"));
            let about = about.to_string();
            assert!(about.len() > 5 && squeezed.contains(&about), "{words:?}: {name}: {about}");
            if let Some(long) = argument.get_long() {
                assert!(help.contains(&format!("--{long}")), "{words:?}: --{long} is hidden");
            }
        }
        for below in command.get_subcommands() {
            let about = below.get_about().unwrap_or_else(|| panic!("{words:?} {}", below.get_name()));
            assert!(
                squeezed.contains(&about.to_string()),
                "{words:?}: {} is not in the list",
                below.get_name()
            );
        }
    }
}

#[test]
fn an_unknown_word_is_refused_with_a_suggestion() {
    let output = weft(&["prxoy"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("proxy"), "{}", stderr(&output));
}

#[test]
fn a_token_needs_the_control_planes_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nothing");
    let path = path.to_str().unwrap();
    let arguments = ["token", "create", "--state-dir", path, "--namespace", "a", "--service-account", "b"];
    let output = weft(&arguments);
    let error = stderr(&output);
    assert!(!output.status.success());
    assert!(error.starts_with("weft: ") && error.contains(path) && error.contains("--state-dir"), "{error}");
    let output = weft(&[&arguments[..], &["--ttl", "5"]].concat());
    assert!(!output.status.success() && stderr(&output).contains("5s"), "{}", stderr(&output));
}

#[test]
fn a_token_carries_namespace_and_service_account() {
    let dir = tempfile::tempdir().unwrap();
    let shape = weft_control::ca::store::Shape {
        root_key: weft_certs::authority::KeyKind::P256,
        intermediate_key: weft_certs::authority::KeyKind::P256,
        ..Default::default()
    };
    let now = std::time::SystemTime::now().into();
    let state = weft_control::ca::State::open(dir.path(), shape, now).unwrap();
    let (_, checker) = weft_control::ca::token::from_key(&state.token_key).unwrap();
    let path = dir.path().to_str().unwrap();
    let arguments =
        ["token", "create", "--state-dir", path, "--namespace", "ecotrack", "--service-account", "user"];
    let output = weft(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let subject = checker.check(stdout(&output).trim()).unwrap();
    assert_eq!((subject.namespace.as_str(), subject.service_account.as_str()), ("ecotrack", "user"));
    let output = weft(&[&arguments[..], &["--output", "json", "--ttl", "30m"]].concat());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(checker.check(value["token"].as_str().unwrap()).is_ok());
    assert_eq!(value["expiresInSeconds"], 1800);
}

#[test]
fn an_authority_is_shown_changed_backed_up_and_restored_where_no_control_plane_runs() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let shape = weft_control::ca::store::Shape {
        root_key: weft_certs::authority::KeyKind::P256,
        intermediate_key: weft_certs::authority::KeyKind::P256,
        ..Default::default()
    };
    let now = std::time::SystemTime::now().into();
    weft_control::ca::State::open(&directory.path().join("state"), shape, now).unwrap();
    let ca = |arguments: &[&str], state: &str| {
        let output = weft(&[&["ca"], arguments, &["--state-dir", &at(state), "--output", "json"]].concat());
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.success(), value, stderr(&output))
    };
    let (ok, before, error) = ca(&["status"], "state");
    assert!(ok, "{error}");
    assert_eq!(before["roots"].as_array().unwrap().len(), 1);
    assert!(ca(&["backup", &at("backup")], "state").0);
    let (ok, made, error) = ca(&["rotate-intermediate"], "state");
    assert!(ok && made["signs"] == true, "{error}");
    assert_eq!(ca(&["revoke", "0a:0B"], "state").1["new"], true);
    let (_, after, _) = ca(&["status"], "state");
    assert_ne!(after["intermediate"], before["intermediate"]);
    assert_eq!(after["revoked"][0]["serial"], "0a0b");
    // Only a control plane knows who trusts the new root.
    let (ok, _, error) = ca(&["rotate-root"], "state");
    assert!(!ok && error.contains("no control plane runs"), "{error}");
    let (ok, _, error) = ca(&["status"], "elsewhere");
    assert!(!ok && error.contains("--state-dir"), "{error}");

    let (ok, _, error) = ca(&["restore", &at("backup")], "state");
    assert!(!ok && error.contains("--replace"), "{error}");
    assert!(ca(&["restore", &at("backup"), "--replace"], "state").0);
    assert_eq!(ca(&["status"], "state").1, before);
    let text = std::fs::read_to_string(at("backup")).unwrap();
    std::fs::write(at("damaged"), text.replacen("MI", "MJ", 1)).unwrap();
    let (ok, _, error) = ca(&["restore", &at("damaged")], "new");
    assert!(!ok && error.contains("checksum"), "{error}");
    // For people, too.
    let output = weft(&["ca", "status", "--state-dir", &at("state")]);
    assert!(stdout(&output).contains("root rotation   none under way"), "{}", stdout(&output));
}
