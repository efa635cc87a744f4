//! The flags that say whose tokens are taken, and who signs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use kube::Client;
use weft_certs::authority::KeyKind;
use weft_certs::spiffe::TrustDomain;

use super::authenticate::{self, Authenticators};
use super::bound::{Binding, BoundTokens};
use super::csr_api::CsrApi;
use super::elsewhere::Elsewhere;
use super::est::{self, Est};
use super::jwks::{self, Keys as JwksKeys, Oidc};
use super::openbao::{Auth, OpenBao, Settings};
use super::review::TokenReview;
use super::store::Shape;
use super::token::{AUDIENCE, Checker};
use super::used::Used;

/// Whose tokens are taken, beside our own.
#[derive(Args, Debug, Default)]
pub struct TokenArgs {
    /// Take tokens of this OIDC issuer too, for service accounts (sub system:serviceaccount:NAMESPACE:NAME)
    #[arg(long, value_name = "URL")]
    pub oidc_issuer: Option<String>,
    /// What such a token must be for; may be given several times. istio-ca by default
    #[arg(long, value_name = "AUDIENCE", requires = "oidc_issuer")]
    pub oidc_audience: Vec<String>,
    /// The issuer's public keys (JWKS): a file or a URL; by default where the issuer's discovery document says
    #[arg(long, value_name = "FILE|URL", requires = "oidc_issuer")]
    pub oidc_jwks: Option<String>,
    /// Roots by which the issuer's TLS is checked; the system's by default
    #[arg(long, value_name = "FILE", requires = "oidc_issuer")]
    pub oidc_root_cert: Option<PathBuf>,
    /// Have all other tokens checked by the Kubernetes API at this URL (TokenReview); by default by the one that is read
    /// (--kubernetes), if any
    #[arg(long, value_name = "URL")]
    pub token_review: Option<String>,
    /// What becomes of a token of this cluster that is bound to a pod: off takes it as it is; warn refuses it if that pod is gone, was
    /// replaced, has ended or runs as another account, and tells (event, log, weft_bound_tokens_from_elsewhere_total) if it is
    /// shown from another address than the pod's; require refuses that, too
    #[arg(long, value_enum, default_value_t = BoundTokens::Warn)]
    pub bound_tokens: BoundTokens,
    /// The token by which the Kubernetes API knows the control plane
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token")]
    pub token_review_token: PathBuf,
    /// Roots by which the Kubernetes API's TLS is checked
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")]
    pub token_review_root_cert: PathBuf,
}

impl TokenArgs {
    /// The authenticators for workloads of `domain`; `own` checks our own tokens, and `kubernetes` is asked about others where no
    /// flag says whom to ask.
    pub fn authenticators(
        &self,
        own: Checker,
        domain: TrustDomain,
        kubernetes: Option<kube::Client>,
        state_dir: Option<&Path>,
    ) -> anyhow::Result<Arc<Authenticators>> {
        let oidc = self.oidc_issuer.as_ref().map(|issuer| {
            let audiences = match self.oidc_audience.as_slice() {
                [] => vec![AUDIENCE.to_owned()],
                given => given.to_vec(),
            };
            let keys = match &self.oidc_jwks {
                None => JwksKeys::Discovery,
                Some(url) if url.starts_with("https://") || url.starts_with("http://") => {
                    JwksKeys::Url(url.clone())
                }
                Some(file) => JwksKeys::File(file.into()),
            };
            Oidc::new(jwks::Settings {
                issuer: issuer.clone(),
                audiences,
                keys,
                roots: self.oidc_root_cert.clone(),
                of_this_cluster: self.is_our_clusters(issuer),
            })
        });
        let review = self.token_review.as_ref().map(|address| {
            let roots = address.starts_with("https://").then(|| self.token_review_root_cert.clone());
            TokenReview::new(address, roots, self.token_review_token.clone()).context("--token-review")
        });
        let review = review.transpose()?.or_else(|| kubernetes.map(TokenReview::by));
        let authenticators = Authenticators::with_issuers(own, oidc.into_iter().collect(), review, domain);
        Ok(authenticators.holding(Binding::new(self.bound_tokens), Used::open(state_dir)?))
    }

    /// Whether an issuer is the cluster whose API we ask: it has issued our own token, too. Who has no token has none of it.
    fn is_our_clusters(&self, issuer: &str) -> bool {
        let own = std::fs::read_to_string(&self.token_review_token).map(zeroize::Zeroizing::new);
        own.is_ok_and(|own| authenticate::issuer(own.trim()).is_ok_and(|ours| ours == issuer))
    }
}

