//! `weft cert fetch`: an identity as files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustls_pki_types::{CertificateDer, UnixTime};
use weft_certs::spiffe::SpiffeId;
use weft_certs::verify::{Bundle, Expected, Usage, ValidationContext, verify_peer};
use weft_certs::{inspect, pem};

use crate::support::control::Control;
use crate::support::logged::Logged;
use crate::support::{eventually, stderr, stdout, weft};

const ID: &str = "spiffe://cluster.local/ns/edge/sa/nginx";

struct Place {
    control: Control,
    directory: tempfile::TempDir,
}

impl Place {
    fn new(ip: &'static str) -> Self {
        let control = Control::start(ip, "apiVersion: v1\nkind: List\nitems: []\n");
        let place = Self { control, directory: tempfile::tempdir().unwrap() };
        let token = weft(&[
            "token",
            "create",
            "--state-dir",
            place.control.state().to_str().unwrap(),
            "--namespace",
            "edge",
            "--service-account",
            "nginx",
        ]);
        std::fs::write(place.file("token"), token.stdout).unwrap();
        place
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// The command's words.
    fn words(&self, more: &[&str]) -> Vec<String> {
        let address = format!("{}:15012", self.control.ip);
        let (root, token, out) =
            (self.control.root().to_str().unwrap().to_owned(), self.file("token"), self.file("out"));
        let usual = ["cert", "fetch", "--ca-address", &address, "--root-cert", &root, "--token-file", &token];
        let usual =
            [&usual[..], &["--namespace", "edge", "--service-account", "nginx", "--out", &out]].concat();
        [&usual[..], more].concat().into_iter().map(str::to_owned).collect()
    }

    /// What the files say: the leaf's serial number, after everything was checked that a reader would go by.
    fn serial(&self) -> String {
        // Followed once for all of them.
        let version = Path::new(&self.file("out")).join(std::fs::read_link(self.file("out/..data")).unwrap());
        let read = |name: &str| std::fs::read_to_string(version.join(name)).unwrap();
        let chain = pem::certificates(read("cert-chain.pem").as_bytes()).unwrap();
        let bundle = pem::certificates(read("root-cert.pem").as_bytes()).unwrap();
        let context = ValidationContext {
            bundle: Bundle::new(bundle).unwrap(),
            expected: Expected::Domains(vec!["cluster.local".parse().unwrap()]),
        };
        let id: SpiffeId = verify_peer(&chain, &context, UnixTime::now(), Usage::Client).unwrap();
        assert_eq!(id.to_string(), ID);
        let key = pem::private_key(read("key.pem").as_bytes()).unwrap();
        let provider = weft_certs::provider();
        let key = provider.key_provider.load_private_key(key).unwrap();
        rustls::sign::CertifiedKey::new(chain.clone(), key).keys_match().unwrap();
        let leaf: &CertificateDer<'_> = &chain[0];
        inspect::facts(leaf).unwrap().serial
    }
}

fn text(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn files_are_written_once_and_their_key_is_for_its_owner() {
    let place = Place::new("127.72.0.1");
    let output = weft(&text(&place.words(&["--output", "json"])));
    assert!(output.status.success(), "{}", stderr(&output));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["id"], ID);
    place.serial();
    let mode = |name: &str| std::fs::metadata(place.file(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("out/key.pem"), mode("out/cert-chain.pem")), (0o600, 0o644));
    // Again, over what is there, in the words for people.
    let first = place.serial();
    let output = weft(&text(&place.words(&[])));
    assert!(stdout(&output).contains(ID), "{}", stderr(&output));
    assert_ne!(place.serial(), first);
    let left = std::fs::read_dir(place.file("out")).unwrap().count();
    assert_eq!(left, 6, "three links, the link that they go by, this version and the one before");
}

#[test]
fn files_stay_fresh_each_change_is_followed_and_a_certificate_service_that_is_away_changes_nothing() {
    let mut place = Place::new("127.72.0.2");
    let seen = place.file("seen");
    let follow = format!("echo changed >> {seen}; cat {}/cert-chain.pem > /dev/null", place.file("out"));
    let watch = Logged::weft(&place.words(&["--watch", "--cert-ttl", "6s", "--run", &follow]));
    let changes = || std::fs::read_to_string(&seen).map_or(0, |text| text.lines().count());
    eventually("there are files", || changes() == 1);
    let first = place.serial();
    // Whoever reads them meanwhile always finds a pair.
    let end = Instant::now() + Duration::from_secs(15);
    while changes() < 4 {
        place.serial();
        assert!(Instant::now() < end, "{} changes\n{}", changes(), watch.log());
    }
    assert_ne!(place.serial(), first);

    place.control.process.kill();
    let last = place.serial();
    eventually("renewing fails", || watch.log().contains("WARN"));
    assert_eq!(std::fs::read(place.file("out/cert-chain.pem")).is_ok(), !last.is_empty());
    let before = changes();
    place.control.restart();
    eventually("it goes on", || changes() > before);
    place.serial();
}

#[test]
fn who_proves_nothing_gets_nothing_and_hears_why() {
    let place = Place::new("127.72.0.3");
    let fails = |words: &[String], says: &[&str]| {
        let output = weft(&text(words));
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        for words in says {
            assert!(error.contains(words), "no {words:?} in {error}");
        }
        assert!(!Path::new(&place.file("out/key.pem")).exists());
    };
    std::fs::write(place.file("token"), "nothing").unwrap();
    fails(&place.words(&["--timeout", "2s"]), &["no certificate from 127.72.0.3:15012 within 2s", "token"]);
    let mut words = place.words(&["--timeout", "1s"]);
    words[3] = "127.72.0.3:1".to_owned();
    fails(&words, &["no certificate from 127.72.0.3:1", "127.72.0.3:1"]);
    let mut words = place.words(&[]);
    std::fs::write(place.file("taken"), "").unwrap();
    let out = words.iter().position(|w| w == "--out").unwrap() + 1;
    words[out] = place.file("taken/out");
    fails(&words, &["--out", "taken/out"]);
    let mut words = place.words(&[]);
    words.extend(["--trust-domain", "not a domain"].map(str::to_owned));
    fails(&words, &["not a domain"]);
}

/// What is shipped for an ingress that is none of ours says what this version understands.
#[test]
fn the_shipped_manifests_of_a_foreign_ingress_hold() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ambassador");
    let text = std::fs::read_to_string(directory.join("identity.yaml")).unwrap();
    let arguments: Vec<String> = text
        .lines()
        .skip_while(|line| line.trim() != "args:")
        .skip(1)
        .map_while(|line| line.trim().strip_prefix("- ").map(str::to_owned))
        .collect();
    assert!(arguments.len() > 5, "{arguments:?}");
    let cli =
        <weft::cli::Cli as clap::Parser>::try_parse_from(std::iter::once("weft".to_owned()).chain(arguments));
    let Ok(weft::cli::Cli { command: weft::cli::Command::Cert(command) }) = cli else { panic!("{cli:?}") };
    let weft::cli::CertCommand::Fetch(args) = command;
    assert!(args.watch);
    // The files that it writes are those that Emissary is to read.
    let context = std::fs::read_to_string(directory.join("tls-context.yaml")).unwrap();
    for name in ["cert-chain.pem", "key.pem", "root-cert.pem"] {
        assert!(context.contains(&args.out.join(name).display().to_string()), "{name}: {context}");
    }
    let found = weft(&["analyze", directory.to_str().unwrap()]);
    let said = stdout(&found) + &stderr(&found);
    assert!(found.status.success() && said.contains("0 errors, 0 warnings"), "{said}");
}
