//! OpenBao's API as its documentation has it, played by a server of ours.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use time::OffsetDateTime;
use weft_certs::authority::{Authority, KeyKind};

use super::*;
use crate::ca::testing::{Asked, serve};

/// What OpenBao would hold.
struct Played {
    root: Authority,
    intermediate: Authority,
    valid: Mutex<Vec<String>>,
    lease: AtomicU32,
    logins: AtomicU32,
    renewals: AtomicU32,
    /// As a role with use_csr_sans would.
    other_name: Mutex<Option<SpiffeId>>,
    /// A root that signs from now on, or will.
    next: Mutex<Option<Authority>>,
    next_signs: AtomicBool,
    sealed: Mutex<bool>,
    /// What was asked of it with a token.
    asked: Mutex<Vec<String>>,
}

impl Played {
    fn new() -> Arc<Self> {
        let now = OffsetDateTime::now_utc();
        let root = Authority::root(KeyKind::P256, now, time::Duration::days(10)).unwrap();
        let intermediate = root.intermediate(KeyKind::P256, now, time::Duration::days(5)).unwrap();
        Arc::new(Self {
            root,
            intermediate,
            valid: Mutex::new(vec!["root-token".to_owned()]),
            lease: AtomicU32::new(3600),
            logins: AtomicU32::new(0),
            renewals: AtomicU32::new(0),
            other_name: Mutex::default(),
            next: Mutex::default(),
            next_signs: AtomicBool::new(false),
            sealed: Mutex::new(false),
            asked: Mutex::default(),
        })
    }