/// Who signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Signer {
    /// The control plane's own authority.
    #[default]
    Own,
    /// OpenBao's (or Vault's) PKI engine.
    Openbao,
    /// A signer of the cluster's, by Kubernetes' CSR API (--ca-signer-name, --ca-trust).
    KubernetesCsr,
    /// A server of EST, RFC 7030 (--ca-addr, and --ca-est-cert or --ca-est-user).
    Est,
}

/// How the control plane proves to OpenBao who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AuthMethod {
    /// A token (--ca-token-file).
    #[default]
    Token,
    /// Role id and secret id (--ca-role-id-file, --ca-secret-id-file).
    Approle,
    /// The control plane's token of Kubernetes (--ca-auth-role, --ca-jwt-file).
    Kubernetes,
    /// A JWT (--ca-auth-role, --ca-jwt-file).
    Jwt,
}

/// The kind of an authority's keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Keys {
    /// RSA of 4096 bits for the root, of 2048 for the intermediate.
    #[default]
    Rsa,
    /// ECDSA P-256.
    P256,
    /// ECDSA P-384.
    P384,
}

/// Who signs workloads' certificates.
#[derive(Args, Debug, Default)]
pub struct SignerArgs {
    /// Who signs workloads' certificates
    #[arg(long, value_enum, default_value_t = Signer::Own)]
    pub ca: Signer,
    /// The keys of a new root and intermediate; those of one that is there stay, and so do those of its successors
    #[arg(long, value_enum, default_value_t = Keys::Rsa)]
    pub ca_keys: Keys,
    /// The life of a new root; that of one that is there stays, and so does that of its successors. Without, the environment's
    /// CITADEL_SELF_SIGNED_CA_CERT_TTL says it, or else it is 10 years
    #[arg(long, value_name = "DURATION", value_parser = life)]
    pub ca_root_ttl: Option<Duration>,
    /// The same, as the environment of an installation of istiod says it, where it may be without a meaning: what does not fit is told, and left out
    #[arg(long, value_name = "DURATION", env = "CITADEL_SELF_SIGNED_CA_CERT_TTL")]
    pub citadel_self_signed_ca_cert_ttl: Option<String>,
    /// The same of a new intermediate. 1 year without, or the root's life if that is shorter
    #[arg(long, value_name = "DURATION", value_parser = life)]
    pub ca_intermediate_ttl: Option<Duration>,
    /// The signer that signs CertificateSigningRequests (kubernetes-csr), such as mesh.example.com/workloads
    #[arg(long, value_name = "NAME")]
    pub ca_signer_name: Option<String>,
    /// The roots that its certificates lead to, PEM; followed (kubernetes-csr; est, where without it they are those that the server hands out)
    #[arg(long, value_name = "FILE")]
    pub ca_trust: Option<PathBuf>,
    /// OpenBao's URL; that of the EST server without a path, https://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub ca_addr: Option<String>,
    /// Roots by which TLS of OpenBao, or of the EST server, is checked; the system's by default
    #[arg(long, value_name = "FILE")]
    pub ca_root_cert: Option<PathBuf>,
    /// OpenBao's namespace
    #[arg(long, value_name = "NAME")]
    pub ca_namespace: Option<String>,
    /// The mount of the PKI engine
    #[arg(long, value_name = "PATH", default_value = "pki")]
    pub ca_mount: String,
    /// The PKI engine's role that signs workloads
    #[arg(long, value_name = "NAME", default_value = "weft")]
    pub ca_role: String,
    /// How the control plane proves to OpenBao who it is
    #[arg(long, value_enum, default_value_t = AuthMethod::Token)]
    pub ca_auth: AuthMethod,
    /// The mount of that method, if it is not the method's name
    #[arg(long, value_name = "PATH")]
    pub ca_auth_mount: Option<String>,
    /// The role to log in for (kubernetes, jwt)
    #[arg(long, value_name = "NAME")]
    pub ca_auth_role: Option<String>,
    /// The file of the token (token)
    #[arg(long, value_name = "FILE")]
    pub ca_token_file: Option<PathBuf>,
    /// The file of the role id (approle)
    #[arg(long, value_name = "FILE")]
    pub ca_role_id_file: Option<PathBuf>,
    /// The file of the secret id (approle)
    #[arg(long, value_name = "FILE")]
    pub ca_secret_id_file: Option<PathBuf>,
    /// The file of the JWT (kubernetes, jwt); the service account's token by default
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token")]
    pub ca_jwt_file: PathBuf,
    /// Which of the EST server's authorities signs, if it has several: the label in its paths
    #[arg(long, value_name = "LABEL")]
    pub ca_est_label: Option<String>,
    /// The certificate that the control plane shows to the EST server, PEM, with what leads to its root. It is renewed before it expires
    /// (simplereenroll), and the new one is kept in --state-dir; one that is put in its place is taken up
    #[arg(long, value_name = "FILE", requires = "ca_est_key")]
    pub ca_est_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "ca_est_cert")]
    pub ca_est_key: Option<PathBuf>,
    /// The name by which the EST server knows the control plane (HTTP basic authentication)
    #[arg(long, value_name = "NAME", requires = "ca_est_password_file")]
    pub ca_est_user: Option<String>,
    /// The file of its password
    #[arg(long, value_name = "FILE", requires = "ca_est_user")]
    pub ca_est_password_file: Option<PathBuf>,
}

