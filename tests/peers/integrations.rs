//! What is shipped for other programs (deploy/integrations), by those programs' own engines: Gatekeeper's `gator`, and the Lua of
//! Argo CD.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::programs::{peer, run};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

#[test]
fn gatekeepers_templates_decide_as_their_suite_says() {
    let directory = deploy("integrations/gatekeeper");
    let said = run(Command::new(peer("WEFT_GATOR")).arg("verify").arg(&directory).arg("-v")).unwrap();
    let suite = std::fs::read_to_string(directory.join("suite.yaml")).unwrap();
    let cases = suite.matches("object: ").count();
    let passed = said.lines().filter(|line| line.starts_with("    --- PASS: ")).count();
    assert_eq!((passed, said.contains("FAIL")), (cases, false), "{said}");
    // Every constraint has an object that it takes and one that it does not, and every file is a case.
    let tests: Vec<_> = suite.split("\n- name: ").skip(1).collect();
    let templates = std::fs::read_dir(directory.join("templates")).unwrap().count();
    assert_eq!(
        (tests.len(), std::fs::read_dir(directory.join("cases")).unwrap().count()),
        (templates, cases)
    );
    for test in tests {
        assert!(test.contains("violations: no") && test.contains("violations: 1"), "{test}");
    }
}

#[test]
fn the_example_mesh_is_what_gatekeeper_is_to_hold_it_to() {
    let mut gator = Command::new(peer("WEFT_GATOR"));
    gator.args(["test", "--output", "json"]);
    for part in ["ecotrack", "integrations/gatekeeper/templates", "integrations/gatekeeper/constraints"] {
        gator.arg("-f").arg(deploy(part));
    }
    let found: Value = serde_json::from_str(&run(&mut gator).unwrap()).unwrap();
    let found = found.as_array().unwrap();
    // Two routes of the example have no timeout, which is said and not refused.
    let of = |one: &Value| (one["enforcementAction"].to_string(), one["msg"].as_str().unwrap().to_owned());
    let found: Vec<_> = found.iter().map(of).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found.iter().all(|(action, text)| action == "\"warn\"" && text.contains(".timeout: missing")),
        "{found:?}"
    );
}

/// What Argo CD shows of an object: its health, and why.
pub fn health(object: &Value) -> (String, String) {
    let text = std::fs::read_to_string(deploy("integrations/argocd/health.yaml")).unwrap();
    let settings = xds_protos::json::value_from_yaml_str(&text).unwrap();
    let customizations = settings["data"]["resource.customizations"].as_str().unwrap();
    let customizations = xds_protos::json::value_from_yaml_str(customizations).unwrap();
    let group = object["apiVersion"].as_str().unwrap().split('/').next().unwrap();
    let script = &customizations[format!("{group}/*")]["health.lua"];
    assert!(script.is_string(), "no script is for {group}");
    let mut lua =
        Command::new(peer("WEFT_LUA")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let asked = json!({"script": script, "object": object});
    lua.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
    let said = lua.wait_with_output().unwrap();
    assert!(said.status.success(), "{object}");
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    let text = |key: &str| said[key].as_str().unwrap().to_owned();
    (text("status"), text("message"))
}

#[test]
fn argo_cd_tells_how_objects_stand() {
    let condition =
        |kind: &str, status: &str, message: &str| json!({"type": kind, "status": status, "message": message});
    let object = |group: &str, generation: u32, status: Value| json!({"apiVersion": format!("{group}/v1"), "metadata": {"name": "a", "generation": generation}, "status": status});
    let status = |conditions: &[Value], more: Value| {
        let mut status = json!({"observedGeneration": 2, "conditions": conditions});
        status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        status
    };
    let (good, bad) = (condition("Valid", "True", ""), condition("Valid", "False", "spec.hots: unknown"));
    let (there, under_way) =
        (condition("Effective", "True", "3 of 3"), condition("Effective", "False", "1 of 3"));
    let canary = |phase: &str| json!({"canary": {"phase": phase, "message": "v2 gets 10 %"}});
    let both = [good.clone(), there.clone()];
    for (status, generation, health_is, message) in [
        (Value::Null, 1, "Progressing", "not looked at it yet"),
        (json!({"conditions": []}), 1, "Progressing", "not looked at it yet"),
        (status(&both, json!({})), 2, "Healthy", "3 of 3"),
        (status(&both, json!({})), 3, "Progressing", "this version"),
        (status(&[good.clone(), under_way], json!({})), 2, "Progressing", "1 of 3"),
        (status(&[bad, there], json!({})), 2, "Degraded", "spec.hots: unknown"),
        (status(&both, canary("Progressing")), 2, "Progressing", "v2 gets 10 %"),
        (status(&both, canary("RolledBack")), 2, "Degraded", "v2 gets 10 %"),
        (status(&both, canary("Promoted")), 2, "Healthy", "3 of 3"),
    ] {
        for group in ["networking.istio.io", "security.istio.io", "telemetry.istio.io", "weft.dev"] {
            let said = health(&object(group, generation, status.clone()));
            assert!(said.0 == health_is && said.1.contains(message), "{status}: {said:?}");
        }
    }
}
