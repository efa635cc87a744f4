//! OpenBao (or Vault): its PKI engine as the signer, its KV engine as the keeper of credentials. The token is renewed at half of its life, or taken anew by logging in; while
//! OpenBao is away nobody loses anything: proxies keep their certificates and ask again, and the roots that were known stay.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use weft_certs::spiffe::SpiffeId;
use zeroize::Zeroizing;

use super::http::{Client, HttpError};

/// How the control plane proves to OpenBao who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// A token in a file.
    Token(PathBuf),
    /// The method AppRole at this mount: files of role id and secret id.
    AppRole {
        /// The method's mount.
        mount: String,
        /// The file of the role id.
        role_id: PathBuf,
        /// The file of the secret id.
        secret_id: PathBuf,
    },
    /// The methods `kubernetes` and `jwt` at this mount: a role, and the file of a token that is shown for it.
    Jwt {
        /// The method's mount.
        mount: String,
        /// The role to log in for.
        role: String,
        /// The file of the token.
        token: PathBuf,
    },
}

/// Where and what.
#[derive(Clone, Debug)]
pub struct Settings {
    /// OpenBao's URL.
    pub address: String,
    /// Roots by which its TLS is checked; the system's without.
    pub roots: Option<PathBuf>,
    /// Its namespace, if it has namespaces.
    pub namespace: Option<String>,
    /// The mount of the engine, PKI or KV.
    pub mount: String,
    /// The PKI engine's role that signs.
    pub role: String,
    /// How to log in.
    pub auth: Auth,
}

/// Why OpenBao did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum OpenBaoError {
    /// It is not to be had.
    #[error("OpenBao is not to be had: {0}; what is there stays, and this is tried again")]
    Away(#[from] HttpError),
    /// It refused.
    #[error("OpenBao refused {what}: {status}: {errors}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its status.
        status: StatusCode,
        /// What it said.
        errors: String,
    },
    /// It answered what cannot be used.
    #[error("OpenBao's answer to {what} cannot be used: {reason}")]
    Answer {
        /// What was asked.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A credential's file cannot be read.
    #[error("{path}: {reason}; it holds what OpenBao is to know the control plane by")]
    Credential {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl OpenBaoError {
    /// Whether the same request may do better later.
    pub fn passes(&self) -> bool {
        match self {
            Self::Away(_) | Self::Credential { .. } => true,
            Self::Refused { status, .. } => {
                // 503 is a sealed one, 429 one that has too much to do, 403 a token that is being replaced.
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::FORBIDDEN)
            }
            Self::Answer { .. } => false,
        }
    }
}

/// A signed certificate.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The leaf, PEM.
    pub certificate: String,
    /// What leads to the root, PEM; the root itself is not in it.
    pub intermediates: String,
}

/// A version's number, and what it holds.
pub type KvSecret = (u64, BTreeMap<String, Zeroizing<String>>);

struct Session {
    token: Zeroizing<String>,
    /// Renew it then.
    due: Option<Instant>,
    renewable: bool,
}

/// The signer.
#[derive(Clone)]
pub struct OpenBao {
    settings: Arc<Settings>,
    client: Client,
    session: Arc<Mutex<Option<Session>>>,
    /// Whose turn it is to log in; the others take what comes of it.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl OpenBao {
    /// A signer by these settings; nothing is asked yet.
    pub fn new(settings: Settings) -> Result<Self, HttpError> {
        let client = Client::new(&settings.address, settings.roots.clone())?;
        Ok(Self { settings: Arc::new(settings), client, session: Arc::default(), turn: Arc::default() })
    }