/// The longest life of a certificate that signs. There is a time for its end, whatever day it is.
const LONGEST: Duration = Duration::from_secs(36525 * 24 * 3600);

/// A life of certificates that sign: days, for what is shorter is a mistake.
fn life(text: &str) -> Result<Duration, String> {
    let life = xds_protos::duration::parse(text)?;
    if life < Duration::from_secs(24 * 3600) {
        return Err(format!("{text:?} is less than a day, which is no time for an authority"));
    }
    if life > LONGEST {
        return Err(format!("{text:?} is more than 100 years (876600h), which no authority lasts"));
    }
    Ok(life)
}

impl SignerArgs {
    /// The life of a new root, if one is asked for; what of it does not count, and why, goes to `doubt`.
    fn root_ttl(&self, doubt: impl FnOnce(String)) -> Option<Duration> {
        let text = self.citadel_self_signed_ca_cert_ttl.as_deref().map(str::trim).unwrap_or_default();
        if self.ca_root_ttl.is_some() || text.is_empty() {
            return self.ca_root_ttl;
        }
        let counts = if self.ca == Signer::Own {
            life(text).and_then(|life| match self.ca_intermediate_ttl {
                Some(intermediate) if intermediate > life => {
                    Err(format!("{text:?} is shorter than --ca-intermediate-ttl"))
                }
                _ => Ok(life),
            })
        } else {
            Err("it is for the control plane's own authority (--ca own)".to_owned())
        };
        counts.map_err(|why| doubt(format!("CITADEL_SELF_SIGNED_CA_CERT_TTL has no effect: {why}"))).ok()
    }

    /// What a new authority is made of.
    pub fn shape(&self) -> Shape {
        let (root_key, intermediate_key) = match self.ca_keys {
            Keys::Rsa => (KeyKind::Rsa4096, KeyKind::Rsa2048),
            Keys::P256 => (KeyKind::P256, KeyKind::P256),
            Keys::P384 => (KeyKind::P384, KeyKind::P384),
        };
        let usual = Shape::default();
        let given = |life: Duration| time::Duration::seconds(life.as_secs() as i64);
        let root_life = self.root_ttl(|_| {}).map_or(usual.root_life, given);
        let intermediate_life =
            self.ca_intermediate_ttl.map_or(usual.intermediate_life.min(root_life), given);
        Shape { root_key, root_life, intermediate_key, intermediate_life }
    }