    fn answer(&self, asked: &Asked) -> (StatusCode, Value) {
        let errors =
            |status: u16, text: &str| (StatusCode::from_u16(status).unwrap(), json!({"errors": [text]}));
        if *self.sealed.lock().unwrap() {
            return errors(503, "OpenBao is sealed");
        }
        let auth = |token: &str| json!({"auth": {"client_token": token, "lease_duration": self.lease.load(SeqCst), "renewable": true}});
        let login = || {
            let token = format!("token-{}", self.logins.fetch_add(1, SeqCst));
            self.valid.lock().unwrap().push(token.clone());
            (StatusCode::OK, auth(&token))
        };
        match asked.what.as_str() {
            "POST /v1/auth/approle/login" => {
                return match asked.body == json!({"role_id": "r", "secret_id": "s"}) {
                    true => login(),
                    false => errors(400, "invalid role or secret ID"),
                };
            }
            "POST /v1/auth/kubernetes/login" | "POST /v1/auth/own/login" => {
                return match asked.body == json!({"role": "weft", "jwt": "j"}) {
                    true => login(),
                    false => errors(403, "permission denied"),
                };
            }
            _ => {}
        }
        let token = asked.headers.get("x-vault-token").map(|t| t.to_str().unwrap().to_owned());
        if !token.as_ref().is_some_and(|t| self.valid.lock().unwrap().contains(t)) {
            return errors(403, "permission denied");
        }
        self.asked.lock().unwrap().push(asked.what.clone());
        // The engine of a test, or the one that is shipped.
        let what = asked.what.replace("/pki/", "/mesh/").replace("/sign/weft", "/sign/workloads");
        match what.as_str() {
            "GET /v1/mesh/data/elsewhere" => errors(403, "1 error occurred:\n\t* permission denied\n\n"),
            "GET /v1/secret/data/weft/edge/shop" => {
                let data = json!({"data": {"tls.crt": "c"}, "metadata": {"version": 1}});
                (StatusCode::OK, json!({"data": data}))
            }
            "GET /v1/auth/token/lookup-self" => {
                (StatusCode::OK, json!({"data": {"ttl": self.lease.load(SeqCst), "renewable": true}}))
            }
            "POST /v1/auth/token/renew-self" => {
                self.renewals.fetch_add(1, SeqCst);
                (StatusCode::OK, auth(&token.unwrap()))
            }
            "GET /v1/mesh/issuers" => (StatusCode::OK, json!({"data": {"keys": ["1", "2"]}})),
            // Here they end with a line's end.
            "GET /v1/mesh/issuer/1/json" => {
                let (intermediate, root) = (self.intermediate.certificate_pem(), self.root.certificate_pem());
                let data = json!({"certificate": intermediate, "ca_chain": [intermediate, root]});
                (StatusCode::OK, json!({"data": data}))
            }
            "GET /v1/mesh/issuer/2/json" => {
                let next = self.next.lock().unwrap();
                let root = next.as_ref().unwrap_or(&self.root).certificate_pem();
                (StatusCode::OK, json!({"data": {"certificate": root, "ca_chain": [root]}}))
            }
            "POST /v1/mesh/sign/workloads" => {
                let request = weft_certs::csr::check(asked.body["csr"].as_str().unwrap()).unwrap();
                let named = asked.body["uri_sans"].as_str().unwrap().parse().unwrap();
                let id = self.other_name.lock().unwrap().clone().unwrap_or(named);
                let seconds = asked.body["ttl"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
                let (now, life) = (OffsetDateTime::now_utc(), time::Duration::seconds(seconds));
                // As OpenBao does, without a line's end at the end.
                let trim = |pem: &str| pem.trim_end().to_owned();
                if self.next_signs.load(SeqCst) {
                    let next = self.next.lock().unwrap();
                    let next = next.as_ref().unwrap();
                    let leaf = trim(&weft_certs::pem::encode(&next.sign(&request, &id, now, life).unwrap()));
                    let root = trim(next.certificate_pem());
                    return (
                        StatusCode::OK,
                        json!({"data": {"certificate": leaf, "issuing_ca": root, "ca_chain": [root]}}),
                    );
                }
                let leaf = self.intermediate.sign(&request, &id, now, life).unwrap();
                (
                    StatusCode::OK,
                    json!({"data": {
                        "certificate": trim(&weft_certs::pem::encode(&leaf)),
                        "issuing_ca": trim(self.intermediate.certificate_pem()),
                        "ca_chain": [trim(self.intermediate.certificate_pem()), trim(self.root.certificate_pem())],
                    }}),
                )
            }
            other => panic!("{other}"),
        }
    }
}

async fn start(played: &Arc<Played>, auth: Auth) -> (OpenBao, tokio::task::JoinHandle<()>) {
    let own = played.clone();
    let (address, server) = serve(move |asked| own.answer(&asked)).await;
    let settings = Settings {
        address,
        roots: None,
        namespace: None,
        mount: "mesh".to_owned(),
        role: "workloads".to_owned(),
        auth,
    };
    (OpenBao::new(settings).unwrap(), server)
}

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

async fn sign(openbao: &OpenBao) -> Result<Signed, OpenBaoError> {
    let made = weft_certs::csr::make(&id()).unwrap();
    let request = weft_certs::csr::check(&made.csr).unwrap();
    openbao.sign(&request, &id(), &[], &[], time::Duration::hours(1)).await
}

fn files(of: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in of {
        std::fs::write(directory.path().join(name), format!("{text}\n")).unwrap();
    }
    directory
}

#[tokio::test]
async fn it_signs_for_whom_it_is_told_by_each_way_of_logging_in() {
    let files = files(&[("token", "root-token"), ("role-id", "r"), ("secret-id", "s"), ("jwt", "j")]);
    let at = |name: &str| files.path().join(name);
    let jwt = |mount: &str| Auth::Jwt { mount: mount.to_owned(), role: "weft".to_owned(), token: at("jwt") };
    let approle =
        Auth::AppRole { mount: "approle".to_owned(), role_id: at("role-id"), secret_id: at("secret-id") };
    for auth in [Auth::Token(at("token")), approle, jwt("kubernetes"), jwt("own")] {
        let played = Played::new();
        let (openbao, _server) = start(&played, auth).await;
        let signed = sign(&openbao).await.unwrap();
        let chain = weft_certs::pem::certificates((signed.certificate + &signed.intermediates).as_bytes());
        let chain = chain.unwrap();
        assert_eq!(weft_certs::inspect::facts(&chain[0]).unwrap().uri_sans, [id().as_str()]);
        assert_eq!(
            chain[1..],
            [played.intermediate.certificate().clone()],
            "the root is not part of the chain"
        );
        assert_eq!(openbao.roots().await.unwrap(), played.root.certificate_pem());
        // A role that takes names from requests would let everybody be anybody.
        *played.other_name.lock().unwrap() = Some("spiffe://cluster.local/ns/a/sa/admin".parse().unwrap());
        let error = sign(&openbao).await.unwrap_err().to_string();
        assert!(error.contains("use_csr_sans=false"), "{error}");
    }
}

#[tokio::test]
async fn its_token_is_renewed_and_one_that_counts_no_more_is_replaced() {
    let files = files(&[("role-id", "r"), ("secret-id", "s")]);
    let auth = Auth::AppRole {
        mount: "approle".to_owned(),
        role_id: files.path().join("role-id"),
        secret_id: files.path().join("secret-id"),
    };
    let played = Played::new();
    played.lease.store(4, SeqCst);
    let (openbao, _server) = start(&played, auth).await;
    sign(&openbao).await.unwrap();
    let keeping = tokio::spawn(openbao.clone().keep_token());
    let deadline = Instant::now() + Duration::from_secs(20);
    while played.renewals.load(SeqCst) < 2 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(played.logins.load(SeqCst), 1);
    keeping.abort();
    // Somebody revoked it.
    played.valid.lock().unwrap().clear();
    sign(&openbao).await.unwrap();
    assert_eq!(played.logins.load(SeqCst), 2);
    // What the token's policy does not grant, another would not be granted either.
    let error = openbao.read_kv("elsewhere", None).await.unwrap_err();
    assert!(error.to_string().ends_with("403 Forbidden: permission denied"), "{error}");
    assert_eq!(played.logins.load(SeqCst), 2);
    // The credentials count no more either.
    played.valid.lock().unwrap().clear();
    std::fs::write(files.path().join("secret-id"), "old").unwrap();
    let error = sign(&openbao).await.unwrap_err();
    assert!(error.to_string().contains("invalid role or secret ID"), "{error}");
}

#[tokio::test]
async fn what_an_issuer_signs_that_is_new_waits_until_the_mesh_has_heard_of_its_root() {
    let files = files(&[("token", "root-token")]);
    let played = Played::new();
    let (openbao, _server) = start(&played, Auth::Token(files.path().join("token"))).await;
    sign(&openbao).await.unwrap();
    let now = OffsetDateTime::now_utc();
    let next = Authority::root(KeyKind::P256, now, time::Duration::days(10)).unwrap();
    let both = played.root.certificate_pem().to_owned() + next.certificate_pem();
    *played.next.lock().unwrap() = Some(next);
    // It signs before anybody here knew of it, and then before the mesh can have heard.
    played.next_signs.store(true, SeqCst);
    let early = async || {
        let error = sign(&openbao).await.unwrap_err();
        assert!(
            error.passes() && error.to_string().contains("for 3 minutes before it is the default"),
            "{error}"
        );
    };
    early().await;
    assert_eq!(openbao.roots().await.unwrap(), both);
    early().await;
    openbao.trusted.lock().0[1].told -= crate::ca::roots::HEARS.whole_seconds();
    assert_eq!(sign(&openbao).await.unwrap().intermediates, "");
    // It left the engine again.
    *played.next.lock().unwrap() = None;
    assert_eq!(openbao.roots().await.unwrap(), played.root.certificate_pem());
}

/// What deploy/integrations/openbao has in a file.
fn shipped(file: &str) -> String {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/integrations/openbao");
    std::fs::read_to_string(directory.join(file)).unwrap()
}

#[tokio::test]
async fn the_policy_that_is_shipped_allows_what_is_asked_and_no_more() {
    let files = files(&[("token", "root-token")]);
    let played = Played::new();
    let (openbao, _server) = start(&played, Auth::Token(files.path().join("token"))).await;
    let with = |mount: &str| {
        let settings =
            Settings { mount: mount.to_owned(), role: "weft".to_owned(), ..(*openbao.settings).clone() };
        OpenBao::new(settings).unwrap()
    };
    let pki = with("pki");
    sign(&pki).await.unwrap();
    pki.roots().await.unwrap();
    pki.renew().await.unwrap();
    with("secret").read_kv("weft/edge/shop", None).await.unwrap().unwrap();

    let policy = shipped("policy.hcl");
    let mut granted: Vec<(String, String)> = Vec::new();
    for line in policy.lines() {
        if let Some(path) = line.strip_prefix("path \"") {
            granted.push((path.split('"').next().unwrap().to_owned(), String::new()));
        } else if line.trim_start().starts_with("capabilities") {
            granted.last_mut().unwrap().1 = line.to_owned();
        }
    }
    let mut used = vec![false; granted.len()];
    for asked in played.asked.lock().unwrap().iter() {
        let (method, path) = asked.split_once(" /v1/").unwrap();
        // These everybody may read.
        if path.starts_with("pki/issuer") {
            continue;
        }
        let needed = if method == "GET" { "\"read\"" } else { "\"update\"" };
        let covers = |glob: &str| match glob.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path == glob,
        };
        let found = granted.iter().position(|(glob, may)| covers(glob) && may.contains(needed));
        used[found.unwrap_or_else(|| panic!("{asked} is not granted"))] = true;
    }
    assert!(used.iter().all(|used| *used), "granted and not asked for: {granted:?} {used:?}");

