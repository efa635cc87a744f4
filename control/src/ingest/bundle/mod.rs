//! Configuration with a signature: who wrote it is known, and that it is whole.
//!
//! A bundle is one file that has all files of a directory in it; a directory may have its signature in a file of its own instead,
//! [`SIGNATURE`]. What is signed is the same text for both, the statement: revision, time, and each file's path and digest in the
//! order of the paths. It is checked on the very bytes that are read as configuration afterwards.

mod accepted;
mod keys;

use std::collections::BTreeMap;
use std::path::{Component, Path};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use weft_certs::digest::sha256_hex;

pub use accepted::Memory;
pub use keys::{KeyError, SigningKey, VerifyingKey};

use super::load::list_files;

/// The file of a directory that has its signature; hidden, so that it is no configuration.
pub const SIGNATURE: &str = ".weft-signature";
/// What the files call themselves. Another number is another form.
const FORM: &str = "weft.dev/bundle/1";
/// A file that is larger is none of ours.
const LARGEST: u64 = 256 * 1024 * 1024;

/// Files of configuration by their paths below the directory, with slashes.
pub type Files = BTreeMap<String, String>;

/// Configuration, or a word about it, with signatures.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    form: String,
    /// Which version of the configuration it is, in words of whoever made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    revision: String,
    /// When it was made.
    created: String,
    /// Of the statement; for people, since the signature is checked against the statement itself.
    digest: String,
    signatures: Vec<Signature>,
    /// None beside a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    files: Option<Files>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    key: String,
    signature: String,
}

/// Configuration whose signature was good.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Which version it calls itself.
    pub revision: String,
    /// When it was made.
    pub created: String,
    /// Of all of it.
    pub digest: String,
    /// The name of the key that signed it.
    pub key: String,
    /// It.
    #[serde(skip)]
    pub files: Files,
    /// By whom it is signed, as it was written.
    #[serde(skip)]
    signatures: Vec<Signature>,
}

impl Verified {
    /// It as a bundle, whatever it was read from.
    fn bundle(&self) -> Result<String, BundleError> {
        let sealed = Sealed {
            form: FORM.to_owned(),
            revision: self.revision.clone(),
            created: self.created.clone(),
            digest: self.digest.clone(),
            signatures: self.signatures.clone(),
            files: Some(self.files.clone()),
        };
        serde_json::to_string(&sealed).map_err(|error| BundleError::Form(error.to_string()))
    }
}

/// Why configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file cannot be read, or has what cannot be signed.
    #[error("{0}")]
    Unreadable(String),
    /// There is no signature.
    #[error("there is no signature ({SIGNATURE}); weft bundle sign makes it")]
    Unsigned,
    /// It is no bundle or signature of ours.
    #[error("no bundle of {FORM}: {0}")]
    Form(String),
    /// Nobody who counts has signed it.
    #[error("signed by the keys {found}, and none of them is among those that count ({known})")]
    Stranger {
        /// Names of the keys that it names.
        found: String,
        /// Names of the keys that count.
        known: String,
    },
    /// It is not what was signed.
    #[error(
        "the signature of the key {key} is not one of this configuration: it was changed since it was signed, or copied in part; sign it again, or bring back what was signed"
    )]
    Changed {
        /// The key's name.
        key: String,
    },
}

/// The text that is signed.
fn statement(revision: &str, created: &str, files: &Files) -> String {
    let mut text = format!("{FORM}\nrevision {revision}\ncreated {created}\n");
    for (path, content) in files {
        text += &format!("{} {} {path}\n", sha256_hex(content.as_bytes()), content.len());
    }
    text
}