    /// Who signs, if not the control plane itself.
    ///
    /// # Errors
    /// The flags do not say enough, or too much.
    pub fn elsewhere(
        &self,
        client: Option<&Client>,
        longest: time::Duration,
    ) -> anyhow::Result<Option<Elsewhere>> {
        if !matches!(self.ca, Signer::Openbao | Signer::Est) && self.ca_addr.is_some() {
            bail!("--ca-addr is for --ca openbao and --ca est");
        }
        if self.ca != Signer::KubernetesCsr && self.ca_signer_name.is_some() {
            bail!("--ca-signer-name is for --ca kubernetes-csr");
        }
        if !matches!(self.ca, Signer::KubernetesCsr | Signer::Est) && self.ca_trust.is_some() {
            bail!("--ca-trust is for --ca kubernetes-csr and --ca est");
        }
        let of_est = [self.ca_est_label.is_some(), self.ca_est_cert.is_some(), self.ca_est_user.is_some()];
        if self.ca != Signer::Est && of_est.contains(&true) {
            bail!("flags that begin with --ca-est- are for --ca est");
        }
        let lives = [self.ca_root_ttl, self.ca_intermediate_ttl];
        if self.ca != Signer::Own && lives.iter().any(Option::is_some) {
            bail!(
                "--ca-root-ttl and --ca-intermediate-ttl are for the control plane's own authority (--ca own)"
            );
        }
        self.root_ttl(|doubt| tracing::warn!("{doubt}"));
        let shape = self.shape();
        if shape.intermediate_life > shape.root_life {
            bail!(
                "--ca-intermediate-ttl is longer than the root lives (--ca-root-ttl): nobody would take what it signs at the end"
            );
        }
        match self.ca {
            Signer::Own => Ok(None),
            Signer::Openbao => {
                let settings = self.settings()?;
                let address = settings.address.clone();
                Ok(Some(Elsewhere::OpenBao(OpenBao::new(settings).context("--ca-addr")?, address)))
            }
            Signer::KubernetesCsr => {
                let client = client.context("--ca kubernetes-csr needs --kubernetes or --kubeconfig")?;
                let name = self.ca_signer_name.as_ref();
                let name = name.context("--ca kubernetes-csr needs --ca-signer-name")?;
                let roots = self.ca_trust.clone().context("--ca kubernetes-csr needs --ca-trust")?;
                let api = CsrApi::new(client.clone(), name, roots, longest)?;
                Ok(Some(Elsewhere::Kubernetes(Box::new(api))))
            }
            Signer::Est => {
                let both = |a: &Option<PathBuf>, b: &Option<PathBuf>| a.clone().zip(b.clone());
                let settings = est::Settings {
                    address: self.ca_addr.clone().context("--ca est needs --ca-addr")?,
                    label: self.ca_est_label.clone(),
                    roots: self.ca_root_cert.clone(),
                    trust: self.ca_trust.clone(),
                    certificate: both(&self.ca_est_cert, &self.ca_est_key),
                    password: self.ca_est_user.clone().zip(self.ca_est_password_file.clone()),
                    longest,
                };
                Ok(Some(Elsewhere::Est(Est::new(settings)?)))
            }
        }
    }

    /// OpenBao's settings.
    fn settings(&self) -> anyhow::Result<Settings> {
        let address = self.ca_addr.clone().context("--ca openbao needs --ca-addr")?;
        let auth = AuthFlags {
            flags: "--ca",
            method: self.ca_auth,
            mount: self.ca_auth_mount.as_deref(),
            role: self.ca_auth_role.as_deref(),
            token: self.ca_token_file.as_deref(),
            role_id: self.ca_role_id_file.as_deref(),
            secret_id: self.ca_secret_id_file.as_deref(),
            jwt: &self.ca_jwt_file,
        };
        let auth = auth.auth()?;
        Ok(Settings {
            address,
            roots: self.ca_root_cert.clone(),
            namespace: self.ca_namespace.clone(),
            mount: self.ca_mount.clone(),
            role: self.ca_role.clone(),
            auth,
        })
    }
}

/// How to log in, as flags say it that begin alike.
pub struct AuthFlags<'a> {
    /// How they begin, such as `--ca`.
    pub flags: &'a str,
    /// The method.
    pub method: AuthMethod,
    /// Its mount, if it is not its name.
    pub mount: Option<&'a str>,
    /// The role to log in for.
    pub role: Option<&'a str>,
    /// The file of the token.
    pub token: Option<&'a Path>,
    /// The file of the role id.
    pub role_id: Option<&'a Path>,
    /// The file of the secret id.
    pub secret_id: Option<&'a Path>,
    /// The file of the JWT.
    pub jwt: &'a Path,
}

