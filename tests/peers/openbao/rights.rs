//! The policy that is shipped, by OpenBao's own judgement: the control plane gets what it asks for, and nothing else.

use weft_control::ca::openbao::{Auth, OpenBao, Settings};

use super::Bao;
use crate::meshes::runtime;

/// Everything that the control plane asks for, with this token; what of it is refused.
fn asked(bao: &Bao, token: &str) -> Vec<&'static str> {
    let file = bao.write("token", token);
    let with = |mount: &str| {
        let settings = Settings {
            address: bao.url(),
            roots: Some(bao.root()),
            namespace: None,
            mount: mount.to_owned(),
            role: "weft".to_owned(),
            auth: Auth::Token(file.clone()),
        };
        OpenBao::new(settings).unwrap()
    };
    let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let made = weft_certs::csr::make(&id).unwrap();
    let request = weft_certs::csr::check(&made.csr).unwrap();
    runtime().block_on(async {
        let pki = with("pki");
        let signed = pki.sign(&request, &id, &["localhost"], &[], time::Duration::hours(1)).await.is_ok();
        let read = with("secret").read_kv("weft/edge/shop", None).await.is_ok();
        let renewed = bao.cli_as(token, &["token", "renew"]).is_ok();
        let all = [("sign", signed), ("read", read), ("renew", renewed)];
        all.into_iter().filter(|(_, granted)| !granted).map(|(what, _)| what).collect()
    })
}

#[test]
fn the_policy_that_is_shipped_grants_what_is_asked_and_no_more() {
    let bao = Bao::start("127.36.18.30");
    bao.set_up(&[("KUBERNETES", "")]);
    bao.cli(&["kv", "put", "secret/weft/edge/shop", "tls.crt=certificate"]);
    bao.cli(&["kv", "put", "secret/other", "key=value"]);
    bao.cli(&["write", "pki/roles/other", "allow_any_name=true"]);
    let token = |policy: &str| {
        let policy = format!("-policy={policy}");
        bao.cli(&["token", "create", &policy, "-no-default-policy", "-ttl=1h", "-field=token"])
    };
    let own = token("weft");
    assert_eq!(asked(&bao, &own), [""; 0]);

    let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let request = bao.write("request.csr", &weft_certs::csr::make(&id).unwrap().csr);
    let request = format!("csr=@{}", request.display());
    for refused in [
        &["write", "pki/sign/other", &request][..],
        &["write", "pki/sign-verbatim", &request],
        &["write", "pki/issue/weft", "uri_sans=spiffe://cluster.local/ns/a/sa/b"],
        &["write", "pki/roles/weft", "allow_any_name=true"],
        &["read", "pki/roles/weft"],
        &["write", "pki/root/generate/internal", "common_name=mine"],
        &["write", "pki/revoke", "serial_number=1"],
        &["kv", "get", "secret/other"],
        &["kv", "put", "secret/weft/edge/shop", "tls.crt=mine"],
        &["kv", "delete", "secret/weft/edge/shop"],
        &["kv", "list", "secret/weft"],
        &["token", "create"],
        &["policy", "read", "weft"],
        &["secrets", "list"],
    ] {
        let said = bao.cli_as(&own, refused).expect_err(&refused.join(" "));
        assert!(said.contains("permission denied"), "{refused:?}: {said}");
    }

    // Each part is needed.
    let policy =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/integrations/openbao/policy.hcl");
    let policy = std::fs::read_to_string(policy).unwrap();
    let parts: Vec<_> = policy.split_inclusive("\n}\n").collect();
    assert_eq!(parts.len(), 4, "{policy}");
    for (without, missed) in [&["sign"][..], &["read"], &["sign", "read"], &["renew"]].into_iter().enumerate()
    {
        let rest: String =
            parts.iter().enumerate().filter(|(n, _)| *n != without).map(|(_, part)| *part).collect();
        bao.cli(&["policy", "write", "less", bao.write("less.hcl", &rest).to_str().unwrap()]);
        assert_eq!(asked(&bao, &token("less")), missed, "without {}", parts[without]);
    }
}
