//! A root whose key is kept where no control plane is: taking it there, and having another intermediate signed.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::json;
use time::OffsetDateTime;
use weft_certs::authority::Authority;
use weft_control::ca::changes::ChangeError;
use weft_control::ca::store::{ROOT_CERTIFICATE, ROOT_KEY};
use weft_control::ca::{State, offline};
use zeroize::Zeroizing;

use super::super::token::Output;
use super::client::Refused;
use super::{At, FileArgs, at, files, print, signs};

/// A request to be signed.
#[derive(Args, Debug)]
pub struct SignArgs {
    /// The request, as request-intermediate wrote it
    request: PathBuf,
    /// The file for the certificate; it must not be there yet
    certificate: PathBuf,
    /// The root's certificate and key in one file, as take-root-offline wrote it
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// How long the intermediate lives; not longer than the root
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = super::super::parse_duration)]
    ttl: std::time::Duration,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(super) fn take_root(args: &FileArgs) -> anyhow::Result<()> {
    let directory = &args.common.state_dir;
    let place = at(directory)?;
    let read = |file: &str| {
        let path = directory.join(file);
        std::fs::read_to_string(&path).map(Zeroizing::new).with_context(|| path.display().to_string())
    };
    if let At::Files(_) = &place {
        // Finishes what was cut off, and says if the store is damaged.
        State::load(directory)?;
    }
    let key =
        read(ROOT_KEY).context("the root's key is not in the state directory; is it offline already?")?;
    let root = Authority::load(&read(ROOT_CERTIFICATE)?, &key)?;
    let sha256 = weft_certs::digest::sha256_hex(root.key_pem().as_bytes());
    let both = Zeroizing::new(root.certificate_pem().to_owned() + root.key_pem());
    // There before it is gone.
    write_new(&args.file, &both, 0o600)?;
    let taken = match &place {
        At::Running(plane) => plane.post(&format!("/ca/take-root-offline?sha256={sha256}")).map(|_| ()),
        At::Files(_) => files(directory)?.take_root_offline(&sha256).map_err(Into::into),
    };
    taken.map_err(|error| not_taken(error, &args.file))?;
    let words = format!(
        "{}: the root and its key, which the control plane has no more; move the file to where it is safe, and keep it well: \
         without it there is no other intermediate, and the root has to be replaced (weft ca rotate-root). Backups from \
         before have the key, too",
        args.file.display()
    );
    print(&args.common, &json!({"file": args.file, "offline": true}), &words);
    Ok(())
}

/// What becomes of the copy of a key that the control plane did not say to have given away. Where it certainly has it still, the
/// copy is one too many. An answer that is lost, or an error after the change was written down, says no such thing.
fn not_taken(error: anyhow::Error, file: &Path) -> anyhow::Error {
    let here = error.downcast_ref::<ChangeError>().is_some_and(ChangeError::is_refusal);
    if here || error.is::<Refused>() {
        let _ = std::fs::remove_file(file);
        return error;
    }
    let file = file.display();
    error.context(format!(
        "{file} may be the only copy of the root's key: keep it, and look whether weft ca status says that the key is offline. If \
         it is not, remove {file} and try again"
    ))
}

pub(super) fn request(args: &FileArgs) -> anyhow::Result<()> {
    // Before an earlier request loses its meaning.
    anyhow::ensure!(!args.file.exists(), "{}: is there already, and is not replaced", args.file.display());
    let request = match at(&args.common.state_dir)? {
        At::Running(plane) => {
            let answer = plane.post("/ca/request-intermediate")?;
            answer["request"].as_str().context("the control plane gave no request")?.to_owned()
        }
        At::Files(_lock) => files(&args.common.state_dir)?.request_intermediate()?,
    };
    write_new(&args.file, &request, 0o644)?;
    let words = format!(
        "{}: have it signed where the root's key is (weft ca sign-intermediate), and bring the certificate back (weft ca \
         take-intermediate); an earlier request is of no use any more",
        args.file.display()
    );
    print(&args.common, &json!({"file": args.file}), &words);
    Ok(())
}

pub(super) fn sign(args: &SignArgs) -> anyhow::Result<()> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map(Zeroizing::new).with_context(|| path.display().to_string())
    };
    let (root, request) = (read(&args.root)?, read(&args.request)?);
    let life = time::Duration::try_from(args.ttl)?;
    let certificate = offline::sign(&root, &request, OffsetDateTime::now_utc(), life)?;
    write_new(&args.certificate, &certificate, 0o644)?;
    match args.output {
        Output::Text => println!(
            "{}: bring it to the control plane (weft ca take-intermediate)",
            args.certificate.display()
        ),
        Output::Json => println!("{}", json!({"file": args.certificate})),
    }
    Ok(())
}