    let role: Value = serde_json::from_str(&shipped("pki-role.json")).unwrap();
    assert_eq!((&role["use_csr_sans"], &role["allow_ip_sans"]), (&json!(false), &json!(true)));
    assert_eq!(role["allowed_uri_sans"], json!(["spiffe://cluster.local/ns/*/sa/*"]));
    // The control plane's own certificate is signed by the same role.
    let names: Vec<_> = role["allowed_domains"].as_array().unwrap().iter().collect();
    assert_eq!(names, crate::ca::serving::NAMES);
}

fn signer(settings: Settings) -> crate::ca::elsewhere::Elsewhere {
    let address = settings.address.clone();
    crate::ca::elsewhere::Elsewhere::OpenBao(OpenBao::new(settings).unwrap(), address)
}

#[tokio::test]
async fn a_control_plane_starts_and_proxies_wait_while_openbao_is_away() {
    use crate::ca::{Limits, elsewhere};
    let (files, state) = (files(&[("token", "root-token")]), tempfile::tempdir().unwrap());
    let played = Played::new();
    let (openbao, server) = start(&played, Auth::Token(files.path().join("token"))).await;
    let domain: weft_certs::spiffe::TrustDomain = "cluster.local".parse().unwrap();
    let open = |settings: Settings| {
        elsewhere::open(signer(settings), Some(state.path()), Limits::default(), domain.clone())
    };
    let settings = (*openbao.settings).clone();
    let now = OffsetDateTime::now_utc();
    let (first, key) = open(settings.clone()).await.unwrap();
    let (served, _) = first.server(&["istiod"], &[], now, time::Duration::hours(1)).await.unwrap();
    // A sealed one is one that comes back: proxies ask again.
    *played.sealed.lock().unwrap() = true;
    let error = sign(&openbao).await.unwrap_err();
    assert!(error.passes() && error.to_string().contains("sealed"), "{error}");
    server.abort();
    let (again, same_key) = open(settings.clone()).await.unwrap();
    assert_eq!(key, same_key);
    assert_eq!(&*again.trust().borrow().roots, played.root.certificate_pem());
    let (kept, _) = again.server(&["istiod"], &[], now, time::Duration::hours(1)).await.unwrap();
    assert_eq!(kept, served);
    // Expired, it is of no use.
    let late = now + time::Duration::hours(2);
    assert!(again.server(&["istiod"], &[], late, time::Duration::hours(1)).await.is_err());
    // Without what was kept there is nothing to begin with.
    let empty = tempfile::tempdir().unwrap();
    assert!(
        elsewhere::open(signer(settings), Some(empty.path()), Limits::default(), domain.clone())
            .await
            .is_err()
    );
}