impl AuthFlags<'_> {
    /// What they say.
    ///
    /// # Errors
    /// A flag that the method needs is missing.
    pub fn auth(&self) -> anyhow::Result<Auth> {
        let flags = self.flags;
        let method = self.method.to_possible_value();
        let method = method.as_ref().map_or("", |value| value.get_name());
        let mount = || self.mount.unwrap_or(method).to_owned();
        let file = |path: Option<&Path>, flag: &str| {
            path.map(Path::to_owned).with_context(|| format!("{flags}-auth {method} needs {flags}-{flag}"))
        };
        Ok(match self.method {
            AuthMethod::Token => Auth::Token(file(self.token, "token-file")?),
            AuthMethod::Approle => Auth::AppRole {
                mount: mount(),
                role_id: file(self.role_id, "role-id-file")?,
                secret_id: file(self.secret_id, "secret-id-file")?,
            },
            AuthMethod::Kubernetes | AuthMethod::Jwt => {
                let role =
                    self.role.with_context(|| format!("{flags}-auth {method} needs {flags}-auth-role"))?;
                Auth::Jwt { mount: mount(), role: role.to_owned(), token: self.jwt.to_owned() }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::State;

    #[test]
    fn an_authority_has_the_keys_and_lives_that_were_asked_for() {
        // RSA keys are made seldom and slowly: the acceptance journey looks at those.
        for (ca_keys, key) in [(Keys::P256, "P-256"), (Keys::P384, "P-384")] {
            let shape = SignerArgs { ca_keys, ..SignerArgs::default() }.shape();
            let state = State::create(shape, time::OffsetDateTime::now_utc()).unwrap();
            let certificates = [state.root.certificate(), state.intermediate.certificate()];
            for (certificate, days) in certificates.into_iter().zip([3650, 365]) {
                let facts = weft_certs::inspect::facts(certificate).unwrap();
                assert_eq!(facts.key, key);
                let life = facts.not_after - facts.not_before;
                assert_eq!(life.whole_days(), days);
            }
        }
        let day = Duration::from_secs(24 * 3600);
        let with = |root: u32, intermediate: Option<u32>| SignerArgs {
            ca_keys: Keys::P256,
            ca_root_ttl: Some(day * root),
            ca_intermediate_ttl: intermediate.map(|days| day * days),
            ..SignerArgs::default()
        };
        for (args, lives) in
            [(with(100, None), [100, 100]), (with(7300, None), [7300, 365]), (with(100, Some(30)), [100, 30])]
        {
            let state = State::create(args.shape(), time::OffsetDateTime::now_utc()).unwrap();
            let certificates = [state.root.certificate(), state.intermediate.certificate()];
            for (certificate, days) in certificates.into_iter().zip(lives) {
                let facts = weft_certs::inspect::facts(certificate).unwrap();
                assert_eq!((facts.not_after - facts.not_before).whole_days(), days);
            }
        }
        let refused =
            |args: SignerArgs| args.elsewhere(None, time::Duration::days(90)).err().unwrap().to_string();
        assert!(refused(with(100, Some(101))).contains("is longer than the root lives"));
        assert!(refused(SignerArgs { ca: Signer::Openbao, ..with(100, None) }).contains("--ca own"));
        let of_est = |ca: Signer| SignerArgs {
            ca,
            ca_est_user: Some("weft".to_owned()),
            ca_est_password_file: Some("password".into()),
            ..SignerArgs::default()
        };
        assert!(refused(of_est(Signer::Own)).contains("--ca-est- are for --ca est"));
        assert!(refused(of_est(Signer::Est)).contains("needs --ca-addr"));
        let trust = SignerArgs { ca_trust: Some("roots.pem".into()), ..SignerArgs::default() };
        assert!(refused(trust).contains("--ca kubernetes-csr and --ca est"));
        assert!(life("1h").is_err() && life("87600h").unwrap() == day * 3650);
        assert!(life("876601h").unwrap_err().contains("100 years"));
        assert!(State::create(with(36525, None).shape(), time::OffsetDateTime::now_utc()).is_ok());
        // What istiod's environment says is no reason not to start.
        for (ca, intermediate, text, days, doubts) in [
            (Signer::Own, None, "2400h", 100, 0),
            (Signer::Own, None, " ", 3650, 0),
            (Signer::Own, Some(101), "2400h", 3650, 1),
            (Signer::Own, None, "1h", 3650, 1),
            (Signer::Own, None, "ten years", 3650, 1),
            (Signer::Own, None, "2000000h", 3650, 1),
            (Signer::KubernetesCsr, None, "2400h", 3650, 1),
        ] {
            let args = SignerArgs {
                ca,
                ca_root_ttl: None,
                citadel_self_signed_ca_cert_ttl: Some(text.to_owned()),
                ..with(1, intermediate)
            };
            let mut told = Vec::new();
            args.root_ttl(|doubt| told.push(doubt));
            assert_eq!((args.shape().root_life.whole_days(), told.len()), (days, doubts), "{text} {told:?}");
            let error = args.elsewhere(None, time::Duration::days(90)).err();
            assert!(error.is_none_or(|error| !error.to_string().contains("ttl")), "{text}");
        }
        let shape = SignerArgs::default().shape();
        assert_eq!((shape.root_key, shape.intermediate_key), (KeyKind::Rsa4096, KeyKind::Rsa2048));
    }
}
