//! The layers of the house: which module may import which. The rules are those of ARCHITECTURE.md, "Layers".

mod scan;

use std::path::{Path, PathBuf};

use scan::{Import, imports};

/// A connection's and a request's path through the proxy: a stage imports no stage before it.
const PATH: [&str; 7] = ["listen", "network", "http", "route", "filters", "router", "cluster"];

/// Data and pure functions of the path, for every stage.
const PURE: [&str; 1] = ["route"];

/// What any module may use, and what each of these may use itself.
const VOCABULARY: [(&str, &[&str]); 4] = [
    ("io", &[]),
    ("codec", &["io"]),
    ("identity", &["io", "telemetry", "xds"]),
    ("telemetry", &["io", "codec"]),
];

/// The control thread's modules, each built on those before it. They may use all of the path.
const CONTROL_THREAD: [&str; 6] = ["xds", "state", "admin", "bootstrap", "agent", "app"];

/// What runs before a proxy does, and knows nothing of one; nor does the proxy of it.
const APART: &str = "capture";

/// The one part of the control thread that the path knows: how configuration is compiled and found.
const SEAM: [&str; 16] = [
    "ConfigError",
    "error",
    "CompileContext",
    "context",
    "Slot",
    "SlotState",
    "SlotTable",
    "slot",
    "NodeInfo",
    "Role",
    "node",
    "Tables",
    "ClusterTable",
    "RouteTable",
    "SecretTable",
    "SecretSource",
];

/// The control plane's stages in the order in which a change passes them; `model` is what they all speak.
const CONTROL_PLANE: [&str; 9] =
    ["kubernetes", "ingest", "queue", "render", "ca", "analyze", "inject", "serve", "app"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn place(list: &[&str], name: &str) -> Option<usize> {
    list.iter().position(|n| *n == name)
}

/// Why the proxy's module `from` may not name `to`.
fn proxy_forbids(from: &[String], to: &[String]) -> Option<String> {
    let (Some(stage), Some(target)) = (from.first(), to.first()) else { return None };
    let (stage, target) = (stage.as_str(), target.as_str());
    let is_config = stage != APART && to.iter().skip(1).any(|segment| segment == "config");
    if stage == target || is_config {
        return None;
    }
    if stage == APART || target == APART {
        return Some(format!("`{APART}` stands apart: it imports no other module, and none imports it"));
    }
    if let Some(own) = place(&CONTROL_THREAD, stage) {
        return place(&CONTROL_THREAD, target)
            .is_some_and(|other| other > own)
            .then(|| format!("`{stage}` is built before `{target}`"));
    }
    if let Some((_, may)) = VOCABULARY.iter().find(|(name, _)| *name == stage) {
        let seam = target == "state" && stage != "io" && stage != "codec" && is_seam(to);
        return (!may.contains(&target) && !seam)
            .then(|| format!("`{stage}` is vocabulary and uses {may:?} alone"));
    }
    let Some(own) = place(&PATH, stage) else {
        return Some(format!("`{stage}` has no place in the layering test: give it one"));
    };
    match (place(&PATH, target), place(&CONTROL_THREAD, target)) {
        (Some(other), _) if other < own && !PURE.contains(&target) => {
            Some(format!("`{target}` stands before `{stage}` on a request's path"))
        }
        (_, Some(_)) if target != "state" || !is_seam(to) => {
            Some(format!("`{stage}` is of the request's path, `{target}` of the control thread"))
        }
        _ => None,
    }
}

fn is_seam(to: &[String]) -> bool {
    to.get(1).is_some_and(|name| SEAM.contains(&name.as_str()))
}

/// Why the proxy's module `from` may not use another crate's `to`.
fn proxy_forbids_library(from: &[String], to: &[String]) -> Option<String> {
    let (stage, library) = (from.first()?.as_str(), to.first()?.as_str());
    let edge = place(&CONTROL_THREAD, stage).is_some();
    match library {
        "h2" if stage != "codec" => Some("HTTP/2 is spoken by `codec` alone".to_owned()),
        "hyper" | "hyper_util" if stage != "codec" && !edge => {
            Some("on a request's path HTTP is spoken by `codec` alone".to_owned())
        }
        "tonic" if !edge && stage != "identity" => Some("tonic lives on the control thread".to_owned()),
        _ => None,
    }
}

/// Why the control plane's module `from` may not name `to`.
fn control_forbids(from: &[String], to: &[String]) -> Option<String> {
    let (Some(stage), Some(target)) = (from.first(), to.first()) else { return None };
    let (stage, target) = (stage.as_str(), target.as_str());
    match (place(&CONTROL_PLANE, stage), place(&CONTROL_PLANE, target)) {
        _ if stage == target || target == "model" => None,
        _ if stage == "model" => Some(format!("`model` knows no stage, `{target}` neither")),
        (None, _) => Some(format!("`{stage}` has no place in the layering test: give it one")),
        (Some(own), Some(other)) if other > own => Some(format!("`{stage}` stands before `{target}`")),
        (Some(_), Some(_)) if ["render", "ca", "analyze", "inject"].contains(&stage) => {
            Some(format!("`{stage}` depends on the model alone"))
        }
        _ => None,
    }
}

/// Checks that a crate has no import that a rule forbids.
fn hold(crate_root: &str, forbidden: impl Fn(&Import) -> Option<String>) {
    let found = imports(&root().join(crate_root));
    assert!(found.iter().filter(|i| !i.external).count() > 20, "{crate_root}: the scan sees its imports");
    let broken: Vec<String> = found
        .iter()
        .filter_map(|import| {
            let why = forbidden(import)?;
            let file = import.file.strip_prefix(root()).unwrap_or(&import.file);
            Some(format!("{}: {}: {why}", file.display(), import.to.join("::")))
        })
        .collect();
    assert!(broken.is_empty(), "imports against the layers:\n{}", broken.join("\n"));
}

#[test]
fn a_stage_of_the_proxy_imports_none_before_it() {
    hold("proxy/src/lib.rs", |import| {
        if import.external {
            proxy_forbids_library(&import.from, &import.to)
        } else {
            proxy_forbids(&import.from, &import.to)
        }
    });
}

#[test]
fn a_stage_of_the_control_plane_imports_none_after_it() {
    hold("control/src/lib.rs", |import| {
        if import.external { None } else { control_forbids(&import.from, &import.to) }
    });
}

/// Our crates that a manifest names, as a dependency of any kind.
fn own_dependencies(directory: &Path) -> Vec<&'static str> {
    let manifest = std::fs::read_to_string(directory.join("Cargo.toml")).expect("a crate has a manifest");
    let used = |name: &&str| {
        manifest.lines().any(|line| {
            let code = line.split('#').next().unwrap_or_default();
            !code.starts_with("name") && !code.starts_with("description") && code.contains(name)
        })
    };
    ["weft-proxy", "weft-control", "weft-certs", "weft-events", "xds-protos"]
        .into_iter()
        .filter(used)
        .collect()
}

