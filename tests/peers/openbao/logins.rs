//! How the control plane proves to OpenBao who it is, and what becomes of its token.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Bao, flags, flags_with_app_role};
use crate::programs::{Process, get, until_or, weft};

/// A control plane that OpenBao gives a certificate to, by these flags.
pub(super) fn control(at: &str, directory: &Path, flags: &[String]) -> Process {
    let name = format!("control-{at}");
    let configuration = directory.join("configuration");
    std::fs::create_dir_all(&configuration).unwrap();
    let mut control = weft();
    control.arg("control").arg("--config-dir").arg(configuration).args(["--address", at]).args(flags);
    control.arg("--state-dir").arg(directory.join(format!("state-{at}")));
    Process::start(&name, &mut control, directory)
}

pub(super) fn ready(at: &str) -> bool {
    get(format!("{at}:8080").parse().unwrap(), "/ready").is_ok_and(|(status, _)| status == 200)
}

/// What OpenBao has of a kind of login: the tokens that came of it, with what they are.
fn tokens(bao: &Bao, by: &str) -> Vec<Value> {
    let all = bao.json(&["list", "auth/token/accessors"]);
    let accessors = all.as_array().unwrap().iter().filter_map(Value::as_str);
    // One may end meanwhile.
    let lookups = accessors.filter_map(|one| bao.try_json(&["token", "lookup", "-accessor", one]).ok());
    let path = format!("auth/{by}/login");
    lookups.map(|answer| answer["data"].clone()).filter(|data| data["path"] == path.as_str()).collect()
}

/// A JWT by this key, for the audience of the control plane.
fn jwt(key: &rcgen::KeyPair, subject: &str) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({"iss": "ours", "sub": subject, "aud": "openbao", "iat": now, "exp": now + 600});
    let part = |value: &Value| BASE64.encode(value.to_string());
    let text = format!("{}.{}", part(&json!({"alg": "EdDSA", "typ": "JWT"})), part(&claims));
    let signature = rcgen::SigningKey::sign(key, text.as_bytes()).unwrap();
    format!("{text}.{}", BASE64.encode(signature))
}

#[test]
fn a_control_plane_logs_in_by_token_app_role_and_jwt_and_not_by_what_does_not_count() {
    let bao = Bao::start("127.36.18.10");
    bao.set_up(&[("KUBERNETES", "")]);
    let app_role = bao.app_role("1h");
    let token = bao.cli(&["token", "create", "-policy=weft", "-no-default-policy", "-field=token"]);
    let token = bao.write("token", &token);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    bao.cli(&["auth", "enable", "-path=own", "jwt"]);
    let public = bao.write("public.pem", &key.public_key_pem());
    bao.cli(&["write", "auth/own/config", &format!("jwt_validation_pubkeys=@{}", public.display())]);
    let role = ["write", "auth/own/role/mesh", "role_type=jwt", "user_claim=sub", "bound_subject=weft"];
    bao.cli(
        &[&role[..], &["bound_audiences=openbao", "token_policies=weft", "token_no_default_policy=true"]]
            .concat(),
    );
    let by_jwt = |subject: &str| {
        let file = bao.write(subject, &jwt(&key, subject));
        let mut flags = flags("ca", &bao);
        flags.extend(["--ca-auth=jwt", "--ca-auth-mount=own", "--ca-auth-role=mesh"].map(str::to_owned));
        flags.push(format!("--ca-jwt-file={}", file.display()));
        flags
    };
    let mut by_token = flags("ca", &bao);
    by_token.push(format!("--ca-token-file={}", token.display()));
    let by_app_role = flags_with_app_role("ca", &bao, &app_role);
    let directory = tempfile::tempdir().unwrap();
    for (at, flags) in
        [("127.36.18.11", &by_token), ("127.36.18.12", &by_app_role), ("127.36.18.13", &by_jwt("weft"))]
    {
        // It is ready with a certificate of its own, which OpenBao signed.
        control(at, directory.path(), flags).wait("ready", || ready(at));
    }
    assert_eq!((tokens(&bao, "approle").len(), tokens(&bao, "own").len()), (1, 1));

    std::fs::write(&token, "s.nobodys").unwrap();
    std::fs::write(&app_role[1], "nobodys").unwrap();
    for (flags, words) in [
        (&by_token, ["auth/token/lookup-self: 403", "permission denied"]),
        (&by_app_role, ["auth/approle/login: 400", "invalid role or secret ID"]),
        (&by_jwt("other"), ["auth/own/login: 400", "invalid subject (sub) claim"]),
    ] {
        let mut control = control("127.36.18.14", &directory.path().join("refused"), flags);
        assert!(control.ended(Duration::from_secs(30)), "{}", control.log());
        assert!(words.iter().all(|word| control.log().contains(word)), "{words:?}: {}", control.log());
    }
    assert_eq!((tokens(&bao, "approle").len(), tokens(&bao, "own").len()), (1, 1));
}

#[test]
fn a_token_is_renewed_at_half_of_its_life_and_replaced_when_it_is_revoked() {
    let bao = Bao::start("127.36.18.20");
    bao.set_up(&[("KUBERNETES", "")]);
    let flags = flags_with_app_role("ca", &bao, &bao.app_role("6s"));
    let directory = tempfile::tempdir().unwrap();
    let mut control = control("127.36.18.21", directory.path(), &flags);
    control.wait("ready", || ready("127.36.18.21"));
    let only = || {
        let all = tokens(&bao, "approle");
        assert!(all.len() <= 1, "{all:#?}");
        all.into_iter().next()
    };
    let first = only().unwrap();
    let number = |of: &Value, key: &str| of[key].as_i64().unwrap_or_default();
    // Older than three of its lives, it is the same.
    let mut before = Vec::new();
    until_or(
        "it is renewed",
        || control.log(),
        || {
            let now = only().expect("it never ends");
            assert_eq!(now["accessor"], first["accessor"], "{}", control.log());
            let renewed = number(&now, "last_renewal_time");
            if renewed > 0 && before.last() != Some(&renewed) {
                before.push(renewed);
            }
            before.len() > 5
        },
    );
    let begun = number(&first, "creation_time");
    let every: Vec<_> = [&[begun], &before[..]].concat().windows(2).map(|two| two[1] - two[0]).collect();
    assert!(every.iter().all(|seconds| (2..=5).contains(seconds)), "{every:?}");

    bao.cli(&["token", "revoke", "-accessor", first["accessor"].as_str().unwrap()]);
    let another = || only().is_some_and(|now| now["accessor"] != first["accessor"]);
    until_or("there is another", || control.log(), another);
    assert!(control.log().contains("logging in again"), "{}", control.log());
}