pub(super) fn take(args: &FileArgs) -> anyhow::Result<()> {
    let certificate = std::fs::read_to_string(&args.file).with_context(|| args.file.display().to_string())?;
    let answer = match at(&args.common.state_dir)? {
        At::Running(plane) => plane.send("/ca/take-intermediate", &certificate)?,
        At::Files(_lock) => {
            let now = OffsetDateTime::now_utc();
            json!({"signs": files(&args.common.state_dir)?.take_requested(&certificate, now)?})
        }
    };
    print(&args.common, &answer, signs(&answer));
    Ok(())
}

/// Writes a file that is not there yet. It is on the disk, with its name, before this returns.
fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let opened = std::fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(path);
    let written = opened.and_then(|mut out| {
        let whole = out
            .write_all(text.as_bytes())
            .and_then(|()| out.sync_all())
            .and_then(|()| std::fs::File::open(directory)?.sync_all());
        if whole.is_err() {
            // Half a key is of no use, and nobody counts on it yet.
            let _ = std::fs::remove_file(path);
        }
        whole
    });
    written
        .with_context(|| format!("{}: cannot be written; an existing file is not replaced", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use weft_certs::authority::KeyKind;
    use weft_control::ca::status::Status;
    use weft_control::ca::store::{Lock, Shape};
    use weft_control::ca::{CertificateAuthority, Limits};
    use weft_control::serve::authority::SOCKET;

    use super::super::Common;
    use super::*;

    /// Takes the root offline beside a control plane whose answer to that is what `answer` gives; the copy, and what the
    /// command says.
    fn beside(
        answer: impl FnOnce(&CertificateAuthority, &str) -> String + Send + 'static,
    ) -> (Option<String>, anyhow::Result<()>) {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = directory.path().join("state");
        let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Shape::default() };
        let state = State::open(&state_dir, shape, OffsetDateTime::now_utc()).unwrap();
        let _lock = Lock::take(&state_dir).unwrap().unwrap();
        let status = json!(Status::of(&state)).to_string();
        let domain = "cluster.local".parse().unwrap();
        let authority: Arc<CertificateAuthority> =
            CertificateAuthority::new(state, Limits::default(), domain, Some(state_dir.clone())).unwrap();
        let listener = UnixListener::bind(state_dir.join(SOCKET)).unwrap();
        let plane = std::thread::spawn(move || {
            type Answer = Box<dyn FnOnce(&str) -> String>;
            let answers: [Answer; 2] = [
                Box::new(move |_: &str| format!("HTTP/1.1 200 OK\r\n\r\n{status}")),
                Box::new(move |asked: &str| {
                    let sha256 = asked.split("sha256=").nth(1).and_then(|rest| rest.split(' ').next());
                    answer(&authority, sha256.unwrap())
                }),
            ];
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    asked.push(byte[0]);
                }
                stream.write_all(answer(&String::from_utf8(asked).unwrap()).as_bytes()).unwrap();
            }
        });
        let file = directory.path().join("root.pem");
        let common = Common { state_dir, output: Output::Json };
        let taken = take_root(&FileArgs { file: file.clone(), common });
        plane.join().unwrap();
        (std::fs::read_to_string(file).ok(), taken)
    }

    #[test]
    fn the_roots_key_is_kept_where_the_control_plane_may_have_given_it_away_and_not_where_it_refused() {
        // The answer is lost, after the key was.
        let (copy, taken) = beside(|authority, sha256| {
            authority.take_root_offline(sha256).unwrap();
            String::new()
        });
        let copy = copy.unwrap();
        Authority::load(&copy, &copy).unwrap();
        let words = format!("{:#}", taken.unwrap_err());
        assert!(words.contains("keep it") && words.contains("weft ca status"), "{words}");

        // An error that says nothing of what is different, as of an earlier control plane.
        let (copy, taken) =
            beside(|_, _| "HTTP/1.1 409 Conflict\r\n\r\n{\"error\": \"no space\"}".to_owned());
        let words = format!("{:#}", taken.unwrap_err());
        assert!(copy.is_some() && words.contains("keep it") && words.contains("no space"), "{words}");

        let (copy, taken) = beside(|_, _| {
            let error = ChangeError::OtherRoot;
            let body = json!({"error": error.to_string(), "refused": error.is_refusal()});
            format!("HTTP/1.1 409 Conflict\r\n\r\n{body}")
        });
        let words = format!("{:#}", taken.unwrap_err());
        assert!(copy.is_none() && words.contains("try again") && !words.contains("keep it"), "{words}");
    }

    #[test]
    fn without_a_control_plane_the_copy_goes_only_where_nothing_was_changed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("root.pem");
        for (error, kept) in [
            (ChangeError::AlreadyOffline, false),
            (ChangeError::UnderWay, false),
            (ChangeError::NotTaken("the disk is full".to_owned()), true),
        ] {
            std::fs::write(&file, "key").unwrap();
            let told = format!("{:#}", not_taken(error.into(), &file));
            assert_eq!((file.exists(), told.contains("keep it")), (kept, kept), "{told}");
        }
    }
}
