//! Signed configuration: what nobody who counts has signed is not taken, and going back is the state that was.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bad_input::config::mesh;
use crate::support::http::{backend, get};
use crate::support::logged::Logged;
use crate::support::{eventually, stderr, stdout, weft};

const CONTROL: &str = "127.52.20.1";
const PROXY: &str = "127.52.20.2";
const SIGNED: &str = "127.52.21.1";
const REPLAY: &str = "127.52.22.1";

struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        for key in ["key", "other"] {
            scene.done(&["bundle", "key", &scene.text(key)]);
        }
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = weft(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// A directory of this edition.
    fn directory(&self, backend: SocketAddr, edition: u32) -> String {
        let name = format!("edition-{edition}");
        std::fs::create_dir_all(self.at(&name)).unwrap();
        std::fs::write(self.at(&name).join("mesh.yaml"), mesh(backend, edition)).unwrap();
        self.text(&name)
    }

    /// A bundle of it.
    fn bundle(&self, directory: &str, key: &str, to: &str) {
        let (key, to) = (self.text(key), self.text(to));
        self.done(&["bundle", "create", directory, "--key", &key, "--revision", "r", "-o", &to]);
    }
}

fn page(at: &str, path: &str) -> Value {
    let answer = get(format!("{at}:8080").parse().unwrap(), path).map(|(_, text)| text).unwrap_or_default();
    serde_json::from_str(&answer).unwrap_or_default()
}

/// Everything that the proxy gets, and which edition that is.
fn sent(to: &str) -> (Value, String) {
    let id = page(CONTROL, "/debug/syncz")[0]["proxy"].as_str().unwrap_or(to).to_owned();
    let dump = page(CONTROL, &format!("/debug/config_dump?proxyID={id}"));
    let text = dump.to_string();
    let edition = text.split("\"value\":\"e").nth(1).and_then(|rest| rest.split('"').next());
    (dump.clone(), edition.unwrap_or_default().to_owned())
}

fn replace(from: &Path, to: &Path) {
    let beside = to.with_extension("partial");
    std::fs::copy(from, &beside).unwrap();
    std::fs::rename(beside, to).unwrap();
}

#[test]
fn bundles_are_followed_if_their_signature_is_good_and_going_back_restores_the_same_xds() {
    let (scene, backend) = (Scene::new(), backend("shop"));
    let (one, two) = (scene.directory(backend, 1), scene.directory(backend, 2));
    scene.bundle(&one, "key", "first");
    scene.bundle(&two, "key", "second");
    scene.bundle(&two, "other", "stranger");
    let told = scene.done(&["bundle", "verify", &scene.text("first"), "--key", &scene.text("key.pub")]);
    assert!(told.starts_with("good: r, made ") && told.contains("mesh.yaml"), "{told}");
    // What is in it can be looked at, and is what it was made of.
    let (first, public, out) = (scene.text("first"), scene.text("key.pub"), scene.text("out"));
    scene.done(&["bundle", "verify", &first, "--key", &public, "--extract", &out, "--output", "json"]);
    assert_eq!(std::fs::read_to_string(scene.at("out/mesh.yaml")).unwrap(), mesh(backend, 1));

    let followed = scene.at("followed");
    replace(&scene.at("first"), &followed);
    let path = scene.text("followed");
    let control =
        Logged::weft(&["control", "--config-bundle", &path, "--config-key", &public, "--address", CONTROL]);
    let _proxy = Logged::proxy(CONTROL, PROXY, "shop", &["--interception-mode", "NONE"]);
    eventually("the first edition is sent", || sent(PROXY).1 == "1");
    let before = sent(PROXY).0;
    replace(&scene.at("second"), &followed);
    eventually("the second edition is sent", || sent(PROXY).1 == "2");
    let after = sent(PROXY).0;

    // Somebody else's, and one that was changed on its way: both are refused, and said to be.
    replace(&scene.at("stranger"), &followed);
    control.says(&["signed by the keys", "none of them is among those that count"]);
    let changed =
        std::fs::read_to_string(scene.at("first")).unwrap().replace("x-edition: e1", "x-edition: e9");
    std::fs::write(scene.at("changed"), changed).unwrap();
    replace(&scene.at("changed"), &followed);
    control.says(&["was changed since it was signed"]);
    control.says(&["configuration refused; the last good state stays"]);
    assert_eq!(sent(PROXY).0, after);
    let configz = page(CONTROL, "/debug/configz").to_string();
    assert!(configz.contains("was changed since it was signed"), "{configz}");

    replace(&scene.at("first"), &followed);
    eventually("the first edition is back", || sent(PROXY).1 == "1");
    assert_eq!(sent(PROXY).0, before);
}

