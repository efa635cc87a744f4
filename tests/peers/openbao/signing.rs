//! Workloads' certificates by OpenBao's PKI engine, with its root in the engine and with a root elsewhere.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft::demo::check::observe::http::{Request, fetch};
use weft::up::{Mesh, Options, Part, Signal};
use weft_certs::inspect::{Facts, facts};
use weft_control::ca::openbao::{Auth, OpenBao, Settings};
use weft_control::ca::store::ROOT_CERTIFICATE;

use super::pair::Pair;
use super::{Bao, flags_with_app_role};
use crate::meshes::runtime;
use crate::programs::get;

/// A mesh of two workloads with certificates of OpenBao's, renewed at half of `life`.
struct Signed {
    pair: Pair,
    mesh: Mesh,
}

impl Signed {
    async fn start(loopback: u8, bao: &Bao, life: &str) -> Self {
        let pair = Pair::new(loopback);
        let mut control_flags = flags_with_app_role("ca", bao, &bao.app_role("1h"));
        control_flags.push(format!("--workload-cert-ttl={life}"));
        let state_dir = Some(pair.path().join("state-of-openbao"));
        let options = Options { control_flags, state_dir, ..pair.options() };
        let mesh = Mesh::start(options).await.unwrap();
        mesh.wait_ready(Duration::from_secs(60)).await.unwrap();
        Self { pair, mesh }
    }

    /// The root that the control plane keeps for a start without OpenBao.
    fn kept_root(&self) -> Facts {
        let path = self.pair.path().join("state-of-openbao").join(ROOT_CERTIFICATE);
        certificate(&std::fs::read_to_string(path).unwrap())
    }

    /// A request from one to the other, on a new connection.
    async fn ask(&self) -> u16 {
        let front = self.mesh.workload("front-1").unwrap().http_proxy.unwrap();
        fetch(front, &Request::get("back:8080", "http://back:8080/open")).await.unwrap().status()
    }

    /// Requests go on without a failure until this holds.
    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.told());
            assert_eq!(self.ask().await, 200, "{what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the control plane tells of certificates.
    fn told(&self) -> Vec<Value> {
        // Nobody is there while it is started again.
        let page = get(self.mesh.control().debug, "/debug/events").map(|(_, page)| page).unwrap_or_default();
        let page: Value = serde_json::from_str(&page).unwrap_or_default();
        let events = page["events"].as_array().cloned().unwrap_or_default();
        events.into_iter().filter(|event| event["event"] == "certificate").collect()
    }

    /// Whether it tells that somebody got none, with these words.
    fn tells(&self, words: &[&str]) -> bool {
        self.told().iter().any(|event| {
            let said = event["message"].as_str().unwrap();
            event["outcome"] == "denied" && words.iter().all(|word| said.contains(word))
        })
    }

    /// How often a workload got one.
    fn issued(&self, account: &str) -> usize {
        let workload = self.mesh.workload(&format!("{account}-1")).unwrap();
        let (_, page) = get(workload.admin(), "/weft/events?kind=certificate").unwrap();
        let page: Value = serde_json::from_str(&page).unwrap();
        let events = page["events"].as_array().unwrap();
        events.iter().filter(|event| event["outcome"] == "ok").count()
    }

    /// The serial numbers of what a workload shows, leaf first, and of the roots that it trusts.
    fn shown(&self, account: &str) -> (Vec<String>, Vec<String>) {
        let workload = self.mesh.workload(&format!("{account}-1")).unwrap();
        let (_, page) = get(workload.admin(), "/certs").unwrap();
        let page: Value = serde_json::from_str(&page).unwrap();
        let serials = |of: &str| {
            let all = page["certificates"][0][of].as_array().unwrap().iter();
            all.map(|one| one["serial_number"].as_str().unwrap().to_owned()).collect()
        };
        (serials("cert_chain"), serials("ca_cert"))
    }
}

fn certificate(pem: &str) -> Facts {
    facts(&weft_certs::pem::certificates(pem.as_bytes()).unwrap()[0]).unwrap()
}