/// The files of a directory, which are what a reader would read.
///
/// # Errors
/// One of them cannot be read, or is no text.
pub fn files_of(directory: &Path) -> Result<Files, BundleError> {
    let unreadable = |path: &Path, why: &dyn std::fmt::Display| {
        BundleError::Unreadable(format!("{}: {why}", path.display()))
    };
    let mut files = Files::new();
    for path in list_files(directory).map_err(|error| unreadable(directory, &error))? {
        let bytes = std::fs::read(&path).map_err(|error| unreadable(&path, &error))?;
        let text = String::from_utf8(bytes).map_err(|_| unreadable(&path, &"is not UTF-8 text"))?;
        let below = path.strip_prefix(directory).ok().and_then(Path::to_str);
        let below = below.ok_or_else(|| unreadable(&path, &"its name is not UTF-8 text"))?;
        files.insert(below.to_owned(), text);
    }
    check_paths(&files)?;
    Ok(files)
}

/// A path that leaves the directory would be written elsewhere, one with a line's end would make another statement the same text, and
/// one that is hidden or no YAML would not be read.
fn check_paths(files: &Files) -> Result<(), BundleError> {
    for path in files.keys() {
        let parts = Path::new(path).components();
        let plain = parts.clone().all(
            |part| matches!(part, Component::Normal(name) if !name.as_encoded_bytes().starts_with(b".")),
        );
        let read = [".yaml", ".yml", ".json"].iter().any(|end| path.ends_with(end));
        if !plain || !read || path.chars().any(char::is_control) {
            return Err(BundleError::Form(format!("{path:?} is no path of a file of configuration")));
        }
    }
    if files.is_empty() {
        return Err(BundleError::Form("there is no *.yaml, *.yml or *.json in it".to_owned()));
    }
    Ok(())
}

/// Signs files: the bundle, and the text that stands beside a directory instead.
fn seal(
    files: Files,
    revision: &str,
    created: &str,
    key: &SigningKey,
    whole: bool,
) -> Result<String, BundleError> {
    if revision.chars().any(char::is_control) {
        return Err(BundleError::Form("a revision is one line of text".to_owned()));
    }
    check_paths(&files)?;
    let text = statement(revision, created, &files);
    let signature = BASE64.encode(key.sign(text.as_bytes()));
    let sealed = Sealed {
        form: FORM.to_owned(),
        revision: revision.to_owned(),
        created: created.to_owned(),
        digest: format!("sha256:{}", sha256_hex(text.as_bytes())),
        signatures: vec![Signature { key: key.name(), signature }],
        files: whole.then_some(files),
    };
    let text = serde_json::to_string_pretty(&sealed).map_err(|error| BundleError::Form(error.to_string()))?;
    Ok(text + "\n")
}

/// The text of a bundle of files.
///
/// # Errors
/// They cannot be signed as they are.
pub fn create(files: Files, revision: &str, created: &str, key: &SigningKey) -> Result<String, BundleError> {
    seal(files, revision, created, key, true)
}

/// The text of a directory's signature.
///
/// # Errors
/// They cannot be signed as they are.
pub fn sign(files: Files, revision: &str, created: &str, key: &SigningKey) -> Result<String, BundleError> {
    seal(files, revision, created, key, false)
}

/// Reads a bundle, or a directory with its signature, and checks it by these keys, of which one suffices.
///
/// # Errors
/// It cannot be read, or nobody who counts has signed it as it is.
pub fn verify(path: &Path, keys: &[VerifyingKey]) -> Result<Verified, BundleError> {
    let read = |path: &Path| {
        let unreadable = |why: String| BundleError::Unreadable(format!("{}: {why}", path.display()));
        match std::fs::metadata(path) {
            Ok(about) if about.len() > LARGEST => Err(unreadable("too large for a bundle".to_owned())),
            Ok(_) => std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string())),
            Err(error) => Err(unreadable(error.to_string())),
        }
    };
    let parse = |text: &str| {
        serde_json::from_str::<Sealed>(text).map_err(|error| BundleError::Form(error.to_string()))
    };
    if path.is_dir() {
        let beside = path.join(SIGNATURE);
        if !beside.exists() {
            return Err(BundleError::Unsigned);
        }
        let sealed = parse(&read(&beside)?)?;
        if sealed.files.is_some() {
            return Err(BundleError::Form(format!("{SIGNATURE} has files in it: it is a bundle")));
        }
        return check(sealed, files_of(path)?, keys);
    }
    let mut sealed = parse(&read(path)?)?;
    let files = sealed.files.take().ok_or_else(|| BundleError::Form("it has no files".to_owned()))?;
    check(sealed, files, keys)
}