#[test]
fn crates_depend_on_one_another_as_the_house_is_built() {
    let of = |name: &str| own_dependencies(&root().join(name));
    assert_eq!(of("certs"), [""; 0]);
    assert_eq!(of("events"), [""; 0]);
    assert_eq!(of("xds-protos"), [""; 0]);
    assert_eq!(
        of("proxy"),
        ["weft-certs", "weft-events", "xds-protos"],
        "the halves never import each other"
    );
    assert_eq!(
        of("control"),
        ["weft-certs", "weft-events", "xds-protos"],
        "the halves never import each other"
    );
}

#[test]
fn the_rules_refuse_what_they_are_for() {
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<_>>();
    let proxy = |from: &str, to: &str| proxy_forbids(&path(from), &path(to)).is_some();
    assert!(proxy("cluster::pool", "router::Flow"));
    assert!(!proxy("cluster::pool", "router::config::RouterConfig"));
    assert!(!proxy("router::drive", "cluster::Cluster"));
    assert!(!proxy("filters::cors", "route::matching::Chance"));
    assert!(proxy("codec::h1", "http::serve"));
    assert!(proxy("http::exchange", "state::Engine"));
    assert!(proxy("http::exchange", "admin::serve"));
    assert!(!proxy("http::config", "state::ConfigError"));
    assert!(proxy("xds::client", "state::Engine"));
    assert!(!proxy("state::engine", "listen::SocketTable"));
    assert!(proxy("somewhere", "io::Io"));
    assert!(proxy("capture::plan", "listen::config") && proxy("app", "capture::main"));
    assert!(!proxy("capture::plan", "capture::rule::Rule"));
    let control = |from: &str, to: &str| control_forbids(&path(from), &path(to)).is_some();
    assert!(control("model::world", "ingest::load"));
    assert!(control("render::cluster", "queue::Affected"));
    assert!(control("ingest::watch", "render::render"));
    assert!(!control("serve::ads", "render::render"));
    let library = |from: &str, to: &str| proxy_forbids_library(&path(from), &path(to)).is_some();
    assert!(library("router::attempt", "hyper::body"));
    assert!(library("admin::serve", "h2::server"));
    assert!(!library("codec::h2", "h2::server"));
}

#[test]
fn the_scan_sees_imports_in_every_form() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    file("lib.rs", "mod a; mod b; mod c { use super::b::Z; }");
    file(
        "a.rs",
        "use crate::b::{self, X, y::{Y as W}};
         use hyper::body;
         fn f() -> crate::b::T { println!(\"{}\", crate::b::in_macro()); super::b::called(); h2::client() }
         #[cfg(test)] mod tests { use crate::b::Hidden; }
         #[cfg(test)] fn g() { crate::b::hidden() }",
    );
    file("b.rs", "use crate::codec::h2; fn f() { h2::local() }");
    let seen: Vec<String> = imports(&directory.path().join("lib.rs"))
        .into_iter()
        .map(|i| format!("{} {}{}", i.from.join("::"), if i.external { "!" } else { "" }, i.to.join("::")))
        .collect();
    for expected in [
        "a b",
        "a b::X",
        "a b::y::Y",
        "a b::T",
        "a b::in_macro",
        "a b::called",
        "a !hyper::body",
        "a !h2::client",
        "b codec::h2",
        "c b::Z",
    ] {
        assert!(seen.contains(&expected.to_owned()), "{expected} in {seen:#?}");
    }
    assert!(!seen.iter().any(|s| s.contains("idden") || s == "b !h2::local"), "{seen:#?}");
}