#[test]
fn workloads_have_openbaos_certificates_and_lose_nothing_while_it_is_killed_and_sealed() {
    let mut bao = Bao::start("127.36.18.1");
    bao.set_up(&[("KUBERNETES", "")]);
    runtime().block_on(async {
        let signed = Signed::start(124, &bao, "40s").await;
        let root = bao.cli(&["read", "-field=certificate", "pki/cert/ca"]);
        let root = certificate(&root);
        assert_eq!(root.subject, "CN=mesh root");
        assert_eq!(signed.kept_root(), root);
        for account in ["front", "back"] {
            let (chain, roots) = signed.shown(account);
            assert_eq!((chain.len(), roots), (1, vec![root.serial.clone()]), "{account}");
        }
        assert_eq!(signed.ask().await, 200);
        let had = signed.issued("back");
        signed.until("the certificate of back is renewed", || signed.issued("back") > had).await;

        bao.kill();
        signed
            .until("it is told that OpenBao is missed", || signed.tells(&["OpenBao is not to be had"]))
            .await;
        // A control plane that starts meanwhile has what it kept.
        signed.mesh.stop(&Part::Control, Signal::KILL).await.unwrap();
        signed.mesh.restart(&Part::Control).unwrap();
        let ready = || get(signed.mesh.control().debug, "/ready").is_ok_and(|(status, _)| status == 200);
        signed.until("the control plane serves again", ready).await;
        bao.start_again();
        signed.until("it is told that OpenBao is sealed", || signed.tells(&["503", "sealed"])).await;
        let had = (signed.issued("front"), signed.issued("back"));
        bao.unseal();
        let renewed = || signed.issued("front") > had.0 && signed.issued("back") > had.1;
        signed.until("both are renewed", renewed).await;
        signed.mesh.shutdown().await.unwrap();
    });
}

/// The root is in an engine that the control plane has nothing to do with, and signs the request that the set-up wrote.
fn with_intermediate(bao: &Bao) -> Facts {
    let request = bao.write("request.csr", "");
    bao.set_up(&[("KUBERNETES", ""), ("REQUEST", request.to_str().unwrap())]);
    bao.cli(&["secrets", "enable", "-path=root", "pki"]);
    bao.cli(&["secrets", "tune", "-max-lease-ttl=87600h", "root"]);
    let root = bao.json(&[
        "write",
        "root/root/generate/internal",
        "common_name=the root",
        "key_type=ec",
        "ttl=87600h",
    ]);
    let root = root["data"]["certificate"].as_str().unwrap();
    let request = format!("csr=@{}", request.display());
    let made = bao.json(&["write", "root/root/sign-intermediate", &request, "ttl=43800h"]);
    let both = format!("{}\n{root}", made["data"]["certificate"].as_str().unwrap());
    let both = format!("certificate=@{}", bao.write("signed.pem", &both).display());
    bao.cli(&["write", "pki/intermediate/set-signed", &both]);
    certificate(root)
}

#[test]
fn an_intermediate_signs_under_a_root_elsewhere_and_whom_the_role_does_not_allow_gets_nothing() {
    let bao = Bao::start("127.36.18.2");
    let root = with_intermediate(&bao);
    runtime().block_on(async {
        let signed = Signed::start(125, &bao, "20s").await;
        assert_eq!(signed.kept_root(), root);
        let intermediate = certificate(&bao.cli(&["read", "-field=certificate", "pki/cert/ca"]));
        for account in ["front", "back"] {
            let (chain, roots) = signed.shown(account);
            assert_eq!(
                (&chain[1..], &roots[..]),
                (&[intermediate.serial.clone()][..], &[root.serial.clone()][..])
            );
        }
        assert_eq!(signed.ask().await, 200);

        // The role allows one of them alone from now on.
        let role = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/integrations/openbao/pki-role.json");
        let mut role: Value = serde_json::from_str(&std::fs::read_to_string(role).unwrap()).unwrap();
        role["allowed_uri_sans"] = json!(["spiffe://cluster.local/ns/pair/sa/front"]);
        let role = bao.write("role.json", &role.to_string());
        bao.cli(&["write", "pki/roles/weft", &format!("@{}", role.display())]);
        let had = signed.issued("front");
        let back = "spiffe://cluster.local/ns/pair/sa/back";
        let refused = || signed.tells(&["400", back, "not valid for this role", "allowed_uri_sans"]);
        signed.until("back is refused, and front is not", || refused() && signed.issued("front") > had).await;
        signed.mesh.shutdown().await.unwrap();
    });
}