fn check(sealed: Sealed, files: Files, keys: &[VerifyingKey]) -> Result<Verified, BundleError> {
    if sealed.form != FORM {
        return Err(BundleError::Form(format!("it says {:?}", sealed.form)));
    }
    if [&sealed.revision, &sealed.created].iter().any(|text| text.chars().any(char::is_control)) {
        return Err(BundleError::Form("revision and created are one line of text each".to_owned()));
    }
    check_paths(&files)?;
    let text = statement(&sealed.revision, &sealed.created, &files);
    let mut changed = None;
    for one in &sealed.signatures {
        let Some(key) = keys.iter().find(|key| key.name() == one.key) else { continue };
        let signature = BASE64.decode(&one.signature).unwrap_or_default();
        if key.verifies(text.as_bytes(), &signature) {
            let digest = format!("sha256:{}", sha256_hex(text.as_bytes()));
            let Sealed { revision, created, signatures, .. } = sealed;
            return Ok(Verified { revision, created, digest, key: key.name(), files, signatures });
        }
        changed = Some(one.key.clone());
    }
    if let Some(key) = changed {
        return Err(BundleError::Changed { key });
    }
    let list = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(BundleError::Stranger {
        found: list(sealed.signatures.iter().map(|one| one.key.clone()).collect()),
        known: list(keys.iter().map(VerifyingKey::name).collect()),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const WHEN: &str = "2026-01-02T03:04:05Z";

    struct Scene {
        directory: tempfile::TempDir,
        key: SigningKey,
        keys: Vec<VerifyingKey>,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (key, keys) = Self::key(directory.path(), "k");
            std::fs::create_dir_all(directory.path().join("mesh/shop")).unwrap();
            let scene = Self { directory, key, keys: vec![keys] };
            scene.write("a.yaml", "a: 1\n");
            scene.write("shop/b.yml", "b: 2\n");
            scene.write(".hidden.yaml", "c: 3\n");
            scene
        }

        fn key(at: &Path, name: &str) -> (SigningKey, VerifyingKey) {
            let (private, public) = SigningKey::generate().unwrap();
            std::fs::write(at.join(name), &*private).unwrap();
            std::fs::write(at.join(format!("{name}.pub")), public).unwrap();
            (
                SigningKey::open(&at.join(name)).unwrap(),
                VerifyingKey::open(&at.join(format!("{name}.pub"))).unwrap(),
            )
        }

        fn mesh(&self) -> PathBuf {
            self.directory.path().join("mesh")
        }

        fn write(&self, file: &str, text: &str) {
            std::fs::write(self.mesh().join(file), text).unwrap();
        }

        fn files(&self) -> Files {
            files_of(&self.mesh()).unwrap()
        }

        fn bundle(&self, text: &str) -> PathBuf {
            let file = self.directory.path().join("bundle");
            std::fs::write(&file, text).unwrap();
            file
        }
    }

    #[test]
    fn what_was_signed_is_taken_as_a_bundle_and_as_a_directory() {
        let scene = Scene::new();
        let made = create(scene.files(), "v7", WHEN, &scene.key).unwrap();
        let bundle = verify(&scene.bundle(&made), &scene.keys).unwrap();
        let names: Vec<_> = bundle.files.keys().collect();
        assert_eq!(names, ["a.yaml", "shop/b.yml"]);
        assert_eq!((bundle.revision.as_str(), &bundle.key), ("v7", &scene.key.name()));
        // The same of the same, whoever lists the files.
        assert_eq!(create(scene.files(), "v7", WHEN, &scene.key).unwrap(), made);

        assert!(matches!(verify(&scene.mesh(), &scene.keys), Err(BundleError::Unsigned)));
        scene.write(SIGNATURE, &sign(scene.files(), "v7", WHEN, &scene.key).unwrap());
        let beside = verify(&scene.mesh(), &scene.keys).unwrap();
        assert_eq!((beside.digest, beside.files), (bundle.digest, bundle.files));
    }

    #[test]
    fn whatever_is_changed_is_found_out() {
        let scene = Scene::new();
        let made = create(scene.files(), "v7", WHEN, &scene.key).unwrap();
        let refused = |from: &str, to: &str| {
            assert!(made.contains(from), "{made}");
            verify(&scene.bundle(&made.replacen(from, to, 1)), &scene.keys).unwrap_err().to_string()
        };
        for (from, to) in [
            ("a: 1", "a: 2"),
            ("\"a.yaml\"", "\"z.yaml\""),
            ("\"revision\": \"v7\"", "\"revision\": \"v6\""),
            (WHEN, "2026-01-02T03:04:06Z"),
            ("\"files\": {", "\"files\": {\"more.yaml\": \"\","),
        ] {
            assert!(refused(from, to).contains("was changed since it was signed"), "{from}");
        }
        // What cannot be told apart by the text that is signed, or would be written elsewhere, is refused before.
        for path in ["../a.yaml", "/a.yaml", "a\\n.yaml", ".a.yaml", "a.txt"] {
            assert!(refused("\"a.yaml\"", &format!("\"{path}\"")).contains("is no path"), "{path}");
        }
        assert!(refused("\"revision\": \"v7\"", "\"revision\": \"v7\\nx\"").contains("one line"));
        assert!(refused("\"form\"", "\"from\"").contains("unknown field"));
        assert!(refused("bundle/1", "bundle/2").contains("it says"));

        scene.write(SIGNATURE, &sign(scene.files(), "v7", WHEN, &scene.key).unwrap());
        for (file, text) in [("a.yaml", "a: 2\n"), ("shop/new.yaml", "d: 4\n")] {
            let before = std::fs::read_to_string(scene.mesh().join(file)).ok();
            scene.write(file, text);
            assert!(matches!(verify(&scene.mesh(), &scene.keys), Err(BundleError::Changed { .. })), "{file}");
            match before {
                Some(before) => scene.write(file, &before),
                None => std::fs::remove_file(scene.mesh().join(file)).unwrap(),
            }
        }
        // What nobody reads is nobody's business.
        scene.write(".hidden.yaml", "c: 4\n");
        verify(&scene.mesh(), &scene.keys).unwrap();
    }

    #[test]
    fn only_keys_that_count_do() {
        let scene = Scene::new();
        let (other, public) = Scene::key(scene.directory.path(), "other");
        let file = scene.bundle(&create(scene.files(), "", WHEN, &other).unwrap());
        let error = verify(&file, &scene.keys).unwrap_err().to_string();
        assert!(error.contains(&other.name()) && error.contains(&scene.key.name()), "{error}");
        // While one key follows another both count.
        assert_eq!(verify(&file, &[scene.keys[0].clone(), public]).unwrap().key, other.name());
        assert!(verify(&file, &[]).is_err());
        // A stranger does not get in by another's name.
        let text = std::fs::read_to_string(&file).unwrap().replace(&other.name(), &scene.key.name());
        assert!(matches!(verify(&scene.bundle(&text), &scene.keys), Err(BundleError::Changed { .. })));
        // The halves are not taken for each other, nor other keys for these.
        let at = |name: &str| scene.directory.path().join(name);
        assert!(SigningKey::open(&at("k.pub")).unwrap_err().to_string().contains("no private key"));
        assert!(VerifyingKey::open(&at("k")).unwrap_err().to_string().contains("no public key"));
        assert!(VerifyingKey::open(&at("nowhere")).is_err());
    }
}
