//! A server of OpenBao's on a loopback address of its own, which ends with the test. What it stores is on disk, so that it can be
//! killed, and comes back sealed.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{Process, peer, run};

const PORT: u16 = 8200;

pub struct Bao {
    directory: TempDir,
    address: String,
    process: Process,
    unseal_key: String,
    root_token: String,
}

impl Bao {
    /// Starts one at this address, initialises and unseals it.
    pub fn start(address: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(address.parse::<IpAddr>().unwrap())];
        std::fs::write(at.join("server.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(at.join("server.key"), key.serialize_pem()).unwrap();
        std::fs::create_dir(at.join("stored")).unwrap();
        let settings = format!(
            "ui = false
log_level = \"debug\"
storage \"raft\" {{
  path = \"{0}/stored\"
  node_id = \"one\"
}}
listener \"tcp\" {{
  address = \"{address}:{PORT}\"
  tls_cert_file = \"{0}/server.pem\"
  tls_key_file = \"{0}/server.key\"
}}
api_addr = \"https://{address}:{PORT}\"
cluster_addr = \"https://{address}:8201\"
",
            at.display()
        );
        std::fs::write(at.join("settings.hcl"), settings).unwrap();
        let process = Process::start("openbao", &mut server(at), at);
        let mut bao = Self {
            address: address.to_owned(),
            process,
            unseal_key: String::new(),
            root_token: String::new(),
            directory,
        };
        bao.wait_until("ready to be initialised", 501);
        let made = bao.json(&["operator", "init", "-key-shares=1", "-key-threshold=1"]);
        bao.unseal_key = made["unseal_keys_b64"][0].as_str().unwrap().to_owned();
        bao.root_token = made["root_token"].as_str().unwrap().to_owned();
        bao.unseal();
        bao
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.process.end();
    }

    /// Starts it again: it is sealed.
    pub fn start_again(&mut self) {
        let at = self.directory.path();
        self.process = Process::start_again("openbao", &mut server(at), at);
        self.wait_until("sealed", 503);
    }

    /// Has it serve.
    pub fn unseal(&mut self) {
        self.cli(&["operator", "unseal", &self.unseal_key]);
        self.wait_until("unsealed", 200);
    }

    /// Waits for a status of its page of health, by which it tells how it is.
    fn wait_until(&mut self, what: &str, status: u16) {
        let mut ask = Command::new(peer("WEFT_CURL"));
        ask.args(["--silent", "--max-time", "5", "--output", "/dev/null", "--write-out", "%{http_code}"]);
        ask.arg("--cacert").arg(self.root()).arg(format!("{}/v1/sys/health", self.url()));
        self.process
            .wait(what, || ask.output().is_ok_and(|said| said.stdout == status.to_string().as_bytes()));
    }

    /// What it has written, for who is refused learns little.
    pub fn log(&self) -> String {
        self.process.log()
    }

    pub fn url(&self) -> String {
        format!("https://{}:{PORT}", self.address)
    }

    /// The root by which its TLS is checked.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("server.pem")
    }

    /// A file in its directory.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A program that is to ask it, as whoever has this token.
    fn asking(&self, program: impl AsRef<std::ffi::OsStr>, token: &str) -> Command {
        let mut command = Command::new(program);
        command.env("BAO_ADDR", self.url()).env("BAO_CACERT", self.root()).env("BAO_TOKEN", token);
        // A token of its user's would be in the home directory.
        command.env("HOME", self.directory.path());
        command
    }

    /// What its own command says to its root's token, which must be able to do it.
    pub fn cli(&self, args: &[&str]) -> String {
        self.cli_as(&self.root_token, args).unwrap_or_else(|said| panic!("{said}\n{}", self.process.log()))
    }

    /// The same by another token, or why not.
    pub fn cli_as(&self, token: &str, args: &[&str]) -> Result<String, String> {
        run(self.asking(peer("WEFT_OPENBAO"), token).args(args))
    }

    /// The same of the root's token, as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        self.try_json(args).unwrap_or_else(|said| panic!("{said}\n{}", self.process.log()))
    }

    /// The same, or why not.
    pub fn try_json(&self, args: &[&str]) -> Result<Value, String> {
        let mut command = self.asking(peer("WEFT_OPENBAO"), &self.root_token);
        let said = run(command.env("BAO_FORMAT", "json").args(args))?;
        Ok(serde_json::from_str(&said).unwrap())
    }

    /// Runs what is shipped (deploy/integrations/openbao/set-up) as its user would, with these variables.
    pub fn set_up(&self, variables: &[(&str, &str)]) {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/integrations/openbao/set-up");
        let programs = peer("WEFT_OPENBAO").parent().unwrap().display().to_string();
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
        let mut command = self.asking(own, &self.root_token);
        run(command.env("PATH", path).envs(variables.iter().copied()))
            .unwrap_or_else(|said| panic!("{said}\n{}", self.process.log()));
    }

    /// Another way in, AppRole, with the control plane's policy and tokens that live so long; files of role id and secret id.
    pub fn app_role(&self, life: &str) -> [PathBuf; 2] {
        self.cli(&["auth", "enable", "approle"]);
        let life = format!("token_ttl={life}");
        self.cli(&[
            "write",
            "auth/approle/role/weft",
            "token_policies=weft",
            "token_no_default_policy=true",
            &life,
        ]);
        let role = self.cli(&["read", "-field=role_id", "auth/approle/role/weft/role-id"]);
        let secret = self.cli(&["write", "-f", "-field=secret_id", "auth/approle/role/weft/secret-id"]);
        [self.write("role-id", &role), self.write("secret-id", &secret)]
    }
}

fn server(at: &Path) -> Command {
    let mut server = Command::new(peer("WEFT_OPENBAO"));
    server.arg("server").arg("-config").arg(at.join("settings.hcl"));
    server
}
