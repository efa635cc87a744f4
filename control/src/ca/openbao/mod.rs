//! OpenBao (or Vault): its PKI engine as the signer, its KV engine as the keeper of credentials. The token is renewed at half of its life, or taken anew by logging in; while
//! OpenBao is away nobody loses anything: proxies keep their certificates and ask again, and the roots that were known stay.

#[cfg(test)]
mod tests;
mod trust;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use weft_certs::chain::is_root;
use weft_certs::csr::CheckedRequest;
use weft_certs::spiffe::SpiffeId;
use zeroize::Zeroizing;

use super::http::{Client, HttpError};
use super::roots::Roots;

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
    /// It signed under a root that the mesh has not heard of.
    #[error(
        "OpenBao signs under a root of which the mesh has not had time to hear; an issuer must be in the engine for {minutes} minutes \
         before it is the default one (the certificates that are there stay, and this is tried again)"
    )]
    Unheard {
        /// How long that takes.
        minutes: i64,
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
            Self::Away(_) | Self::Credential { .. } | Self::Unheard { .. } => true,
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

/// Where a token says what it is.
const LOOKUP: &str = "/v1/auth/token/lookup-self";

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
    /// The roots that the mesh is told to trust.
    trusted: Arc<Mutex<Roots>>,
    /// Whose turn it is to log in; the others take what comes of it.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl OpenBao {
    /// A signer by these settings; nothing is asked yet.
    pub fn new(settings: Settings) -> Result<Self, HttpError> {
        let client = Client::new(&settings.address, settings.roots.clone())?;
        Ok(Self {
            settings: Arc::new(settings),
            client,
            session: Arc::default(),
            trusted: Arc::default(),
            turn: Arc::default(),
        })
    }

    /// Has a request signed for `id` and these names. What comes back is checked: the role could take names from the
    /// request, which are claims.
    pub async fn sign(
        &self,
        request: &CheckedRequest,
        id: &SpiffeId,
        dns: &[&str],
        addresses: &[IpAddr],
        life: time::Duration,
    ) -> Result<Signed, OpenBaoError> {
        let Settings { mount, role, .. } = &*self.settings;
        if self.knows_no_root() {
            self.roots().await?;
        }
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let body = json!({
            "csr": request.pem(),
            "uri_sans": id.as_str(),
            "alt_names": dns.join(","),
            "ip_sans": addresses.join(","),
            "ttl": format!("{}s", life.whole_seconds()),
            "exclude_cn_from_sans": true,
            "format": "pem",
        });
        let path = format!("/v1/{mount}/sign/{role}");
        let answer = self.ask(Method::POST, &path, Some(&body)).await.map_err(|error| match error {
            // It says that a name is not allowed, and not which.
            OpenBaoError::Refused { what, status, errors } if errors.contains("this role") => {
                let errors =
                    format!("{errors}; allowed_uri_sans and allowed_domains of {role} say whom it signs");
                OpenBaoError::Refused { what: format!("{what} for {id}"), status, errors }
            }
            other => other,
        })?;
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
        let between = match &answer["data"]["ca_chain"] {
            // Without a line's end at their ends.
            Value::Array(all) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n"),
            _ => answer["data"]["issuing_ca"].as_str().unwrap_or_default().to_owned(),
        };
        let mut chain = leaf;
        if !between.is_empty() {
            let all = weft_certs::pem::certificates(between.as_bytes()).map_err(|e| bad(e.to_string()))?;
            chain.extend(all.into_iter().filter(|c| !is_root(c)));
        }
        self.check(&chain, request, id)?;
        Ok(Signed {
            certificate: weft_certs::pem::encode(&chain[0]),
            intermediates: weft_certs::pem::encode_all(&chain[1..]),
        })
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
                let answer = self.send(Method::GET, LOOKUP, None, Some(&token)).await?;
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

    /// Asks with the token; once more with a new one, if the token counts no more. One that still counts is refused what its policy
    /// does not grant, and another would be, too: each time that somebody asked, OpenBao would have one token more to keep.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, OpenBaoError> {
        let token = self.token().await?;
        match self.send(method.clone(), path, body, Some(&token)).await {
            Err(refused @ OpenBaoError::Refused { status: StatusCode::FORBIDDEN, .. }) => {
                if self.send(Method::GET, LOOKUP, None, Some(&token)).await.is_ok() {
                    return Err(refused);
                }
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
        Err(OpenBaoError::Refused { what: path.to_owned(), status, errors: words(status, &answer) })
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

/// What it said, in one line: it has lists of its own in its texts.
fn words(status: StatusCode, answer: &Value) -> String {
    let errors = answer["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let lines = errors.flat_map(str::lines).map(|line| line.trim().trim_start_matches("* "));
    let heading = |line: &str| line.ends_with(" occurred:") && line.starts_with(|c: char| c.is_ascii_digit());
    let said: Vec<_> = lines.filter(|line| !line.is_empty() && !heading(line)).collect();
    match said.is_empty() {
        true if status == StatusCode::NOT_FOUND => "it has nothing there".to_owned(),
        true => "it says no more than that".to_owned(),
        false => said.join("; "),
    }
}

fn read(path: &PathBuf) -> Result<Zeroizing<String>, OpenBaoError> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(Zeroizing::new(text.trim().to_owned())),
        Ok(_) => Err(OpenBaoError::Credential { path: path.clone(), reason: "is empty".to_owned() }),
        Err(e) => Err(OpenBaoError::Credential { path: path.clone(), reason: e.to_string() }),
    }
}
