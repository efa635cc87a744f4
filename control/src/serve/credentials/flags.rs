//! The flags that say where credentials are kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::CredentialReader;
use super::source::Source;
use crate::ca::flags::{AuthFlags, AuthMethod};
use crate::ca::openbao::{OpenBao, Settings};

/// How often files are read again, and OpenBao, unless it is said.
const REFRESH: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// Who keeps credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Keeper {
    /// The Secrets of the configuration alone.
    #[default]
    Config,
    /// Files below --credentials-dir, too.
    Files,
    /// OpenBao's (or Vault's) KV engine (version 2), too.
    Openbao,
}

/// Where credentials are that the configuration names and has no Secret of.
#[derive(Args, Debug, Default)]
pub struct CredentialArgs {
    /// Where credentials (credentialName) are looked for when the configuration has no Secret of their name
    #[arg(long, value_enum, default_value_t = Keeper::Config)]
    pub credentials: Keeper,
    /// The directory of NAMESPACE/NAME/KEY, such as edge/shop-tls/tls.crt (files)
    #[arg(long, value_name = "DIR")]
    pub credentials_dir: Option<PathBuf>,
    /// How often they are read again; 2s for files and 30s for OpenBao by default
    #[arg(long, value_name = "DURATION", value_parser = xds_protos::duration::parse)]
    pub credentials_refresh_interval: Option<Duration>,
    /// OpenBao's URL
    #[arg(long, value_name = "URL")]
    pub credentials_addr: Option<String>,
    /// Roots by which OpenBao's TLS is checked; the system's by default
    #[arg(long, value_name = "FILE")]
    pub credentials_root_cert: Option<PathBuf>,
    /// OpenBao's namespace
    #[arg(long, value_name = "NAME")]
    pub credentials_namespace: Option<String>,
    /// The mount of the KV engine
    #[arg(long, value_name = "PATH", default_value = "secret")]
    pub credentials_mount: String,
    /// What comes before NAMESPACE/NAME in the engine
    #[arg(long, value_name = "PATH", default_value = "weft")]
    pub credentials_prefix: String,
    /// How the control plane proves to OpenBao who it is
    #[arg(long, value_enum, default_value_t = AuthMethod::Token)]
    pub credentials_auth: AuthMethod,
    /// The mount of that method, if it is not the method's name
    #[arg(long, value_name = "PATH")]
    pub credentials_auth_mount: Option<String>,
    /// The role to log in for (kubernetes, jwt)
    #[arg(long, value_name = "NAME")]
    pub credentials_auth_role: Option<String>,
    /// The file of the token (token)
    #[arg(long, value_name = "FILE")]
    pub credentials_token_file: Option<PathBuf>,
    /// The file of the role id (approle)
    #[arg(long, value_name = "FILE")]
    pub credentials_role_id_file: Option<PathBuf>,
    /// The file of the secret id (approle)
    #[arg(long, value_name = "FILE")]
    pub credentials_secret_id_file: Option<PathBuf>,
    /// The file of the JWT (kubernetes, jwt); the service account's token by default
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token")]
    pub credentials_jwt_file: PathBuf,
}

impl CredentialArgs {
    /// The reader that they ask for, which keeps what was last good below `state`; none if the configuration has all.
    pub fn reader(&self, state: Option<&Path>) -> anyhow::Result<Option<CredentialReader>> {
        let stray = |flag: &str, keeper: &str| anyhow::anyhow!("{flag} is for --credentials {keeper}");
        if self.credentials != Keeper::Files && self.credentials_dir.is_some() {
            return Err(stray("--credentials-dir", "files"));
        }
        if self.credentials != Keeper::Openbao && self.credentials_addr.is_some() {
            return Err(stray("--credentials-addr", "openbao"));
        }
        let (source, every) = match self.credentials {
            Keeper::Config => return Ok(None),
            Keeper::Files => {
                let directory = self.credentials_dir.clone();
                let directory = directory.context("--credentials files needs --credentials-dir")?;
                if !directory.is_dir() {
                    bail!("--credentials-dir {}: is no directory", directory.display());
                }
                (Source::Files(directory), REFRESH.0)
            }
            Keeper::Openbao => {
                let address = self.credentials_addr.clone();
                let settings = Settings {
                    address: address.context("--credentials openbao needs --credentials-addr")?,
                    roots: self.credentials_root_cert.clone(),
                    namespace: self.credentials_namespace.clone(),
                    mount: self.credentials_mount.trim_matches('/').to_owned(),
                    role: String::new(),
                    auth: self.auth()?,
                };
                let openbao = OpenBao::new(settings).context("--credentials-addr")?;
                let prefix = self.credentials_prefix.trim_matches('/').to_owned();
                (Source::OpenBao { openbao, prefix }, REFRESH.1)
            }
        };
        let every = self.credentials_refresh_interval.unwrap_or(every);
        if every < Duration::from_millis(1) {
            bail!("--credentials-refresh-interval: must be at least 1ms");
        }
        // What files are lost is no loss of the keeper's: they are read by the next start as well.
        let kept = state.filter(|_| self.credentials == Keeper::Openbao);
        Ok(Some(CredentialReader::new(source, every, kept)))
    }

    fn auth(&self) -> anyhow::Result<crate::ca::openbao::Auth> {
        AuthFlags {
            flags: "--credentials",
            method: self.credentials_auth,
            mount: self.credentials_auth_mount.as_deref(),
            role: self.credentials_auth_role.as_deref(),
            token: self.credentials_token_file.as_deref(),
            role_id: self.credentials_role_id_file.as_deref(),
            secret_id: self.credentials_secret_id_file.as_deref(),
            jwt: &self.credentials_jwt_file,
        }
        .auth()
    }
}