/// Asks for a certificate as the control plane does.
async fn sign(openbao: &OpenBao, id: &str, life: Duration) -> Result<Facts, String> {
    let id = id.parse().unwrap();
    let made = weft_certs::csr::make(&id).unwrap();
    let request = weft_certs::csr::check(&made.csr).unwrap();
    let signed = openbao.sign(&request, &id, &[], &[], life.try_into().unwrap()).await;
    signed.map(|signed| certificate(&signed.certificate)).map_err(|error| error.to_string())
}

#[test]
fn every_issuers_root_is_trusted_and_one_that_is_new_signs_when_the_mesh_has_heard_of_it() {
    let bao = Bao::start("127.36.18.3");
    bao.set_up(&[("KUBERNETES", "")]);
    let [role_id, secret_id] = bao.app_role("1h");
    let settings = Settings {
        address: bao.url(),
        roots: Some(bao.root()),
        namespace: None,
        mount: "pki".to_owned(),
        role: "weft".to_owned(),
        auth: Auth::AppRole { mount: "approle".to_owned(), role_id, secret_id },
    };
    runtime().block_on(async {
        let openbao = OpenBao::new(settings.clone()).unwrap();
        let cart = "spiffe://cluster.local/ns/shop/sa/cart";
        let leaf = sign(&openbao, cart, Duration::from_secs(3600)).await.unwrap();
        assert_eq!(leaf.uri_sans, [cart]);
        let life = leaf.not_after - time::OffsetDateTime::now_utc();
        assert!((3500..=3600).contains(&life.whole_seconds()), "{life}");
        // More than the role allows is cut.
        let leaf = sign(&openbao, cart, Duration::from_hours(24 * 200)).await.unwrap();
        let life = leaf.not_after - time::OffsetDateTime::now_utc();
        assert_eq!(life.whole_days(), 89, "of 90, a little less");

        let first = openbao.roots().await.unwrap();
        let make = [
            "write",
            "pki/root/generate/internal",
            "common_name=next root",
            "issuer_name=next",
            "key_type=ec",
        ];
        let next = bao.json(&[&make[..], &["ttl=87600h"]].concat());
        let next = next["data"]["certificate"].as_str().unwrap();
        let both = openbao.roots().await.unwrap();
        let subjects: Vec<_> = weft_certs::pem::certificates(both.as_bytes()).unwrap();
        let subjects: Vec<_> = subjects.iter().map(|root| facts(root).unwrap().subject).collect();
        assert_eq!(subjects, ["CN=mesh root", "CN=next root"]);
        bao.cli(&["write", "pki/config/issuers", "default=next"]);
        assert_eq!(openbao.roots().await.unwrap(), both, "the one before it stays");
        let early = sign(&openbao, cart, Duration::from_secs(3600)).await.unwrap_err();
        assert!(early.contains("for 3 minutes before it is the default one"), "{early}");
        // For a control plane that kept both, the mesh has heard of both.
        let later = OpenBao::new(settings).unwrap();
        later.take_up_roots(&both);
        let leaf = sign(&later, cart, Duration::from_secs(3600)).await.unwrap();
        assert_eq!(leaf.issuer, certificate(next).subject);
        // What leaves the engine is trusted no more.
        let old = bao.json(&["list", "pki/issuers"]);
        let of = |id: &Value| bao.json(&["read", &format!("pki/issuer/{}", id.as_str().unwrap())]);
        let old = old.as_array().unwrap().iter().find(|id| of(id)["data"]["issuer_name"] == "").unwrap();
        bao.cli(&["delete", &format!("pki/issuer/{}", old.as_str().unwrap())]);
        let last = openbao.roots().await.unwrap();
        assert!(!first.is_empty() && both.contains(&last) && !last.contains(&first), "{last}");
    });
}