    /// Has a request signed for `id` and these names. What comes back is checked: the role could take names from the
    /// request, which are claims.
    pub async fn sign(
        &self,
        csr: &str,
        id: &SpiffeId,
        dns: &[&str],
        addresses: &[IpAddr],
        life: time::Duration,
    ) -> Result<Signed, OpenBaoError> {
        let Settings { mount, role, .. } = &*self.settings;
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let body = json!({
            "csr": csr,
            "uri_sans": id.as_str(),
            "alt_names": dns.join(","),
            "ip_sans": addresses.join(","),
            "ttl": format!("{}s", life.whole_seconds()),
            "exclude_cn_from_sans": true,
            "format": "pem",
        });
        let path = format!("/v1/{mount}/sign/{role}");
        let answer = self.ask(Method::POST, &path, Some(&body)).await?;
        let bad = |reason: String| OpenBaoError::Answer { what: path.clone(), reason };
        let certificate = answer["data"]["certificate"].as_str().unwrap_or_default();
        let leaf = weft_certs::pem::certificates(certificate.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let facts = weft_certs::inspect::facts(&leaf[0]).map_err(|e| bad(e.to_string()))?;
        if facts.uri_sans != [id.as_str()] {
            return Err(bad(format!(
                "the certificate is for {:?}, and {id} is who asked; the role {role} must have use_csr_sans=false and \
                 allow that name in allowed_uri_sans",
                facts.uri_sans
            )));
        }
        let mut chain: Vec<&str> = match &answer["data"]["ca_chain"] {
            Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
            _ => answer["data"]["issuing_ca"].as_str().into_iter().collect(),
        };
        chain.retain(|pem| !self_signed(pem));
        let lines = |pem: &str| format!("{}\n", pem.trim_end());
        Ok(Signed { certificate: lines(certificate), intermediates: chain.into_iter().map(lines).collect() })
    }

    /// The roots that the engine's issuers lead to, PEM.
    pub async fn roots(&self) -> Result<String, OpenBaoError> {
        let path = format!("/v1/{}/cert/ca_chain", self.settings.mount);
        let answer = self.ask(Method::GET, &path, None).await?;
        let bad = |reason: String| OpenBaoError::Answer { what: path.clone(), reason };
        let text = match &answer["data"]["ca_chain"] {
            Value::String(text) => text.as_str(),
            _ => answer["data"]["certificate"].as_str().unwrap_or_default(),
        };
        let all = weft_certs::pem::certificates(text.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let roots: String = all.iter().map(weft_certs::pem::encode).filter(|p| self_signed(p)).collect();
        if roots.is_empty() {
            return Err(bad("holds no root; import the root's certificate into the engine".to_owned()));
        }
        Ok(roots)
    }

    /// The newest version of a secret of the KV engine (version 2), its number and its texts; nothing if that is the `known` one.
    pub async fn read_kv(&self, path: &str, known: Option<u64>) -> Result<Option<KvSecret>, OpenBaoError> {
        let what = format!("/v1/{}/data/{path}", self.settings.mount);
        let mut answer = self.ask(Method::GET, &what, None).await?;
        let bad = |reason: &str| OpenBaoError::Answer { what: what.clone(), reason: reason.to_owned() };
        let Some(version) = answer["data"]["metadata"]["version"].as_u64() else {
            return Err(bad("has no data.metadata.version; the engine must be KV of version 2"));
        };
        let data = answer["data"]["data"].as_object_mut().ok_or_else(|| bad("holds no data"))?;
        let mut texts = BTreeMap::new();
        for (key, value) in std::mem::take(data) {
            match value {
                Value::String(text) => _ = texts.insert(key, Zeroizing::new(text)),
                _ => return Err(bad(&format!("{key} is no text"))),
            }
        }
        Ok((known != Some(version)).then_some((version, texts)))
    }

    /// Renews the token when it is due, for ever.
    pub async fn keep_token(self) {
        loop {
            let due = self.session.lock().as_ref().and_then(|s| s.due);
            let wait = due.map_or(Duration::from_secs(5), |at| at.saturating_duration_since(Instant::now()));
            tokio::time::sleep(wait.clamp(Duration::from_millis(100), Duration::from_secs(30))).await;
            if due.is_some_and(|at| Instant::now() >= at)
                && let Err(error) = self.renew().await
            {
                tracing::warn!(%error, "OpenBao's token was not renewed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn renew(&self) -> Result<(), OpenBaoError> {
        // The token serves on meanwhile.
        let old = self.session.lock().as_ref().filter(|s| s.renewable).map(|s| s.token.clone());
        if let Some(old) = old {
            let answer =
                self.send(Method::POST, "/v1/auth/token/renew-self", Some(&json!({})), Some(&old)).await;
            match answer {
                Ok(answer) => {
                    let new = started(&answer["auth"], old);
                    // At the end of what a token may be renewed to, a new one is wanted.
                    if new.due.is_none_or(|at| at > Instant::now() + Duration::from_secs(1)) {
                        *self.session.lock() = Some(new);
                        return Ok(());
                    }
                }
                Err(error @ OpenBaoError::Away(_)) => return Err(error),
                Err(error) => tracing::info!(%error, "OpenBao renews the token no more; logging in again"),
            }
        }
        let new = self.log_in().await?;
        *self.session.lock() = Some(new);
        Ok(())
    }

    async fn log_in(&self) -> Result<Session, OpenBaoError> {
        let (mount, body) = match &self.settings.auth {
            Auth::Token(path) => {
                let token = read(path)?;
                let answer = self.send(Method::GET, "/v1/auth/token/lookup-self", None, Some(&token)).await?;
                let data = &answer["data"];
                let auth = json!({"lease_duration": data["ttl"], "renewable": data["renewable"]});
                return Ok(started(&auth, token));
            }
            Auth::AppRole { mount, role_id, secret_id } => {
                let (role_id, secret_id) = (read(role_id)?, read(secret_id)?);
                (mount, json!({"role_id": *role_id, "secret_id": *secret_id}))
            }
            Auth::Jwt { mount, role, token } => (mount, json!({"role": role, "jwt": *read(token)?})),
        };
        let path = format!("/v1/auth/{mount}/login");
        let answer = self.send(Method::POST, &path, Some(&body), None).await?;
        match answer["auth"]["client_token"].as_str() {
            Some(token) => Ok(started(&answer["auth"], Zeroizing::new(token.to_owned()))),
            None => Err(OpenBaoError::Answer { what: path, reason: "holds no token".to_owned() }),
        }
    }

    /// Asks with the token; once more with a new one, if the token counts no more.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, OpenBaoError> {
        let token = self.token().await?;
        match self.send(method.clone(), path, body, Some(&token)).await {
            Err(OpenBaoError::Refused { status: StatusCode::FORBIDDEN, .. }) => {
                self.session.lock().take_if(|s| s.token == token);
                let token = self.token().await?;
                self.send(method, path, body, Some(&token)).await
            }
            answer => answer,
        }
    }

    async fn token(&self) -> Result<Zeroizing<String>, OpenBaoError> {
        let present = || self.session.lock().as_ref().map(|s| s.token.clone());
        if let Some(token) = present() {
            return Ok(token);
        }
        let _turn = self.turn.lock().await;
        if let Some(token) = present() {
            return Ok(token);
        }
        let new = self.log_in().await?;
        Ok(self.session.lock().insert(new).token.clone())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        token: Option<&str>,
    ) -> Result<Value, OpenBaoError> {
        let mut headers = vec![("x-vault-request", "true")];
        headers.extend(token.map(|t| ("x-vault-token", t)));
        headers.extend(self.settings.namespace.as_deref().map(|n| ("x-vault-namespace", n)));
        let (status, bytes): (_, Bytes) = self.client.call(method, path, &headers, body).await?;
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        let errors: Vec<_> =
            answer["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        Err(OpenBaoError::Refused { what: path.to_owned(), status, errors: errors.join("; ") })
    }
}

/// A token with what OpenBao says about its life; 0 is one that never ends.
fn started(auth: &Value, token: Zeroizing<String>) -> Session {
    let life = auth["lease_duration"].as_u64().filter(|s| *s > 0).map(Duration::from_secs);
    Session {
        token,
        due: life.map(|l| Instant::now() + l / 2),
        renewable: auth["renewable"].as_bool() == Some(true),
    }
}

fn self_signed(pem: &str) -> bool {
    let facts = weft_certs::pem::certificates(pem.as_bytes())
        .ok()
        .and_then(|all| weft_certs::inspect::facts(&all[0]).ok());
    facts.is_some_and(|f| f.subject == f.issuer)
}

fn read(path: &PathBuf) -> Result<Zeroizing<String>, OpenBaoError> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(Zeroizing::new(text.trim().to_owned())),
        Ok(_) => Err(OpenBaoError::Credential { path: path.clone(), reason: "is empty".to_owned() }),
        Err(e) => Err(OpenBaoError::Credential { path: path.clone(), reason: e.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    //! OpenBao's API as its documentation has it, played by a server of ours.

    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

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
                "GET /v1/mesh/cert/ca_chain" => {
                    let chain = self.intermediate.certificate_pem().to_owned() + self.root.certificate_pem();
                    (StatusCode::OK, json!({"data": {"certificate": chain}}))
                }
                "POST /v1/mesh/sign/workloads" => {
                    let request = weft_certs::csr::check(asked.body["csr"].as_str().unwrap()).unwrap();
                    let named = asked.body["uri_sans"].as_str().unwrap().parse().unwrap();
                    let id = self.other_name.lock().unwrap().clone().unwrap_or(named);
                    let seconds = asked.body["ttl"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
                    let (now, life) = (OffsetDateTime::now_utc(), time::Duration::seconds(seconds));
                    let leaf = self.intermediate.sign(&request, &id, now, life).unwrap();
                    // As OpenBao does, without a line's end at the end.
                    let trim = |pem: &str| pem.trim_end().to_owned();
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
        openbao.sign(&made.csr, &id(), &[], &[], time::Duration::hours(1)).await
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
        let jwt =
            |mount: &str| Auth::Jwt { mount: mount.to_owned(), role: "weft".to_owned(), token: at("jwt") };
        let approle =
            Auth::AppRole { mount: "approle".to_owned(), role_id: at("role-id"), secret_id: at("secret-id") };
        for auth in [Auth::Token(at("token")), approle, jwt("kubernetes"), jwt("own")] {
            let played = Played::new();
            let (openbao, _server) = start(&played, auth).await;
            let signed = sign(&openbao).await.unwrap();
            let chain =
                weft_certs::pem::certificates((signed.certificate + &signed.intermediates).as_bytes());
            let chain = chain.unwrap();
            assert_eq!(weft_certs::inspect::facts(&chain[0]).unwrap().uri_sans, [id().as_str()]);
            assert_eq!(
                chain[1..],
                [played.intermediate.certificate().clone()],
                "the root is not part of the chain"
            );
            assert_eq!(openbao.roots().await.unwrap(), played.root.certificate_pem());
            // A role that takes names from requests would let everybody be anybody.
            *played.other_name.lock().unwrap() =
                Some("spiffe://cluster.local/ns/a/sa/admin".parse().unwrap());
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
        // The credentials count no more either.
        played.valid.lock().unwrap().clear();
        std::fs::write(files.path().join("secret-id"), "old").unwrap();
        let error = sign(&openbao).await.unwrap_err();
        assert!(error.to_string().contains("invalid role or secret ID"), "{error}");
    }

    /// What deploy/integrations/openbao has in a file.
    fn shipped(file: &str) -> String {
        let directory =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/integrations/openbao");
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
}