/// Going back takes a key, or whoever runs the control plane.
#[test]
fn what_is_older_than_what_was_taken_last_is_refused_also_after_a_restart() {
    let (scene, backend) = (Scene::new(), backend("shop"));
    let (one, two) = (scene.directory(backend, 1), scene.directory(backend, 2));
    let (public, state, followed) = (scene.text("key.pub"), scene.text("state"), scene.text("followed"));
    std::fs::create_dir(scene.at("state")).unwrap();
    scene.bundle(&one, "key", "first");
    // Times are told in seconds.
    let made = |name: &str| {
        let text = std::fs::read_to_string(scene.at(name)).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["created"].clone()
    };
    eventually("a second has passed", || {
        scene.bundle(&two, "key", "second");
        made("second") != made("first")
    });
    replace(&scene.at("second"), &scene.at("followed"));
    let start = ["control", "--config-bundle", &followed, "--config-key", &public, "--address", REPLAY];
    let start = [&start[..], &["--state-dir", &state, "--ca-keys", "p256"]].concat();
    let told = || page(REPLAY, "/debug/configz").to_string();
    let control = Logged::weft(&start);
    eventually("it serves", || told().contains("\"generation\""));
    replace(&scene.at("first"), &scene.at("followed"));
    control.says(&["an older one is not taken again", "--config-allow-older"]);
    eventually("that is told", || told().contains("an older one is not taken again"));
    drop(control);
    // Another start goes on with what it had, and says so.
    let control = Logged::weft(&start);
    control.says(&["goes on with what was taken last", "accepted-configuration.bundle"]);
    eventually("it serves, and tells", || {
        let told = told();
        told.contains("\"generation\"") && told.contains("an older one is not taken again")
    });
    drop(control);
    // Not by the signature of somebody who does not count.
    let other = scene.text("other.pub");
    let stranger = ["control", "--config-bundle", &followed, "--config-key", &other, "--address", REPLAY];
    let output = weft(&[&stranger[..], &["--state-dir", &state, "--ca-keys", "p256"]].concat());
    assert!(
        !output.status.success() && stderr(&output).contains("accepted-configuration.bundle"),
        "{}",
        stderr(&output)
    );
    let control = Logged::weft(&[&start[..], &["--config-allow-older"]].concat());
    control.says(&["configuration that is older than the last is taken"]);
    // It is remembered before it is served.
    eventually("it serves what is older", || told().contains("\"generation\""));
    drop(control);
    // Once it was taken it is the last.
    let _control = Logged::weft(&start);
    eventually("it serves", || told().contains("\"generation\""));
}

#[test]
fn a_directory_is_taken_if_it_is_what_was_signed() {
    let (scene, backend) = (Scene::new(), backend("shop"));
    let directory = scene.directory(backend, 1);
    let (key, public) = (scene.text("key"), scene.text("key.pub"));
    let start = ["control", "--config-dir", &directory, "--config-key", &public, "--address", SIGNED];
    let output = weft(&start);
    assert!(
        !output.status.success() && stderr(&output).contains("there is no signature (.weft-signature)"),
        "{}",
        stderr(&output)
    );
    // What a control plane would refuse is not signed.
    std::fs::write(Path::new(&directory).join("bad.yaml"), "kind: [").unwrap();
    let output = weft(&["bundle", "sign", &directory, "--key", &key]);
    assert!(!output.status.success() && stderr(&output).contains("bad.yaml"), "{}", stderr(&output));
    std::fs::remove_file(Path::new(&directory).join("bad.yaml")).unwrap();

    scene.done(&["bundle", "sign", &directory, "--key", &key, "--revision", "one"]);
    let control = Logged::weft(&start);
    control.says(&["the signature of the configuration is good", "one"]);
    eventually("it is ready", || {
        get(format!("{SIGNED}:8080").parse().unwrap(), "/ready").is_ok_and(|a| a.0 == 200)
    });
    let generation = || page(SIGNED, "/debug/configz")["generation"].as_u64();
    assert_eq!(generation(), Some(1));
    // By hand, past whoever signs.
    std::fs::write(Path::new(&directory).join("mesh.yaml"), mesh(backend, 2)).unwrap();
    control.says(&["was changed since it was signed"]);
    assert_eq!(generation(), Some(1));
    scene.done(&["bundle", "sign", &directory, "--key", &key, "--revision", "two"]);
    control.says(&["the signature of the configuration is good", "two"]);
    eventually("it is applied", || generation() == Some(2));
}

#[test]
fn keys_are_not_written_over_others_and_flags_that_make_no_sense_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let mode = std::fs::metadata(scene.at("key")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert!(!weft(&["bundle", "key", &scene.text("key")]).status.success());
    let refused = |arguments: &[&str], words: &str| {
        let output = weft(arguments);
        assert!(
            !output.status.success() && stderr(&output).contains(words),
            "{arguments:?}: {}",
            stderr(&output)
        );
    };
    refused(&["control", "--config-bundle", "x"], "--config-key");
    refused(&["control", "--kubernetes", "--config-key", "x"], "cannot be used with");
    let (key, missing) = (scene.text("key"), scene.text("missing"));
    refused(&["control", "--config-bundle", &missing, "--config-key", &key], "no public key in PEM");
    refused(&["control", "--config-bundle", &missing, "--config-key", &scene.text("key.pub")], "missing");
}
